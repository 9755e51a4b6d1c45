//! A quantized matrix in memory: one code a byte, its scales and zero points.

use crate::{Dtype, Error, LEVELS, Result, WeightScheme};

/// A quantized matrix `[rows, cols]`: w\[r, k\] = scale\[r, k / group\] · (code\[r, k\] − zero\[r, k / group\]).
///
/// Codes of a table ([`crate::Symmetry::Table`]) are its levels. Codes and zero points are signed (−2^(b−1) … 2^(b−1) − 1), one a byte. A scale may be negative: with a
/// symmetric code range that reaches one further down than up, its sign decides which end gets the extra code.
#[derive(Clone, Debug, PartialEq)]
pub struct QMatrix {
    rows: usize,
    cols: usize,
    scheme: WeightScheme,
    codes: Vec<i8>,
    scales: Vec<f32>,
    scale_dtype: Dtype,
    zeros: Vec<i8>,
}

impl QMatrix {
    /// Puts a matrix together from codes `[rows · cols]`, scales `[rows · groups]`, each exactly representable in
    /// `scale_dtype`, and zero points (as many as scales, or none when symmetric).
    ///
    /// # Errors
    /// If a length does not fit, a code is outside the scheme's range, or a scale is not finite.
    pub fn new(
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        codes: Vec<i8>,
        scales: Vec<f32>,
        scale_dtype: Dtype,
        zeros: Vec<i8>,
    ) -> Result<Self> {
        let groups = scheme.groups(cols);
        let zeros_needed = if scheme.is_asymmetric() { rows * groups } else { 0 };
        let fail = |what: String| Err(Error::Malformed { name: format!("a {rows}x{cols} {scheme} matrix"), what });
        if codes.len() != rows * cols || scales.len() != rows * groups || zeros.len() != zeros_needed {
            return fail(format!("has {} codes, {} scales and {} zero points", codes.len(), scales.len(), zeros.len()));
        }
        let (low, high) = scheme.range();
        if scheme.is_table() && codes.iter().any(|&code| LEVELS[usize::from(scheme.index(code))] != code) {
            return fail("a code is no level of the table".into());
        }
        if scheme.bits.get() < 8 && (outside(&codes, low as i8, high as i8) || outside(&zeros, low as i8, high as i8)) {
            return fail(format!("a code is outside {low}..={high}"));
        }
        if scales.iter().any(|s| !s.is_finite()) {
            return fail("a scale is not finite".into());
        }
        Ok(Self { rows, cols, scheme, codes, scales, scale_dtype, zeros })
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the weights are represented.
    pub fn scheme(&self) -> WeightScheme {
        self.scheme
    }

    /// Groups a row.
    pub fn groups(&self) -> usize {
        self.scheme.groups(self.cols)
    }

    /// All codes, row-major.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// All scales, `[rows, groups]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The type the scales are stored in; each scale is exactly representable in it.
    pub fn scale_dtype(&self) -> Dtype {
        self.scale_dtype
    }

    /// All zero points, `[rows, groups]`, empty when symmetric.
    pub fn zeros(&self) -> &[i8] {
        &self.zeros
    }

    /// The scale and zero point of group `group` of row `row`.
    pub fn group(&self, row: usize, group: usize) -> (f32, i32) {
        let at = row * self.groups() + group;
        (self.scales[at], self.zeros.get(at).map_or(0, |&z| i32::from(z)))
    }

    /// Dequantizes row `row` into `out` (`cols` values).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let size = self.scheme.group_size(self.cols);
        let codes = &self.codes[row * self.cols..(row + 1) * self.cols];
        for (group, (out, codes)) in out.chunks_mut(size).zip(codes.chunks(size)).enumerate() {
            let (scale, zero) = self.group(row, group);
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = scale * (i32::from(code) - zero) as f32;
            }
        }
    }

    /// All weights as f32, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (row, out) in out.chunks_mut(self.cols.max(1)).enumerate() {
            self.dequantize_row(row, out);
        }
        out
    }
}

/// Whether a code is below `low` or above `high`; looked at in runs, which the compiler turns into vector code.
fn outside(codes: &[i8], low: i8, high: i8) -> bool {
    codes.chunks(4096).any(|run| run.iter().fold(false, |bad, &c| bad | (c < low) | (c > high)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scheme;

    fn scheme(text: &str) -> WeightScheme {
        text.parse::<Scheme>().unwrap().weights
    }

    #[test]
    fn ragged_last_group_dequantizes() {
        let codes: Vec<i8> = (0..40).map(|k| (k % 8) as i8).collect();
        let q = QMatrix::new(1, 40, scheme("w4a16-g32-asym"), codes, vec![0.5, 2.0], Dtype::F16, vec![1, -1]).unwrap();
        let w = q.dequantize();
        assert_eq!((w[0], w[7], w[32], w[39]), (-0.5, 3.0, 2.0, 16.0));
    }

    #[test]
    fn impossible_matrices_do_not_construct() {
        let s = scheme("w4a16-pc");
        assert!(QMatrix::new(1, 2, s, vec![0, 8], vec![1.0], Dtype::F16, vec![]).is_err());
        assert!(QMatrix::new(1, 2, s, vec![0, 7], vec![f32::NAN], Dtype::F16, vec![]).is_err());
        assert!(QMatrix::new(1, 2, s, vec![0, 7], vec![1.0], Dtype::F16, vec![0]).is_err());
        let table = scheme("w4ta16-pc");
        assert!(QMatrix::new(1, 2, table, vec![-127, 113], vec![1.0], Dtype::F16, vec![]).is_ok());
        assert!(QMatrix::new(1, 2, table, vec![-127, 0], vec![1.0], Dtype::F16, vec![]).is_err());
        assert!(QMatrix::new(2, 2, s, vec![0, 7], vec![1.0], Dtype::F16, vec![]).is_err());
    }
}
