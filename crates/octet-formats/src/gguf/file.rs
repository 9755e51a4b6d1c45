//! A GGUF model: one file, or the parts it was split into.

use super::{BlockType, GgufError, Header, TensorInfo, Value, parse_header};
use crate::{Error, Result, map::map};
use octet_tensor::Bytes;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Most parts of a model.
const MOST_PARTS: u64 = 1024;

/// An opened GGUF model; only headers were read, tensors are memory-mapped.
pub struct File {
    name: String,
    parts: Vec<Part>,
    /// The part and place of each tensor.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

struct Part {
    name: String,
    bytes: Bytes,
}

impl File {
    /// Opens the file at `path`; of a model in parts (`…-00001-of-00003.gguf`) any part may be given.
    ///
    /// # Errors
    /// If a file cannot be opened, is damaged, or a part is missing.
    pub fn open(path: &Path) -> Result<Self> {
        let first = open_part(path)?;
        let split = part_count(&first)?;
        let parts =
            if split <= 1 { vec![first] } else { part_paths(path, split)?.iter().map(|path| open_part(path)).collect::<Result<_>>()? };
        Self::of_parts(parts)
    }

    /// A model of one file in memory.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn from_bytes(name: &str, bytes: Bytes) -> Result<Self> {
        Self::of_parts(vec![Part { name: name.into(), bytes }])
    }

    fn of_parts(parts: Vec<Part>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (index, part) in parts.iter().enumerate() {
            for info in part.header()?.tensors {
                let name = info.name.clone();
                if let Some((other, _)) = tensors.insert(name.clone(), (index, info)) {
                    let (first, second) = (parts[other].name.clone(), part.name.clone());
                    return Err(Error::DuplicateTensor { name, first, second });
                }
            }
        }
        let name = parts.first().map_or_else(String::new, |part| part.name.clone());
        Ok(Self { name, parts, tensors })
    }

    /// The name of the (first) file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Keys and values of the (first) file.
    ///
    /// # Errors
    /// Never for a file that was opened.
    pub fn metadata(&self) -> Result<BTreeMap<&str, Value<'_>>> {
        self.parts.first().map_or_else(|| Ok(BTreeMap::new()), |part| part.header().map(|header| header.metadata))
    }

    /// Name, shape (outermost first) and type of every tensor, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize], BlockType)> {
        self.tensors.iter().map(|(name, (_, info))| (name.as_str(), &info.shape[..], info.kind))
    }

    /// The values of a tensor of plain floats; `None` where there is no such tensor or it holds blocks.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let (info, data, _) = self.tensor(name)?;
        let mut out = vec![0.0; info.shape.iter().product()];
        super::rows::read_floats(name, info.kind.dtype()?, &data, &mut out).ok()?;
        Some(out)
    }

    /// A tensor, its bytes and the name of its file.
    pub(super) fn tensor(&self, name: &str) -> Option<(&TensorInfo, Bytes, &str)> {
        let (index, info) = self.tensors.get(name)?;
        let part = self.parts.get(*index)?;
        Some((info, part.bytes.slice(info.range.clone())?, &part.name))
    }
}

impl Part {
    fn header(&self) -> Result<Header<'_>> {
        parse_header(&self.bytes).map_err(|e: GgufError| Error::Gguf { file: self.name.clone(), what: e.to_string() })
    }
}

fn open_part(path: &Path) -> Result<Part> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    match map(path)? {
        Some(bytes) => Ok(Part { name, bytes }),
        None => {
            let folder = path.parent().map_or_else(String::new, |folder| folder.display().to_string());
            Err(Error::NoFile { folder, file: name, remedy: "download it, and every other part of the model".into() })
        }
    }
}

/// How many parts the model has.
fn part_count(part: &Part) -> Result<u64> {
    let count = part.header()?.metadata.get("split.count").and_then(Value::as_u64).unwrap_or(1);
    if count <= MOST_PARTS {
        return Ok(count);
    }
    Err(Error::Gguf { file: part.name.clone(), what: format!("split.count is {count}, more than the {MOST_PARTS} parts a model has") })
}

/// The paths of all parts, from that of one.
fn part_paths(path: &Path, count: u64) -> Result<Vec<PathBuf>> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let end = format!("-of-{count:05}.gguf");
    let stem = name.strip_suffix(&end).and_then(|rest| rest.split_at_checked(rest.len().checked_sub(6)?));
    match stem.filter(|(_, number)| number.starts_with('-') && number[1..].parse::<u32>().is_ok()) {
        Some((stem, _)) => Ok((1..=count).map(|part| path.with_file_name(format!("{stem}-{part:05}{end}"))).collect()),
        None => Err(Error::Gguf {
            what: format!("is one of {count} parts, but is not called NAME-00001{end}; give the parts their original names"),
            file: name,
        }),
    }
}
