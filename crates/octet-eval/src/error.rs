//! What can go wrong while a model is judged.

/// What can go wrong while a model is judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text file that cannot be read.
    #[error("the text {path} cannot be read: {what}")]
    Read {
        /// The file.
        path: String,
        /// What is wrong and what to do about it.
        what: String,
    },
    /// A line of a JSONL file that is not what it should be.
    #[error("{path}, line {line}: {what}")]
    Line {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and what to do about it.
        what: String,
    },
    /// Too little text.
    #[error("{name} has only {tokens} tokens, at least {needed} are needed: give {} more", needed - tokens)]
    TooShort {
        /// The text.
        name: String,
        /// Tokens it has.
        tokens: usize,
        /// Tokens that are needed.
        needed: usize,
    },
    /// Token ids that the model does not know.
    #[error(
        "{name} holds token id {id}, but the model's vocabulary ends at {vocab}; the ids were made with another tokenizer, make them again with this model's"
    )]
    ForeignToken {
        /// The text.
        name: String,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Evaluation text that was calibrated on.
    #[error(
        "{evaluation} overlaps {calibration}: {:.1} % of its {window}-token windows were calibrated on (allowed: {:.0} %), so the verdict would flatter the model; give other evaluation text",
        share * 100.0,
        allowed * 100.0
    )]
    Overlap {
        /// The evaluation text.
        evaluation: String,
        /// The calibration text.
        calibration: String,
        /// Share of evaluation windows that also occur in the calibration text.
        share: f64,
        /// Share that is allowed.
        allowed: f64,
        /// Tokens of a window.
        window: usize,
    },
    /// Two models that cannot be compared token by token.
    #[error(
        "the two models have vocabularies of {base} and {quant} tokens and cannot be compared; the quantized one was not made from this original, give the one it was made from"
    )]
    Vocabularies {
        /// Vocabulary of the original.
        base: usize,
        /// Vocabulary of the quantized model.
        quant: usize,
    },
    /// The original itself is broken.
    #[error(
        "the original gives numbers that are not finite (token {token} of the evaluation text), so nothing can be held against it; `octet inspect MODEL --check` names the damaged tensor"
    )]
    BrokenOriginal {
        /// The first predicted token it happens at.
        token: usize,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Tokenizer, template or generation failed.
    #[error(transparent)]
    Runtime(#[from] octet_runtime::Error),
    /// The forward pass failed.
    #[error(transparent)]
    Forward(#[from] octet_model::ForwardError),
    /// A stored weight makes no sense.
    #[error(transparent)]
    Weights(#[from] octet_tensor::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Told how much is done, out of how much; may break off.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> std::ops::ControlFlow<()>;
