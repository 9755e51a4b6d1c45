//! Linear algebra of calibration: second moments of what flows into a matrix, their Cholesky factor, and rounding with
//! the error of one input made good by the others.
//!
//! Symmetric matrices are kept as one triangle of square blocks, in the order register tiles read them. Products run in
//! f32, always fused, each output's sum in one fixed order: every instruction set and any number of threads gives
//! the same bits.

mod cholesky;
mod cross;
mod feedback;
mod gram;
mod rows;
mod scales;
pub(crate) mod tile;
mod triangular;

pub use cholesky::Factor;
pub use cross::{CrossGram, CrossMoments};
pub use feedback::{Rounding, RowGrids};
pub use gram::{Gram, InputMoments};
pub use rows::RowPanels;
pub use scales::ScaleEquations;

use crate::{Engine, parallel::Shared, simd::LANES};

/// Rows and columns of a block.
pub(crate) const EDGE: usize = 128;
/// Runs of sixteen rows in a block.
pub(crate) const PANELS: usize = EDGE / LANES;
/// Lines of a block.
pub(crate) const BLOCK: usize = PANELS * EDGE;

/// Sixteen floats that fill a cache line.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; LANES]);

impl Line {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

/// Blocks `(i, j)`, j ≤ i, come row of blocks after row of blocks.
pub(crate) fn block(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

/// The inverse of [`block`].
pub(crate) fn coordinates(block: usize) -> (usize, usize) {
    let mut i = (((8 * block + 1) as f64).sqrt() as usize).saturating_sub(1) / 2;
    while (i + 1) * (i + 2) / 2 <= block {
        i += 1;
    }
    (i, block - i * (i + 1) / 2)
}

/// A symmetric matrix of f32, one triangle of it in blocks of 128 by 128 (those on the diagonal whole).
///
/// Inside a block sixteen rows are the lanes of a vector: element (r, c) is lane r % 16 of line c of run r / 16.
/// Rows and columns that fill up the last block are those of the identity.
#[derive(Clone, Debug)]
pub struct SymmetricMatrix {
    size: usize,
    pub(crate) lines: Vec<Line>,
}

impl SymmetricMatrix {
    /// A matrix from its lower triangle: `at(r, c)` is asked for c ≤ r only.
    pub fn from_lower(engine: &Engine, size: usize, at: &(dyn Fn(usize, usize) -> f32 + Sync)) -> Self {
        let edge = size.div_ceil(EDGE);
        let mut lines = vec![Line::ZERO; block(edge, 0) * BLOCK];
        let shared = Shared::new(&mut lines);
        engine.run(block(edge, 0), &|index| {
            let (i, j) = coordinates(index);
            // SAFETY: every task has a block of its own.
            let lines = unsafe { shared.part(index * BLOCK..(index + 1) * BLOCK) };
            for (line, Line(lanes)) in lines.iter_mut().enumerate() {
                for (lane, value) in lanes.iter_mut().enumerate() {
                    let (r, c) = (i * EDGE + line / EDGE * LANES + lane, j * EDGE + line % EDGE);
                    *value = match (r < size, c < size) {
                        (true, true) => at(r.max(c), r.min(c)),
                        _ => f32::from(u8::from(r == c)),
                    };
                }
            }
        });
        Self { size, lines }
    }

    /// Rows, which are as many as columns.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Element (r, c).
    ///
    /// # Panics
    /// If it lies outside.
    pub fn at(&self, r: usize, c: usize) -> f32 {
        assert!(r < self.size && c < self.size, "element ({r}, {c}) of {}", self.size);
        self.lines[line(r.max(c), r.min(c))].0[r.max(c) % LANES]
    }

    /// Replaces element (r, c), and with it (c, r).
    ///
    /// # Panics
    /// If it lies outside.
    pub fn set(&mut self, r: usize, c: usize, value: f32) {
        assert!(r < self.size && c < self.size, "element ({r}, {c}) of {}", self.size);
        self.lines[line(r.max(c), r.min(c))].0[r.max(c) % LANES] = value;
        if r / EDGE == c / EDGE {
            self.lines[line(r.min(c), r.max(c))].0[r.min(c) % LANES] = value;
        }
    }

    /// The diagonal.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.size).map(|i| self.at(i, i)).collect()
    }

    /// The matrix whose row and column p are row and column `order[p]` of this one.
    ///
    /// # Panics
    /// If `order` names rows that do not exist or is not as long as there are rows.
    pub fn permuted(&self, engine: &Engine, order: &[u32]) -> Self {
        assert_eq!(order.len(), self.size, "an order covers every row");
        Self::from_lower(engine, self.size, &|r, c| self.at(order[r] as usize, order[c] as usize))
    }

    /// The blocks a row of blocks has.
    pub(crate) fn edge(&self) -> usize {
        self.size.div_ceil(EDGE)
    }

    /// Bytes a matrix of `size` rows takes.
    pub fn bytes(size: usize) -> usize {
        block(size.div_ceil(EDGE), 0) * BLOCK * size_of::<Line>()
    }
}

/// The line of element (r, c) with its block on or below the diagonal.
fn line(r: usize, c: usize) -> usize {
    block(r / EDGE, c / EDGE) * BLOCK + r % EDGE / LANES * EDGE + c % EDGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use std::num::NonZeroUsize;

    #[test]
    fn blocks_are_counted_without_gaps() {
        let all: Vec<_> = (0..40).flat_map(|i| (0..=i).map(move |j| (i, j))).collect();
        for (index, &(i, j)) in all.iter().enumerate() {
            assert_eq!((block(i, j), coordinates(index)), (index, (i, j)));
        }
    }

    #[test]
    fn elements_are_found_from_either_side() {
        let engine = Engine::new(Isa::best(), NonZeroUsize::MIN).unwrap();
        let size = 150;
        let mut matrix = SymmetricMatrix::from_lower(&engine, size, &|r, c| (r * 1000 + c) as f32);
        assert!((0..size).all(|r| (0..size).all(|c| matrix.at(r, c) == (r.max(c) * 1000 + r.min(c)) as f32)));
        matrix.set(3, 140, -1.0);
        matrix.set(3, 14, -2.0);
        assert_eq!((matrix.at(140, 3), matrix.at(14, 3), matrix.lines[line(3, 14)].0[3]), (-1.0, -2.0, -2.0));
        let order: Vec<u32> = (0..size as u32).rev().collect();
        assert_eq!(matrix.permuted(&engine, &order).at(0, 1), matrix.at(149, 148));
        // What fills up the last block is the identity.
        assert_eq!(matrix.lines.last().unwrap().0[15], 1.0);
    }
}
