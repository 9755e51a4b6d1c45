//! Writing a GGUF file piece by piece: the header first, tensors in any order, nothing held in memory.

use super::BlockType;
use crate::{Error, Result, flush::Flusher, staging::available_bytes};
use std::{
    collections::HashMap,
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Where tensors begin: at multiples of this.
const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Meta {
    /// An unsigned number of 32 bits.
    U32(u32),
    /// A float of 32 bits.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of signed numbers of 32 bits.
    I32s(Vec<i32>),
    /// A list of floats of 32 bits.
    F32s(Vec<f32>),
    /// A list of truth values.
    Bools(Vec<bool>),
}

impl Meta {
    fn write(&self, out: &mut Vec<u8>) {
        let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
        let list = |out: &mut Vec<u8>, of: u32, len: usize| {
            kind(out, 9);
            kind(out, of);
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U32(value) => {
                kind(out, 4);
                out.extend(value.to_le_bytes());
            }
            Self::F32(value) => {
                kind(out, 6);
                out.extend(value.to_le_bytes());
            }
            Self::Bool(value) => {
                kind(out, 7);
                out.push(u8::from(*value));
            }
            Self::Text(value) => {
                kind(out, 8);
                text(out, value);
            }
            Self::Texts(values) => {
                list(out, 8, values.len());
                values.iter().for_each(|value| text(out, value));
            }
            Self::I32s(values) => {
                list(out, 5, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::F32s(values) => {
                list(out, 6, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::Bools(values) => {
                list(out, 7, values.len());
                out.extend(values.iter().map(|&value| u8::from(value)));
            }
        }
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub kind: BlockType,
    /// Shape, outermost first; the last dimension is made of whole blocks.
    pub shape: Vec<usize>,
}

impl NewTensor {
    /// Bytes it takes, or `None` where its rows are not made of whole blocks or that overflows.
    pub fn bytes(&self) -> Option<u64> {
        let (&cols, outer) = self.shape.split_last()?;
        let row = cols.is_multiple_of(self.kind.block()).then(|| cols / self.kind.block() * self.kind.block_bytes())? as u64;
        outer.iter().try_fold(row, |all, &n| all.checked_mul(n as u64))
    }
}

/// Writes one file.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    tensors: HashMap<String, Slot>,
    bytes: u64,
    flusher: Option<Flusher>,
}

#[derive(Debug)]
struct Slot {
    offset: u64,
    bytes: u64,
    written: u64,
}

impl Writer {
    /// Creates the file with its header and room for all tensors.
    ///
    /// # Errors
    /// If a name is given twice, a row is not made of whole blocks, the disk has too little space, or the file cannot be created.
    pub fn create(path: &Path, metadata: &[(String, Meta)], tensors: &[NewTensor]) -> Result<Self> {
        let mut header = b"GGUF\x03\0\0\0".to_vec();
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            text(&mut header, key);
            value.write(&mut header);
        }
        let (mut slots, mut end) = (HashMap::new(), 0u64);
        for tensor in tensors {
            let fail = |what: &str| Error::Writer { name: tensor.name.clone(), what: what.into() };
            let bytes = tensor.bytes().ok_or_else(|| fail("cannot be written: its rows are not made of whole blocks"))?;
            text(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&n| header.extend((n as u64).to_le_bytes()));
            header.extend(tensor.kind.number().to_le_bytes());
            header.extend(end.to_le_bytes());
            if slots.insert(tensor.name.clone(), Slot { offset: end, bytes, written: 0 }).is_some() {
                return Err(fail("cannot be written: the name is taken by another tensor"));
            }
            end = (end + bytes).next_multiple_of(ALIGNMENT);
        }
        let start = (header.len() as u64).next_multiple_of(ALIGNMENT);
        header.resize(start as usize, 0);
        slots.values_mut().for_each(|slot| slot.offset += start);
        let total = start + end;
        let folder = path.parent().unwrap_or(Path::new("."));
        if let Some(available) = available_bytes(folder).filter(|&free| free < total) {
            return Err(Error::DiskFull { path: path.display().to_string(), needed: total, available: Some(available) });
        }
        let create = || {
            let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
            file.write_all(&header)?;
            file.set_len(total)?;
            Ok(file)
        };
        let file = create().map_err(Error::io("write", path))?;
        let flusher = Flusher::new(&file, total);
        Ok(Self { path: path.into(), file, tensors: slots, bytes: total, flusher })
    }

    /// Bytes of the whole file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes `bytes` of the tensor `name`, beginning at byte `offset` of it; every byte is written once.
    ///
    /// # Errors
    /// If there is no such tensor, it ends earlier, or the disk fails.
    pub fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let fail = |what: String| Err(Error::Writer { name: name.into(), what });
        let Some(slot) = self.tensors.get_mut(name) else { return fail("was not announced".into()) };
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > slot.bytes) {
            return fail(format!("has {} bytes, {} were to be written at {offset}", slot.bytes, bytes.len()));
        }
        slot.written += bytes.len() as u64;
        let at = slot.offset + offset;
        let mut write = || self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytes));
        write().map_err(Error::io("write", &self.path))?;
        if let Some(flusher) = &mut self.flusher {
            flusher.wrote(bytes.len());
        }
        Ok(())
    }

    /// Checks that nothing is missing and brings the file to disk.
    ///
    /// # Errors
    /// If a tensor was not written whole, or the disk fails.
    pub fn finish(mut self) -> Result<()> {
        if let Some((name, slot)) = self.tensors.iter().find(|(_, slot)| slot.written != slot.bytes) {
            let what = format!("was written in {} of its {} bytes", slot.written, slot.bytes);
            return Err(Error::Writer { name: name.clone(), what });
        }
        Flusher::sync(&mut self.flusher, &self.file).map_err(Error::io("write", &self.path))
    }
}
