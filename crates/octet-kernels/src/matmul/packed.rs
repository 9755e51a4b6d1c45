//! Weights ready to execute.

use super::{
    aside::Columns,
    dense::Dense,
    ints::{Ints, spelling},
};
use crate::{Engine, Isa, counters::Kernel, parallel::Shared};
use half::{bf16, f16};
use octet_tensor::{Activations, Bytes, Dtype, FloatMatrix, InputRounding, Matrix, Result, Scheme};
use std::sync::{Mutex, PoisonError};

/// A linear's weights `[rows, cols]` ready to execute: quantized ones packed in blocks, float ones the stored bytes
/// themselves (nothing is copied) unless they are stored transposed or as FP8 or F64.
pub struct PackedLinear {
    body: Body,
    /// Columns whose weights are floats beside those of the body.
    columns: Option<Columns>,
    activations: Activations,
    /// What inputs are rounded to before a product of floats.
    inputs: Option<InputRounding>,
    isa: Isa,
}

/// Inputs of a step of tiles below which they do not pay.
const LEAST_RUN: usize = 32;

/// What kernels run on.
pub(crate) enum Body {
    /// Integer weights and int8 activations that share a scale in runs of `group` (`usize::MAX`: a token); inputs beyond the
    /// limit are multiplied as floats.
    Int { ints: Ints, group: usize, limit: Option<f32> },
    /// Integer weights, float activations.
    Exact(Ints),
    /// Float weights.
    Dense(Dense),
}

/// Version of the layout quantized matrices are packed in; raised whenever their bytes change (a test holds them).
pub const LAYOUT: u32 = 1;

impl PackedLinear {
    /// The packed bytes of a quantized matrix, one section after the other, for [`octet_tensor::QuantRows::packed`] to give
    /// back; `None` for a float matrix and for one with columns beside its codes.
    pub fn sections(&self) -> Option<[&[u8]; 4]> {
        if self.columns.is_some() {
            return None;
        }
        match &self.body {
            Body::Int { ints, .. } | Body::Exact(ints) => Some(ints.sections()),
            Body::Dense(_) => None,
        }
    }

    /// Makes `matrix` ready, its rows in parallel and a few at a time.
    ///
    /// `activations` overrides what is stored about the inputs of a matrix; of floats they are always [`Activations::Exact`]. Of what was copied, the stored bytes' memory is given back to the system ([`Matrix::release`]); rows that are stored packed
    /// for this [`LAYOUT`] are used where they are.
    ///
    /// # Errors
    /// If the stored bytes make no sense.
    pub fn pack(engine: &Engine, matrix: &Matrix, activations: Option<Activations>) -> Result<Self> {
        let mut columns = None;
        let inputs = matrix.inputs().filter(|_| activations.is_none());
        let (body, activations) = match matrix {
            Matrix::Float(float) => {
                let (dense, copied) = dense(engine, float)?;
                if copied {
                    float.release();
                }
                (Body::Dense(dense), Activations::Exact)
            }
            Matrix::Quant(stored) => {
                columns = stored.beside()?.map(Columns::new);
                let activations = activations.unwrap_or(stored.scheme().activations);
                let scheme = Scheme { activations, ..stored.scheme() };
                let ints = match stored.packed(LAYOUT, scheme) {
                    Some(bytes) if cfg!(target_endian = "little") => Ints::from_bytes(stored, activations, &bytes)?,
                    _ => None,
                };
                let ints = match ints {
                    Some(ints) => ints,
                    None => {
                        let ints = Ints::pack(engine, stored, activations)?;
                        stored.release();
                        ints
                    }
                };
                let body = match activations {
                    Activations::Exact => Body::Exact(ints),
                    Activations::Int8PerToken | Activations::Int8Beside(_) => Body::Int { ints, group: usize::MAX, limit: None },
                    Activations::Int8Below(limit) => Body::Int { ints, group: usize::MAX, limit: Some(limit.get()) },
                    Activations::Int8PerGroup(size) if size.get() >= stored.cols() => Body::Int { ints, group: usize::MAX, limit: None },
                    Activations::Int8PerGroup(size) => Body::Int { ints, group: size.get(), limit: None },
                };
                (body, activations)
            }
        };
        Ok(Self { body, columns, activations, inputs, isa: engine.isa() })
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        match &self.body {
            Body::Int { ints, .. } | Body::Exact(ints) => ints.rows,
            Body::Dense(dense) => dense.rows,
        }
    }

    /// Number of columns (inputs).
    pub fn cols(&self) -> usize {
        match &self.body {
            Body::Int { ints, .. } | Body::Exact(ints) => ints.cols,
            Body::Dense(dense) => dense.cols,
        }
    }

    /// What [`PackedLinear::resident_bytes`] of a quantized matrix `[rows, cols]` will be, its scales stored as `scale`.
    pub fn forecast_bytes(rows: usize, cols: usize, scheme: Scheme, scale: Dtype) -> usize {
        let beside = match scheme.activations {
            Activations::Int8Beside(share) => 4 * (rows + 1) * share.columns(cols),
            _ => 0,
        };
        Ints::forecast(rows, cols, scheme.weights, scheme.activations, scale) + beside
    }

    /// What [`PackedLinear::resident_bytes`] of `matrix` will be; of its weights nothing is read but the type of a scale.
    ///
    /// # Errors
    /// If the stored bytes make no sense.
    pub fn forecast(matrix: &Matrix, activations: Option<Activations>) -> Result<usize> {
        Ok(match matrix {
            Matrix::Float(float) => float.rows() * float.cols() * float_dtype(float).size(),
            Matrix::Quant(stored) => {
                let scheme = stored.scheme();
                let scheme = Scheme { activations: activations.unwrap_or(scheme.activations), ..scheme };
                Self::forecast_bytes(stored.rows(), stored.cols(), scheme, spelling(stored)?.0)
            }
        })
    }

    /// Bytes it takes in memory, mapped ones included.
    pub fn resident_bytes(&self) -> usize {
        match &self.body {
            Body::Int { ints, .. } | Body::Exact(ints) => ints.bytes() + self.columns.as_ref().map_or(0, Columns::bytes),
            Body::Dense(dense) => dense.bytes.len(),
        }
    }

    /// What inputs are at run time.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// What inputs are rounded to before the product.
    pub(crate) fn inputs(&self) -> Option<InputRounding> {
        self.inputs
    }

    /// The kernel that runs it, such as `w4a8 avx512-vnni`; that of many tokens where few have another.
    pub fn kernel_name(&self) -> &'static str {
        self.kernel().name(if self.fits_tiles() { self.isa } else { self.isa.without_tiles() })
    }

    /// Whether products of many tokens are worth running on tiles of AMX where there are any.
    pub(crate) fn fits_tiles(&self) -> bool {
        matches!(&self.body, Body::Int { ints, .. } if ints.segments.common_run() >= LEAST_RUN)
    }

    /// Decodes row `row` into `out` `[cols]` (a token's embedding).
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows() && out.len() == self.cols(), "row {row} of {} into {} elements", self.rows(), out.len());
        match &self.body {
            Body::Int { ints, .. } | Body::Exact(ints) => ints.read_row(row, out),
            Body::Dense(dense) => dense.read_row(row, out),
        }
        if let Some(columns) = &self.columns {
            columns.beside.put(row, out);
        }
    }

    /// Whether large inputs or some columns are set aside.
    pub(crate) fn sets_aside(&self) -> bool {
        self.columns.is_some() || matches!(self.body, Body::Int { limit: Some(_), .. })
    }

    /// The columns that are set aside of every token.
    pub(crate) fn columns(&self) -> Option<&Columns> {
        self.columns.as_ref()
    }

    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    pub(crate) fn kernel(&self) -> Kernel {
        match &self.body {
            Body::Int { ints, .. } => match ints.bits {
                2 => Kernel::W2A8,
                3 => Kernel::W3A8,
                4 if ints.own => Kernel::W4lA8,
                4 if ints.table => Kernel::W4tA8,
                4 if ints.points => Kernel::W4eA8,
                4 => Kernel::W4A8,
                5 => Kernel::W5A8,
                6 => Kernel::W6A8,
                _ => Kernel::W8A8,
            },
            Body::Exact(ints) => match ints.bits {
                2 => Kernel::W2A16,
                3 => Kernel::W3A16,
                4 if ints.own => Kernel::W4lA16,
                4 if ints.table => Kernel::W4tA16,
                4 if ints.points => Kernel::W4eA16,
                4 => Kernel::W4A16,
                5 => Kernel::W5A16,
                6 => Kernel::W6A16,
                _ => Kernel::W8A16,
            },
            Body::Dense(dense) => match dense.dtype {
                Dtype::F16 => Kernel::F16,
                Dtype::Bf16 => Kernel::Bf16,
                _ => Kernel::F32,
            },
        }
    }
}

/// A float matrix: the stored bytes where a kernel can read them, else a copy (transposed 16-bit floats keep their type;
/// FP8 times its scales and F64 become F32), which the second result says.
fn dense(engine: &Engine, matrix: &FloatMatrix) -> Result<(Dense, bool)> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    if let Some((dtype @ (Dtype::F32 | Dtype::F16 | Dtype::Bf16), bytes)) = matrix.dense_bytes() {
        return Ok((Dense { rows, cols, dtype, bytes }, false));
    }
    let dtype = float_dtype(matrix);
    let size = cols * dtype.size();
    let mut bytes = vec![0u8; rows * size];
    let failure = Mutex::new(None);
    // Reading a transposed matrix costs a visit of every stored row a call, so calls take many rows.
    let rows_a_task = ((1 << 18) / cols.max(1)).clamp(1, rows.max(1));
    let shared = Shared::new(&mut bytes);
    engine.run(rows.div_ceil(rows_a_task), &|task| {
        let (first, last) = (task * rows_a_task, rows.min((task + 1) * rows_a_task));
        let mut values = vec![0.0; (last - first) * cols];
        if let Err(error) = matrix.read_rows(first..last, &mut values) {
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            return;
        }
        // SAFETY: tasks are distinct numbers, so their rows do not overlap.
        let out = unsafe { shared.part(first * size..last * size) };
        encode(dtype, &values, out);
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok((Dense { rows, cols, dtype, bytes: Bytes::new(bytes) }, true)),
    }
}

/// The type a float matrix runs in.
fn float_dtype(matrix: &FloatMatrix) -> Dtype {
    match matrix.dtype() {
        dtype @ (Dtype::F16 | Dtype::Bf16) => dtype,
        _ => Dtype::F32,
    }
}

fn encode(dtype: Dtype, values: &[f32], out: &mut [u8]) {
    for (out, &value) in out.chunks_exact_mut(dtype.size()).zip(values) {
        match dtype {
            Dtype::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Dtype::Bf16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            _ => out.copy_from_slice(&value.to_le_bytes()),
        }
    }
}
