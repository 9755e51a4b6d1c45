//! Reading the directory of an archive without trusting it.

use crate::{Error, Result, folder::is_plain, npy};
use octet_tensor::{Bytes, Dtype};
use std::{collections::BTreeSet, ops::Range};

const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const ENTRY: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";

/// Smallest record of an entry in the directory.
const ENTRY_BYTES: usize = 46;

/// An array of an archive.
#[derive(Clone, Debug)]
pub struct Array {
    /// Its name, without `.npy`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Its elements.
    pub data: Bytes,
}

fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Npz(what.into()))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)).ok()
}

/// The arrays of an archive, in the order of its directory.
///
/// # Errors
/// If it is no archive, is damaged, compressed or encrypted, names a file outside itself or one twice, has entries that overlap, or
/// holds something else than arrays in C order.
pub fn arrays(archive: &Bytes) -> Result<Vec<Array>> {
    let Some((directory, count)) = directory(archive) else {
        return refuse("it has no directory of entries; it is cut short or no archive, copy it again");
    };
    // Every entry takes its record: more than fit are a lie, and nothing is set aside for them.
    if count > directory.len() / ENTRY_BYTES {
        return refuse(format!("it claims {count} entries in a directory of {} bytes; it is damaged, copy it again", directory.len()));
    }
    let (mut at, mut names, mut taken, mut arrays) = (directory.start, BTreeSet::new(), vec![], vec![]);
    for _ in 0..count {
        let Some(entry) = Entry::read(archive, at).filter(|entry| entry.end <= directory.end) else {
            return refuse("an entry of its directory is cut short; copy it again");
        };
        at = entry.end;
        let name = entry.name(archive)?;
        let data = entry.data(archive, name)?;
        if !names.insert(name) {
            return refuse(format!("{name} is in it twice; write it again"));
        }
        taken.push((data.start, data.end, name));
        arrays.push(array(name, archive, data)?);
    }
    taken.sort_unstable();
    if let Some(pair) = taken.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        return refuse(format!("the bytes of {} and {} overlap; it is damaged, copy it again", pair[0].2, pair[1].2));
    }
    Ok(arrays)
}

fn array(name: &str, archive: &Bytes, range: Range<usize>) -> Result<Array> {
    let Some(stem) = name.strip_suffix(".npy") else { return refuse(format!("{name} is no array (.npy)")) };
    let bytes = archive.slice(range).ok_or_else(|| Error::Npz(format!("{name} reaches past the end")))?;
    let (descr, shape, skip) = npy::described(&bytes).map_err(|e| Error::Npz(format!("{name}: {e}")))?;
    let dtype = match descr.as_str() {
        "<f4" => Dtype::F32,
        "<f2" => Dtype::F16,
        "<f8" => Dtype::F64,
        "|i1" => Dtype::I8,
        "|u1" => Dtype::U8,
        "<i4" => Dtype::I32,
        "<i8" => Dtype::I64,
        other => return refuse(format!("{name} has elements {other:?}; save it as float32, float16, int8, uint8, int32 or int64")),
    };
    let fits = shape.iter().try_fold(dtype.size(), |all, &n| all.checked_mul(n)) == Some(bytes.len() - skip);
    match bytes.slice(skip..bytes.len()).filter(|_| fits) {
        Some(data) => Ok(Array { name: stem.into(), dtype, shape, data }),
        None => refuse(format!("{name} says {shape:?} of {descr} and has {} bytes; copy it again", bytes.len() - skip)),
    }
}

/// Where the directory is and how many entries it claims.
fn directory(bytes: &[u8]) -> Option<(Range<usize>, usize)> {
    // The end record is last, before a comment of at most 65,535 bytes.
    let from = bytes.len().checked_sub(22)?;
    let end = (from.saturating_sub(65_535)..=from)
        .rev()
        .find(|&at| bytes[at..].starts_with(END) && u16_at(bytes, at + 20) == Some(bytes.len() - at - 22))?;
    let (mut count, mut size, mut start) = (u16_at(bytes, end + 10)?, u32_at(bytes, end + 12)?, u32_at(bytes, end + 16)?);
    let mut limit = end;
    if let Some(locator) = end.checked_sub(20).filter(|&at| bytes[at..].starts_with(LOCATOR_64)) {
        let wide = u64_at(bytes, locator + 8)?;
        if !bytes.get(wide..)?.starts_with(END_64) || wide >= locator {
            return None;
        }
        (count, size, start) = (u64_at(bytes, wide.checked_add(32)?)?, u64_at(bytes, wide + 40)?, u64_at(bytes, wide + 48)?);
        limit = wide;
    }
    let stop = start.checked_add(size).filter(|&stop| stop <= limit)?;
    Some((start..stop, count))
}

/// What the directory says of an entry.
struct Entry {
    name: Range<usize>,
    flags: usize,
    method: usize,
    stored: usize,
    size: usize,
    local: usize,
    end: usize,
}

impl Entry {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let record = bytes.get(at..)?.get(..ENTRY_BYTES).filter(|record| record.starts_with(ENTRY))?;
        let [name, extra, comment] = [28, 30, 32].map(|at| u16_at(record, at).unwrap_or_default());
        let name = at + ENTRY_BYTES..at + ENTRY_BYTES + name;
        let extra = name.end..name.end + extra;
        let end = extra.end + comment;
        let mut wide = wide_sizes(bytes.get(extra)?);
        let mut or_wide = |narrow: usize| if narrow == 0xffff_ffff { wide.next() } else { Some(narrow) };
        // The order in which the extra field has them.
        let size = or_wide(u32_at(record, 24)?)?;
        let stored = or_wide(u32_at(record, 20)?)?;
        let local = or_wide(u32_at(record, 42)?)?;
        bytes.get(..end)?;
        Some(Self { name, flags: u16_at(record, 8)?, method: u16_at(record, 10)?, stored, size, local, end })
    }

    fn name<'a>(&self, bytes: &'a [u8]) -> Result<&'a str> {
        match std::str::from_utf8(&bytes[self.name.clone()]) {
            Ok(name) if is_plain(name) => Ok(name),
            Ok(name) => refuse(format!("{name:?} is not a plain file name, so it could reach outside the folder; write it again")),
            Err(_) => refuse("an entry has a name that is no text; write it again"),
        }
    }

    /// Where its bytes are.
    fn data(&self, bytes: &[u8], name: &str) -> Result<Range<usize>> {
        if self.method != 0 || self.flags & 1 != 0 {
            let how = if self.flags & 1 != 0 { "encrypted" } else { "compressed" };
            return refuse(format!("{name} is {how}, which could unfold to any size; save it with numpy.savez, not savez_compressed"));
        }
        let local = bytes.get(self.local..).and_then(|rest| rest.get(..30)).filter(|head| head.starts_with(LOCAL));
        let skip = local.and_then(|head| Some(30 + u16_at(head, 26)? + u16_at(head, 28)?));
        let range = skip.and_then(|skip| {
            let start = self.local.checked_add(skip)?;
            Some(start..start.checked_add(self.stored)?)
        });
        match range {
            Some(range) if self.stored == self.size && range.end <= bytes.len() => Ok(range),
            _ => refuse(format!("{name} reaches past the end or has two sizes; it is damaged, copy it again")),
        }
    }
}

/// The 64-bit sizes of an extra field.
fn wide_sizes(extra: &[u8]) -> impl Iterator<Item = usize> {
    let mut at = 0;
    let mut found: &[u8] = &[];
    while let (Some(id), Some(len)) = (u16_at(extra, at), u16_at(extra, at + 2)) {
        if id == 1 {
            found = extra.get(at + 4..at + 4 + len).unwrap_or_default();
        }
        at += 4 + len;
    }
    found.as_chunks::<8>().0.iter().map_while(|&bytes| usize::try_from(u64::from_le_bytes(bytes)).ok())
}
