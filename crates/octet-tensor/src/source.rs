//! Where a model gets its weights from.

use crate::{Matrix, Result, Tensor};

/// A source of weights by name; opening it costs nothing, matrices and tensors share its bytes.
pub trait WeightSource: Send + Sync {
    /// The weights of the linear or embedding `module` (a module path such as `model.layers.0.mlp.up_proj`, without
    /// `.weight`), however they are stored; `None` when the checkpoint has none.
    ///
    /// # Errors
    /// If what is stored under that name makes no sense.
    fn matrix(&self, module: &str) -> Result<Option<Matrix>>;

    /// The plain tensor called `name` (norm weights, biases), or `None`.
    ///
    /// # Errors
    /// If what is stored under that name makes no sense.
    fn tensor(&self, name: &str) -> Result<Option<Tensor>>;

    /// Names of everything stored, sorted.
    fn names(&self) -> Vec<String>;
}
