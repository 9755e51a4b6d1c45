//! Element types of GGUF tensors: floats and blocks of codes.

use octet_tensor::Dtype;

/// The type of a tensor's elements, which lie in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is called as GGUF calls it")]
#[expect(non_camel_case_types, reason = "each is called as GGUF calls it")]
pub enum BlockType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    BF16,
}

/// A row of the table: type, its number, its name, elements of a block, bytes of a block.
type Row = (BlockType, u32, &'static str, usize, usize);

const TYPES: [Row; 15] = [
    (BlockType::F32, 0, "F32", 1, 4),
    (BlockType::F16, 1, "F16", 1, 2),
    (BlockType::Q4_0, 2, "Q4_0", 32, 18),
    (BlockType::Q4_1, 3, "Q4_1", 32, 20),
    (BlockType::Q5_0, 6, "Q5_0", 32, 22),
    (BlockType::Q5_1, 7, "Q5_1", 32, 24),
    (BlockType::Q8_0, 8, "Q8_0", 32, 34),
    (BlockType::Q2_K, 10, "Q2_K", 256, 84),
    (BlockType::Q3_K, 11, "Q3_K", 256, 110),
    (BlockType::Q4_K, 12, "Q4_K", 256, 144),
    (BlockType::Q5_K, 13, "Q5_K", 256, 176),
    (BlockType::Q6_K, 14, "Q6_K", 256, 210),
    (BlockType::IQ4_NL, 20, "IQ4_NL", 32, 18),
    (BlockType::IQ4_XS, 23, "IQ4_XS", 256, 136),
    (BlockType::BF16, 30, "BF16", 1, 2),
];

/// Types that octet does not read, by number.
const OTHERS: [(u32, &str); 17] = [
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl BlockType {
    /// The type of a number, or the name (or number) of one that octet does not read.
    pub(crate) fn from_number(number: u32) -> Result<Self, String> {
        let known = TYPES.iter().find(|row| row.1 == number).map(|row| row.0);
        known.ok_or_else(|| OTHERS.iter().find(|row| row.0 == number).map_or_else(|| number.to_string(), |row| row.1.into()))
    }

    /// Its name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements of a block.
    pub fn block(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// The element type of plain floats; `None` for blocks of codes.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::Bf16),
            _ => None,
        }
    }

    fn row(self) -> Row {
        TYPES.iter().copied().find(|row| row.0 == self).unwrap_or(TYPES[0])
    }
}
