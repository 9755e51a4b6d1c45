//! What readers of stored matrices share: types, ranges and words that are checked before they are used.

use octet_tensor::{Dtype, Error, FloatMatrix, FloatRows, Matrix, QMatrix, QuantRows, Result, StoredQuant, Tensor};
use std::{ops::Range, sync::Arc};

/// A matrix of codes that kernels run on.
pub(crate) fn quantized(module: &str, rows: impl QuantRows + 'static) -> Matrix {
    Matrix::Quant(StoredQuant::new(module, Arc::new(rows)))
}

/// A matrix that is decoded to floats, since no kernel runs on what is stored.
pub(crate) fn decoded(module: &str, rows: impl FloatRows + 'static) -> Matrix {
    Matrix::Float(FloatMatrix::decoded(module, Arc::new(rows)))
}

/// Codes that no kernel runs, as the floats they stand for.
pub(crate) struct Decoded<T>(pub(crate) T);

impl<T: QuantRows> FloatRows for Decoded<T> {
    fn dims(&self) -> (usize, usize) {
        self.0.dims()
    }

    fn stored_bytes(&self) -> usize {
        self.0.stored_bytes()
    }

    fn release(&self, range: Range<usize>) {
        self.0.release(range);
    }

    fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let q = self.0.read_rows(range)?;
        out.chunks_mut(q.cols().max(1)).enumerate().for_each(|(row, out)| q.dequantize_row(row, out));
        Ok(())
    }
}

/// Checks a tensor's element type.
pub(crate) fn of_dtype(tensor: &Tensor, dtype: Dtype) -> Result<&Tensor> {
    if tensor.dtype() == dtype {
        return Ok(tensor);
    }
    Err(Error::Dtype { name: tensor.name().into(), expected: dtype.name(), found: tensor.dtype() })
}

/// Checks that a tensor holds words of 32 bits, signed or not, and at least one.
pub(crate) fn of_words(tensor: &Tensor) -> Result<&Tensor> {
    match tensor.dtype() {
        _ if tensor.is_empty() => Err(tensor.wrong_shape("at least one element")),
        Dtype::I32 | Dtype::U32 => Ok(tensor),
        found => Err(Error::Dtype { name: tensor.name().into(), expected: "I32 or U32", found }),
    }
}

/// Checks that a tensor holds floating-point numbers in the shape `shape`.
pub(crate) fn of_floats(tensor: Tensor, shape: &[usize]) -> Result<Tensor> {
    if !tensor.dtype().is_float() {
        return Err(Error::Dtype { name: tensor.name().into(), expected: "floating-point", found: tensor.dtype() });
    }
    if tensor.shape() == shape { Ok(tensor) } else { Err(tensor.wrong_shape(format!("{shape:?}"))) }
}

/// The words of a tensor.
pub(crate) fn words(tensor: &Tensor) -> &[[u8; 4]] {
    tensor.bytes().as_chunks::<4>().0
}

/// Word `at` of a tensor's words, zero past their end.
#[inline(always)]
pub(crate) fn word(words: &[[u8; 4]], at: usize) -> u32 {
    words.get(at).map_or(0, |&bytes| u32::from_le_bytes(bytes))
}

/// The `bits` bits from bit `at` on of a stream whose word w is `word(w)`, lowest bits first.
#[inline(always)]
pub(crate) fn field(at: usize, bits: u32, word: impl Fn(usize) -> u32) -> u32 {
    let (first, shift) = (at / 32, at % 32);
    let low = u64::from(word(first));
    // The next word is only asked for where the field crosses into it.
    let high = if shift + bits as usize > 32 { u64::from(word(first + 1)) << 32 } else { 0 };
    ((low | high) >> shift) as u32 & ((1 << bits) - 1)
}

/// Checks a range of rows.
pub(crate) fn check_rows(name: &str, range: &Range<usize>, rows: usize) -> Result<()> {
    if range.start <= range.end && range.end <= rows {
        return Ok(());
    }
    Err(malformed(name, format!("rows {range:?} were asked for, it has {rows}")))
}

/// The error of a tensor or module that makes no sense.
pub(crate) fn malformed(name: &str, what: impl Into<String>) -> Error {
    Error::Malformed { name: name.into(), what: what.into() }
}

/// Names the module a matrix could not be made of.
pub(crate) fn of_module(module: &str, made: Result<QMatrix>) -> Result<QMatrix> {
    made.map_err(|e| malformed(module, format!("{e}; the file is damaged, download it again")))
}

/// Rows `range` of a float tensor `[groups, rows]`, as `[range, groups]`.
pub(crate) fn transposed_floats(tensor: &Tensor, range: &Range<usize>) -> Result<Vec<f32>> {
    let (groups, rows) = tensor.dims2()?;
    let (mut out, mut line) = (vec![0.0; range.len() * groups], vec![0.0; range.len()]);
    for group in 0..groups {
        tensor.read_f32(group * rows + range.start, &mut line)?;
        line.iter().enumerate().for_each(|(row, &value)| out[row * groups + group] = value);
    }
    Ok(out)
}

/// What each of eight E2M1 magnitudes is, doubled: 0, ½, 1, 1½, 2, 3, 4, 6 become whole numbers (OCP Microscaling
/// Formats 1.0, section 5.3.3).
const E2M1_DOUBLED: [i8; 8] = [0, 1, 2, 3, 4, 6, 8, 12];

/// Twice the value of an E2M1 number, bit 3 its sign.
#[inline(always)]
pub(crate) fn e2m1_doubled(nibble: u8) -> i8 {
    let magnitude = E2M1_DOUBLED[usize::from(nibble & 7)];
    if nibble & 8 == 0 { magnitude } else { -magnitude }
}

/// The power of two that an E8M0 byte is: 2^(byte − 127); 255 is not a number.
pub(crate) fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_cross_words() {
        let stream = [0xc000_0000u32, 0b1];
        assert_eq!(field(30, 3, |w| stream[w]), 0b111);
        assert_eq!(field(29, 3, |w| stream[w]), 0b110);
    }

    #[test]
    fn small_floats_are_what_their_standard_says() {
        let values: Vec<f32> = (0..16).map(|n| f32::from(e2m1_doubled(n)) / 2.0).collect();
        assert_eq!(values, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]);
        assert_eq!((e8m0(127), e8m0(0), e8m0(1), e8m0(254)), (1.0, 2f32.powi(-127), 2f32.powi(-126), 2f32.powi(127)));
        assert!(e8m0(255).is_nan());
    }
}
