//! What a whole file is called (`general.file_type`) and which type that gives each tensor.
//!
//! The mixtures and what takes the place of a type whose blocks a row does not fill are those of llama.cpp's
//! `llama-quantize` (`src/llama-quant.cpp`, `llama_tensor_get_type`), so that sizes are the same.

use super::BlockType;
use std::{fmt, str::FromStr};

/// A mixture of tensor types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType {
    name: &'static str,
    number: u32,
    main: BlockType,
    /// Of the `_M` and `_L` mixtures: what the tensors that matter more get.
    mix: Mix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mix {
    /// The same for all.
    None,
    /// Fewer bits: `_S`.
    Small,
    /// `_M`.
    Medium,
    /// `_L`.
    Large,
}

const fn row(name: &'static str, number: u32, main: BlockType, mix: Mix) -> FileType {
    FileType { name, number, main, mix }
}

const ALL: [FileType; 19] = [
    row("f32", 0, BlockType::F32, Mix::None),
    row("f16", 1, BlockType::F16, Mix::None),
    row("bf16", 32, BlockType::BF16, Mix::None),
    row("q8_0", 7, BlockType::Q8_0, Mix::None),
    row("q4_0", 2, BlockType::Q4_0, Mix::None),
    row("q4_1", 3, BlockType::Q4_1, Mix::None),
    row("q5_0", 8, BlockType::Q5_0, Mix::None),
    row("q5_1", 9, BlockType::Q5_1, Mix::None),
    row("q2_k", 10, BlockType::Q2_K, Mix::None),
    row("q3_k_s", 11, BlockType::Q3_K, Mix::Small),
    row("q3_k_m", 12, BlockType::Q3_K, Mix::Medium),
    row("q3_k_l", 13, BlockType::Q3_K, Mix::Large),
    row("q4_k_s", 14, BlockType::Q4_K, Mix::Small),
    row("q4_k_m", 15, BlockType::Q4_K, Mix::Medium),
    row("q5_k_s", 16, BlockType::Q5_K, Mix::Small),
    row("q5_k_m", 17, BlockType::Q5_K, Mix::Medium),
    row("q6_k", 18, BlockType::Q6_K, Mix::None),
    row("iq4_nl", 25, BlockType::IQ4_NL, Mix::None),
    row("iq4_xs", 30, BlockType::IQ4_XS, Mix::None),
];

/// What a mixture looks at.
#[derive(Clone, Copy, Debug)]
pub struct ModelFacts {
    /// Blocks.
    pub layers: usize,
    /// Query heads for each key head.
    pub queries_per_key: usize,
    /// Experts; 0 without.
    pub experts: usize,
    /// Whether the embedding is the head as well.
    pub tied: bool,
    /// Whether what flows through the model was measured.
    pub calibrated: bool,
}

impl FileType {
    /// Plain floats of 16 bits.
    pub const F16: Self = ALL[1];
    /// Every type.
    pub const ALL: [Self; 19] = ALL;

    /// The type with `number` as `general.file_type`.
    pub fn number(self) -> u32 {
        self.number
    }

    /// What most tensors get.
    pub fn main(self) -> BlockType {
        self.main
    }

    /// The file type that is mostly `kind`.
    pub fn mostly(kind: BlockType) -> Self {
        ALL.into_iter().find(|row| row.main == kind).unwrap_or(Self::F16)
    }

    /// What the tensor `name` with rows of `cols` weights gets. `embedding` is what was asked for embedding and head, if anything.
    pub fn tensor(self, name: &str, cols: usize, model: &ModelFacts, embedding: Option<BlockType>) -> BlockType {
        let floats = self.main.dtype().is_some();
        if is_float(name) {
            return BlockType::F32;
        }
        let head = name == "output.weight" || (model.tied && name == "token_embd.weight");
        let wanted = match embedding.filter(|_| head || name == "token_embd.weight") {
            Some(asked) => asked,
            None if floats => self.main,
            None if head && !cols.is_multiple_of(self.main.block()) => BlockType::Q8_0,
            None if head && self.main != BlockType::Q8_0 => BlockType::Q6_K,
            None => self.in_block(name, model).unwrap_or(self.main),
        };
        fitting(wanted, cols)
    }

    /// What a tensor of a block gets instead of the main type.
    fn in_block(self, name: &str, model: &ModelFacts) -> Option<BlockType> {
        use BlockType::{IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
        use Part::{Down, Keys, Output, Values};
        let (block, tensor) = name.strip_prefix("blk.")?.split_once('.')?;
        let (layer, layers) = (block.parse::<usize>().ok()?, model.layers);
        let early = layer < layers / 8;
        let more_bits = early || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
        let eight = model.experts == 8;
        let few_keys = model.queries_per_key >= 4;
        let calibrated = model.calibrated;
        match (Part::of(tensor)?, self.main, self.mix) {
            (Values | Keys, ..) if eight => Some(Q8_0),
            (Output, Q2_K | Q4_K | IQ4_NL | IQ4_XS, _) | (Output, Q3_K, Mix::Small | Mix::Medium) if eight => Some(Q5_K),
            (Output, ..) if eight => None,
            (Down | Output, Q2_K, _) => Some(Q3_K),
            (Values, Q2_K, _) => Some(if few_keys { Q4_K } else { Q3_K }),
            (Down, Q3_K, Mix::Medium) => Some(if layer < layers / 16 { Q5_K } else { Q4_K }),
            (Values, Q3_K, Mix::Medium) => Some(if layer < 2 { Q5_K } else { Q4_K }),
            (Output, Q3_K, Mix::Medium) => Some(Q4_K),
            (Down | Values | Output, Q3_K, Mix::Large) => Some(Q5_K),
            (Down | Values, Q4_K | Q5_K, Mix::Medium) => more_bits.then_some(Q6_K),
            (Down, Q4_K, Mix::Small) => early.then_some(Q5_K),
            (Values, Q4_K, Mix::Small) => (layer < 4).then_some(Q5_K),
            (Down, IQ4_NL | IQ4_XS, _) => (early && !calibrated).then_some(Q5_K),
            (Values, IQ4_NL | IQ4_XS, _) => few_keys.then_some(Q5_K),
            (Down, Q4_0, _) => (early && calibrated).then_some(Q4_1),
            (Down, Q5_0, _) => (early && calibrated).then_some(Q5_1),
            _ => None,
        }
    }
}

/// The tensors of a block that mixtures tell apart.
enum Part {
    Values,
    Keys,
    Output,
    Down,
}

impl Part {
    fn of(tensor: &str) -> Option<Self> {
        match tensor {
            // One matrix of all three is as dear as the values in it.
            "attn_v.weight" | "attn_qkv.weight" => Some(Self::Values),
            "attn_k.weight" => Some(Self::Keys),
            "attn_output.weight" => Some(Self::Output),
            _ => tensor.starts_with("ffn_down").then_some(Self::Down),
        }
    }
}

/// Tensors that always stay floats: they are small, or decide too much.
fn is_float(name: &str) -> bool {
    !name.ends_with(".weight") || name.contains("_norm") || name.contains("ffn_gate_inp") || name.starts_with("position_embd")
}

/// `kind`, or what stands in where rows of `cols` weights do not fill its blocks.
fn fitting(kind: BlockType, cols: usize) -> BlockType {
    if cols.is_multiple_of(kind.block()) {
        return kind;
    }
    let instead = match kind {
        BlockType::IQ4_XS => BlockType::IQ4_NL,
        BlockType::Q2_K | BlockType::Q3_K => BlockType::Q4_0,
        BlockType::Q4_K => BlockType::Q5_0,
        BlockType::Q5_K => BlockType::Q5_1,
        BlockType::Q6_K => BlockType::Q8_0,
        _ => BlockType::F16,
    };
    if cols.is_multiple_of(instead.block()) { instead } else { BlockType::F16 }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for FileType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.to_ascii_lowercase();
        ALL.into_iter().find(|row| row.name == name).ok_or_else(|| {
            let known: Vec<&str> = ALL.iter().map(|row| row.name).collect();
            format!("{text:?} is no GGUF type; take one of {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: ModelFacts = ModelFacts { layers: 4, queries_per_key: 2, experts: 0, tied: true, calibrated: true };

    fn kind(file: &str, tensor: &str, cols: usize, model: ModelFacts) -> &'static str {
        file.parse::<FileType>().unwrap().tensor(tensor, cols, &model, None).name()
    }

    #[test]
    fn mixtures_are_those_of_llama_quantize() {
        let large = ModelFacts { layers: 32, queries_per_key: 4, tied: false, ..SMALL };
        assert_eq!(kind("q4_k_m", "token_embd.weight", 256, SMALL), "Q6_K");
        assert_eq!(kind("q4_k_m", "token_embd.weight", 256, large), "Q4_K");
        assert_eq!(kind("q4_k_m", "blk.0.attn_v.weight", 256, large), "Q6_K");
        assert_eq!(kind("q4_k_m", "blk.4.attn_v.weight", 256, large), "Q4_K");
        assert_eq!(kind("q4_k_m", "blk.6.ffn_down.weight", 256, large), "Q6_K");
        assert_eq!(kind("q4_k_m", "blk.6.ffn_up.weight", 256, large), "Q4_K");
        assert_eq!(kind("q4_k_m", "blk.4.attn_qkv.weight", 256, large), "Q4_K");
        assert_eq!(kind("q5_k_m", "blk.31.attn_qkv.weight", 256, large), "Q6_K");
        assert_eq!(kind("iq4_xs", "blk.9.attn_v.weight", 256, large), "Q5_K");
        assert_eq!(kind("iq4_xs", "blk.3.ffn_down.weight", 256, ModelFacts { calibrated: false, ..large }), "Q5_K");
        assert_eq!(kind("q4_0", "blk.3.ffn_down.weight", 256, large), "Q4_1");
        assert_eq!(kind("q4_0", "blk.0.ffn_down.weight", 256, SMALL), "Q4_0");
        assert_eq!(kind("q8_0", "blk.0.attn_norm.weight", 256, SMALL), "F32");
        assert_eq!(kind("q8_0", "blk.0.ffn_gate_inp.weight", 256, SMALL), "F32");
    }

    #[test]
    fn rows_that_fill_no_block_get_another_type() {
        assert_eq!(kind("q4_k_m", "blk.1.ffn_up.weight", 352, SMALL), "Q5_0");
        assert_eq!(kind("q5_k_s", "blk.1.ffn_up.weight", 352, SMALL), "Q5_1");
        assert_eq!(kind("q6_k", "blk.1.ffn_up.weight", 352, SMALL), "Q8_0");
        assert_eq!(kind("q3_k_s", "blk.1.ffn_up.weight", 352, SMALL), "Q4_0");
        assert_eq!(kind("iq4_xs", "blk.1.ffn_up.weight", 352, SMALL), "IQ4_NL");
        assert_eq!(kind("q4_k_m", "token_embd.weight", 128, SMALL), "Q8_0");
        assert_eq!(kind("q4_0", "token_embd.weight", 128, SMALL), "Q8_0");
        assert_eq!(kind("q4_0", "blk.1.ffn_up.weight", 20, SMALL), "F16");
    }

    #[test]
    fn names_read_back() {
        assert!(FileType::ALL.iter().all(|kind| kind.to_string().parse::<FileType>().unwrap() == *kind));
        assert!("q9".parse::<FileType>().unwrap_err().contains("q4_k_m"));
    }
}
