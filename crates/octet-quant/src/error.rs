//! What can go wrong between a recipe and a quantized model.

/// What can go wrong between a recipe and a quantized model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A recipe that cannot be read.
    #[error("the recipe makes no sense: {0}")]
    Recipe(String),
    /// A step's target that no tensor answers to.
    #[error("step {step} of the recipe targets {target:?}, which matches nothing in this model; it has {have}")]
    NothingMatched {
        /// The step, counted from 1.
        step: usize,
        /// The target as written.
        target: String,
        /// What could have been named.
        have: String,
    },
    /// A step that later ones override completely.
    #[error("step {step} of the recipe decides nothing: later steps claim every tensor it targets; remove it or move it behind them")]
    Overridden {
        /// The step, counted from 1.
        step: usize,
    },
    /// A step that makes no sense beside the others.
    #[error("step {step} of the recipe makes no sense: {what}")]
    Contradiction {
        /// The step, counted from 1.
        step: usize,
        /// Why.
        what: String,
    },
    /// Tensors that cannot take what was asked, refused because exactness was demanded.
    #[error("{count} tensors cannot take what was asked, for example {name}: {reason}; leave them out of the recipe or drop --strict")]
    NotAsAsked {
        /// How many tensors.
        count: usize,
        /// The first one.
        name: String,
        /// Why it cannot.
        reason: String,
    },
    /// Weights that are not finite numbers.
    #[error("{name} holds {count} values that are not finite (NaN or infinite) out of {total}; the checkpoint is damaged, get it again")]
    NonFinite {
        /// The tensor.
        name: String,
        /// How many values.
        count: usize,
        /// Values in all.
        total: usize,
    },
    /// A tensor that is quantized already.
    #[error("{name} is already quantized ({scheme}); start from the original checkpoint")]
    AlreadyQuantized {
        /// The tensor.
        name: String,
        /// Its scheme.
        scheme: String,
    },
    /// A tensor that does not look as the plan expects.
    #[error("{name} is {found}, but the plan was made for {expected}; plan again from this checkpoint")]
    Changed {
        /// The tensor.
        name: String,
        /// What the plan says.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Statistics that belong to another tensor.
    #[error("{module} has {expected} inputs, but its statistics cover {found}; calibrate again with this model")]
    Importance {
        /// The tensor.
        module: String,
        /// Its inputs.
        expected: usize,
        /// Inputs the statistics cover.
        found: usize,
    },
    /// A solver that cannot do without calibration.
    #[error("{module} is to be solved by {solver}, which needs calibration; give text with --calibration, or use the solver rtn")]
    NeedsCalibration {
        /// The tensor.
        module: String,
        /// The solver.
        solver: &'static str,
    },
    /// A Hessian that no damping makes positive definite.
    #[error(
        "the Hessian of {module} is not positive definite even with {damping} of its mean diagonal added; give more or other calibration text"
    )]
    NotPositiveDefinite {
        /// The tensor.
        module: String,
        /// The last damping tried, as a share of the mean diagonal.
        damping: f64,
    },
    /// Activations that are not finite.
    #[error(
        "{place} received values that are not finite ({input}); the weights are damaged or overflow, check them with `octet inspect --check`"
    )]
    NonFiniteInput {
        /// The layer.
        place: String,
        /// Which of its inputs.
        input: String,
    },
    /// A solver without statistics, refused because exactness was demanded.
    #[error(
        "no calibration token reached {module}, so that its solver has nothing to go by; give more or other calibration text, or drop --strict"
    )]
    Unreached {
        /// The tensor.
        module: String,
    },
    /// Hidden states that cannot be put aside or read back.
    #[error("hidden states cannot be kept on disk: {0}")]
    Spill(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The weights, or results of finished blocks, cannot be opened.
    #[error("the weights cannot be opened again: {0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A stage of the model cannot be loaded.
    #[error(transparent)]
    Load(#[from] octet_model::LoadError),
    /// A stage of the model cannot run.
    #[error(transparent)]
    Forward(#[from] octet_model::ForwardError),
    /// A solver that needs the Hessian of a tensor's input without it.
    #[error("{module} has no calibration statistics, which its solver needs; give calibration text or use round-to-nearest")]
    NoHessian {
        /// The tensor.
        module: String,
    },
    /// Activations that are not finite numbers.
    #[error(
        "{input} is not finite (NaN or infinite) at {count} of {total} places on the calibration text; the checkpoint is damaged or its activations overflow, keep it in 16 bits"
    )]
    Activations {
        /// The linear input.
        input: String,
        /// Places that were not finite at least once.
        count: usize,
        /// Places in all.
        total: usize,
    },
    /// The weights cannot be read.
    #[error(transparent)]
    Tensor(#[from] octet_tensor::Error),
    /// The result cannot be written.
    #[error("writing {name} failed")]
    Sink {
        /// The tensor.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Asked to stop.
    #[error("interrupted after {done} of {total} tensors")]
    Interrupted {
        /// Tensors finished.
        done: usize,
        /// Tensors planned.
        total: usize,
    },
}
