//! Element types of GGUF tensors: floats and blocks of codes.

use octet_tensor::{BlockCode, Dtype};

/// The type of a tensor's elements, which lie in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// Every type with its number; a quantized one is called as its [`BlockCode`] is.
const TYPES: [(BlockType, u32, &str); 15] = [
    (BlockType::F32, 0, "F32"),
    (BlockType::F16, 1, "F16"),
    (BlockType::Q4_0, 2, "Q4_0"),
    (BlockType::Q4_1, 3, "Q4_1"),
    (BlockType::Q5_0, 6, "Q5_0"),
    (BlockType::Q5_1, 7, "Q5_1"),
    (BlockType::Q8_0, 8, "Q8_0"),
    (BlockType::Q2_K, 10, "Q2_K"),
    (BlockType::Q3_K, 11, "Q3_K"),
    (BlockType::Q4_K, 12, "Q4_K"),
    (BlockType::Q5_K, 13, "Q5_K"),
    (BlockType::Q6_K, 14, "Q6_K"),
    (BlockType::IQ4_NL, 20, "IQ4_NL"),
    (BlockType::IQ4_XS, 23, "IQ4_XS"),
    (BlockType::BF16, 30, "BF16"),
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

    /// The type called `name`.
    pub fn named(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// Its number in files.
    pub(crate) fn number(self) -> u32 {
        self.row().1
    }

    /// What its codes mean; `None` for plain floats.
    pub fn code(self) -> Option<BlockCode> {
        BlockCode::named(self.name())
    }

    /// Its name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements of a block.
    pub fn block(self) -> usize {
        self.code().map_or(1, |code| code.block)
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.code().map_or_else(|| self.dtype().map_or(0, Dtype::size), |code| code.bytes)
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

    fn row(self) -> (Self, u32, &'static str) {
        TYPES.iter().copied().find(|row| row.0 == self).unwrap_or(TYPES[0])
    }
}
