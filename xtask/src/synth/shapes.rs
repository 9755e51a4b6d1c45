//! The shapes: real models' dimensions as data.

use super::{noise::Fill, tokenizer::Vocabulary};
use octet_formats::safetensors::TensorSpec;
use serde_json::{Value, json};

/// Rows and columns of a block that shares one FP8 scale.
const FP8_BLOCK: usize = 128;

/// A family, where it changes tensors or configuration.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Family {
    /// Llama; with the rope scaling of Llama 3.1 or without.
    Llama {
        /// Rope scaling of kind `llama3`.
        scaled_rope: bool,
    },
    /// Qwen3: norms on queries and keys.
    Qwen3,
}

/// Dimensions of a decoder-only transformer.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Name on the command line.
    pub(crate) name: &'static str,
    /// Family.
    pub(crate) family: Family,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width inside the MLP.
    pub(crate) intermediate: usize,
    /// Blocks.
    pub(crate) layers: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// Rows of the embedding.
    pub(crate) vocabulary: usize,
    /// Tokens the tokenizer has; the embedding's other rows are padding.
    pub(crate) tokens: usize,
    /// Whether the head is the embedding.
    pub(crate) tied: bool,
    /// Base of the rope.
    pub(crate) rope_theta: f64,
    /// Epsilon of the norms.
    pub(crate) eps: f64,
    /// Longest context.
    pub(crate) context: usize,
    /// Whether the linears are FP8 with block scales.
    pub(crate) fp8: bool,
}

const QWEN3_SMALL: Shape = Shape {
    name: "qwen3-0.6b",
    family: Family::Qwen3,
    hidden: 1024,
    intermediate: 3072,
    layers: 28,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    vocabulary: 151_936,
    tokens: 151_669,
    tied: true,
    rope_theta: 1e6,
    eps: 1e-6,
    context: 40_960,
    fp8: false,
};

/// Every shape that can be asked for.
pub(crate) const SHAPES: [Shape; 4] = [
    QWEN3_SMALL,
    Shape { name: "qwen3-4b-fp8", hidden: 2560, intermediate: 9728, layers: 36, heads: 32, fp8: true, ..QWEN3_SMALL },
    Shape {
        name: "llama-1b",
        family: Family::Llama { scaled_rope: true },
        hidden: 2048,
        intermediate: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        vocabulary: 128_256,
        tokens: 128_256,
        rope_theta: 5e5,
        eps: 1e-5,
        context: 131_072,
        ..QWEN3_SMALL
    },
    Shape {
        name: "medium-150m",
        family: Family::Llama { scaled_rope: false },
        hidden: 768,
        intermediate: 2048,
        layers: 16,
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        vocabulary: 32_000,
        tokens: 4096,
        tied: false,
        rope_theta: 1e4,
        eps: 1e-5,
        context: 2048,
        fp8: false,
    },
];

/// A tensor to be written.
pub(crate) struct Tensor {
    /// Name, type and shape.
    pub(crate) spec: TensorSpec,
    /// Contents.
    pub(crate) fill: Fill,
}

impl Tensor {
    fn new(name: String, shape: Vec<usize>, fill: Fill) -> Self {
        Self { spec: TensorSpec { name, dtype: fill.dtype(), shape }, fill }
    }

    /// Bytes of the data.
    pub(crate) fn bytes(&self) -> usize {
        self.spec.shape.iter().product::<usize>() * self.spec.dtype.size()
    }
}

impl Shape {
    /// Dimensions in words.
    pub(crate) fn describe(&self) -> String {
        format!(
            "hidden {}, {} layers, {}/{} heads of {}, intermediate {}, vocabulary {}{}, {}",
            self.hidden,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.intermediate,
            self.vocabulary,
            if self.tied { " (tied)" } else { "" },
            if self.fp8 { "block FP8" } else { "BF16" },
        )
    }

    /// All tensors in the order of the forward pass.
    pub(crate) fn tensors(&self) -> Vec<Tensor> {
        let mut tensors = vec![matrix("model.embed_tokens", self.vocabulary, self.hidden)];
        for layer in 0..self.layers {
            tensors.extend(self.block(&format!("model.layers.{layer}")));
        }
        tensors.push(norm("model.norm", self.hidden));
        if !self.tied {
            tensors.push(matrix("lm_head", self.vocabulary, self.hidden));
        }
        tensors
    }

    fn block(&self, at: &str) -> Vec<Tensor> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (hidden, wide) = (self.hidden, self.intermediate);
        let attention = [("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)];
        let mlp = [("gate_proj", wide, hidden), ("up_proj", wide, hidden), ("down_proj", hidden, wide)];

        let mut tensors = vec![norm(&format!("{at}.input_layernorm"), hidden)];
        for (part, rows, cols) in attention {
            tensors.extend(self.linear(&format!("{at}.self_attn.{part}"), rows, cols));
        }
        if self.family == Family::Qwen3 {
            tensors.extend(["q_norm", "k_norm"].map(|part| norm(&format!("{at}.self_attn.{part}"), self.head_dim)));
        }
        tensors.push(norm(&format!("{at}.post_attention_layernorm"), hidden));
        for (part, rows, cols) in mlp {
            tensors.extend(self.linear(&format!("{at}.mlp.{part}"), rows, cols));
        }
        tensors
    }

    /// `config.json`, as transformers writes it for the family.
    pub(crate) fn config(&self, vocabulary: &Vocabulary) -> Value {
        let (model_type, class) = match self.family {
            Family::Llama { .. } => ("llama", "LlamaForCausalLM"),
            Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        };
        let mut config = json!({
            "architectures": [class],
            "model_type": model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling(),
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "attention_bias": false,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": true,
            "torch_dtype": "bfloat16",
            "bos_token_id": vocabulary.bos(),
            "eos_token_id": vocabulary.eos(),
        });
        match self.family {
            Family::Llama { .. } => config["mlp_bias"] = json!(false),
            Family::Qwen3 => {
                config["max_window_layers"] = json!(self.layers);
                config["sliding_window"] = Value::Null;
                config["use_sliding_window"] = json!(false);
            }
        }
        if self.fp8 {
            config["quantization_config"] = json!({
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
                "modules_to_not_convert": ["lm_head"],
            });
        }
        config
    }

    fn rope_scaling(&self) -> Value {
        if self.family != (Family::Llama { scaled_rope: true }) {
            return Value::Null;
        }
        json!({
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })
    }

    fn linear(&self, module: &str, rows: usize, cols: usize) -> Vec<Tensor> {
        if !self.fp8 {
            return vec![matrix(module, rows, cols)];
        }
        let blocks = vec![rows.div_ceil(FP8_BLOCK), cols.div_ceil(FP8_BLOCK)];
        let weight = Tensor::new(format!("{module}.weight"), vec![rows, cols], Fill::Fp8);
        vec![weight, Tensor::new(format!("{module}.weight_scale_inv"), blocks, Fill::Fp8Scale)]
    }
}

fn matrix(module: &str, rows: usize, cols: usize) -> Tensor {
    Tensor::new(format!("{module}.weight"), vec![rows, cols], Fill::Weight)
}

fn norm(module: &str, width: usize) -> Tensor {
    Tensor::new(format!("{module}.weight"), vec![width], Fill::Norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameter counts as the models' own cards give them (embeddings counted once where tied).
    #[test]
    fn parameters_are_those_of_the_real_models() {
        let millions = |name: &str| {
            let shape = SHAPES.iter().find(|shape| shape.name == name).unwrap();
            let weights = shape.tensors().into_iter().filter(|tensor| tensor.fill != Fill::Fp8Scale);
            weights.map(|tensor| tensor.spec.shape.iter().product::<usize>()).sum::<usize>() / 1_000_000
        };
        assert_eq!(millions("qwen3-0.6b"), 596);
        assert_eq!(millions("qwen3-4b-fp8"), 4022);
        assert_eq!(millions("llama-1b"), 1235);
        assert_eq!(millions("medium-150m"), 162);
    }
}
