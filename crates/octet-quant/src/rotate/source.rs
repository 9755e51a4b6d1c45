//! A checkpoint with rotations folded into its weights: the same function, other numbers.

use super::so8::{BlockRotation, EIGHT};
use crate::{Error, rows};
use octet_model::{LinearSite, graph::Param};
use octet_tensor::{Dtype, FloatMatrix, FloatRows, Matrix, Result, Tensor, WeightSource};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, Range},
    sync::Arc,
};

/// What turning does to one matrix.
#[derive(Clone, Debug, PartialEq)]
struct Edit {
    site: LinearSite,
    /// Factors of its columns, before they are turned.
    scale: Option<Vec<f32>>,
    columns: Option<BlockRotation>,
    /// Rows from this one on.
    rows: Option<(usize, BlockRotation)>,
}

/// What rotations do to the tensors of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turns {
    matrices: BTreeMap<String, Edit>,
    biases: BTreeMap<String, (usize, BlockRotation)>,
    /// Norms whose weights moved into the linears behind them.
    ones: BTreeMap<String, Param>,
    /// Modules whose inputs are turned at run time.
    inputs: BTreeSet<String>,
}

impl Turns {
    /// Modules whose inputs are turned at run time: [`octet_model::ArchSpec::with_turned_inputs`].
    pub fn inputs(&self) -> &BTreeSet<String> {
        &self.inputs
    }

    /// Whether nothing is turned.
    pub fn is_empty(&self) -> bool {
        self.matrices.is_empty()
    }

    fn edit(&mut self, site: &LinearSite) -> &mut Edit {
        let new = || Edit { site: site.clone(), scale: None, columns: None, rows: None };
        self.matrices.entry(site.module.clone()).or_insert_with(new)
    }

    /// Multiplies the columns of `site` by `scale`, then turns them.
    pub(super) fn columns(&mut self, site: &LinearSite, scale: Option<&[f32]>, rotation: BlockRotation) {
        let edit = self.edit(site);
        (edit.scale, edit.columns) = (scale.map(<[f32]>::to_vec), Some(rotation));
    }

    /// Turns the rows of `site` from `first` on, and those elements of its bias.
    pub(super) fn rows(&mut self, site: &LinearSite, bias: Option<&Param>, first: usize, rotation: BlockRotation) {
        if let Some(bias) = bias {
            self.biases.insert(bias.name.clone(), (first, rotation.clone()));
        }
        self.edit(site).rows = Some((first, rotation));
    }

    /// Makes all weights of a norm 1.
    pub(super) fn ones(&mut self, norm: &Param) {
        self.ones.insert(norm.name.clone(), norm.clone());
    }

    /// Turns the inputs of modules at run time.
    pub(super) fn at_run_time(&mut self, modules: impl Iterator<Item = String>) {
        self.inputs.extend(modules);
    }

    /// Adds what later rotations do.
    pub(super) fn add(&mut self, other: Self) {
        for edit in other.matrices.into_values() {
            let own = self.edit(&edit.site);
            own.scale = edit.scale.or(own.scale.take());
            own.columns = match (own.columns.take(), edit.columns) {
                (Some(first), Some(second)) => Some(first.then(&second)),
                (first, second) => first.or(second),
            };
            own.rows = edit.rows.or(own.rows.take());
        }
        self.biases.extend(other.biases);
        self.ones.extend(other.ones);
        self.inputs.extend(other.inputs);
    }
}

/// The weights of `base`, turned.
pub struct Turned<B> {
    base: B,
    turns: Arc<Turns>,
}

impl<'a, B: Deref<Target = dyn WeightSource + 'a>> Turned<B> {
    /// The weights of `base`, turned.
    pub fn new(base: B, turns: Arc<Turns>) -> Self {
        Self { base, turns }
    }

    /// What is turned.
    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    fn matrix_of(&self, edit: &Edit) -> Result<FloatMatrix> {
        let name = format!("{}.weight", edit.site.module);
        let base = rows::matrix(&*self.base, &edit.site).map_err(|error| match error {
            Error::Tensor(error) => error,
            // Nothing quantized is planned for, so that what is left is a checkpoint that lost it.
            _ => octet_tensor::Error::Missing { name: name.clone() },
        })?;
        Ok(FloatMatrix::decoded(name, Arc::new(TurnedRows { base, edit: edit.clone() })))
    }

    /// All of a matrix, in the type it is stored in (BF16 where that is FP8 with scales of its own).
    fn rounded(&self, name: &str, edit: &Edit) -> Result<Option<Tensor>> {
        let Some(stored) = self.base.tensor(name)? else { return Ok(None) };
        let (matrix, &LinearSite { rows, cols, transposed, .. }) = (self.matrix_of(edit)?, &edit.site);
        let mut values = vec![0.0; rows * cols];
        matrix.read_rows(0..rows, &mut values)?;
        let dtype = if stored.dtype() == Dtype::F8E4m3 { Dtype::Bf16 } else { stored.dtype() };
        if !transposed {
            return Tensor::rounded(name, dtype, vec![rows, cols], &values).map(Some);
        }
        let turned: Vec<f32> = (0..rows * cols).map(|at| values[at % rows * cols + at / rows]).collect();
        Tensor::rounded(name, dtype, vec![cols, rows], &turned).map(Some)
    }
}

impl<'a, B: Deref<Target = dyn WeightSource + 'a> + Send + Sync> WeightSource for Turned<B> {
    fn matrix(&self, module: &str) -> Result<Option<Matrix>> {
        match self.turns.matrices.get(module) {
            Some(edit) => Ok(Some(Matrix::Float(self.matrix_of(edit)?))),
            None => self.base.matrix(module),
        }
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        if let Some(edit) = name.strip_suffix(".weight").and_then(|module| self.turns.matrices.get(module)) {
            return self.rounded(name, edit);
        }
        let Some(tensor) = self.base.tensor(name)? else { return Ok(None) };
        if let Some((first, rotation)) = self.turns.biases.get(name) {
            let mut values = tensor.to_f32()?;
            let end = (first + rotation.width()).min(values.len());
            rotation.turn(&mut values[*first..end]);
            return Tensor::rounded(name, tensor.dtype(), tensor.shape().to_vec(), &values).map(Some);
        }
        if let Some(norm) = self.turns.ones.get(name) {
            let values = vec![if norm.plus_one { 0.0 } else { 1.0 }; tensor.len()];
            return Tensor::rounded(name, tensor.dtype(), tensor.shape().to_vec(), &values).map(Some);
        }
        Ok(Some(tensor))
    }

    fn names(&self) -> Vec<String> {
        self.base.names()
    }
}

/// A matrix that is turned as it is read.
struct TurnedRows {
    base: FloatMatrix,
    edit: Edit,
}

impl FloatRows for TurnedRows {
    fn dims(&self) -> (usize, usize) {
        (self.base.rows(), self.base.cols())
    }

    fn stored_bytes(&self) -> usize {
        self.base.stored_bytes()
    }

    fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.base.cols();
        let Some((first, rotation)) = &self.edit.rows else {
            self.base.read_rows(range, out)?;
            self.columns(out);
            return Ok(());
        };
        // Whole blocks of rows.
        let (first, end) = (*first, first + rotation.width());
        let within = |row: usize| (first..end).contains(&row);
        let down = |row: usize| if within(row) { first + (row - first) / EIGHT * EIGHT } else { row };
        let up = |row: usize| if within(row) { first + (row - first).next_multiple_of(EIGHT) } else { row };
        let wide = down(range.start)..up(range.end);
        let mut values = vec![0.0; wide.len() * cols];
        self.base.read_rows(wide.clone(), &mut values)?;
        self.columns(&mut values);
        let turned = wide.start.max(first)..wide.end.min(end);
        if !turned.is_empty() {
            let at = (turned.start - wide.start) * cols..(turned.end - wide.start) * cols;
            rotation.turn_rows((turned.start - first) / EIGHT, &mut values[at], cols);
        }
        let skip = (range.start - wide.start) * cols;
        out.copy_from_slice(&values[skip..skip + out.len()]);
        Ok(())
    }

    fn release(&self, range: Range<usize>) {
        if let Some(rows) = self.base.slice_rows(range) {
            rows.release();
        }
    }
}

impl TurnedRows {
    fn columns(&self, values: &mut [f32]) {
        if let Some(scale) = &self.edit.scale {
            for row in values.chunks_exact_mut(scale.len().max(1)) {
                row.iter_mut().zip(scale).for_each(|(value, scale)| *value *= scale);
            }
        }
        if let Some(rotation) = &self.edit.columns {
            rotation.turn(values);
        }
    }
}
