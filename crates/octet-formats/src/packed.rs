//! `model.packed`: matrices in the layout kernels execute, beside the weights they were made from, so that opening a model is a
//! map and no copy.
//!
//! A preamble of 64 bytes (magic, version of this format, version of the kernels' layout, where the header is and its checksum), the
//! matrices, then the header (JSON). The header names the files the matrices were made from with their SHA-256, and every matrix with
//! a checksum. Whatever does not fit is not used and the weights are packed again: the file saves time and decides nothing.

use crate::{Error, Folder, Result};
use octet_tensor::{Bytes, Scheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
};

/// The name of the file.
pub const FILE: &str = "model.packed";

const MAGIC: [u8; 8] = *b"octpack\n";
const FORMAT: u32 = 1;

/// Matrices start at multiples of a cache line, and so does the first, after the preamble.
const ALIGN: usize = 64;

/// Longest header that is believed.
const MAX_HEADER: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    octet_version: String,
    sources: Vec<Source>,
    matrices: BTreeMap<String, Vec<Rows>>,
}

/// A file that matrices were made from.
#[derive(Serialize, Deserialize)]
struct Source {
    file: String,
    bytes: u64,
    sha256: String,
    /// Nanoseconds since 1970; while it and the size are the same, the file is taken to be the same.
    modified: Option<u64>,
}

/// Some rows of a matrix.
#[derive(Serialize, Deserialize)]
struct Rows {
    first: usize,
    rows: usize,
    scheme: String,
    offset: usize,
    bytes: usize,
    checksum: u64,
}

/// An opened `model.packed` that belongs to the weights beside it.
pub struct Packed {
    bytes: Bytes,
    layout: u32,
    matrices: BTreeMap<String, Vec<Rows>>,
}

impl Packed {
    /// Opens the file of `folder`; `Ok(None)` where there is none, `Err` with a sentence where it cannot be used.
    pub fn open(folder: &Folder) -> std::result::Result<Option<Self>, String> {
        let Some(bytes) = folder.read(FILE).map_err(|e| e.to_string())? else { return Ok(None) };
        let number = |at: usize| bytes.get(at..at + 8).map_or(0, |b| b.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b)));
        let (versions, offset, length, sealed) = (number(8), number(16), number(24), number(32));
        if bytes.get(..8) != Some(&MAGIC[..]) || bytes.len() < ALIGN {
            return Err("it is no file of packed weights".into());
        }
        if versions as u32 != FORMAT {
            return Err(format!("it is of format {}, this octet reads {FORMAT}", versions as u32));
        }
        let header = offset.checked_add(length).filter(|&end| length <= MAX_HEADER && end == bytes.len() as u64);
        let header = header.and_then(|end| bytes.get(offset as usize..end as usize)).filter(|header| checksum(header) == sealed);
        let Some(header) = header else { return Err("it is incomplete or damaged".into()) };
        let header: Header = serde_json::from_slice(header).map_err(|e| format!("its header cannot be read ({e})"))?;
        if let Some(changed) = header.sources.iter().find(|source| !source.is_unchanged(folder)) {
            return Err(format!("{} is not the file it was made from", changed.file));
        }
        Ok(Some(Self { layout: (versions >> 32) as u32, matrices: header.matrices, bytes }))
    }

    /// The bytes of rows `rows` of `module` as stored by [`Writer::add`] for the same layout and scheme, if they are there and whole.
    pub fn rows(&self, module: &str, rows: Range<usize>, layout: u32, scheme: Scheme) -> Option<Bytes> {
        let all = self.matrices.get(module).filter(|_| self.layout == layout)?;
        let found = all.iter().find(|r| r.first == rows.start && r.rows == rows.len() && r.scheme == scheme.to_string())?;
        let bytes = self.bytes.slice(found.offset..found.offset.checked_add(found.bytes)?)?;
        (checksum(&bytes) == found.checksum).then_some(bytes)
    }
}

impl Source {
    fn of(folder: &Folder, file: &str) -> Result<Self> {
        let bytes = folder.read(file)?.unwrap_or_else(|| Bytes::new(vec![]));
        let sha256 = Sha256::digest(&*bytes).iter().map(|b| format!("{b:02x}")).collect();
        bytes.release();
        Ok(Self { file: file.into(), bytes: bytes.len() as u64, sha256, modified: modified(folder, file) })
    }

    fn is_unchanged(&self, folder: &Folder) -> bool {
        let Ok(Some(bytes)) = folder.read(&self.file) else { return false };
        if bytes.len() as u64 != self.bytes {
            return false;
        }
        // A copy of the folder has other times; its contents say whether it is one.
        let same_time = self.modified.is_some() && self.modified == modified(folder, &self.file);
        same_time || Self::of(folder, &self.file).is_ok_and(|now| now.sha256 == self.sha256)
    }
}

fn modified(folder: &Folder, file: &str) -> Option<u64> {
    let time = std::fs::metadata(folder.path()?.join(file)).ok()?.modified().ok()?;
    u64::try_from(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos()).ok()
}

/// Writes `model.packed` into the folder that it is made from.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    at: usize,
    layout: u32,
    matrices: BTreeMap<String, Vec<Rows>>,
}

impl Writer {
    /// Creates the file in `dir` for the kernels' layout `layout`.
    ///
    /// # Errors
    /// If it exists or cannot be created.
    pub fn create(dir: &Path, layout: u32) -> Result<Self> {
        let path = dir.join(FILE);
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        let mut writer = Self { file: BufWriter::with_capacity(1 << 20, file), path, at: 0, layout, matrices: BTreeMap::new() };
        writer.write(&[0; ALIGN])?;
        Ok(writer)
    }

    /// Adds rows `rows` of `module`, whose bytes are those of `sections` one after the other.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn add(&mut self, module: &str, rows: Range<usize>, scheme: Scheme, sections: &[&[u8]]) -> Result<()> {
        let (offset, whole) = (self.at, sections.concat());
        let rows = Rows {
            first: rows.start,
            rows: rows.len(),
            scheme: scheme.to_string(),
            offset,
            bytes: whole.len(),
            checksum: checksum(&whole),
        };
        self.matrices.entry(module.into()).or_default().push(rows);
        self.write(&whole)?;
        self.write(&[0; ALIGN][..self.at.next_multiple_of(ALIGN) - self.at])
    }

    /// Notes what `folder`, the one it is written into, holds, and completes the file.
    ///
    /// # Errors
    /// If the folder cannot be read or the disk is full.
    pub fn finish(mut self, folder: &Folder) -> Result<()> {
        let files = folder.files()?.into_iter().map(|(name, _)| name);
        let files = files.filter(|name| name == "config.json" || name.ends_with(".safetensors") || name.ends_with(".index.json"));
        let sources = files.map(|file| Source::of(folder, &file)).collect::<Result<_>>()?;
        let header = Header { octet_version: env!("CARGO_PKG_VERSION").into(), sources, matrices: std::mem::take(&mut self.matrices) };
        let header = serde_json::to_vec(&header).map_err(|e| Error::Json { file: FILE.into(), what: e.to_string() })?;
        let mut preamble = MAGIC.to_vec();
        preamble.extend([FORMAT, self.layout].iter().flat_map(|n| n.to_le_bytes()));
        preamble.extend([self.at as u64, header.len() as u64, checksum(&header)].iter().flat_map(|n| n.to_le_bytes()));
        self.write(&header)?;
        let path = self.path.clone();
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io("write", &path))?;
        self.file.write_all(&preamble).map_err(Error::io("write", &path))?;
        self.file.into_inner().map_err(|e| Error::io("write", &path)(e.into_error()))?.sync_all().map_err(Error::io("write", &path))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len();
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }
}

/// A checksum against damage (not against malice) at the speed of memory: eight chains of multiplications.
pub fn checksum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut chains: [u64; 8] = std::array::from_fn(|i| PRIME.wrapping_mul(i as u64 + 1));
    let (lines, rest) = bytes.as_chunks::<64>();
    let mut mix = |line: &[u8; 64]| {
        for (chain, word) in chains.iter_mut().zip(line.as_chunks::<8>().0) {
            *chain = (chain.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME);
        }
    };
    lines.iter().for_each(&mut mix);
    let mut last = [0; 64];
    last[..rest.len()].copy_from_slice(rest);
    mix(&last);
    let folded = chains.iter().fold(bytes.len() as u64, |all, &chain| (all.rotate_left(29) ^ chain).wrapping_mul(PRIME));
    folded ^ folded >> 32
}
