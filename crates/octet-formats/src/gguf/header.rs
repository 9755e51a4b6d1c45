//! Reading a GGUF header without trusting it: every length is held against what is left of the file before it is believed.

use super::{BlockType, Value};
use std::{collections::BTreeMap, ops::Range};

/// A header that was checked against its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Header<'a> {
    /// Keys and values.
    pub metadata: BTreeMap<&'a str, Value<'a>>,
    /// Tensors in the file's order.
    pub tensors: Vec<TensorInfo>,
}

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Element type.
    pub kind: BlockType,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes are, counted from the start of the file.
    pub range: Range<usize>,
}

/// What is wrong with a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// Another kind of file.
    #[error("it does not begin with \"GGUF\"; this is another kind of file")]
    Magic,
    /// A version octet does not read.
    #[error("it is of version {0}, octet reads 2 and 3; convert the model again with a recent llama.cpp")]
    Version(u32),
    /// The file ends too early.
    #[error("it ends at byte {at}, {needed} bytes more are described; it is cut short, download it again")]
    Truncated {
        /// Where.
        at: usize,
        /// Bytes missing, at least.
        needed: usize,
    },
    /// More tensors or keys than bytes for them.
    #[error("it claims {claimed} {what}, more than its {bytes} bytes can describe; it is damaged, download it again")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        claimed: u64,
        /// Bytes of the file.
        bytes: usize,
    },
    /// A list that is longer than the file.
    #[error("the list {key} claims {claimed} values, {left} bytes are left of the file; it is damaged, download it again")]
    Array {
        /// Its key.
        key: String,
        /// Values it claims.
        claimed: u64,
        /// Bytes left.
        left: usize,
    },
    /// A value of a type that does not exist.
    #[error("{key} has a value of type {kind}, which does not exist or is a list of lists; the file is damaged, download it again")]
    ValueType {
        /// Its key.
        key: String,
        /// The type's number.
        kind: u32,
    },
    /// A name that is no text.
    #[error("a key or tensor name at byte {0} is not UTF-8; the file is damaged, download it again")]
    Name(usize),
    /// One name twice.
    #[error("{0} is described twice; write the file again with unique names")]
    Duplicate(String),
    /// An element type octet does not read.
    #[error(
        "the tensor {name} is of type {kind}, which octet does not read (F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K to Q6_K IQ4_NL IQ4_XS \
         are); take another quantization of the model"
    )]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        kind: String,
    },
    /// A shape that cannot be.
    #[error("the tensor {name} of type {kind} has the shape {shape:?} (fastest first), which is empty, too large or not in whole blocks")]
    Shape {
        /// The tensor.
        name: String,
        /// Its type.
        kind: &'static str,
        /// Its shape as written.
        shape: Vec<u64>,
    },
    /// Bytes outside the file, not aligned, or shared with another tensor.
    #[error("the tensor {name} lies at byte {offset} of the data ({bytes} bytes), which {what}; the file is damaged, download it again")]
    Place {
        /// The tensor.
        name: String,
        /// Its offset.
        offset: u64,
        /// Its bytes.
        bytes: usize,
        /// What is wrong.
        what: String,
    },
    /// An alignment that cannot be.
    #[error("general.alignment is {0}, expected a power of two; the file is damaged, download it again")]
    Alignment(String),
}

/// Most dimensions a tensor has.
const MOST_DIMENSIONS: u32 = 4;
/// Fewest bytes that describe a tensor (name, dimensions, type, offset) or a key (name, type, value).
const LEAST: [usize; 2] = [8 + 4 + 8 + 4 + 8, 8 + 4 + 1];

/// Reads and checks the header of a whole GGUF file; looks at nothing behind the header.
///
/// # Errors
/// [`GgufError`] for anything that does not fit: lengths are checked before anything is allocated for them.
pub fn parse_header(file: &[u8]) -> Result<Header<'_>, GgufError> {
    let mut cursor = Cursor::new(file);
    if file.get(..4) != Some(b"GGUF") {
        return Err(GgufError::Magic);
    }
    cursor.skip(4)?;
    match u32::from_le_bytes(cursor.take()?) {
        2 | 3 => {}
        other => return Err(GgufError::Version(other)),
    }
    let tensors = cursor.count("tensors", LEAST[0])?;
    let keys = cursor.count("keys", LEAST[1])?;
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = cursor.name()?;
        let kind = u32::from_le_bytes(cursor.take()?);
        if metadata.insert(key, Value::read(&mut cursor, key, kind)?).is_some() {
            return Err(GgufError::Duplicate(key.into()));
        }
    }
    let raw = (0..tensors).map(|_| RawTensor::read(&mut cursor)).collect::<Result<Vec<_>, _>>()?;
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => match value.as_u64().filter(|n| n.is_power_of_two() && *n <= 1 << 20) {
            Some(alignment) => alignment as usize,
            None => return Err(GgufError::Alignment(format!("{value:?}"))),
        },
    };
    let start = cursor.at().next_multiple_of(alignment);
    let tensors = raw.into_iter().map(|tensor| tensor.check(start, file.len(), alignment)).collect::<Result<Vec<_>, _>>()?;
    check_apart(&tensors, start)?;
    Ok(Header { metadata, tensors })
}

/// Refuses names that occur twice and tensors that share bytes.
fn check_apart(tensors: &[TensorInfo], start: usize) -> Result<(), GgufError> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(twice) = order.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(GgufError::Duplicate(twice[0].name.clone()));
    }
    order.sort_by_key(|tensor| tensor.range.start);
    match order.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        None => Ok(()),
        Some(pair) => {
            let (name, bytes) = (pair[1].name.clone(), pair[1].range.len());
            let offset = (pair[1].range.start - start) as u64;
            Err(GgufError::Place { name, offset, bytes, what: format!("overlaps {}", pair[0].name) })
        }
    }
}

struct RawTensor {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl RawTensor {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, GgufError> {
        let name = cursor.name()?.to_string();
        let count = u32::from_le_bytes(cursor.take()?);
        if count > MOST_DIMENSIONS {
            let what = format!("claims {count} dimensions, more than the {MOST_DIMENSIONS} there are");
            return Err(GgufError::Place { name, offset: 0, bytes: 0, what });
        }
        let dims = (0..count).map(|_| cursor.take().map(u64::from_le_bytes)).collect::<Result<_, _>>()?;
        Ok(Self { name, dims, kind: u32::from_le_bytes(cursor.take()?), offset: u64::from_le_bytes(cursor.take()?) })
    }

    fn check(self, start: usize, file: usize, alignment: usize) -> Result<TensorInfo, GgufError> {
        let kind = BlockType::from_number(self.kind).map_err(|kind| GgufError::Type { name: self.name.clone(), kind })?;
        let shape: Option<Vec<usize>> = self.dims.iter().rev().map(|&n| usize::try_from(n).ok().filter(|&n| n > 0)).collect();
        let sound = |shape: &Vec<usize>| {
            let elements = shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n))?;
            let whole = shape.last().is_some_and(|row| row.is_multiple_of(kind.block()));
            (elements / kind.block()).checked_mul(kind.block_bytes()).filter(|_| whole)
        };
        let Some((shape, bytes)) = shape.and_then(|shape| sound(&shape).map(|bytes| (shape, bytes))) else {
            return Err(GgufError::Shape { name: self.name, kind: kind.name(), shape: self.dims });
        };
        let place = |what: String| GgufError::Place { name: self.name.clone(), offset: self.offset, bytes, what };
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(place(format!("is not a multiple of the alignment {alignment}")));
        }
        let begin = usize::try_from(self.offset).ok().and_then(|offset| offset.checked_add(start));
        match begin.and_then(|begin| Some(begin..begin.checked_add(bytes)?)).filter(|range| range.end <= file) {
            Some(range) => Ok(TensorInfo { name: self.name, kind, shape, range }),
            None => Err(place(format!("reaches past the file's {file} bytes"))),
        }
    }
}

/// A place in the file.
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.file.len() - self.at
    }

    /// What was read since byte `start`.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        &self.file[start..self.at]
    }

    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), GgufError> {
        if bytes > self.left() {
            return Err(GgufError::Truncated { at: self.file.len(), needed: bytes - self.left() });
        }
        self.at += bytes;
        Ok(())
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let start = self.at;
        self.skip(N)?;
        Ok(std::array::from_fn(|i| self.file[start + i]))
    }

    /// A length and so many bytes.
    pub(super) fn text(&mut self) -> Result<&'a [u8], GgufError> {
        let len = usize::try_from(u64::from_le_bytes(self.take()?)).unwrap_or(usize::MAX);
        let start = self.at;
        self.skip(len)?;
        Ok(&self.file[start..self.at])
    }

    fn name(&mut self) -> Result<&'a str, GgufError> {
        let at = self.at;
        std::str::from_utf8(self.text()?).map_err(|_| GgufError::Name(at))
    }

    /// A number of things that take at least `least` bytes each.
    fn count(&mut self, what: &'static str, least: usize) -> Result<usize, GgufError> {
        let claimed = u64::from_le_bytes(self.take()?);
        let count = usize::try_from(claimed).ok().filter(|&count| count <= self.left() / least);
        count.ok_or(GgufError::Count { what, claimed, bytes: self.file.len() })
    }
}
