//! The command line: what can be asked for. Names and flags are meant to stay stable.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags, reason = "these comments are what --help prints, plain text")]

mod export;
mod ladder;
mod others;
mod receipts;

pub(crate) use export::Export;
pub(crate) use ladder::{LadderArgs, ReportArgs, Rollback, SchemaArgs, Score, Tool};
pub(crate) use others::{Compare, Verify};
pub(crate) use receipts::{Keygen, Reproduce};

use crate::budget::Size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use octet_kernels::KvDtype;
use octet_quant::SmoothSettings;
use std::{num::NonZeroUsize, path::PathBuf};

/// Compress a language model, judge it against the original on this machine, and run it.
///
/// Takes a checkpoint folder, gives back a smaller, faster one that is proven good, or an honest refusal.
#[derive(Debug, Parser)]
#[command(name = "octet", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Examples:
  octet quantize pocket                      compress and judge the built-in model
  octet quantize ./Qwen3-0.6B --scheme w4a16-g32
  octet run ./Qwen3-0.6B-w8a16 \"The capital of France is\"
  octet eval ./Qwen3-0.6B-w8a16 --base ./Qwen3-0.6B

Exit codes: 0 done or accepted, 1 error, 2 wrong usage, 3 refused or undecided, 130 interrupted.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Flags every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Threads to compute with [default: the physical cores this process may use]
    #[arg(long, global = true, value_name = "N", display_order = 100)]
    pub(crate) threads: Option<usize>,
    /// Print one JSON document on stdout; progress goes to stderr
    #[arg(long, global = true, display_order = 101)]
    pub(crate) json: bool,
    /// Say more (-v: steps, -vv: details) on stderr
    #[arg(short, long, global = true, display_order = 102, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// What octet can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compress a model, re-open what was written, judge it against the original
    Quantize(Box<Quantize>),
    /// Generate text (interactive without a prompt)
    Run(Run),
    /// Perplexity with its interval; against a base also KL divergence, agreement and the paired ratio
    Eval(Eval),
    /// Prefill and decode speed, load time, memory, and their share of this machine's limits
    Bench(Bench),
    /// Architecture, tensors, bits per weight, size and memory forecast of a checkpoint
    Inspect(Inspect),
    /// Write a model in another format (GGUF), re-open it, judge it against the model it came from
    Export(Box<Export>),
    /// Raw logits for given token ids, to hold octet against another implementation
    Logits(Logits),
    /// Both models on the same prompts: where their texts part, divergence token by token
    Compare(Compare),
    /// Judge a checkpoint that anyone made, or check that a folder holds what its receipt says
    Verify(Verify),
    /// Quantize again as a receipt says and compare every byte
    Reproduce(Reproduce),
    /// Make a key pair that signs receipts
    Keygen(Keygen),
    /// The Trinity Score of reports, input by input; several are ranked
    Score(Score),
    /// The page of a report: verdict, gates, plots, texts
    Report(ReportArgs),
    /// Go back to the variant that was in use before, or to the original
    Rollback(Rollback),
    /// What agents may call, as JSON Schema
    Schema(SchemaArgs),
    /// Call a tool with JSON in and out
    Tool(Tool),
    /// What this CPU can do, which kernels run, measured limits
    Doctor,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How much memory a command may take.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Memory {
    /// Refuse, before anything is loaded, what is forecast to take more memory than this, such as 6GB or 512MiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_budget: Option<Size>,
}

/// `octet quantize`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  octet quantize pocket
  octet quantize pocket --scheme w8a16,w4a16-g32     several schemes, compared
  octet quantize ./model ./out --scheme w4a16-g64-asym --calibration notes.txt --eval-text wiki.test.raw
  octet quantize ./model --bits-per-weight 4.5       mixed precision within a budget (or --max-size 100MB)
  octet quantize ./model --dry-run                   the plan, with forecast size, memory and time
  octet quantize ./model --yes                       in a script: what every gate passed is taken, nothing is asked
  octet quantize ./model --portable                  embedding and head stay 16-bit: loads in transformers and vLLM")]
pub(crate) struct Quantize {
    /// A checkpoint folder, `pocket` (built in), or org/name from the local Hugging Face cache
    pub(crate) model: String,
    /// Where to write [default: ./<model>-<scheme or preset>]
    pub(crate) out: Option<PathBuf>,
    /// Several checkpoints of one training run, oldest first: all are quantized and compared; OUT comes last
    pub(crate) more: Vec<String>,
    /// Scheme, or several with commas: w<bits>a<16|8>[-g<size>|-pc][-sym|-asym][-at|-ag<size>|-o<limit>]
    #[arg(long, value_name = "S", value_delimiter = ',', conflicts_with_all = ["preset", "bits", "recipe"])]
    pub(crate) scheme: Vec<String>,
    /// Named choice of schemes and methods [default: mixed; w8a16 where nothing is judged or measured]
    #[arg(long, value_enum, conflicts_with_all = ["bits", "recipe"])]
    pub(crate) preset: Option<Preset>,
    /// Mixed precision within so many bits a weight, embedding and head included; several with commas
    #[arg(long, value_name = "B", value_delimiter = ',', conflicts_with_all = ["scheme", "bits"])]
    pub(crate) bits_per_weight: Vec<f64>,
    /// Bits a weight, 2 to 8 (with --group-size: the same as a scheme)
    #[arg(long, value_name = "N", conflicts_with = "recipe")]
    pub(crate) bits: Option<u32>,
    /// Weights that share a scale: 32, 64, 128 or 256
    #[arg(long, value_name = "N", requires = "bits")]
    pub(crate) group_size: Option<u32>,
    /// A recipe file (TOML) of ordered steps
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<PathBuf>,
    /// What chooses the codes of the linears [default: rtn; presets and recipes say it themselves]
    #[arg(long, value_enum, value_name = "M", conflicts_with = "recipe")]
    pub(crate) method: Option<Method>,
    /// Strength of SmoothQuant, 0 to 1, or `search`: for every input the one that leaves the least error [default: search]
    #[arg(long, value_name = "A", conflicts_with = "recipe")]
    pub(crate) smooth_alpha: Option<Alpha>,
    /// Let the quantized model learn from the original's logits on the calibration text, in so many steps [default: by the model's size]
    #[arg(long, value_name = "STEPS", num_args = 0..=1, value_parser = positive, conflicts_with_all = ["recipe", "fast", "no_calibration"])]
    #[allow(clippy::option_option, reason = "a flag whose value may be left out")]
    pub(crate) distill: Option<Option<usize>>,
    /// Minutes for quality, with the presets mixed and w4: fast rounds, best distils as --distill does [default: normal, GPTQ]
    #[arg(long, value_enum, value_name = "E", conflicts_with_all = ["scheme", "bits", "recipe", "fast", "method", "distill"])]
    pub(crate) effort: Option<Effort>,
    /// Calibration text: plain text, .jsonl or .bin token ids [default: built-in text]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) calibration: Vec<PathBuf>,
    /// Windows drawn from the calibration text [default: 64, or more where the model is wide or small]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) calibration_samples: Option<usize>,
    /// Tokens of a calibration window [default: 512]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) calibration_length: Option<usize>,
    /// Observe all inputs of a block at once, before any of its linears is quantized: faster, a little worse
    #[arg(long)]
    pub(crate) one_pass: bool,
    /// Memory to take, such as 1.5GB; hidden states go to disk where they would not fit [default: half of what is free]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_budget: Option<String>,
    /// Append a line of JSON for every finished tensor to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) log_jsonl: Option<PathBuf>,
    /// Begin anew where unfinished work of an earlier run would be resumed
    #[arg(long)]
    pub(crate) restart: bool,
    /// Do not measure activations, even when there is calibration text
    #[arg(long, conflicts_with = "calibration")]
    pub(crate) no_calibration: bool,
    /// Quick: try few scales a group and measure no activations (fidelity a little lower, several times as fast)
    #[arg(long, conflicts_with_all = ["calibration", "recipe"])]
    pub(crate) fast: bool,
    /// Keep embedding and head in 16 bits, so that transformers and vLLM load the folder unchanged
    #[arg(long)]
    pub(crate) portable: bool,
    /// Print the plan with forecast size, memory and time; write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write without judging: the folder then has no validation_report.json
    #[arg(long)]
    pub(crate) no_judge: bool,
    /// Also store the weights as this version's kernels execute them (model.packed): opening is a map and no copy
    #[arg(long)]
    pub(crate) prepack: bool,
    /// Write no receipt.json: hashing what goes in and out takes longer than a --fast run itself
    #[arg(long, requires = "no_judge", conflicts_with = "sign")]
    pub(crate) no_receipt: bool,
    /// Replace an existing output folder
    #[arg(long)]
    pub(crate) force: bool,
    /// Sign the receipt with this secret key (see octet keygen)
    #[arg(long, value_name = "KEY")]
    pub(crate) sign: Option<PathBuf>,
    /// Turn whatever the plan would note and skip into an error, and the fidelity gate into a blocking one
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) ladder: LadderArgs,
    #[command(flatten)]
    pub(crate) judge: JudgeArgs,
}

/// Text and thresholds of the verdict.
#[derive(Debug, Clone, Args)]
pub(crate) struct JudgeArgs {
    /// Texts to judge on, each by itself and all together: plain text, .jsonl or .bin token ids [default: built-in texts]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) eval_text: Vec<PathBuf>,
    /// Field of a .jsonl line that holds the text [default: text, else messages]
    #[arg(long, value_name = "NAME")]
    pub(crate) text_field: Option<String>,
    /// Judge on at most this many tokens
    #[arg(long, value_name = "N", default_value_t = 102_400)]
    pub(crate) eval_tokens: usize,
    /// Window length in tokens [default: 2048, or less where the model or 100 windows of the text ask for it]
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
    /// Seed of everything drawn at random
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Gate: largest accepted perplexity increase in percent (upper end of the 95 % interval)
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, allow_negative_numbers = true)]
    pub(crate) max_ppl_increase: f64,
    /// Judge quality on all of the text even where half of it decides
    #[arg(long)]
    pub(crate) whole_text: bool,
    /// Gate: smallest accepted decode speed-up over 16 bits where memory is the bound
    #[arg(long, value_name = "RATIO", default_value_t = 1.5, allow_negative_numbers = true)]
    pub(crate) min_speedup: f64,
    /// Gate: largest accepted folder, such as 100MB; mixed precision is allocated to fit
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_size: Option<Size>,
    /// Gate: questions both models answer, JSON lines with "prompt", "answer" and for multiple choice "choices"; `pocket` for
    /// the built-in ones
    #[arg(long, value_name = "FILE")]
    pub(crate) tasks: Option<PathBuf>,
    /// Gate: largest accepted drop of task accuracy in points (upper end of the 95 % interval)
    #[arg(long, value_name = "POINTS", default_value_t = 2.0, requires = "tasks", allow_negative_numbers = true)]
    pub(crate) max_task_drop: f64,
    /// Prompts that both models continue by 256 tokens, greedily and sampled, to compare the health of their texts
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) health_prompts: usize,
    /// Folder that keeps what an original makes of a text, so that it runs once for many variants; `off` keeps nothing
    /// [default: octet in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) reference_cache: Option<PathBuf>,
}

/// What chooses codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// Round to nearest, with a search for scales
    Rtn,
    /// GPTQ: what rounding one input costs is made good by the others; needs calibration
    Gptq,
    /// AWQ: weights of active inputs are made finer, large ones clipped, before they are rounded; needs calibration
    Awq,
    /// SmoothQuant: what makes activations hard to quantize moves into the weights; for a8, needs calibration
    Smoothquant,
    /// LLM.int8: the inputs that calibration saw largest are multiplied as floats, the rest in 8 bits (w8a8-c1; without
    /// calibration those of a magnitude beyond 6, w8a8-o6)
    LlmInt8,
}

/// How many minutes quality is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Effort {
    /// Codes are rounded to nearest; of one width for all without calibration
    Fast,
    /// Codes are chosen by GPTQ
    Normal,
    /// After that what is quantized learns from the original's logits
    Best,
}

/// How much of the activations' size moves into the weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alpha(pub(crate) SmoothSettings);

impl std::str::FromStr for Alpha {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "search" {
            return Ok(Self(SmoothSettings { alpha: None }));
        }
        let alpha = text.parse().ok().filter(|alpha| (0.0..=1.0).contains(alpha));
        alpha
            .map(|alpha| Self(SmoothSettings { alpha: Some(alpha) }))
            .ok_or_else(|| format!("{text:?} is neither a number from 0 to 1 nor search"))
    }
}

/// A whole number above zero.
fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("{text:?} is no number above zero"))
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct CacheArgs {
    /// Type of cached keys and values
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = Kv::Int16)]
    pub(crate) kv: Kv,
}

/// Types of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kv {
    /// 32-bit floats: exact
    F32,
    /// 16-bit floats
    F16,
    /// 16-bit integers: as small and as good, faster over long prompts
    Int16,
    /// 8-bit integers: half the memory of 16 bits
    Int8,
}

impl From<Kv> for KvDtype {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F32 => Self::F32,
            Kv::F16 => Self::F16,
            Kv::Int16 => Self::Int16,
            Kv::Int8 => Self::Int8,
        }
    }
}

/// Named choices of scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// The width that pays for each group of linears, embedding and head; the smallest model that passes the quality gate
    Mixed,
    /// 8-bit weights in groups of 128, exact activations (w8a16-g128; embedding and head w8a16-g32; --portable: w8a16)
    W8,
    /// 8-bit weights and activations quantized at run time (w8a8)
    W8a8,
    /// w8a8 after SmoothQuant: for models with activation outliers; needs calibration
    SmoothW8a8,
    /// w8a8 with inputs of linears turned by eights where the measured loss falls: less is lost to outliers; needs calibration
    TurnedW8a8,
    /// 4-bit levels of a table in groups of 32, exact activations, GPTQ (w4ta16-g32; --portable: w4a16-g32)
    W4,
    /// Attention 8 bits, MLP 4 bits with GPTQ
    #[value(name = "attention8-mlp4")]
    Attention8Mlp4,
    /// 8-bit weights by a quick search, nothing measured on text
    Fast,
}

/// `octet run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet run pocket \"PCI device 8086:10d3 is\"
  octet run ./model --temperature 0.8 --top-p 0.95 --seed 7 \"Once upon a time\"
  echo \"# grep\" | octet run ./model -
  octet run ./chat-model                             a conversation; /bye ends it")]
pub(crate) struct Run {
    /// A checkpoint folder, `pocket`, or org/name from the local Hugging Face cache
    pub(crate) model: String,
    /// The prompt; `-` reads it from stdin; without it the session is interactive
    pub(crate) prompt: Option<String>,
    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Sampling temperature; 0 is greedy [default: the model's own]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Keep the K likeliest tokens; 0 keeps all [default: the model's own]
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Keep the likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Divide the score of tokens already seen; 1 leaves them
    #[arg(long, value_name = "R")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Seed of the sampler
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Stop when this text appears (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Continue the text as it is, even when the model has a chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// System message of a chat
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Context in tokens [default: what the model and the prompt need]
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Take a shorter context than the model's where --memory-budget asks for it
    #[arg(long, requires = "memory_budget", conflicts_with = "context")]
    pub(crate) shrink_context: bool,
    #[command(flatten)]
    pub(crate) memory: Memory,
    /// Print timings at the end (stderr)
    #[arg(long)]
    pub(crate) stats: bool,
}

/// `octet eval`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet eval pocket
  octet eval ./model-w4a16 --base ./model --eval-text wiki.test.raw --json
  octet eval ./model --kv int8 --base ./model --base-kv f16     what 8-bit keys and values cost")]
pub(crate) struct Eval {
    /// The model to measure
    pub(crate) model: String,
    /// The original to hold it against
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Type of the base's cached keys and values [default: the same]
    #[arg(long, value_enum, value_name = "TYPE", requires = "base")]
    pub(crate) base_kv: Option<Kv>,
    #[command(flatten)]
    pub(crate) memory: Memory,
    #[command(flatten)]
    pub(crate) judge: JudgeArgs,
}

/// `octet bench`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet bench pocket --quick
  octet bench ./model ./model-w8a8 ./model-w4a8     in alternation, ratios against the first
  octet bench ./model-w4a8 --prefill 512 --context 0,4096 --batch 1,4 --svg roofline.svg")]
pub(crate) struct Bench {
    /// Models to time in alternation; the others are compared with the first
    #[arg(required = true)]
    pub(crate) models: Vec<String>,
    /// Prompt lengths to time [default: 128,512,2048]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    pub(crate) prefill: Vec<usize>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Tokens in the cache when decoding starts [default: 0,2048]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    pub(crate) context: Vec<usize>,
    /// Sequences that decode together [default: 1,8]; larger batches are timed at the first context only
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub(crate) batch: Vec<usize>,
    /// Tokens to decode a repetition [default: as many as take a quarter of a second]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) decode: Option<usize>,
    /// Repetitions; medians are reported. Long ones stop early, after three at least
    #[arg(long, value_name = "N", default_value = "8", alias = "repetitions")]
    pub(crate) reps: NonZeroUsize,
    /// Three short repetitions of prefill 128 and decoding
    #[arg(long)]
    pub(crate) quick: bool,
    /// Draw the machine's roofline with all phases in it
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) memory: Memory,
    /// Replace an existing file
    #[arg(long, requires = "svg")]
    pub(crate) force: bool,
}

/// `octet inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The model to look at
    pub(crate) model: String,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Read every weight and refuse values that are not finite
    #[arg(long)]
    pub(crate) check: bool,
    /// Context to forecast the memory of, in tokens [default: 2048 and the model's own]
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Show the graph of each kind of block, and which operations are computed in one pass
    #[arg(long)]
    pub(crate) graph: bool,
}

/// `octet logits`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  octet logits ./model --ids input_ids.npy logits.npy")]
pub(crate) struct Logits {
    /// The model to run
    pub(crate) model: String,
    /// Token ids: int64 .npy, [batch, tokens] or [tokens]
    #[arg(long, value_name = "IDS.npy")]
    pub(crate) ids: PathBuf,
    /// Where to write: f32 .npy, [batch, tokens, vocabulary]
    pub(crate) out: PathBuf,
    /// How quantized linears treat activations
    #[arg(long, value_enum, default_value_t = LogitsActivations::Exact)]
    pub(crate) activations: LogitsActivations,
    /// Replace an existing file
    #[arg(long)]
    pub(crate) force: bool,
}

/// How `logits` treats the inputs of quantized linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogitsActivations {
    /// Exact floats
    Exact,
    /// int8 as the folder says (per token where it says nothing)
    Int8,
}
