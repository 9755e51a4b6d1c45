//! Writing an archive of arrays a piece at a time.

use crate::{Error, Result, flush::Flusher, npy, safetensors::TensorSpec};
use flate2::Crc;
use half::bf16;
use octet_tensor::Dtype;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Version 4.5 of the format: sizes may have 64 bits.
const VERSION: u16 = 45;
const NONE: u32 = u32::MAX;

/// Writes an archive; each array's bytes come in order, arrays in any.
pub struct Writer {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
    end: u64,
    flusher: Option<Flusher>,
}

struct Entry {
    /// Where its local header is.
    local: u64,
    /// Where its bytes, the array's header included, are.
    start: u64,
    bytes: u64,
    written: u64,
    crc: Crc,
    /// Whether numbers come as BF16, which numpy does not have, and are widened.
    widened: bool,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::io("write", path)
}

impl Writer {
    /// Creates the archive with room for `specs`.
    ///
    /// # Errors
    /// If a type has no counterpart in numpy, a name is given twice, or the file cannot be written.
    pub fn create(path: &Path, specs: &[TensorSpec]) -> Result<Self> {
        let file = File::create_new(path).map_err(Error::io("create", path))?;
        let mut writer = Self { path: path.into(), file, entries: BTreeMap::new(), end: 0, flusher: None };
        for spec in specs {
            let descr = descr(spec.dtype).ok_or_else(|| writer.error(&spec.name, format!("numpy has no {}", spec.dtype)))?;
            let widened = spec.dtype == Dtype::Bf16;
            let head = npy::header(descr, &spec.shape);
            let data = spec.bytes().and_then(|bytes| bytes.checked_mul(if widened { 2 } else { 1 }));
            let data = data.ok_or_else(|| writer.error(&spec.name, format!("{:?} is too large", spec.shape)))?;
            let local = writer.end;
            let start = local + local_header(&spec.name, 0, 0).len() as u64;
            let bytes = head.len() as u64 + data;
            let mut entry = Entry { local, start, bytes, written: 0, crc: Crc::new(), widened };
            writer.end = start + bytes;
            writer.put(&spec.name, &mut entry, &head)?;
            if writer.entries.insert(spec.name.clone(), entry).is_some() {
                return Err(writer.error(&spec.name, "cannot be written: the name is taken by another array".into()));
            }
        }
        writer.flusher = Flusher::new(&writer.file, writer.end);
        Ok(writer)
    }

    fn error(&self, name: &str, what: String) -> Error {
        Error::Writer { name: name.into(), what }
    }

    fn at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes)).map_err(failed(&self.path))?;
        if let Some(flusher) = &mut self.flusher {
            flusher.wrote(bytes.len());
        }
        Ok(())
    }

    fn put(&mut self, name: &str, entry: &mut Entry, bytes: &[u8]) -> Result<()> {
        if entry.written + bytes.len() as u64 > entry.bytes {
            return Err(self.error(name, "more bytes were given than it has".into()));
        }
        self.at(entry.start + entry.written, bytes)?;
        entry.crc.update(bytes);
        entry.written += bytes.len() as u64;
        Ok(())
    }

    /// Appends the next bytes of the array `name`.
    ///
    /// # Errors
    /// If there is no such array, it has no room for them, or the disk is full.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(mut entry) = self.entries.remove(name) else { return Err(self.error(name, "was not announced to the writer".into())) };
        if entry.widened {
            let wide: Vec<u8> = bytes.as_chunks::<2>().0.iter().flat_map(|&b| f32::from(bf16::from_le_bytes(b)).to_le_bytes()).collect();
            self.put(name, &mut entry, &wide)?;
        } else {
            self.put(name, &mut entry, bytes)?;
        }
        self.entries.insert(name.into(), entry);
        Ok(())
    }

    /// Checks that nothing is missing, writes the directory and brings all to disk.
    ///
    /// # Errors
    /// If an array is incomplete or the disk is full.
    pub fn finish(mut self) -> Result<()> {
        let mut directory = vec![];
        let entries: Vec<(String, Entry)> = std::mem::take(&mut self.entries).into_iter().collect();
        let count = entries.len() as u64;
        for (name, entry) in entries {
            if entry.written != entry.bytes {
                return Err(self.error(&name, format!("only {} of its {} bytes were written", entry.written, entry.bytes)));
            }
            self.at(entry.local, &local_header(&name, entry.crc.sum(), entry.bytes))?;
            directory.extend(central_header(&name, entry.crc.sum(), entry.bytes, entry.local));
        }
        let (start, size) = (self.end, directory.len() as u64);
        directory.extend(end_records(count, start, size));
        self.at(start, &directory)?;
        Flusher::sync(&mut self.flusher, &self.file).map_err(failed(&self.path))
    }
}

/// numpy's name of an element type; BF16 is widened to F32, which holds every such number.
fn descr(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F32 | Dtype::Bf16 => "<f4",
        Dtype::F16 => "<f2",
        Dtype::F64 => "<f8",
        Dtype::I8 => "|i1",
        Dtype::U8 => "|u1",
        Dtype::I32 => "<i4",
        Dtype::I64 => "<i8",
        _ => return None,
    })
}

/// Flags, method, time and date: names in UTF-8, stored, the first day of the format.
fn common(crc: u32) -> Vec<u8> {
    let words = [1u16 << 11, 0, 0, 0x21];
    [
        words.iter().flat_map(|w| w.to_le_bytes()).collect(),
        crc.to_le_bytes().to_vec(),
        [NONE, NONE].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>(),
    ]
    .concat()
}

fn lengths(name: &str, extra: usize) -> Vec<u8> {
    [name.len() as u16 + 4, extra as u16].iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn extra(numbers: &[u64]) -> Vec<u8> {
    let head = [1u16, 8 * numbers.len() as u16].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    [head, numbers.iter().flat_map(|n| n.to_le_bytes()).collect()].concat()
}

fn local_header(name: &str, crc: u32, bytes: u64) -> Vec<u8> {
    let extra = extra(&[bytes, bytes]);
    [b"PK\x03\x04", &VERSION.to_le_bytes()[..], &common(crc), &lengths(name, extra.len()), name.as_bytes(), b".npy", &extra].concat()
}

fn central_header(name: &str, crc: u32, bytes: u64, local: u64) -> Vec<u8> {
    let extra = extra(&[bytes, bytes, local]);
    let versions = [VERSION, VERSION].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    // Comment, disk, attributes inside and outside, and where the local header is: in the extra field.
    let rest = [&[0u8; 10][..], &NONE.to_le_bytes()].concat();
    [b"PK\x01\x02", &versions[..], &common(crc), &lengths(name, extra.len()), &rest, name.as_bytes(), b".npy", &extra].concat()
}

/// The end of the directory in 64 bits, where that is, and the old end that points there.
fn end_records(count: u64, start: u64, size: u64) -> Vec<u8> {
    let mut out = b"PK\x06\x06".to_vec();
    out.extend(44u64.to_le_bytes());
    out.extend([VERSION, VERSION].iter().flat_map(|n| n.to_le_bytes()));
    out.extend([0u32; 2].iter().flat_map(|n| n.to_le_bytes()));
    out.extend([count, count, size, start].iter().flat_map(|n| n.to_le_bytes()));
    out.extend([b"PK\x06\x07", &0u32.to_le_bytes()[..], &(start + size).to_le_bytes(), &1u32.to_le_bytes()].concat());
    out.extend([b"PK\x05\x06", &[0u8; 4][..], &[0xff; 12], &[0; 2]].concat());
    out
}
