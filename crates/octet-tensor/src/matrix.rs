//! A linear's weights as stored: float or quantized.

use crate::{Beside, Bytes, FloatMatrix, InputRounding, QMatrix, Result, Scheme};
use std::{fmt, ops::Range, sync::Arc};

/// Quantized rows as some file format stores them: unpacked a few rows at a time.
pub trait QuantRows: Send + Sync {
    /// Rows and columns.
    fn dims(&self) -> (usize, usize);

    /// How weights and activations are represented.
    fn scheme(&self) -> Scheme;

    /// What inputs are rounded to before the product of a scheme that leaves them floats, where the format asks for that.
    fn inputs(&self) -> Option<InputRounding> {
        None
    }

    /// Bytes the matrix takes where it is stored, scales and zero points included.
    fn stored_bytes(&self) -> usize;

    /// Unpacks rows `range`.
    ///
    /// # Errors
    /// If the range reaches past the matrix or the stored bytes make no sense.
    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix>;

    /// The columns of rows `range` that are floats beside the codes, where there are any.
    ///
    /// # Errors
    /// As [`QuantRows::read_rows`].
    fn beside(&self, range: Range<usize>) -> Result<Option<Beside>> {
        let _ = range;
        Ok(None)
    }

    /// The bytes of rows `range` in version `layout` of the layout kernels execute, packed for `scheme`, where they are stored so.
    fn packed(&self, range: Range<usize>, layout: u32, scheme: Scheme) -> Option<Bytes> {
        let _ = (range, layout, scheme);
        None
    }

    /// Gives back the memory that mapped bytes of rows `range` take (see [`crate::Bytes::release`]).
    fn release(&self, range: Range<usize>) {
        let _ = range;
    }
}

/// A quantized matrix as stored (see [`QuantRows`]); slicing rows copies nothing.
#[derive(Clone)]
pub struct StoredQuant {
    name: String,
    storage: Arc<dyn QuantRows>,
    rows: Range<usize>,
}

impl StoredQuant {
    /// Wraps the rows of a stored matrix called `name`.
    pub fn new(name: impl Into<String>, storage: Arc<dyn QuantRows>) -> Self {
        let rows = 0..storage.dims().0;
        Self { name: name.into(), storage, rows }
    }

    /// The name of the matrix in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.storage.dims().1
    }

    /// How weights and activations are represented.
    pub fn scheme(&self) -> Scheme {
        self.storage.scheme()
    }

    /// As [`QuantRows::inputs`].
    pub fn inputs(&self) -> Option<InputRounding> {
        self.storage.inputs()
    }

    /// Bytes its rows take where they are stored.
    pub fn stored_bytes(&self) -> usize {
        let all = self.storage.dims().0.max(1);
        (self.storage.stored_bytes() as u128 * self.rows() as u128 / all as u128) as usize
    }

    /// Rows `range`, sharing the storage; `None` where the range reaches past the end.
    pub fn slice_rows(&self, range: Range<usize>) -> Option<Self> {
        let inside = range.start <= range.end && range.end <= self.rows();
        inside.then(|| Self { rows: self.rows.start + range.start..self.rows.start + range.end, ..self.clone() })
    }

    /// Unpacks rows `range`.
    ///
    /// # Errors
    /// As [`QuantRows::read_rows`].
    pub fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        self.storage.read_rows(self.rows.start + range.start..self.rows.start + range.end)
    }

    /// As [`QuantRows::beside`], of all its rows.
    ///
    /// # Errors
    /// As [`QuantRows::read_rows`].
    pub fn beside(&self) -> Result<Option<Beside>> {
        self.storage.beside(self.rows.clone())
    }

    /// As [`QuantRows::packed`], of all its rows.
    pub fn packed(&self, layout: u32, scheme: Scheme) -> Option<Bytes> {
        self.storage.packed(self.rows.clone(), layout, scheme)
    }

    /// Gives back the memory that its mapped bytes take: for what was copied and will hardly be read again.
    pub fn release(&self) {
        self.storage.release(self.rows.clone());
    }
}

impl fmt::Debug for StoredQuant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredQuant({} {}x{} {})", self.name, self.rows(), self.cols(), self.scheme())
    }
}

/// A whole in-memory matrix serves as storage too (tests, solvers that hand over what they made).
impl QuantRows for (QMatrix, Scheme) {
    fn dims(&self) -> (usize, usize) {
        (self.0.rows(), self.0.cols())
    }

    fn scheme(&self) -> Scheme {
        self.1
    }

    fn stored_bytes(&self) -> usize {
        let bits = self.1.weights.bits_per_weight(self.0.cols(), self.0.scale_dtype());
        (bits * (self.0.rows() * self.0.cols()) as f64 / 8.0).ceil() as usize
    }

    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        self.0.slice_rows(range)
    }

    fn beside(&self, range: Range<usize>) -> Result<Option<Beside>> {
        Ok(self.0.beside().map(|beside| beside.slice_rows(range)))
    }
}

/// A linear's weights (or an embedding table) `[rows, cols]` as stored.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// Floating-point.
    Float(FloatMatrix),
    /// Quantized.
    Quant(StoredQuant),
}

impl Matrix {
    /// The name in the checkpoint.
    pub fn name(&self) -> &str {
        match self {
            Self::Float(m) => m.name(),
            Self::Quant(m) => m.name(),
        }
    }

    /// Number of rows (outputs of a linear, tokens of an embedding).
    pub fn rows(&self) -> usize {
        match self {
            Self::Float(m) => m.rows(),
            Self::Quant(m) => m.rows(),
        }
    }

    /// Number of columns (inputs of a linear, width of an embedding).
    pub fn cols(&self) -> usize {
        match self {
            Self::Float(m) => m.cols(),
            Self::Quant(m) => m.cols(),
        }
    }

    /// What its inputs are rounded to at run time, beside what its scheme says.
    pub fn inputs(&self) -> Option<InputRounding> {
        match self {
            Self::Float(m) => m.inputs(),
            Self::Quant(m) => m.inputs(),
        }
    }

    /// Bytes it takes where it is stored.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Self::Float(m) => m.stored_bytes(),
            Self::Quant(m) => m.stored_bytes(),
        }
    }

    /// Rows `range`, sharing the bytes; `None` where the range reaches past the end.
    pub fn slice_rows(&self, range: Range<usize>) -> Option<Self> {
        match self {
            Self::Float(m) => m.slice_rows(range).map(Self::Float),
            Self::Quant(m) => m.slice_rows(range).map(Self::Quant),
        }
    }

    /// Gives back the memory that its mapped bytes take: for what was copied and will hardly be read again.
    pub fn release(&self) {
        match self {
            Self::Float(m) => m.release(),
            Self::Quant(m) => m.release(),
        }
    }

    /// Decodes rows `range` to f32, row-major.
    ///
    /// # Errors
    /// If the range reaches past the matrix or the stored bytes make no sense.
    pub fn read_rows_f32(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Float(m) => m.read_rows(range, out),
            Self::Quant(m) => {
                let q = m.read_rows(range)?;
                for (row, out) in out.chunks_mut(q.cols().max(1)).enumerate() {
                    q.dequantize_row(row, out);
                }
                Ok(())
            }
        }
    }
}
