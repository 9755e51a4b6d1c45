//! The weights of a block at work: as stored, with what transforms and solvers put in their place.

use crate::{Error, rows};
use octet_model::LinearSite;
use octet_tensor::{Dtype, FloatMatrix, Matrix, Result, Tensor, WeightSource};
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

    /// Puts float weights `[outputs, inputs]`, rounded to `dtype`, in the place of those of `site`.
    ///
    /// # Errors
    /// If they are not as many as the site has.
    pub fn set_weights(&mut self, site: &LinearSite, dtype: Dtype, values: &[f32]) -> Result<()> {
        let name = format!("{}.weight", site.module);
        let tensor = if site.transposed {
            let mut turned = vec![0.0; values.len()];
            for (row, values) in values.chunks_exact(site.cols.max(1)).enumerate() {
                values.iter().enumerate().for_each(|(col, &value)| turned[col * site.rows + row] = value);
            }
            Tensor::rounded(name.as_str(), dtype, vec![site.cols, site.rows], &turned)?
        } else {
            Tensor::rounded(name.as_str(), dtype, vec![site.rows, site.cols], values)?
        };
        self.matrices.insert(site.module.clone(), Matrix::Float(FloatMatrix::dense(tensor.clone())?));
        self.tensors.insert(name, tensor);
        Ok(())
    }

    /// All weights of `site` `[outputs, inputs]`.
    ///
    /// # Errors
    /// If they are missing, of another shape or quantized.
    pub fn weights(&self, site: &LinearSite) -> std::result::Result<Vec<f32>, Error> {
        let matrix = rows::matrix(self, site)?;
        let mut values = vec![0.0; site.rows * site.cols];
        matrix.read_rows(0..site.rows, &mut values)?;
        Ok(values)
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
