//! Stored modules as matrices whose rows are unpacked when asked for.

use super::{FACTOR, LEVELS, ORDER, OUTLIER_INDEX, OUTLIER_WEIGHTS, bits};
use crate::{
    checkpoint::{Lookup, required},
    fp4::{self, Fp4},
    stored::{Decoded, check_rows, decoded, of_dtype, of_floats, quantized},
};
use octet_tensor::{
    Activations, Alphabet, Beside, Dtype, Error, Matrix, QMatrix, QuantRows, Result, RowFactor, Scheme, StoredQuant, Symmetry, Table,
    Tensor,
};
use std::{ops::Range, sync::Arc};

/// A quantized module over its stored tensors.
struct Stored {
    module: String,
    scheme: Scheme,
    rows: usize,
    cols: usize,
    codes: Tensor,
    scales: Tensor,
    /// What whole scales are multiples of.
    factors: Option<Tensor>,
    zeros: Option<Tensor>,
    /// The group of each input, where inputs are grouped in an order of their own (`actorder: group`).
    order: Option<Arc<[u32]>>,
    /// What codes are.
    alphabet: Alphabet,
    /// Which inputs are outliers, and their weights.
    outliers: Option<(Arc<[u32]>, Tensor)>,
}

/// A `pack-quantized` module.
pub(crate) fn packed(module: &str, scheme: Scheme, lookup: Lookup<'_>) -> Result<Matrix> {
    let stored = stored(module, scheme, lookup)?;
    Ok(if stored.order.is_some() { decoded(module, Decoded(stored)) } else { quantized(module, stored) })
}

/// The codes of a `pack-quantized` module, with the group of each input where that is not the plain one.
pub(crate) fn codes(module: &str, scheme: Scheme, lookup: Lookup<'_>) -> Result<StoredQuant> {
    Ok(StoredQuant::new(module, Arc::new(stored(module, scheme, lookup)?)))
}

fn stored(module: &str, scheme: Scheme, lookup: Lookup<'_>) -> Result<Stored> {
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
    let order = own_order(module, scheme, cols, lookup)?.map(Into::into);
    let zero_rows = bits::words(rows, bits);
    build(module, scheme, [rows, cols], codes, (Dtype::I32, zero_rows), order, lookup)
}

/// An `int-quantized` module.
pub(crate) fn int8(module: &str, scheme: Scheme, lookup: Lookup<'_>) -> Result<Matrix> {
    let codes = required(&format!("{module}.weight"), lookup)?;
    let (rows, cols) = of_dtype(&codes, Dtype::I8)?.dims2()?;
    Ok(quantized(module, build(module, scheme, [rows, cols], codes, (Dtype::I8, rows), None, lookup)?))
}

/// An `nvfp4-pack-quantized` module.
pub(crate) fn nvfp4(module: &str, lookup: Lookup<'_>) -> Result<Matrix> {
    let global = required(&format!("{module}.weight_global_scale"), lookup)?;
    let &[value] = &global.to_f32()?[..] else { return Err(global.wrong_shape("one element")) };
    fp4(module, Fp4::Nv { global: value }, lookup)
}

/// An `mxfp4-pack-quantized` module.
pub(crate) fn mxfp4(module: &str, lookup: Lookup<'_>) -> Result<Matrix> {
    fp4(module, Fp4::Mx, lookup)
}

fn fp4(module: &str, kind: Fp4, lookup: Lookup<'_>) -> Result<Matrix> {
    let nibbles = required(&format!("{module}.weight_packed"), lookup)?;
    fp4::matrix(module, nibbles, required(&format!("{module}.weight_scale"), lookup)?, kind)
}

fn build(
    module: &str,
    scheme: Scheme,
    [rows, cols]: [usize; 2],
    codes: Tensor,
    zeros: (Dtype, usize),
    order: Option<Arc<[u32]>>,
    lookup: Lookup<'_>,
) -> Result<Stored> {
    let groups = scheme.weights.groups(cols);
    let scales = required(&format!("{module}.weight_scale"), lookup)?;
    let factors = if scheme.weights.has_whole_scales() {
        if of_dtype(&scales, Dtype::I8)?.shape() != [rows, groups] {
            return Err(scales.wrong_shape(format!("[{rows}, {groups}] whole scales")));
        }
        Some(of_floats(required(&format!("{module}.{FACTOR}"), lookup)?, &[rows])?)
    } else {
        // A single scale serves the whole matrix (strategy `tensor`); one a row is written as [rows, 1] or [rows].
        let fits = scales.shape() == [rows, groups] || (groups == 1 && (scales.shape() == [rows] || scales.len() == 1));
        if !fits || !scales.dtype().is_float() {
            return Err(scales.wrong_shape(format!("[{rows}, {groups}] floating-point scales")));
        }
        None
    };
    let (zero_dtype, zero_rows) = zeros;
    let zeros = if scheme.weights.is_asymmetric() { Some(required(&format!("{module}.weight_zero_point"), lookup)?) } else { None };
    if let Some(zeros) = zeros.as_ref()
        && of_dtype(zeros, zero_dtype)?.shape() != [zero_rows, groups]
    {
        return Err(zeros.wrong_shape(format!("[{zero_rows}, {groups}] zero points")));
    }
    let outliers = match scheme.activations {
        Activations::Int8Beside(share) => Some(outliers(module, [rows, cols], share.columns(cols), lookup)?),
        _ => None,
    };
    let alphabet = match scheme.weights.symmetry {
        Symmetry::Learnt => Alphabet::Table(levels(module, lookup)?),
        _ => scheme.weights.alphabet(),
    };
    Ok(Stored { module: module.into(), scheme, rows, cols, codes, scales, factors, zeros, order, alphabet, outliers })
}

/// The levels that a matrix has for itself.
fn levels(module: &str, lookup: Lookup<'_>) -> Result<Table> {
    let levels = required(&format!("{module}.{LEVELS}"), lookup)?;
    let bytes: Vec<i8> = of_dtype(&levels, Dtype::I8)?.bytes().iter().map(|&byte| byte as i8).collect();
    let table = <[i8; 16]>::try_from(&bytes[..]).ok().and_then(Table::new);
    table.ok_or_else(|| {
        let what = format!("is {bytes:?}, expected sixteen ascending levels; the file is damaged, make it again from the original");
        Error::Malformed { name: levels.name().into(), what }
    })
}

/// Which `count` inputs are outliers, and their weights `[rows, count]`.
fn outliers(module: &str, [rows, cols]: [usize; 2], count: usize, lookup: Lookup<'_>) -> Result<(Arc<[u32]>, Tensor)> {
    let index = required(&format!("{module}.{OUTLIER_INDEX}"), lookup)?;
    let columns: Arc<[u32]> = of_dtype(&index, Dtype::I32)?.bytes().as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    let inside = columns.last().is_some_and(|&last| (last as usize) < cols) && columns.is_sorted_by(|a, b| a < b);
    if columns.len() != count || !inside {
        let what = format!("names {} columns, expected {count} ascending ones of {cols}; the file is damaged", columns.len());
        return Err(Error::Malformed { name: index.name().into(), what });
    }
    let weights = of_floats(required(&format!("{module}.{OUTLIER_WEIGHTS}"), lookup)?, &[rows, count])?;
    Ok((columns, weights))
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

/// The group of each input where it is not the plain one (`actorder: group`).
pub(crate) fn own_order(module: &str, scheme: Scheme, cols: usize, lookup: Lookup<'_>) -> Result<Option<Vec<u32>>> {
    let name = format!("{module}.{ORDER}");
    let Some(order) = lookup(&name)? else { return Ok(None) };
    let (size, count) = (scheme.weights.group_size(cols), scheme.weights.groups(cols));
    let groups: Vec<i32> = of_dtype(&order, Dtype::I32)?.bytes().as_chunks::<4>().0.iter().map(|&b| i32::from_le_bytes(b)).collect();
    // Minus one everywhere says that there is no order.
    if groups.iter().enumerate().all(|(i, &group)| group == -1 || usize::try_from(group) == Ok(i / size)) {
        return Ok(None);
    }
    let inside: Vec<u32> = groups.iter().filter_map(|&group| u32::try_from(group).ok().filter(|&group| (group as usize) < count)).collect();
    if groups.len() != cols || inside.len() != cols {
        let what = format!("names a group for {} of {cols} inputs; the file is damaged, download it again", inside.len());
        return Err(Error::Malformed { name, what });
    }
    Ok(Some(inside))
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
        self.alphabet.read(&mut codes);
        codes
    }

    fn read_scales(&self, range: &Range<usize>, groups: usize) -> Result<Vec<f32>> {
        if let Some(factors) = &self.factors {
            return self.read_whole_scales(factors, range, groups);
        }
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

    fn read_whole_scales(&self, factors: &Tensor, range: &Range<usize>, groups: usize) -> Result<Vec<f32>> {
        let mut of_rows = vec![0.0; range.len()];
        factors.read_f32(range.start, &mut of_rows)?;
        if of_rows.iter().any(|factor| !factor.is_finite()) {
            let what = "has a factor that is not finite; the file is damaged, download it again".into();
            return Err(Error::Malformed { name: factors.name().into(), what });
        }
        let whole = self.scales.element_bytes(range.start * groups..range.end * groups);
        let rows = whole.chunks(groups.max(1)).zip(of_rows);
        Ok(rows.flat_map(|(whole, factor)| whole.iter().map(move |&whole| RowFactor::new(factor).scale(whole as i8))).collect())
    }

    /// The type of scales, or of what they are multiples of.
    fn scale_dtype(&self) -> Dtype {
        self.factors.as_ref().unwrap_or(&self.scales).dtype()
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
        let outliers = self.outliers.as_ref().map_or(0, |(columns, weights)| 4 * columns.len() + weights.bytes().len());
        let order = self.order.as_ref().map_or(0, |order| 4 * order.len());
        let some = [&self.factors, &self.zeros].into_iter().flatten().map(|tensor| tensor.bytes().len()).sum::<usize>();
        let levels = if self.scheme.weights.symmetry == Symmetry::Learnt { 16 } else { 0 };
        self.codes.bytes().len() + self.scales.bytes().len() + some + outliers + order + levels
    }

    fn beside(&self, range: Range<usize>) -> Result<Option<Beside>> {
        check_rows(&self.module, &range, self.rows)?;
        let Some((columns, weights)) = &self.outliers else { return Ok(None) };
        let mut values = vec![0.0; range.len() * columns.len()];
        weights.read_f32(range.start * columns.len(), &mut values)?;
        Ok(Some(Beside::new(columns.clone(), values)))
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
        check_rows(&self.module, &range, self.rows)?;
        let groups = self.scheme.weights.groups(self.cols);
        let (codes, scales) = (self.read_codes(&range), self.read_scales(&range, groups)?);
        let zeros = self.read_zeros(&range, groups);
        let made = QMatrix::spelt(self.alphabet, (range.len(), self.cols), self.scheme.weights, codes, scales, self.scale_dtype(), zeros);
        let made = match self.beside(range)? {
            Some(beside) => made.and_then(|q| q.with_beside(beside)),
            None => made,
        };
        let made = match &self.order {
            Some(order) => made.and_then(|q| q.with_order(order.clone())),
            None => made,
        };
        made.map_err(|e| Error::Malformed { name: self.module.clone(), what: e.to_string() })
    }
}
