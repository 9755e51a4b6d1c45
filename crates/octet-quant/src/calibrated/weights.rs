//! The weights of a block at work: as stored, with what transforms and solvers put in their place.

use octet_tensor::{Matrix, Result, Tensor, WeightSource};
use std::collections::BTreeMap;

/// The weights of a block, some of them replaced.
pub struct BlockWeights<'a> {
    base: &'a dyn WeightSource,
    matrices: BTreeMap<String, Matrix>,
    tensors: BTreeMap<String, Tensor>,
}

impl<'a> BlockWeights<'a> {
    /// The weights as `base` has them.
    pub fn new(base: &'a dyn WeightSource) -> Self {
        Self { base, matrices: BTreeMap::new(), tensors: BTreeMap::new() }
    }

    /// Puts a float matrix (outputs, inputs) in the place of the weights of `module`.
    pub fn set_matrix(&mut self, module: &str, matrix: Matrix) {
        self.matrices.insert(module.into(), matrix);
    }

    /// Puts a tensor (a norm's weight, a bias) in the place of `name`, in the type it is stored in: what runs is what
    /// will be written.
    pub fn set_tensor(&mut self, name: &str, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// Whether anything was replaced.
    pub fn is_changed(&self) -> bool {
        !self.matrices.is_empty() || !self.tensors.is_empty()
    }

    /// The matrix that stands in the place of `module`'s.
    pub(crate) fn changed(&self, module: &str) -> Option<&Matrix> {
        self.matrices.get(module)
    }
}

impl WeightSource for BlockWeights<'_> {
    fn matrix(&self, module: &str) -> Result<Option<Matrix>> {
        match self.matrices.get(module) {
            Some(matrix) => Ok(Some(matrix.clone())),
            None => self.base.matrix(module),
        }
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(Some(tensor.clone())),
            None => self.base.tensor(name),
        }
    }

    fn names(&self) -> Vec<String> {
        self.base.names()
    }
}
