//! `octet export`: a model in other formats.

use super::JudgeArgs;
use clap::Args;
use octet_flow::export::Format;
use std::path::PathBuf;

/// `octet export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet export ./model --format gguf:q4_k_m            model-q4_k_m.gguf, solved on calibration text
  octet export ./model --format gguf:q4_0:q8_0         4 bits, embedding and head in 8
  octet export ./model-w8a16-g32 --format gguf         the codes there are, without loss
  octet export ./model --format gguf:q8_0,gguf:iq4_xs --no-judge
  octet export ./model-w4a16 --format gptq,mlx --out ./folders   codes and scales as they are, for other tools
  octet export ./model-w4a16 --format compressed-tensors --deploy   with commands and manifests for servers
  octet export ./base+./adapter --format safetensors             the adapter merged")]
pub(crate) struct Export {
    /// A checkpoint folder, a .gguf file, `pocket`, org/name from the local Hugging Face cache, or BASE+ADAPTER (LoRA, rsLoRA, DoRA)
    pub(crate) model: String,
    /// Formats, with commas: gguf, gguf:TYPE, gguf:TYPE:TYPE OF EMBEDDING AND HEAD, compressed-tensors, gptq, awq, mlx, bnb8, npz, onnx, safetensors
    #[arg(long, value_name = "F", value_delimiter = ',', required = true)]
    pub(crate) format: Vec<Format>,
    /// Where to write; with several formats a folder [default: ./<model>-<type>.gguf or ./<model>-<format>]
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,
    /// Replace what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Also write what servers need: commands and manifests, and into how many parts the model can be cut among them
    #[arg(long)]
    pub(crate) deploy: bool,
    /// Decode what is quantized already and quantize it anew as the format asks
    #[arg(long)]
    pub(crate) requantize: bool,
    /// Calibration text: plain text, .jsonl or .bin token ids [default: built-in text]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) calibration: Vec<PathBuf>,
    /// Windows drawn from the calibration text
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) calibration_samples: usize,
    /// Tokens of a calibration window
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) calibration_length: usize,
    /// Do not measure activations: quicker, a little worse below 8 bits
    #[arg(long, conflicts_with = "calibration")]
    pub(crate) no_calibration: bool,
    /// Write without judging
    #[arg(long)]
    pub(crate) no_judge: bool,
    #[command(flatten)]
    pub(crate) judge: JudgeArgs,
}
