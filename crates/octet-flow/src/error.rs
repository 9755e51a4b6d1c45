//! What can go wrong between a model folder and a judged one.

use std::path::{Path, PathBuf};

/// What can go wrong between a model folder and a judged one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input is already quantized.
    #[error("{model} is already quantized ({scheme}); quantize the original instead, or run this one as it is")]
    AlreadyQuantized {
        /// The model.
        model: String,
        /// What it is quantized to.
        scheme: String,
    },
    /// The disk has too little space.
    #[error("the disk of {path} has {available:.1} MB free, {needed:.1} MB are needed; free some space or write elsewhere")]
    NoSpace {
        /// Where it would be written.
        path: String,
        /// Megabytes needed.
        needed: f64,
        /// Megabytes there.
        available: f64,
    },
    /// There is too little memory to judge.
    #[error(
        "judging {what} needs {needed} MB of memory, {available} MB are available to this process; free some, raise the container's limit, or quantize with --no-judge and judge elsewhere"
    )]
    NoMemory {
        /// What would be loaded.
        what: String,
        /// Megabytes needed.
        needed: u64,
        /// Megabytes there.
        available: u64,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {source}; check space and permissions")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}; check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A receipt or a key is not what it should be.
    #[error("{path} {what}")]
    Receipt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// What an agent asked for cannot be done as asked.
    #[error("{0}")]
    Request(String),
    /// What a receipt says cannot be done again.
    #[error("{0}")]
    NotReproducible(String),
    /// Calibration and evaluation text overlap, or a text cannot be used.
    #[error(transparent)]
    Eval(#[from] octet_eval::Error),
    /// Reading or writing a checkpoint failed.
    #[error(transparent)]
    Formats(#[from] octet_formats::Error),
    /// The architecture is not understood.
    #[error(transparent)]
    Config(#[from] octet_model::ConfigError),
    /// The weights do not fit the architecture.
    #[error(transparent)]
    Load(#[from] octet_model::LoadError),
    /// The model cannot run.
    #[error(transparent)]
    Forward(#[from] octet_model::ForwardError),
    /// Planning or solving failed.
    #[error(transparent)]
    Quant(#[from] octet_quant::Error),
    /// Distillation failed.
    #[error(transparent)]
    Tune(#[from] octet_tune::TuneError),
    /// There is too little memory to distil.
    #[error("distilling needs {needed} MB of memory, {budget} MB may be taken; allow more with --memory-budget, or leave distillation off")]
    TooLargeToDistill {
        /// Megabytes needed.
        needed: u64,
        /// Megabytes that may be taken.
        budget: u64,
    },
    /// Tokenizer, template or generation failed.
    #[error(transparent)]
    Runtime(#[from] octet_runtime::Error),
    /// Weights make no sense.
    #[error(transparent)]
    Tensor(#[from] octet_tensor::Error),
    /// Unfinished work of something else.
    #[error(
        "{} holds unfinished work that differs in {differs}; give the command it was begun with, or throw it away with --restart",
        work.display()
    )]
    OtherWork {
        /// The folder.
        work: PathBuf,
        /// What differs.
        differs: String,
    },
    /// A budget that no allocation of widths meets.
    #[error(
        "no allocation of widths fits into {asked}: the smallest possible takes {bits:.3} bits a weight, {megabytes:.3} MB as a folder; allow that much, or fewer bits in the recipe's schemes"
    )]
    Impossible {
        /// What was asked for.
        asked: String,
        /// Bits a weight of the smallest, all weight matrices together.
        bits: f64,
        /// Megabytes of the smallest folder.
        megabytes: f64,
    },
    /// A model that cannot be exported, or an export that is not what it should be.
    #[error("cannot export to {target}: {what}")]
    Export {
        /// The format or the file.
        target: String,
        /// What is wrong, and what to do instead.
        what: String,
    },
    /// Asked to stop; what is finished stays.
    #[error("interrupted after {done} of {total} blocks; run the same command again to go on from there")]
    Paused {
        /// Blocks finished.
        done: usize,
        /// Blocks of the model.
        total: usize,
    },
    /// Asked to stop; nothing is left behind but what can be made again.
    #[error("interrupted; run the same command again to start over")]
    Interrupted,
    /// A document that cannot be put together.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Whether someone asked to stop.
    pub fn is_pause(&self) -> bool {
        matches!(self, Self::Interrupted | Self::Paused { .. } | Self::Tune(octet_tune::TuneError::Interrupted { .. }))
    }

    /// Turns an I/O error into one that names the file being read.
    pub(crate) fn read(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Read { path, source }
    }

    /// Turns an I/O error into one that names the file being written.
    pub(crate) fn write(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Write { path, source }
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
