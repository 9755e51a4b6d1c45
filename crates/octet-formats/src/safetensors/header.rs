//! Reading a safetensors header without trusting it.

use octet_tensor::Dtype;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use std::{fmt, ops::Range};

/// Longest header accepted, in bytes (the limit of the reference implementation).
pub const MAX_HEADER: usize = 100_000_000;

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes are, counted from the start of the file.
    pub range: Range<usize>,
}

/// A header that was checked against its file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Tensors in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// The `__metadata__` strings.
    pub metadata: Vec<(String, String)>,
}

/// What is wrong with a safetensors header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file ends before its header does.
    #[error("the header claims {claimed} bytes, the file has {file}; it is cut short, download it again")]
    Truncated {
        /// Bytes the header would need, its length field included.
        claimed: u64,
        /// Bytes of the file.
        file: usize,
    },
    /// The header is longer than any real one.
    #[error("the header claims {0} bytes, more than the {MAX_HEADER} allowed; this is not a safetensors file, download it again")]
    TooLong(u64),
    /// The header is not the JSON it should be.
    #[error("the header is not the expected JSON ({0}); download the file again")]
    Json(String),
    /// One name twice.
    #[error("the tensor {0} is described twice; write the file again with unique names")]
    Duplicate(String),
    /// An element type octet does not know.
    #[error(
        "the tensor {name} has the unknown dtype {dtype:?}; octet reads F64 F32 F16 BF16 F8_E4M3 F8_E5M2, the integers and BOOL; convert it to one of them"
    )]
    UnknownDtype {
        /// The tensor.
        name: String,
        /// Its dtype as written.
        dtype: String,
    },
    /// Shape and bytes do not fit each other.
    #[error("the tensor {name} is {dtype} {shape:?} but has {found} bytes; the header is damaged, download the file again")]
    Size {
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes between its offsets.
        found: u64,
    },
    /// Offsets that leave the file or are the wrong way round.
    #[error(
        "the tensor {name} lies at bytes {start}..{end}, the file has {data} bytes of data; it is cut short or damaged, download it again"
    )]
    Outside {
        /// The tensor.
        name: String,
        /// First byte, from the start of the data.
        start: u64,
        /// First byte after it.
        end: u64,
        /// Bytes of data the file has.
        data: u64,
    },
    /// Tensors that overlap or leave a hole between them.
    #[error(
        "the tensor {name} starts at byte {start} of the data, expected {expected}; tensors follow each other without overlap or hole in a sound file, \
         download it again"
    )]
    NotContiguous {
        /// The tensor.
        name: String,
        /// Where it starts.
        start: u64,
        /// Where the one before it ends.
        expected: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("{0} bytes after the last tensor belong to none; the file is damaged, download it again")]
    Trailing(u64),
}

/// Reads and checks the header of a whole safetensors file; looks at nothing behind the header.
///
/// # Errors
/// [`HeaderError`] for anything that does not fit: lengths are checked before anything is allocated for them.
pub fn parse_header(file: &[u8]) -> Result<Header, HeaderError> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(HeaderError::Truncated { claimed: 8, file: file.len() });
    };
    let claimed = u64::from_le_bytes(*length);
    let length = usize::try_from(claimed).ok().filter(|&n| n <= MAX_HEADER).ok_or(HeaderError::TooLong(claimed))?;
    let json = rest.get(..length).ok_or(HeaderError::Truncated { claimed: claimed + 8, file: file.len() })?;
    let raw: RawHeader = serde_json::from_slice(json).map_err(|e| HeaderError::Json(e.to_string()))?;
    raw.check(8 + length, rest.len() - length)
}

/// The header as written, in its own order.
#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawHeader {
    fn check(mut self, data_start: usize, data_len: usize) -> Result<Header, HeaderError> {
        self.tensors.sort_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
        let mut names: Vec<&str> = self.tensors.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(HeaderError::Duplicate(twice[0].into()));
        }
        let (mut tensors, mut expected) = (Vec::with_capacity(self.tensors.len()), 0);
        for (name, raw) in self.tensors {
            let info = raw.check(name, data_start, data_len as u64, expected)?;
            expected = (info.range.end - data_start) as u64;
            tensors.push(info);
        }
        match data_len as u64 - expected {
            0 => Ok(Header { tensors, metadata: self.metadata }),
            extra => Err(HeaderError::Trailing(extra)),
        }
    }
}

impl RawTensor {
    fn check(self, name: String, data_start: usize, data: u64, expected: u64) -> Result<TensorInfo, HeaderError> {
        let Some(dtype) = Dtype::from_name(&self.dtype) else { return Err(HeaderError::UnknownDtype { name, dtype: self.dtype }) };
        let (start, end) = self.data_offsets;
        if start > end || end > data {
            return Err(HeaderError::Outside { name, start, end, data });
        }
        if start != expected {
            return Err(HeaderError::NotContiguous { name, start, expected });
        }
        let found = end - start;
        let need = self.shape.iter().try_fold(dtype.size() as u64, |all, &n| all.checked_mul(n));
        let shape: Option<Vec<usize>> = self.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
        match shape {
            // `end <= data`, which is a length in memory, so both offsets fit a usize.
            Some(shape) if need == Some(found) => {
                Ok(TensorInfo { name, dtype, shape, range: data_start + start as usize..data_start + end as usize })
            }
            _ => Err(HeaderError::Size { name, dtype, shape: self.shape, found }),
        }
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            // A map type would silently keep the last of two equal names.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        // MLX writes null where it has none.
                        let metadata = map.next_value::<Option<std::collections::BTreeMap<_, _>>>()?;
                        header.metadata = metadata.unwrap_or_default().into_iter().collect();
                    } else {
                        let tensor = map.next_value()?;
                        header.tensors.push((name, tensor));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    const GOOD: &str = r#"{"b":{"dtype":"BF16","shape":[2],"data_offsets":[24,28]},"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"none":{"dtype":"I8","shape":[0,4],"data_offsets":[24,24]}}"#;

    #[test]
    fn a_good_header_reads_in_the_order_of_its_bytes() {
        let header = parse_header(&file(GOOD, 28)).unwrap();
        let names: Vec<&str> = header.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "none", "b"]);
        assert_eq!(header.tensors[0].range, 8 + GOOD.len()..8 + GOOD.len() + 24);
        assert_eq!((&header.tensors[0].shape[..], header.tensors[2].dtype), (&[2, 3][..], Dtype::Bf16));
        assert_eq!(header.metadata, [("format".to_string(), "pt".to_string())]);
        assert!(parse_header(&file(r#"{"__metadata__":null}"#, 0)).unwrap().metadata.is_empty());
        assert!(parse_header(&file("{}", 0)).unwrap().tensors.is_empty());
    }

    #[test]
    fn lies_are_told_by_name() {
        let one =
            |dtype: &str, shape: &str, offsets: &str| format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
        let cases = [
            (file(&one("F32", "[2]", "[0,8]"), 7), "cut short"),
            (file(&one("F32", "[2]", "[0,8]"), 9), "1 bytes after the last tensor"),
            (file(&one("F32", "[2]", "[8,0]"), 8), "8..0"),
            (file(&one("F32", "[3]", "[0,8]"), 8), "F32 [3] but has 8 bytes"),
            (file(&one("F32", "[4294967296,4294967296,4]", "[0,8]"), 8), "4294967296"),
            (file(&one("F32", "[2]", "[0,18446744073709551615]"), 8), "18446744073709551615"),
            (file(&one("F4", "[2]", "[0,8]"), 8), "unknown dtype \"F4\""),
            (file(&one("F32", "[-2]", "[0,8]"), 8), "expected JSON"),
            (file(&one("F32", "[1]", "[4,8]"), 8), "starts at byte 4 of the data, expected 0"),
            (
                file(r#"{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"I8","shape":[4],"data_offsets":[2,6]}}"#, 6),
                "overlap",
            ),
            (
                file(r#"{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"I8","shape":[1],"data_offsets":[1,2]}}"#, 2),
                "twice",
            ),
            (file("[]", 0), "object of tensors"),
            (u64::MAX.to_le_bytes().to_vec(), "more than"),
            (100u64.to_le_bytes().to_vec(), "claims 108 bytes, the file has 8"),
            (vec![1, 2, 3], "claims 8 bytes, the file has 3"),
        ];
        for (bytes, expected) in cases {
            let message = parse_header(&bytes).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}\n  lacks {expected}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_header(&bytes);
        }

        #[test]
        fn mutated_headers_never_panic_and_never_point_outside(at in prop::collection::vec((0usize..300, any::<u8>()), 1..6), cut in 0usize..300) {
            let mut bytes = file(GOOD, 28);
            for (i, byte) in at {
                let i = i % bytes.len();
                bytes[i] = byte;
            }
            bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(250)));
            if let Ok(header) = parse_header(&bytes) {
                for t in header.tensors {
                    prop_assert!(t.range.start <= t.range.end && t.range.end <= bytes.len());
                    prop_assert_eq!(t.shape.iter().product::<usize>() * t.dtype.size(), t.range.len());
                }
            }
        }

        #[test]
        fn lying_numbers_never_panic(shape in prop::collection::vec(any::<u64>(), 0..5), start: u64, end: u64, data in 0usize..64) {
            let json = format!(r#"{{"w":{{"dtype":"F64","shape":{shape:?},"data_offsets":[{start},{end}]}}}}"#);
            if let Ok(header) = parse_header(&file(&json, data)) {
                prop_assert_eq!(header.tensors[0].range.len(), data);
            }
        }
    }
}
