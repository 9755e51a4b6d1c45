//! Tensors of a file under the names a checkpoint gives them.

use super::{BlockType, File, blocks, rows};
use crate::{Error, Result, stored};
use octet_tensor::{Bytes, Dtype, FloatMatrix, Matrix, Scheme, Tensor};
use std::ops::Range;

/// What a checkpoint calls a tensor of the file, and what is changed on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The checkpoint's name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The file's name, such as `blk.0.attn_q.weight`.
    pub tensor: String,
    /// What is changed.
    pub change: Change,
    /// Which of how many equal parts of a stack of matrices (experts) it is.
    pub part: Option<(usize, usize)>,
}

/// How a tensor of the file differs from the checkpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    None,
    /// Rows of each of so many heads lie in pairs (j, j + half) for rotary embeddings; a checkpoint has them in halves.
    PairedRows(usize),
    /// The checkpoint's values are one less (norms of Gemma).
    PlusOne,
    /// The checkpoint stores the matrix `[inputs, outputs]`; it is read as it is in the file, `[outputs, inputs]`.
    Transposed,
}

/// A bound tensor.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) kind: BlockType,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Bytes,
    pub(crate) file: String,
    change: Change,
}

impl File {
    /// The tensor that `binding` names.
    pub(crate) fn bind(&self, binding: &Binding) -> Result<Bound> {
        let fail = |what: String| Err(Error::Gguf { file: self.name().into(), what });
        let Some((info, data, file)) = self.tensor(&binding.tensor) else { return fail(format!("has no tensor {}", binding.tensor)) };
        let (mut shape, mut data) = (info.shape.clone(), data);
        if let Some((index, count)) = binding.part {
            let found = (shape.len() == 3 && shape[0] == count).then(|| data.len() / count.max(1));
            let part: Option<Range<usize>> = found.filter(|_| index < count).map(|bytes| index * bytes..(index + 1) * bytes);
            let Some(part) = part.and_then(|range| data.slice(range)) else {
                return fail(format!("has {} in the shape {shape:?}, expected {count} matrices", binding.tensor));
            };
            (shape, data) = (shape[1..].to_vec(), part);
        }
        if let Change::PairedRows(heads) = binding.change
            && (heads == 0 || !shape.first().is_some_and(|rows| rows.is_multiple_of(2 * heads)))
        {
            return fail(format!("has {} in the shape {shape:?}, expected {heads} heads of even width", binding.tensor));
        }
        let bound = Bound { name: binding.name.clone(), kind: info.kind, shape, data, file: file.into(), change: binding.change };
        bound.changed()
    }
}

impl Bound {
    /// The same with small tensors changed at once: they are read whole anyway.
    fn changed(mut self) -> Result<Self> {
        let Some(dtype) = self.kind.dtype().filter(|_| self.shape.len() == 1) else { return Ok(self) };
        let mut values = vec![0.0; self.shape[0]];
        match self.change {
            Change::None | Change::Transposed => return Ok(self),
            Change::PlusOne => {
                rows::read_floats(&self.name, dtype, &self.data, &mut values)?;
                values.iter_mut().for_each(|value| *value -= 1.0);
            }
            Change::PairedRows(heads) => {
                let mut stored = values.clone();
                rows::read_floats(&self.name, dtype, &self.data, &mut stored)?;
                for (row, value) in values.iter_mut().enumerate() {
                    *value = stored[rows::place(Some(heads), stored.len(), row)];
                }
            }
        }
        (self.kind, self.change) = (BlockType::F32, Change::None);
        self.data = Bytes::new(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        Ok(self)
    }

    /// Element type and shape as a tensor of bytes or floats.
    pub(crate) fn described(&self) -> (Dtype, Vec<usize>) {
        match (self.kind.dtype(), self.shape.split_last()) {
            (Some(dtype), _) => (dtype, self.shape.clone()),
            (None, Some((cols, outer))) => {
                (Dtype::U8, outer.iter().copied().chain([cols / self.kind.block() * self.kind.block_bytes()]).collect())
            }
            (None, None) => (Dtype::U8, vec![]),
        }
    }

    /// Whether it is a matrix that a float tensor of the same bytes would not be.
    pub(crate) fn is_stored_otherwise(&self) -> bool {
        self.shape.len() == 2 && (self.kind.dtype().is_none() || self.change != Change::None)
    }

    /// The scheme in which kernels run it; `None` for floats.
    pub(crate) fn scheme(&self) -> Option<Scheme> {
        let (weights, _) = blocks::scheme(self.kind)?;
        Some(Scheme { weights, activations: octet_tensor::Activations::Exact })
    }

    /// The matrix.
    pub(crate) fn matrix(&self, module: &str) -> octet_tensor::Result<Matrix> {
        let &[rows, cols] = &self.shape[..] else { return Err(stored::malformed(&self.name, "is no matrix")) };
        let heads = if let Change::PairedRows(heads) = self.change { Some(heads) } else { None };
        if let (Some(dtype), Change::None) = (self.kind.dtype(), self.change) {
            return FloatMatrix::dense(Tensor::new(module, dtype, vec![rows, cols], self.data.clone())?).map(Matrix::Float);
        }
        let stored = rows::Stored { name: module.into(), kind: self.kind, rows, cols, data: self.data.clone(), heads };
        Ok(if self.scheme().is_some() { stored::quantized(module, stored) } else { stored::decoded(module, stored) })
    }
}
