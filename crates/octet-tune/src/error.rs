//! What can go wrong.

use octet_model::LoadError;

/// A model that cannot be trained, or training that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// A node without a gradient.
    #[error("{what} cannot be trained; leave distillation off for this model")]
    Untrainable {
        /// Which.
        what: String,
    },
    /// Weights that cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Weights that make no sense.
    #[error(transparent)]
    Tensor(#[from] octet_tensor::Error),
    /// A loss that is not finite.
    #[error("the loss of step {step} is not finite; use a smaller learning rate, or leave distillation off")]
    NonFinite {
        /// Counted from 1.
        step: usize,
    },
    /// Stopped from outside.
    #[error("interrupted after {done} of {total} steps of distillation; run the same command again to go on from there")]
    Interrupted {
        /// Steps that are finished.
        done: usize,
        /// Steps in all.
        total: usize,
    },
    /// Nothing to learn from.
    #[error("distillation needs at least {needed} windows of text, one part to learn from and one to check on; the text has {found}")]
    TooLittleText {
        /// Windows there must be.
        needed: usize,
        /// Windows there are.
        found: usize,
    },
    /// Nothing to learn.
    #[error("no quantized matrix of this model can be distilled; quantize with integer codes first")]
    NothingToLearn,
    /// An earlier state of other work.
    #[error("the saved state of the distillation does not belong to this work ({what}); begin again with --restart")]
    State {
        /// What does not fit.
        what: String,
    },
}
