//! Stored modules as matrices whose rows are unpacked when asked for.

use super::bits;
use crate::checkpoint::{Lookup, required};
use octet_tensor::{Dtype, Error, Matrix, QMatrix, QuantRows, Result, Scheme, StoredQuant, Tensor};
use std::{ops::Range, sync::Arc};

/// A quantized module over its stored tensors.
struct Stored {
    module: String,
    scheme: Scheme,
    rows: usize,
    cols: usize,
    codes: Tensor,
    scales: Tensor,
    zeros: Option<Tensor>,
}

/// A `pack-quantized` module.
pub(crate) fn packed(module: &str, scheme: Scheme, lookup: Lookup<'_>) -> Result<Matrix> {
    let codes = required(&format!("{module}.weight_packed"), lookup)?;
    let (rows, words) = of_dtype(&codes, Dtype::I32)?.dims2()?;
    let cols = packed_cols(&required(&format!("{module}.weight_shape"), lookup)?, rows)?;
    let bits = scheme.weights.bits;
    if cols.checked_mul(8).is_none() || words != bits::words(cols, bits) {
        return Err(codes.wrong_shape(format!(
            "[{rows}, {}] ({cols} inputs of {} bits)",
            cols.saturating_mul(bits.get() as usize).div_ceil(32),
            bits.get()
        )));
    }
    check_order(module, scheme, cols, lookup)?;
    let zero_rows = bits::words(rows, bits);
    build(module, scheme, [rows, cols], codes, (Dtype::I32, zero_rows), lookup)
}

/// An `int-quantized` module.
pub(crate) fn int8(module: &str, scheme: Scheme, lookup: Lookup<'_>) -> Result<Matrix> {
    let codes = required(&format!("{module}.weight"), lookup)?;
    let (rows, cols) = of_dtype(&codes, Dtype::I8)?.dims2()?;
    build(module, scheme, [rows, cols], codes, (Dtype::I8, rows), lookup)
}

fn build(
    module: &str,
    scheme: Scheme,
    [rows, cols]: [usize; 2],
    codes: Tensor,
    zeros: (Dtype, usize),
    lookup: Lookup<'_>,
) -> Result<Matrix> {
    let groups = scheme.weights.groups(cols);
    let scales = required(&format!("{module}.weight_scale"), lookup)?;
    // A single scale serves the whole matrix (strategy `tensor`); one a row is written as [rows, 1] or [rows].
    let fits = scales.shape() == [rows, groups] || (groups == 1 && (scales.shape() == [rows] || scales.len() == 1));
    if !fits || !scales.dtype().is_float() {
        return Err(scales.wrong_shape(format!("[{rows}, {groups}] floating-point scales")));
    }
    let (zero_dtype, zero_rows) = zeros;
    let zeros = if scheme.weights.is_asymmetric() { Some(required(&format!("{module}.weight_zero_point"), lookup)?) } else { None };
    if let Some(zeros) = zeros.as_ref()
        && of_dtype(zeros, zero_dtype)?.shape() != [zero_rows, groups]
    {
        return Err(zeros.wrong_shape(format!("[{zero_rows}, {groups}] zero points")));
    }
    let stored = Stored { module: module.into(), scheme, rows, cols, codes, scales, zeros };
    Ok(Matrix::Quant(StoredQuant::new(module, Arc::new(stored))))
}

fn of_dtype(tensor: &Tensor, dtype: Dtype) -> Result<&Tensor> {
    if tensor.dtype() == dtype {
        return Ok(tensor);
    }
    Err(Error::Dtype { name: tensor.name().into(), expected: dtype.name(), found: tensor.dtype() })
}

/// The inputs that `weight_shape` says, which the packed tensor cannot.
fn packed_cols(shape: &Tensor, rows: usize) -> Result<usize> {
    let dims: Vec<i64> = of_dtype(shape, Dtype::I64)?.bytes().as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b)).collect();
    match dims[..] {
        [r, c] if usize::try_from(r) == Ok(rows) && c >= 0 => Ok(c as usize),
        _ => {
            let what = format!("says {dims:?}, expected [{rows}, inputs]; the file is damaged, download it again");
            Err(Error::Malformed { name: shape.name().into(), what })
        }
    }
}

/// Refuses a stored order of inputs (`actorder: group`) other than the plain one.
fn check_order(module: &str, scheme: Scheme, cols: usize, lookup: Lookup<'_>) -> Result<()> {
    let name = format!("{module}.weight_g_idx");
    let Some(order) = lookup(&name)? else { return Ok(()) };
    let size = scheme.weights.group_size(cols);
    let groups = of_dtype(&order, Dtype::I32)?.bytes().as_chunks::<4>().0.iter().map(|&b| i32::from_le_bytes(b));
    let plain = groups.enumerate().all(|(i, group)| group == -1 || usize::try_from(group) == Ok(i / size));
    if plain {
        return Ok(());
    }
    let what = "assigns inputs to groups in activation order (actorder: group), which octet does not run; make the checkpoint with actorder: static".into();
    Err(Error::Malformed { name, what })
}

impl Stored {
    fn read_codes(&self, range: &Range<usize>) -> Vec<i8> {
        if self.codes.dtype() == Dtype::I8 {
            return self.codes.element_bytes(range.start * self.cols..range.end * self.cols).iter().map(|&b| b as i8).collect();
        }
        let words = bits::words(self.cols, self.scheme.weights.bits);
        let mut codes = vec![0; range.len() * self.cols];
        let streams = self.codes.element_bytes(range.start * words..range.end * words);
        for (codes, stream) in codes.chunks_mut(self.cols.max(1)).zip(streams.chunks(4 * words.max(1))) {
            bits::unpack(stream, self.scheme.weights.bits, codes);
        }
        codes
    }

    fn read_scales(&self, range: &Range<usize>, groups: usize) -> Result<Vec<f32>> {
        let mut scales = vec![0.0; range.len() * groups];
        if self.scales.len() == 1 && self.rows * groups != 1 {
            self.scales.read_f32(0, &mut scales[..1.min(range.len())])?;
            let one = scales.first().copied().unwrap_or_default();
            scales.fill(one);
        } else {
            self.scales.read_f32(range.start * groups, &mut scales)?;
        }
        Ok(scales)
    }

    fn read_zeros(&self, range: &Range<usize>, groups: usize) -> Vec<i8> {
        let Some(zeros) = &self.zeros else { return vec![] };
        if zeros.dtype() == Dtype::I8 {
            return zeros.element_bytes(range.start * groups..range.end * groups).iter().map(|&b| b as i8).collect();
        }
        // Packed along the outputs: each group's column is a stream of its own.
        let (words, bits) = (zeros.bytes().as_chunks::<4>().0, self.scheme.weights.bits);
        let word = |w: usize, group: usize| words.get(w * groups + group).map_or(0, |&b| u64::from(u32::from_le_bytes(b)));
        let zero = |row: usize, group: usize| {
            let (w, shift) = (row * bits.get() as usize / 32, row * bits.get() as usize % 32);
            bits::signed(((word(w, group) | word(w + 1, group) << 32) >> shift) as u32, bits)
        };
        range.clone().flat_map(|row| (0..groups).map(move |group| zero(row, group))).collect()
    }
}

impl QuantRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn scheme(&self) -> Scheme {
        self.scheme
    }

    fn stored_bytes(&self) -> usize {
        self.codes.bytes().len() + self.scales.bytes().len() + self.zeros.as_ref().map_or(0, |z| z.bytes().len())
    }

    fn release(&self, range: Range<usize>) {
        for stored in [&self.codes, &self.scales] {
            let row = stored.bytes().len() / self.rows.max(1);
            if let Some(bytes) = stored.bytes().slice(range.start * row..range.end * row) {
                bytes.release();
            }
        }
    }

    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        if range.start > range.end || range.end > self.rows {
            let what = format!("rows {range:?} were asked for, it has {}", self.rows);
            return Err(Error::Malformed { name: self.module.clone(), what });
        }
        let groups = self.scheme.weights.groups(self.cols);
        let (codes, scales) = (self.read_codes(&range), self.read_scales(&range, groups)?);
        let zeros = self.read_zeros(&range, groups);
        QMatrix::new(range.len(), self.cols, self.scheme.weights, codes, scales, self.scales.dtype(), zeros)
            .map_err(|e| Error::Malformed { name: self.module.clone(), what: e.to_string() })
    }
}
