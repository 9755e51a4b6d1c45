//! Writing safetensors files piece by piece: the header first, tensors in any order, nothing held in memory.

use super::{INDEX, MAX_HEADER, SINGLE};
use crate::{Error, Result, flush::Flusher, staging::available_bytes};
use octet_tensor::Dtype;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// How many bytes it takes, or `None` where that overflows.
    pub fn bytes(&self) -> Option<u64> {
        self.shape.iter().try_fold(self.dtype.size() as u64, |all, &n| all.checked_mul(n as u64))
    }
}

/// Writes `model.safetensors`, or shards and their index, into a folder.
#[derive(Debug)]
pub struct Writer {
    files: Vec<Shard>,
    tensors: HashMap<String, Slot>,
    index: Option<(PathBuf, Value)>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    bytes: u64,
    flusher: Option<Flusher>,
}

type NamedSlots = Vec<(String, Slot)>;

/// Where a tensor goes and which of its bytes were written.
#[derive(Debug)]
struct Slot {
    file: usize,
    offset: u64,
    bytes: u64,
    written: BTreeMap<u64, u64>,
}

impl Writer {
    /// Creates the files in `dir` with their headers; `specs` are dealt to shards of at most `max_shard_bytes` in order
    /// (a larger tensor has a shard of its own). `metadata` joins octet's version in every header, and `format: pt` unless it says otherwise.
    ///
    /// # Errors
    /// If a name is given twice, the disk has too little space, or a file exists or cannot be created.
    pub fn create(dir: &Path, specs: Vec<TensorSpec>, max_shard_bytes: u64, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let total = total_bytes(&specs)?;
        if let Some(available) = available_bytes(dir).filter(|&free| free < total) {
            return Err(Error::DiskFull { path: dir.display().to_string(), needed: total, available: Some(available) });
        }
        let shards = deal(specs, max_shard_bytes);
        let count = shards.len();
        let (mut files, mut tensors, mut weight_map) = (vec![], HashMap::new(), BTreeMap::new());
        for (i, specs) in shards.into_iter().enumerate() {
            let name = shard_name(i, count);
            let (header, slots) = layout(specs, metadata, i)?;
            for (tensor, slot) in slots {
                weight_map.insert(tensor.clone(), name.clone());
                if tensors.insert(tensor.clone(), slot).is_some() || tensor == "__metadata__" {
                    return Err(Error::Writer { name: tensor, what: "cannot be written: the name is taken by another tensor".into() });
                }
            }
            let bytes = header.len() as u64 + tensors.values().filter(|slot| slot.file == i).map(|slot| slot.bytes).sum::<u64>();
            files.push(Shard::create(dir.join(name), &header, bytes)?);
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let index = (count > 1).then(|| (dir.join(INDEX), index));
        Ok(Self { files, tensors, index })
    }

    /// As [`Writer::create`], but goes on with files that an earlier writer of the same tensors left unfinished; those called
    /// `finished` count as written.
    ///
    /// # Errors
    /// If a file is missing or was made for other tensors.
    pub fn resume(
        dir: &Path,
        specs: Vec<TensorSpec>,
        max_shard_bytes: u64,
        metadata: &BTreeMap<String, String>,
        finished: &BTreeSet<String>,
    ) -> Result<Self> {
        let total = total_bytes(&specs)?;
        let shards = deal(specs, max_shard_bytes);
        let count = shards.len();
        let (mut files, mut tensors, mut weight_map) = (vec![], HashMap::new(), BTreeMap::new());
        for (i, specs) in shards.into_iter().enumerate() {
            let name = shard_name(i, count);
            let (header, mut slots) = layout(specs, metadata, i)?;
            let bytes = header.len() as u64 + slots.iter().map(|(_, slot)| slot.bytes).sum::<u64>();
            files.push(Shard::reopen(dir.join(&name), &header, bytes)?);
            for (tensor, slot) in slots.iter_mut() {
                weight_map.insert(tensor.clone(), name.clone());
                if finished.contains(tensor) {
                    slot.mark(0, slot.bytes);
                }
            }
            tensors.extend(slots);
        }
        let path = dir.join(INDEX);
        if path.exists() {
            std::fs::remove_file(&path).map_err(Error::io("clear", &path))?;
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        Ok(Self { files, tensors, index: (count > 1).then_some((path, index)) })
    }

    /// Writes the index now, where there is one: readers then open the unfinished files too.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_index(&mut self) -> Result<()> {
        let Some((path, index)) = self.index.take() else { return Ok(()) };
        let text = format!("{index:#}\n");
        let write = || File::create(&path).and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        write().map_err(failed(&path, text.len() as u64))
    }

    /// Brings everything written so far to disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&self) -> Result<()> {
        self.files.iter().try_for_each(|shard| {
            let flushed = shard.file.sync_data().and_then(|()| shard.flusher.as_ref().map_or(Ok(()), Flusher::check));
            flushed.map_err(failed(&shard.path, shard.bytes))
        })
    }

    /// Bytes that files with these tensors take, headers included (the index of a sharded checkpoint, well below a
    /// thousandth, is not counted).
    ///
    /// # Errors
    /// As [`Writer::create`], as far as that depends on the tensors alone.
    pub fn forecast(specs: Vec<TensorSpec>, max_shard_bytes: u64, metadata: &BTreeMap<String, String>) -> Result<u64> {
        let total = total_bytes(&specs)?;
        let headers = deal(specs, max_shard_bytes).into_iter().enumerate().map(|(i, specs)| Ok(layout(specs, metadata, i)?.0.len() as u64));
        Ok(total + headers.sum::<Result<u64>>()?)
    }

    /// Writes `bytes` at `offset` of the tensor `name`.
    ///
    /// # Errors
    /// If there is no such tensor, the bytes reach past its end or were written before, or the disk is full.
    pub fn write(&mut self, name: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        let fail = |what: &str| Err(Error::Writer { name: name.into(), what: what.into() });
        let Some(slot) = self.tensors.get_mut(name) else { return fail("was not announced to the writer") };
        let (start, end) = (offset as u64, offset as u64 + bytes.len() as u64);
        if end > slot.bytes {
            return fail(&format!("has {} bytes, but bytes {start}..{end} were to be written", slot.bytes));
        }
        if !slot.mark(start, end) {
            return fail(&format!("some of its bytes {start}..{end} were written before"));
        }
        let shard = &mut self.files[slot.file];
        shard.write(slot.offset + start, bytes)?;
        if let Some(flusher) = &mut shard.flusher {
            flusher.wrote(bytes.len());
        }
        Ok(())
    }

    /// Checks that every byte of every tensor was written, writes the index and brings all to disk.
    ///
    /// # Errors
    /// If bytes are missing (the tensor is named), or the disk is full.
    pub fn finish(mut self) -> Result<()> {
        let mut missing: Vec<_> = self.tensors.iter().filter(|(_, slot)| !slot.is_complete()).collect();
        missing.sort_by_key(|(name, _)| name.as_str());
        if let Some((name, slot)) = missing.first() {
            let written: u64 = slot.written.iter().map(|(start, end)| end - start).sum();
            let what = format!("only {written} of its {} bytes were written ({} tensors are incomplete)", slot.bytes, missing.len());
            return Err(Error::Writer { name: name.to_string(), what });
        }
        for shard in &mut self.files {
            Flusher::sync(&mut shard.flusher, &shard.file).map_err(failed(&shard.path, shard.bytes))?;
        }
        self.write_index()
    }
}

fn shard_name(index: usize, count: usize) -> String {
    if count == 1 { SINGLE.into() } else { format!("model-{:05}-of-{count:05}.safetensors", index + 1) }
}

impl Shard {
    /// Opens a file that has this header and size.
    fn reopen(path: PathBuf, header: &[u8], bytes: u64) -> Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(Error::io("open", &path))?;
        let mut found = vec![0; header.len()];
        let same = file.metadata().is_ok_and(|meta| meta.len() == bytes) && file.read_exact(&mut found).is_ok() && found == header;
        if !same {
            return Err(Error::Writer { name: path.display().to_string(), what: "was made for other tensors; begin anew".into() });
        }
        let flusher = Flusher::new(&file, bytes);
        Ok(Self { path, file, bytes, flusher })
    }

    fn create(path: PathBuf, header: &[u8], bytes: u64) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed(&path, bytes))?;
        let flusher = Flusher::new(&file, bytes);
        let mut shard = Self { path, file, bytes, flusher };
        shard.write(0, header)?;
        shard.file.set_len(bytes).map_err(failed(&shard.path, bytes))?;
        Ok(shard)
    }

    #[cfg(unix)]
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset).map_err(failed(&self.path, self.bytes))
    }

    #[cfg(not(unix))]
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        use io::{Seek, SeekFrom};
        let written = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        written.map_err(failed(&self.path, self.bytes))
    }
}

impl Slot {
    /// Notes bytes `start..end` as written; `false` where one of them was.
    fn mark(&mut self, start: u64, end: u64) -> bool {
        if start == end {
            return true;
        }
        let before = self.written.range(..=start).next_back().map(|(&s, &e)| (s, e));
        let after = self.written.range(start..).next().map(|(&s, &e)| (s, e));
        if before.is_some_and(|(_, e)| e > start) || after.is_some_and(|(s, _)| s < end) {
            return false;
        }
        let merged_start = before.filter(|&(_, e)| e == start).map_or(start, |(s, _)| s);
        let merged_end = after.filter(|&(s, _)| s == end).map_or(end, |(s, e)| {
            self.written.remove(&s);
            e
        });
        self.written.insert(merged_start, merged_end);
        true
    }

    fn is_complete(&self) -> bool {
        self.bytes == 0 || self.written.get(&0) == Some(&self.bytes)
    }
}

/// An error of writing to a file that will have `needed` bytes; a full disk is told apart.
fn failed(path: &Path, needed: u64) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::DiskFull { path: path.display().to_string(), needed, available: available_bytes(&path) }
        }
        _ => Error::io("write", &path)(source),
    }
}

fn total_bytes(specs: &[TensorSpec]) -> Result<u64> {
    specs.iter().try_fold(0u64, |total, spec| {
        let sum = spec.bytes().and_then(|bytes| total.checked_add(bytes));
        sum.ok_or_else(|| Error::Writer { name: spec.name.clone(), what: format!("{} {:?} is too large", spec.dtype, spec.shape) })
    })
}

/// Deals tensors to shards in order; there is always at least one shard.
fn deal(specs: Vec<TensorSpec>, max_shard_bytes: u64) -> Vec<Vec<TensorSpec>> {
    let (mut shards, mut filled) = (vec![vec![]], 0);
    for spec in specs {
        let bytes = spec.bytes().unwrap_or(u64::MAX);
        if filled > 0 && filled + bytes > max_shard_bytes {
            shards.push(vec![]);
            filled = 0;
        }
        filled += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(spec);
        }
    }
    shards
}

/// The header of a shard and where its tensors go. Wide elements come first, so that all are aligned to their size.
fn layout(mut specs: Vec<TensorSpec>, metadata: &BTreeMap<String, String>, file: usize) -> Result<(Vec<u8>, NamedSlots)> {
    specs.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.size()));
    let mut all = metadata.clone();
    all.entry("format".into()).or_insert_with(|| "pt".into());
    all.insert("octet_version".into(), env!("CARGO_PKG_VERSION").into());
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!(all));
    let (mut slots, mut offset) = (vec![], 0);
    for spec in specs {
        let bytes = spec.bytes().unwrap_or(u64::MAX);
        let info = json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [offset, offset + bytes]});
        header.insert(spec.name.clone(), info);
        slots.push((spec.name, Slot { file, offset, bytes, written: BTreeMap::new() }));
        offset += bytes;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() > MAX_HEADER {
        return Err(Error::Writer { name: SINGLE.into(), what: format!("{} tensors make a header of {} bytes", slots.len(), json.len()) });
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    slots.iter_mut().for_each(|(_, slot)| slot.offset += bytes.len() as u64);
    Ok((bytes, slots))
}
