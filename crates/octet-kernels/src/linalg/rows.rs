//! Rows of a matrix turned so that sixteen of them are the lanes of a vector.

use super::{EDGE, LANES, Line};

/// Rows of weights as `[runs of sixteen rows][columns]` lines of sixteen lanes, columns in any order; rows and columns
/// that fill up the last run and the last block of 128 are zeros.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowPanels {
    rows: usize,
    cols: usize,
    pub(crate) lines: Vec<Line>,
}

impl RowPanels {
    /// Zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, lines: vec![Line::ZERO; rows.div_ceil(LANES) * cols.next_multiple_of(EDGE)] }
    }

    /// Takes rows `[rows, cols]`; place p holds column `order[p]`, or column p without an order.
    ///
    /// # Panics
    /// If there are no whole rows, or the order does not cover the columns.
    pub fn from_rows(values: &[f32], cols: usize, order: Option<&[u32]>) -> Self {
        let mut out = Self::zeros(values.len() / cols.max(1), cols);
        assert!(values.len() == out.rows * cols && order.is_none_or(|order| order.len() == cols), "whole rows, a whole order");
        let padded = out.padded();
        for (values, lines) in values.chunks(LANES * cols.max(1)).zip(out.lines.chunks_exact_mut(padded.max(1))) {
            for (lane, row) in values.chunks_exact(cols.max(1)).enumerate() {
                match order {
                    None => lines.iter_mut().zip(row).for_each(|(line, value)| line.0[lane] = *value),
                    Some(order) => lines.iter_mut().zip(order).for_each(|(line, &from)| line.0[lane] = row[from as usize]),
                }
            }
        }
        out
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Runs of sixteen rows.
    pub fn runs(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// The element in `row` at place `place`.
    pub fn at(&self, row: usize, place: usize) -> f32 {
        self.lines[row / LANES * self.padded() + place].0[row % LANES]
    }

    /// The columns in another order: place p of the result holds what is at place `from[p]` here.
    pub fn reordered(&self, from: &[u32]) -> Self {
        let mut out = Self::zeros(self.rows, self.cols);
        let padded = self.padded().max(1);
        for (lines, out) in self.lines.chunks_exact(padded).zip(out.lines.chunks_exact_mut(padded)) {
            out.iter_mut().zip(from).for_each(|(out, &from)| *out = lines[from as usize]);
        }
        out
    }

    /// Takes a row from `other`, which has the same columns in the same places.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn copy_row(&mut self, row: usize, other: &Self) {
        let (padded, lane) = (self.padded(), row % LANES);
        let range = row / LANES * padded..(row / LANES + 1) * padded;
        for (line, other) in self.lines[range.clone()].iter_mut().zip(&other.lines[range]) {
            line.0[lane] = other.0[lane];
        }
    }

    /// Multiplies everything.
    pub fn multiply(&mut self, by: f32) {
        self.lines.iter_mut().flat_map(|line| &mut line.0).for_each(|value| *value *= by);
    }

    /// Sum of squares.
    pub fn squares(&self) -> f64 {
        let mut sums = [0f64; LANES];
        for line in &self.lines {
            sums.iter_mut().zip(line.0).for_each(|(sum, v)| *sum += f64::from(v) * f64::from(v));
        }
        sums.iter().sum()
    }

    /// Largest magnitude.
    pub fn largest(&self) -> f32 {
        self.lines.iter().flat_map(|line| line.0).fold(0.0, |most, v| most.max(v.abs()))
    }

    /// Lines of a run.
    pub(crate) fn padded(&self) -> usize {
        self.cols.next_multiple_of(EDGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_any_order() {
        let (rows, cols) = (19, 130);
        let values: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
        let order: Vec<u32> = (0..cols as u32).map(|p| (p * 7) % cols as u32).collect();
        let plain = RowPanels::from_rows(&values, cols, None);
        let turned = RowPanels::from_rows(&values, cols, Some(&order));
        for row in 0..rows {
            for place in 0..cols {
                assert_eq!(plain.at(row, place), values[row * cols + place]);
                assert_eq!(turned.at(row, place), values[row * cols + order[place] as usize]);
            }
        }
        assert_eq!(plain.reordered(&order), turned);
        let mut zeros = RowPanels::zeros(rows, cols);
        zeros.copy_row(17, &plain);
        let row = &values[17 * cols..18 * cols];
        assert!((0..cols).all(|p| zeros.at(17, p) == row[p] && zeros.at(16, p) == 0.0));
        assert_eq!(zeros.squares(), row.iter().map(|v| f64::from(v * v)).sum::<f64>());
        assert_eq!(zeros.largest(), row[cols - 1]);
        assert_eq!((plain.runs(), plain.lines.len()), (2, 2 * 256));
    }
}
