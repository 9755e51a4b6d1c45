//! What running a model takes, told before it is loaded.

use crate::Result;
use octet_formats::{Checkpoint, Folder};
use octet_kernels::KvDtype;
use octet_model::{ArchSpec, WeightBytes};
use octet_tensor::Activations;
use std::fmt;

/// The program itself, its threads and what it links (measured on the built-in model).
const PROGRAM_BYTES: u64 = 12_000_000;

/// Bytes a loaded tokenizer takes for each byte of its tokenizer.json (measured on a vocabulary of 152 k).
const TOKENIZER_FACTOR: u64 = 3;

/// Fewest tokens a shortened context may come to: below that there is little left to say.
const LEAST_CONTEXT: usize = 128;

/// What a model needs whatever its context.
#[derive(Clone)]
pub struct MemoryNeeds {
    spec: ArchSpec,
    weights: WeightBytes,
    base: u64,
    threads: usize,
}

/// Bytes that running a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryForecast {
    /// Weights as kernels read them.
    pub weights: u64,
    /// Those among them that stay where the file is mapped.
    pub mapped: u64,
    /// Keys and values of a full context.
    pub kv: u64,
    /// Everything between the weights.
    pub buffers: u64,
    /// The program and the tokenizer.
    pub base: u64,
    /// Tokens of the context.
    pub context: usize,
    /// Type of keys and values.
    pub kv_dtype: KvDtype,
}

impl MemoryNeeds {
    /// Of the model in `folder`, run on `threads` threads; only headers are read.
    ///
    /// # Errors
    /// As [`crate::TextModel::open`], as far as that depends on headers.
    pub fn of(folder: &Folder, activations: Option<Activations>, threads: usize) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let mut spec = ArchSpec::from_config(checkpoint.config())?;
        spec.settle(&checkpoint)?;
        let weights = spec.weight_bytes(&checkpoint, activations)?;
        Self::new(folder, spec, weights, threads)
    }

    /// Of a model that is yet to be written, with `folder`'s tokenizer.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn new(folder: &Folder, spec: ArchSpec, weights: WeightBytes, threads: usize) -> Result<Self> {
        let tokenizer = folder.read("tokenizer.json")?.map_or(0, |bytes| bytes.len() as u64);
        Ok(Self { spec, weights, base: PROGRAM_BYTES + TOKENIZER_FACTOR * tokenizer, threads })
    }

    /// Longest context the model was made for.
    pub fn longest(&self) -> usize {
        self.spec.context()
    }

    /// With a context of `context` tokens.
    pub fn at(&self, context: usize, kv_dtype: KvDtype) -> MemoryForecast {
        let (kv, buffers) = (self.spec.kv_bytes(context, kv_dtype) as u64, self.spec.pass_bytes(context, self.threads));
        MemoryForecast { weights: self.weights.all, mapped: self.weights.mapped, kv, buffers, base: self.base, context, kv_dtype }
    }

    /// The longest context, no longer than the model's, whose forecast is within `budget`; `None` where hardly any is.
    pub fn longest_within(&self, budget: u64, kv_dtype: KvDtype) -> Option<usize> {
        let fits = |context: usize| self.at(context, kv_dtype).total() <= budget;
        let (mut low, mut high) = (LEAST_CONTEXT.min(self.longest()), self.longest());
        if !fits(low) {
            return None;
        }
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        // A round number reads better and costs next to nothing.
        Some(if low < self.longest() { (low / 64 * 64).max(LEAST_CONTEXT.min(low)) } else { low })
    }
}

impl MemoryForecast {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.buffers + self.base
    }

    /// What the system cannot drop and read again.
    pub fn unmapped(&self) -> u64 {
        self.total() - self.mapped
    }
}

/// Decimal megabytes or gigabytes.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b >= 1_000_000_000 => write!(f, "{:.2} GB", b as f64 / 1e9),
            b => write!(f, "{:.0} MB", (b as f64 / 1e6).ceil()),
        }
    }
}

impl fmt::Display for MemoryForecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, weights, kv, buffers, base] = [self.total(), self.weights, self.kv, self.buffers, self.base].map(Size);
        let (context, dtype) = (self.context, self.kv_dtype);
        write!(
            f,
            "{total} (weights {weights}, keys and values of {context} tokens in {dtype} {kv}, buffers {buffers}, program and tokenizer {base})"
        )
    }
}
