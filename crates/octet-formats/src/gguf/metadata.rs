//! Metadata of a GGUF file: values that point into the file, so that nothing is allocated for them.

use super::header::{Cursor, GgufError};

/// A metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A float of either width.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text; its bytes, which need not be UTF-8 among tokens.
    Text(&'a [u8]),
    /// A list.
    Array(Array<'a>),
}

/// A list of values of one type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: u32,
    len: usize,
    bytes: &'a [u8],
}

/// The number of the type of texts.
const TEXT: u32 = 8;
/// The number of the type of lists.
const ARRAY: u32 = 9;

/// Bytes of a value of a fixed width; a text has at least its length.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl<'a> Value<'a> {
    /// Reads a value of type `kind`.
    pub(super) fn read(cursor: &mut Cursor<'a>, key: &str, kind: u32) -> Result<Self, GgufError> {
        Ok(match kind {
            0 => Self::Unsigned(cursor.take::<1>()?[0].into()),
            1 => Self::Signed(i64::from(cursor.take::<1>()?[0] as i8)),
            2 => Self::Unsigned(u16::from_le_bytes(cursor.take()?).into()),
            3 => Self::Signed(i16::from_le_bytes(cursor.take()?).into()),
            4 => Self::Unsigned(u32::from_le_bytes(cursor.take()?).into()),
            5 => Self::Signed(i32::from_le_bytes(cursor.take()?).into()),
            6 => Self::Float(f32::from_le_bytes(cursor.take()?).into()),
            7 => Self::Bool(cursor.take::<1>()?[0] != 0),
            TEXT => Self::Text(cursor.text()?),
            ARRAY => Self::Array(Array::read(cursor, key)?),
            10 => Self::Unsigned(u64::from_le_bytes(cursor.take()?)),
            11 => Self::Signed(i64::from_le_bytes(cursor.take()?)),
            12 => Self::Float(f64::from_le_bytes(cursor.take()?)),
            kind => return Err(GgufError::ValueType { key: key.into(), kind }),
        })
    }

    /// A number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// A number as a float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// A text that is UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        if let Self::Text(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }

    /// A list.
    pub fn as_array(&self) -> Option<&Array<'a>> {
        if let Self::Array(array) = self { Some(array) } else { None }
    }

    /// The value as JSON; lists of more than `longest` values are left out (null).
    pub fn to_json(&self, longest: usize) -> serde_json::Value {
        match self {
            Self::Unsigned(value) => (*value).into(),
            Self::Signed(value) => (*value).into(),
            Self::Float(value) => (*value).into(),
            Self::Bool(value) => (*value).into(),
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into(),
            Self::Array(array) if array.len() > longest => serde_json::Value::Null,
            Self::Array(array) => array.iter().map(|value| value.to_json(longest)).collect(),
        }
    }
}

impl<'a> Array<'a> {
    fn read(cursor: &mut Cursor<'a>, key: &str) -> Result<Self, GgufError> {
        let (kind, claimed) = (u32::from_le_bytes(cursor.take()?), u64::from_le_bytes(cursor.take()?));
        let least = match width(kind) {
            Some(width) => width,
            None if kind == TEXT => 8,
            // Lists of lists occur in no model.
            None => return Err(GgufError::ValueType { key: key.into(), kind }),
        };
        let too_long = || GgufError::Array { key: key.into(), claimed, left: cursor.left() };
        let len = usize::try_from(claimed).ok().filter(|len| len.checked_mul(least).is_some_and(|bytes| bytes <= cursor.left()));
        let len = len.ok_or_else(too_long)?;
        let start = cursor.at();
        if kind == TEXT {
            for _ in 0..len {
                cursor.text()?;
            }
        } else {
            cursor.skip(len * least)?;
        }
        Ok(Self { kind, len, bytes: cursor.since(start) })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values, in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (mut cursor, kind) = (Cursor::new(self.bytes), self.kind);
        (0..self.len).map_while(move |_| Value::read(&mut cursor, "", kind).ok())
    }
}
