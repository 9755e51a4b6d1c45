//! numpy's `.npy` arrays: token ids in, logits out.
//!
//! Format: numpy enhancement proposal 1 (versions 1.0 and 2.0 of the header).

use crate::{Error, Result};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Reads an array of integers (64, 32, 16 or 8 bits, signed or not), widened to i64: its shape and its elements.
///
/// # Errors
/// If the bytes are no `.npy` file, are cut short, are in Fortran order or big endian, or hold something else.
pub fn read_i64(bytes: &[u8]) -> Result<(Vec<usize>, Vec<i64>)> {
    let array = parse(bytes)?;
    let wide = |value: u64| i64::try_from(value).or_else(|_| refuse(format!("the value {value} does not fit a signed 64-bit integer")));
    let values = match array.descr {
        "<i8" => array.elements(i64::from_le_bytes)?,
        "<i4" => array.elements(|b| i64::from(i32::from_le_bytes(b)))?,
        "<i2" => array.elements(|b| i64::from(i16::from_le_bytes(b)))?,
        "|i1" => array.elements(|[b]| i64::from(b as i8))?,
        "<u8" => array.elements(u64::from_le_bytes)?.into_iter().map(wide).collect::<Result<_>>()?,
        "<u4" => array.elements(|b| i64::from(u32::from_le_bytes(b)))?,
        "<u2" => array.elements(|b| i64::from(u16::from_le_bytes(b)))?,
        "|u1" => array.elements(|[b]| i64::from(b))?,
        other => return refuse(format!("its elements are {other:?}, expected little-endian integers such as \"<i8\"; save it as int64")),
    };
    Ok((array.shape, values))
}

/// Reads an array of 32-bit floats: its shape and its elements.
///
/// # Errors
/// As [`read_i64`].
pub fn read_f32(bytes: &[u8]) -> Result<(Vec<usize>, Vec<f32>)> {
    let array = parse(bytes)?;
    match array.descr {
        "<f4" => {
            let values = array.elements(f32::from_le_bytes)?;
            Ok((array.shape, values))
        }
        other => refuse(format!("its elements are {other:?}, expected \"<f4\"; save it as float32")),
    }
}

/// Writes `values` as a C-order array of 32-bit floats.
///
/// # Errors
/// If the shape does not hold that many values or the file cannot be written.
pub fn write_f32(path: &Path, shape: &[usize], values: &[f32]) -> Result<()> {
    let mut writer = F32Writer::create(path, shape)?;
    writer.append(values)?;
    writer.finish()
}

/// Writes a C-order array of 32-bit floats a piece at a time.
#[derive(Debug)]
pub struct F32Writer {
    path: PathBuf,
    out: BufWriter<File>,
    missing: usize,
}

impl F32Writer {
    /// Creates the file and its header.
    ///
    /// # Errors
    /// If the shape has more elements than an address space or the file cannot be written.
    pub fn create(path: &Path, shape: &[usize]) -> Result<Self> {
        let missing = shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
        let Some(missing) = missing else { return refuse(format!("the shape {shape:?} is too large")) };
        let file = File::create(path).map_err(Error::io("create", path))?;
        let mut writer = Self { path: path.into(), out: BufWriter::new(file), missing };
        writer.put(&header("<f4", shape))?;
        Ok(writer)
    }

    /// Appends values, in C order.
    ///
    /// # Errors
    /// If they are more than the shape holds or the file cannot be written.
    pub fn append(&mut self, values: &[f32]) -> Result<()> {
        let Some(missing) = self.missing.checked_sub(values.len()) else {
            return refuse(format!("{} values were given, {} are missing", values.len(), self.missing));
        };
        self.missing = missing;
        values.iter().try_for_each(|v| self.put(&v.to_le_bytes()))
    }

    /// Checks that all values were given and writes what is buffered.
    ///
    /// # Errors
    /// If values are missing or the file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        if self.missing > 0 {
            return refuse(format!("{} values are missing", self.missing));
        }
        self.out.flush().map_err(Error::io("write", &self.path))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::io("write", &self.path))
    }
}

/// Version 1.0, padded so that the data starts at a multiple of 64 bytes.
pub(crate) fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let dims: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", dims.trim_end());
    let total = (MAGIC.len() + 4 + text.len() + 1).next_multiple_of(64);
    text.push_str(&" ".repeat(total - MAGIC.len() - 4 - text.len() - 1));
    text.push('\n');
    [&MAGIC[..], &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

struct Array<'a> {
    descr: &'a str,
    shape: Vec<usize>,
    count: usize,
    data: &'a [u8],
}

impl Array<'_> {
    /// The elements, which must be exactly as many as the shape says.
    fn elements<const N: usize, T>(&self, convert: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        if self.count.checked_mul(N) != Some(self.data.len()) {
            return refuse(format!(
                "the shape {:?} of {} does not fit {} bytes of data; it is cut short, save it again",
                self.shape,
                self.descr,
                self.data.len()
            ));
        }
        Ok(self.data.as_chunks::<N>().0.iter().map(|&b| convert(b)).collect())
    }
}

fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Npy(what.into()))
}

/// Element type, shape and length of the header of an array in C order.
pub(crate) fn described(bytes: &[u8]) -> Result<(String, Vec<usize>, usize)> {
    let array = parse(bytes)?;
    Ok((array.descr.into(), array.shape, bytes.len() - array.data.len()))
}

fn parse(bytes: &[u8]) -> Result<Array<'_>> {
    let Some((version, rest)) = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_first_chunk::<2>()) else {
        return refuse("it does not start with the numpy magic; save it with numpy.save");
    };
    let split = match version {
        [1, _] => rest.split_first_chunk().map(|(n, rest)| (usize::from(u16::from_le_bytes(*n)), rest)),
        [2 | 3, _] => rest.split_first_chunk().map(|(n, rest)| (u32::from_le_bytes(*n) as usize, rest)),
        [major, _] => return refuse(format!("version {major} of the format is unknown")),
    };
    let Some((text, data)) = split.and_then(|(n, rest)| rest.split_at_checked(n)) else {
        return refuse("the header is cut short");
    };
    let Ok(text) = std::str::from_utf8(text) else { return refuse("the header is not text") };
    let Some(descr) = value_of(text, "descr").and_then(quoted) else {
        return refuse(format!("the header {text:?} names no single element type"));
    };
    match value_of(text, "fortran_order") {
        Some(value) if value.starts_with("False") => {}
        Some(value) if value.starts_with("True") => return refuse("it is in Fortran order; save numpy.ascontiguousarray of it"),
        _ => return refuse(format!("the header {text:?} does not say the order")),
    }
    let shape = value_of(text, "shape").and_then(tuple);
    let count = shape.as_ref().and_then(|shape| shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n)));
    match (shape, count) {
        (Some(shape), Some(count)) => Ok(Array { descr, shape, count, data }),
        _ => refuse(format!("the header {text:?} has no readable shape")),
    }
}

/// The text after `'key':` of a Python dictionary.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let after = ['\'', '"'].iter().find_map(|quote| text.split_once(&format!("{quote}{key}{quote}")))?.1;
    Some(after.trim_start().strip_prefix(':')?.trim_start())
}

fn quoted(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    text[1..].split_once(quote).map(|(inner, _)| inner)
}

fn tuple(text: &str) -> Option<Vec<usize>> {
    let inner = text.strip_prefix('(')?.split_once(')')?.0;
    let parts = inner.split(',').map(str::trim);
    let last = parts.clone().count() - 1;
    // `(3,)` and `()` end in an empty part.
    parts.enumerate().filter(|(i, part)| !(*i == last && part.is_empty())).map(|(_, part)| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&MAGIC[..], &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn integers_of_every_width_widen() {
        let head = |descr: &str| format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,), }}\n");
        for (descr, data) in [
            ("<i8", [5i64, -1].map(i64::to_le_bytes).concat()),
            ("<i4", [5i32, -1].map(i32::to_le_bytes).concat()),
            ("<i2", [5i16, -1].map(i16::to_le_bytes).concat()),
            ("|i1", vec![5, 255]),
        ] {
            assert_eq!(read_i64(&file(&head(descr), &data)).unwrap(), (vec![2], vec![5, -1]), "{descr}");
        }
        assert_eq!(read_i64(&file(&head("<u2"), &[0xff, 0xff, 1, 0])).unwrap().1, [65535, 1]);
        assert_eq!(read_i64(&file(&head("<u4"), &[0xff; 8])).unwrap().1, [i64::from(u32::MAX); 2]);
        assert!(read_i64(&file(&head("<u8"), &[0xff; 16])).unwrap_err().to_string().contains("does not fit"));
    }

    #[test]
    fn version_two_and_odd_shapes_read() {
        let text = "{\"descr\": \"<f4\", \"fortran_order\": False, \"shape\": ()}";
        let bytes = [&MAGIC[..], &[2, 0], &(text.len() as u32).to_le_bytes(), text.as_bytes(), &1.5f32.to_le_bytes()].concat();
        assert_eq!(read_f32(&bytes).unwrap(), (vec![], vec![1.5]));
        let empty = file("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }", &[]);
        assert_eq!(read_f32(&empty).unwrap(), (vec![0, 3], vec![]));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_reason() {
        let head = |descr: &str, order: &str, shape: &str| format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}");
        for (bytes, expected) in [
            (file(&head("'<i8'", "True", "(1,)"), &[0; 8]), "Fortran"),
            (file(&head("'>i8'", "False", "(1,)"), &[0; 8]), "\">i8\""),
            (file(&head("'<f4'", "False", "(1,)"), &[0; 4]), "expected little-endian integers"),
            (file(&head("[('a', '<i8')]", "False", "(1,)"), &[0; 8]), "no single element type"),
            (file(&head("'<i8'", "False", "(2,)"), &[0; 8]), "cut short"),
            (file(&head("'<i8'", "False", "(-2,)"), &[0; 8]), "no readable shape"),
            (file(&head("'<i8'", "False", "(4294967296, 4294967296, 4)"), &[0; 8]), "no readable shape"),
            (file(&head("'<i8'", "False", "(1,,2)"), &[0; 8]), "no readable shape"),
            (file("", &[]), "no single element type"),
            (b"PK\x03\x04".to_vec(), "numpy magic"),
            ([&MAGIC[..], &[9, 0, 0, 0]].concat(), "version 9"),
            ([&MAGIC[..], &[1, 0, 9, 0]].concat(), "cut short"),
        ] {
            let message = read_i64(&bytes).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}\n  lacks {expected}");
        }
    }

    #[test]
    fn a_writer_wants_exactly_its_shape() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        assert!(write_f32(&path, &[2], &[1.0]).unwrap_err().to_string().contains("1 values are missing"));
        assert!(write_f32(&path, &[2], &[1.0; 3]).unwrap_err().to_string().contains("3 values were given"));
        assert!(write_f32(&dir.path().join("no/a.npy"), &[0], &[]).unwrap_err().to_string().contains("cannot create"));
    }

    proptest! {
        #[test]
        fn floats_round_trip(shape in prop::collection::vec(0usize..5, 0..4), seed: u32) {
            let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| f32::from_bits(seed.wrapping_add(i as u32 * 77) & 0x7f7f_ffff)).collect();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.npy");
            write_f32(&path, &shape, &values).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            prop_assert_eq!((bytes.len() - 4 * values.len()) % 64, 0);
            prop_assert_eq!(read_f32(&bytes).unwrap(), (shape, values));
        }

        #[test]
        fn random_and_mutated_bytes_never_panic(mut tail in prop::collection::vec(any::<u8>(), 0..80), at in 0usize..80, byte: u8, with_header: bool) {
            if with_header {
                tail = file("{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }", &[1; 8]);
                let at = at % tail.len();
                tail[at] = byte;
            }
            let _ = (read_i64(&tail), read_f32(&tail));
        }
    }
}
