//! Arguments of the commands that hold models of others, or two models, against each other.

use super::JudgeArgs;
use clap::Args;
use std::path::PathBuf;

/// `octet verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet verify ./somebodys-int4 --base ./model       the verdict of `quantize`, on a checkpoint made by anyone
  octet verify ./model-w8a16 --base ./model --eval-text wiki.test.raw notes.txt --json
  octet verify --receipt ./model-w8a16               every file by its SHA-256; names what was changed
  octet verify --receipt ./model-w8a16 --key octet.key.pub

Exit codes: 0 accepted, or all is as the receipt says; 3 refused or undecided, or something is not.")]
pub(crate) struct Verify {
    /// The quantized model to judge, in any format octet reads
    #[arg(required_unless_present = "receipt", conflicts_with = "receipt", requires = "base", value_name = "QUANT")]
    pub(crate) quant: Option<String>,
    /// The original it was made from
    #[arg(long, value_name = "MODEL", requires = "quant")]
    pub(crate) base: Option<String>,
    /// Make the fidelity gates blocking
    #[arg(long, requires = "quant")]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) judge: JudgeArgs,
    /// Hold a folder that octet wrote against its receipt: the folder, or a receipt beside its files
    #[arg(long, value_name = "DIR_OR_FILE")]
    pub(crate) receipt: Option<PathBuf>,
    /// With --receipt: the original, to be checked too [default: where it was, if it is still there]
    #[arg(long, value_name = "MODEL", requires = "receipt")]
    pub(crate) original: Option<String>,
    /// With --receipt: require a signature of this public key
    #[arg(long, value_name = "FILE", requires = "receipt")]
    pub(crate) key: Option<PathBuf>,
}

/// `octet compare`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet compare pocket ./pocket-w8a16
  octet compare ./model ./model-w4a16 \"The capital of France is\" \"def fib(n):\"
  octet compare ./model ./model-w4a16 --prompts prompts.txt --html compare.html
  octet compare ./model ./model-w4a16 --temperature 0.8 --seed 3 --json")]
pub(crate) struct Compare {
    /// The original
    pub(crate) base: String,
    /// What was made of it
    pub(crate) quant: String,
    /// Prompts [default: beginnings of the built-in evaluation texts]
    pub(crate) prompts: Vec<String>,
    /// A file with a prompt on each line
    #[arg(long = "prompts", value_name = "FILE", conflicts_with = "prompts")]
    pub(crate) file: Option<PathBuf>,
    /// Tokens to generate after each prompt at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 96)]
    pub(crate) max_tokens: usize,
    /// Sampling temperature; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Seed of the sampler
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Continue the text as it is, even when the model has a chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Write a page that needs nothing else: both texts side by side, tokens coloured by their divergence
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long, requires = "html")]
    pub(crate) force: bool,
}
