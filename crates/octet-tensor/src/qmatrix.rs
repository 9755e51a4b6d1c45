//! A quantized matrix in memory: one code a byte, its scales and zero points.

use crate::{Alphabet, Dtype, Error, Result, RowFactor, Symmetry, WeightScheme};
use std::{ops::Range, sync::Arc};

/// Columns of a quantized matrix whose weights are kept as floats beside the codes, and are what counts there.
#[derive(Clone, Debug, PartialEq)]
pub struct Beside {
    columns: Arc<[u32]>,
    values: Vec<f32>,
}

impl Beside {
    /// Weights `values` `[rows, columns]` of `columns`, which ascend.
    pub fn new(columns: Arc<[u32]>, values: Vec<f32>) -> Self {
        Self { columns, values }
    }

    /// The columns, ascending.
    pub fn columns(&self) -> &Arc<[u32]> {
        &self.columns
    }

    /// The weights, `[rows, columns]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The weights of row `row`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns.len()..(row + 1) * self.columns.len()]
    }

    /// Puts the weights of row `row` into it.
    pub fn put(&self, row: usize, out: &mut [f32]) {
        self.columns.iter().zip(self.row(row)).for_each(|(&column, &value)| out[column as usize] = value);
    }

    /// Rows `range`.
    pub fn slice_rows(&self, range: Range<usize>) -> Self {
        let count = self.columns.len();
        Self { columns: self.columns.clone(), values: self.values[range.start * count..range.end * count].to_vec() }
    }
}

/// A quantized matrix `[rows, cols]`: w\[r, k\] = scale\[r, k / group\] · (code\[r, k\] − zero\[r, k / group\]).
///
/// Codes of a table ([`QMatrix::alphabet`]) are its levels. Codes and zero points are signed (−2^(b−1) … 2^(b−1) − 1), one a byte. A scale may be negative: with a
/// symmetric code range that reaches one further down than up, its sign decides which end gets the extra code.
///
/// Groups are runs of inputs, or whatever [`QMatrix::order`] says; some columns may be floats ([`QMatrix::beside`]).
#[derive(Clone, Debug, PartialEq)]
pub struct QMatrix {
    rows: usize,
    cols: usize,
    scheme: WeightScheme,
    alphabet: Alphabet,
    codes: Vec<i8>,
    scales: Vec<f32>,
    scale_dtype: Dtype,
    /// What a row's scales are whole multiples of; empty where they are floats.
    factors: Vec<RowFactor>,
    zeros: Vec<i8>,
    order: Option<Arc<[u32]>>,
    beside: Option<Beside>,
}

impl QMatrix {
    /// Puts a matrix together from codes `[rows · cols]`, scales `[rows · groups]`, each exactly representable in
    /// `scale_dtype` (or those of a row as whole multiples of a factor of that type, where the scheme asks for it), and zero
    /// points (as many as scales, or none when symmetric).
    ///
    /// # Errors
    /// If a length does not fit, a code is outside the scheme's range, a scale is not finite, or a row's scales have no common factor
    /// where there must be one.
    pub fn new(
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        codes: Vec<i8>,
        scales: Vec<f32>,
        scale_dtype: Dtype,
        zeros: Vec<i8>,
    ) -> Result<Self> {
        Self::spelt(scheme.alphabet(), (rows, cols), scheme, codes, scales, scale_dtype, zeros)
    }

    /// As [`QMatrix::new`], of rows and columns `shape`, with codes of `alphabet` instead of the scheme's usual one.
    ///
    /// # Errors
    /// As [`QMatrix::new`], or if a code is none of the alphabet, or the scheme has no such alphabet.
    pub fn spelt(
        alphabet: Alphabet,
        (rows, cols): (usize, usize),
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
        let own = scheme.symmetry == Symmetry::Learnt && alphabet.table().is_some();
        if !own && alphabet != scheme.alphabet() {
            return fail(format!("has no codes of {alphabet:?}"));
        }
        if !alphabet.holds(&codes) {
            let what =
                if alphabet == Alphabet::Lattice { "eight codes are no point of the lattice" } else { "a code is no level of the table" };
            return fail(what.into());
        }
        if alphabet == Alphabet::Lattice && !cols.is_multiple_of(8) {
            return fail("a lattice has points of eight inputs".into());
        }
        if scheme.bits.get() < 8 && (outside(&codes, low as i8, high as i8) || outside(&zeros, low as i8, high as i8)) {
            return fail(format!("a code is outside {low}..={high}"));
        }
        if scales.iter().any(|s| !s.is_finite()) {
            return fail("a scale is not finite".into());
        }
        let mut factors = vec![];
        if scheme.has_whole_scales() {
            for (row, scales) in scales.chunks_exact(groups.max(1)).enumerate() {
                match RowFactor::of(scales, scale_dtype) {
                    Some(factor) => factors.push(factor),
                    None => {
                        return fail(format!("has scales in row {row} that are no whole multiples, to 127, of one {scale_dtype} number"));
                    }
                }
            }
        }
        Ok(Self { rows, cols, scheme, alphabet, codes, scales, scale_dtype, factors, zeros, order: None, beside: None })
    }

    /// The same codes, input k in group `order[k]` (`g_idx` of GPTQ with `desc_act`).
    ///
    /// # Errors
    /// If there is no group for every input.
    pub fn with_order(self, order: Arc<[u32]>) -> Result<Self> {
        let groups = self.groups();
        if order.len() != self.cols || order.iter().any(|&group| group as usize >= groups) {
            let what = format!("has groups for {} inputs, of {groups}", order.len());
            return Err(Error::Malformed { name: self.name(), what });
        }
        Ok(Self { order: Some(order), ..self })
    }

    /// The same codes with some columns as floats beside them.
    ///
    /// # Errors
    /// If the columns do not ascend or are none of the matrix, or there are not as many values as that takes.
    pub fn with_beside(self, beside: Beside) -> Result<Self> {
        let columns = &beside.columns;
        let inside = columns.last().is_none_or(|&last| (last as usize) < self.cols) && columns.is_sorted_by(|a, b| a < b);
        if !inside || beside.values.len() != self.rows * columns.len() {
            let what = format!("has {} weights of columns {columns:?} beside it", beside.values.len());
            return Err(Error::Malformed { name: self.name(), what });
        }
        Ok(Self { beside: Some(beside), ..self })
    }

    fn name(&self) -> String {
        format!("a {}x{} {} matrix", self.rows, self.cols, self.scheme)
    }

    /// Rows `range`.
    ///
    /// # Errors
    /// If the range reaches past the end.
    pub fn slice_rows(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.rows {
            return Err(Error::Malformed { name: self.name(), what: format!("rows {range:?} of {}", self.rows) });
        }
        let groups = self.groups();
        let part = |width: usize| range.start * width..range.end * width;
        Ok(Self {
            rows: range.len(),
            codes: self.codes[part(self.cols)].to_vec(),
            scales: self.scales[part(groups)].to_vec(),
            factors: if self.factors.is_empty() { vec![] } else { self.factors[range.clone()].to_vec() },
            zeros: if self.zeros.is_empty() { vec![] } else { self.zeros[part(groups)].to_vec() },
            order: self.order.clone(),
            beside: self.beside.as_ref().map(|beside| beside.slice_rows(range.clone())),
            ..*self
        })
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

    /// What its codes are.
    pub fn alphabet(&self) -> Alphabet {
        self.alphabet
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

    /// What the scales of each row are whole multiples of; empty where they are stored as floats.
    pub fn factors(&self) -> &[RowFactor] {
        &self.factors
    }

    /// The type the scales, or else the factors of rows, are stored in; each is exactly representable in it.
    pub fn scale_dtype(&self) -> Dtype {
        self.scale_dtype
    }

    /// All zero points, `[rows, groups]`, empty when symmetric.
    pub fn zeros(&self) -> &[i8] {
        &self.zeros
    }

    /// The group of each input, where groups are no runs of inputs.
    pub fn order(&self) -> Option<&Arc<[u32]>> {
        self.order.as_ref()
    }

    /// The columns that are floats beside the codes, if there are any.
    pub fn beside(&self) -> Option<&Beside> {
        self.beside.as_ref()
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
        if let Some(order) = &self.order {
            for ((value, &code), &group) in out.iter_mut().zip(codes).zip(&**order) {
                let (scale, zero) = self.group(row, group as usize);
                *value = scale * (i32::from(code) - zero) as f32;
            }
        } else {
            self.dequantize_runs(row, size, codes, out);
        }
        if let Some(beside) = &self.beside {
            beside.put(row, out);
        }
    }

    fn dequantize_runs(&self, row: usize, size: usize, codes: &[i8], out: &mut [f32]) {
        for (group, (out, codes)) in out.chunks_mut(size).zip(codes.chunks(size)).enumerate() {
            let (scale, zero) = self.group(row, group);
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = scale * (i32::from(code) - zero) as f32;
            }
        }
    }

    /// All weights as f32, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        all_rows(self.rows, self.cols, |row, out| self.dequantize_row(row, out))
    }
}

/// A whole matrix, each row as `decode` writes it.
pub(crate) fn all_rows(rows: usize, cols: usize, decode: impl Fn(usize, &mut [f32])) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    out.chunks_mut(cols.max(1)).enumerate().for_each(|(row, out)| decode(row, out));
    out
}

/// Whether a code is below `low` or above `high`; looked at in runs, which the compiler turns into vector code.
fn outside(codes: &[i8], low: i8, high: i8) -> bool {
    codes.chunks(4096).any(|run| run.iter().fold(false, |bad, &c| bad | (c < low) | (c > high)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scheme, Table};

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
    fn groups_may_be_in_an_order_and_columns_beside() {
        let mut order = vec![0; 64];
        order[0] = 1;
        let q = QMatrix::new(2, 64, scheme("w4a16-g32"), vec![1; 128], vec![0.5, 2.0, 1.0, 4.0], Dtype::F16, vec![]).unwrap();
        let q = q.with_order(order.into()).unwrap().with_beside(Beside::new(vec![3, 5].into(), vec![7.0, 8.0, 9.0, 10.0])).unwrap();
        let w = q.dequantize();
        assert_eq!((w[0], w[1], w[3], w[5], w[64], w[65], w[69]), (2.0, 0.5, 7.0, 8.0, 4.0, 1.0, 10.0));
        assert_eq!(q.slice_rows(1..2).unwrap().dequantize(), w[64..]);
        assert!(q.slice_rows(1..3).is_err());
        assert!(q.clone().with_order(vec![0; 63].into()).is_err() && q.clone().with_order(vec![2; 64].into()).is_err());
        for (columns, values) in [(vec![5, 3], vec![0.0; 4]), (vec![64], vec![0.0; 2]), (vec![1], vec![0.0; 3])] {
            assert!(q.clone().with_beside(Beside::new(columns.into(), values)).is_err());
        }
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
        let whole = scheme("w4a16-g32-s8");
        let with = |scales: Vec<f32>| QMatrix::new(2, 64, whole, vec![1; 128], scales, Dtype::F16, vec![]);
        assert!(with(vec![1.0, 0.7, 0.0, 0.0]).is_err());
        let good = with(vec![0.0, 0.0, 254.0, -4.0]).unwrap();
        assert_eq!((good.factors().len(), good.factors()[1].whole(-4.0)), (2, -2));
        assert_eq!(good.slice_rows(1..2).unwrap().factors(), &good.factors()[1..]);
        let own = Alphabet::Table(Table::new(std::array::from_fn(|i| i as i8 - 3)).unwrap());
        let spelt = |text, codes| QMatrix::spelt(own, (1, 2), scheme(text), codes, vec![1.0], Dtype::F16, vec![]);
        assert!(spelt("w4la16-pc", vec![-3, 12]).is_ok());
        assert!(spelt("w4la16-pc", vec![-3, 13]).is_err());
        let point = |codes: [i8; 8]| QMatrix::new(1, 8, scheme("w4ea16-pc"), codes.to_vec(), vec![1.0], Dtype::F16, vec![]);
        assert!(point([-16, 15, 1, 0, 0, 0, 0, 0]).is_err() && point([2, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(point([2, 0, 0, 0, 0, 0, 0, -2]).is_ok() && point([-15, 15, 1, -1, 1, 1, 1, 1]).is_ok());
        assert!(QMatrix::new(2, 4, scheme("w4ea16-pc"), vec![0; 8], vec![1.0; 2], Dtype::F16, vec![]).is_err());
        assert!(spelt("w4ta16-pc", vec![1, 1]).is_err() && spelt("w4a16-pc", vec![0, 0]).is_err());
    }
}
