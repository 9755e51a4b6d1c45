//! Products of two float matrices, either of them as it lies or turned.

use crate::{
    Engine,
    linalg::{Line, tile::tile},
    parallel::Shared,
    simd::{LANES, Op, Simd, unroll},
};
use std::{cell::RefCell, ops::Range};

/// Products summed in registers before they move to the output.
const DEPTH: usize = 256;

/// Runs of sixteen rows, and of sixteen columns, of the output that a task has.
const TASK: (usize, usize) = (8, 12);

/// A matrix `[rows, cols]` somewhere in a slice; turning it or taking a part of it copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    /// Elements from a row to the next, and from a column to the next.
    strides: (usize, usize),
}

impl<'a> MatrixView<'a> {
    /// Rows of `cols` elements, one after the other.
    ///
    /// # Panics
    /// If `values` are no whole rows.
    pub fn new(values: &'a [f32], cols: usize) -> Self {
        assert!(cols > 0 && values.len().is_multiple_of(cols), "{} elements are no rows of {cols}", values.len());
        Self { values, rows: values.len() / cols, cols, strides: (cols, 1) }
    }

    /// Rows as columns.
    pub fn turned(self) -> Self {
        Self { rows: self.cols, cols: self.rows, strides: (self.strides.1, self.strides.0), ..self }
    }

    /// Some of its rows and columns.
    ///
    /// # Panics
    /// If they lie outside.
    pub fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        let start = rows.start * self.strides.0 + cols.start * self.strides.1;
        let values = if rows.is_empty() || cols.is_empty() { &[] } else { &self.values[start..] };
        Self { values, rows: rows.len(), cols: cols.len(), strides: self.strides }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// Buffers for the operands of a product: `[runs of sixteen rows][columns]`, sixteen rows a line.
#[derive(Default)]
pub(crate) struct Panels {
    left: Vec<Line>,
    right: Vec<Line>,
}

thread_local! {
    /// Buffers of products inside a task.
    static OWN: RefCell<Panels> = RefCell::default();
}

impl Engine {
    /// out = a · bᵀ of `a` `[m, k]` and `b` `[n, k]`, `out` being `[m, n]`; added to what `out` holds where `accumulate`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product(&self, a: MatrixView<'_>, b: MatrixView<'_>, out: &mut [f32], accumulate: bool) {
        check(a, b, out.len(), b.rows);
        if out.is_empty() {
            return;
        }
        let mut panels = self.take_panels();
        let Panels { left, right } = &mut panels;
        self.pack(a, left);
        self.pack(b, right);
        let depth = a.cols;
        let (runs, columns) = (a.rows.div_ceil(LANES), b.rows.div_ceil(LANES));
        let across = columns.div_ceil(TASK.1);
        let whole = Shared::new(out);
        self.run(runs.div_ceil(TASK.0) * across, &|task| {
            let cut = |at: usize, step: usize, end: usize| at * step..end.min((at + 1) * step);
            let (rows, columns) = (cut(task / across, TASK.0, runs), cut(task % across, TASK.1, columns));
            let out = Out { to: Place::Whole(&whole), offset: 0, stride: b.rows, rows: a.rows, cols: b.rows };
            self.vectorize(Multiply { left, right, depth, rows, columns, out, accumulate });
        });
        self.return_panels(panels);
    }

    fn pack(&self, view: MatrixView<'_>, lines: &mut Vec<Line>) {
        let count = view.rows.div_ceil(LANES) * view.cols;
        if lines.len() < count {
            lines.resize(count, Line::ZERO);
        }
        self.each_rows(&mut lines[..count], view.cols, LANES, &|first, lines| self.vectorize(Pack { view, first, lines }));
    }
}

/// As [`Engine::product`] on the thread it is called on.
#[inline(always)]
pub(super) fn product_here<S: Simd>(s: S, a: MatrixView<'_>, b: MatrixView<'_>, out: Out<'_>, accumulate: bool) {
    assert!(a.cols == b.cols && out.rows == a.rows && out.cols == b.rows, "an output of {} by {}", out.rows, out.cols);
    OWN.with_borrow_mut(|panels| {
        let (runs, columns) = (a.rows.div_ceil(LANES), b.rows.div_ceil(LANES));
        let Panels { left, right } = panels;
        for (view, lines, runs) in [(a, &mut *left, runs), (b, &mut *right, columns)] {
            let count = runs * view.cols;
            if lines.len() < count {
                lines.resize(count, Line::ZERO);
            }
            s.vectorize(Pack { view, first: 0, lines: &mut lines[..count] });
        }
        s.vectorize(Multiply { left, right, depth: a.cols, rows: 0..runs, columns: 0..columns, out, accumulate });
    });
}

fn check(a: MatrixView<'_>, b: MatrixView<'_>, len: usize, stride: usize) {
    assert_eq!(a.cols, b.cols, "both operands have as many columns");
    assert_eq!(len, a.rows * stride, "the output is [{}, {stride}]", a.rows);
}

/// Turns runs of sixteen rows into lines, zeros below the last row.
struct Pack<'a> {
    view: MatrixView<'a>,
    first: usize,
    lines: &'a mut [Line],
}

impl Op for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let MatrixView { values, rows, cols, strides } = self.view;
        for (run, lines) in self.lines.chunks_exact_mut(cols.max(1)).enumerate() {
            let row = (self.first + run) * LANES;
            let count = LANES.min(rows - row);
            let at = &values[row * strides.0..];
            if strides.0 == 1 {
                for (col, line) in lines.iter_mut().enumerate() {
                    let from = &at[col * strides.1..];
                    match from.first_chunk::<LANES>() {
                        Some(all) if count == LANES => line.0 = *all,
                        _ => line.0 = std::array::from_fn(|lane| if lane < count { from[lane] } else { 0.0 }),
                    }
                }
                continue;
            }
            let mut col = 0;
            if strides.1 == 1 && count == LANES {
                while let Some(lines) = lines.get_mut(col..col + LANES) {
                    let square = s.transpose(std::array::from_fn(|lane| load(s, &at[lane * strides.0 + col..])));
                    for (line, lanes) in lines.iter_mut().zip(square) {
                        s.store(lanes, &mut line.0);
                    }
                    col += LANES;
                }
            }
            for (col, line) in lines.iter_mut().enumerate().skip(col) {
                line.0 = std::array::from_fn(|lane| if lane < count { at[lane * strides.0 + col * strides.1] } else { 0.0 });
            }
        }
    }
}

#[inline(always)]
fn load<S: Simd>(s: S, from: &[f32]) -> S::F {
    from.first_chunk::<LANES>().map_or(s.splat(0.0), |chunk| s.load(chunk))
}

/// Where a product goes: rows that begin every `stride` elements.
pub(super) struct Out<'a> {
    pub(super) to: Place<'a>,
    pub(super) offset: usize,
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

pub(super) enum Place<'a> {
    /// Something that several tasks write, each rows or columns of its own.
    Whole(&'a Shared<'a, f32>),
    /// A slice nobody else has.
    Own(&'a mut [f32]),
}

impl<'a> Out<'a> {
    /// A slice nobody else has.
    pub(super) fn own(slice: &'a mut [f32], stride: usize, rows: usize, cols: usize) -> Self {
        Self { to: Place::Own(slice), offset: 0, stride, rows, cols }
    }

    #[inline(always)]
    pub(super) fn row(&mut self, row: usize, cols: Range<usize>) -> &mut [f32] {
        let start = self.offset + row * self.stride;
        let range = start + cols.start..start + cols.end;
        match &mut self.to {
            // SAFETY: tasks have rows or columns of their own (how products and heads are cut), and a task takes one part
            // at a time.
            Place::Whole(shared) => unsafe { shared.part(range) },
            Place::Own(own) => &mut own[range],
        }
    }
}

struct Multiply<'a> {
    left: &'a [Line],
    right: &'a [Line],
    depth: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    out: Out<'a>,
    accumulate: bool,
}

impl Op for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if self.depth == 0 && !self.accumulate {
            self.zero();
        }
        for start in (0..self.depth).step_by(DEPTH) {
            let depth = start..self.depth.min(start + DEPTH);
            for row in self.rows.clone() {
                let mut column = self.columns.start;
                while column < self.columns.end {
                    column += if const { S::FLOAT_TILE.0 == 2 } {
                        match self.columns.end - column {
                            1 => self.tiles::<S, 1, 8>(s, row, column, depth.clone()),
                            2 => self.tiles::<S, 2, 8>(s, row, column, depth.clone()),
                            _ => self.tiles::<S, 3, 8>(s, row, column, depth.clone()),
                        }
                    } else {
                        self.tiles::<S, 1, 4>(s, row, column, depth.clone())
                    };
                }
            }
        }
    }
}

impl Multiply<'_> {
    fn zero(&mut self) {
        let cols = self.columns.start * LANES..self.out.cols.min(self.columns.end * LANES);
        for row in self.rows.start * LANES..self.out.rows.min(self.rows.end * LANES) {
            self.out.row(row, cols.clone()).fill(0.0);
        }
    }

    /// Sixteen rows of `R` runs of columns; says how many runs.
    #[inline(always)]
    fn tiles<S: Simd, const R: usize, const T: usize>(&mut self, s: S, row: usize, column: usize, depth: Range<usize>) -> usize {
        self.tile::<S, R, T, 0>(s, row, column, depth.clone());
        self.tile::<S, R, T, 1>(s, row, column, depth.clone());
        if const { T == 4 } {
            self.tile::<S, R, T, 2>(s, row, column, depth.clone());
            self.tile::<S, R, T, 3>(s, row, column, depth);
        }
        R
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize, const H: usize>(&mut self, s: S, row: usize, column: usize, depth: Range<usize>) {
        // Parts that a wider tile has done already are not compiled; rows past the last are not computed.
        if const { H * T >= LANES } || row * LANES + H * T >= self.out.rows {
            return;
        }
        let panel = |run: usize| run * self.depth + depth.start..run * self.depth + depth.end;
        let lanes = std::array::from_fn(|r| &self.right[panel(column + r)]);
        let acc = tile::<S, R, T, H>(s, lanes, &self.left[panel(row)]);
        let add = self.accumulate || depth.start > 0;
        let rows = (self.out.rows - row * LANES - H * T).min(T);
        unroll!(t < T, {
            if t < rows {
                unroll!(r < R, {
                    let first = (column + r) * LANES;
                    let last = self.out.cols.min(first + LANES);
                    let out = self.out.row(row * LANES + H * T + t, first..last);
                    match out.first_chunk_mut::<LANES>() {
                        Some(all) => s.store(if add { s.add(s.load(all), acc[r][t]) } else { acc[r][t] }, all),
                        None => {
                            let mut values = [0.0; LANES];
                            s.store(acc[r][t], &mut values);
                            out.iter_mut().zip(values).for_each(|(out, value)| *out = if add { *out + value } else { value });
                        }
                    }
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use std::num::NonZeroUsize;

    fn numbers(count: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn at(v: MatrixView<'_>, r: usize, c: usize) -> f64 {
        f64::from(v.values[r * v.strides.0 + c * v.strides.1])
    }

    #[test]
    fn every_orientation_and_ragged_size_equals_the_definition() {
        for isa in Isa::available() {
            let engine = Engine::new(isa, NonZeroUsize::new(2).unwrap()).unwrap();
            for (m, n, k) in [(1, 1, 1), (17, 33, 5), (130, 50, 300), (16, 200, 16), (5, 7, 600), (3, 4, 0)] {
                for turned in 0..4 {
                    let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
                    let view = |v, rows, turned| match (k, turned) {
                        (0, _) => MatrixView { values: v, rows, cols: 0, strides: (1, 1) },
                        (_, true) => MatrixView::new(v, rows).turned(),
                        _ => MatrixView::new(v, k),
                    };
                    let (a, b) = (view(&a, m, turned & 1 == 1), view(&b, n, turned & 2 == 2));
                    let before = numbers(m * n, 3);
                    for accumulate in [false, true] {
                        let mut out = before.clone();
                        engine.product(a, b, &mut out, accumulate);
                        for r in 0..m {
                            for c in 0..n {
                                let base = if accumulate { f64::from(before[r * n + c]) } else { 0.0 };
                                let exact: f64 = base + (0..k).map(|i| at(a, r, i) * at(b, c, i)).sum::<f64>();
                                assert!((exact - f64::from(out[r * n + c])).abs() < 1e-4, "{isa} {m} {n} {k} {turned} {r} {c}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn neither_threads_nor_instruction_sets_change_a_bit() {
        let (m, n, k) = (150, 210, 530);
        let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
        let product = |isa, threads| {
            let engine = Engine::new(isa, NonZeroUsize::new(threads).unwrap()).unwrap();
            let mut out = vec![0.0; m * n];
            engine.product(MatrixView::new(&a, k), MatrixView::new(&b, n).turned(), &mut out, false);
            out
        };
        let expected = product(Isa::best(), 1);
        for (isa, threads) in Isa::available().into_iter().zip([3, 2, 4, 5, 1]) {
            assert!(product(isa, threads) == expected, "{isa} {threads}");
        }
    }

    #[test]
    fn parts_are_parts() {
        let values = numbers(6 * 8, 4);
        let whole = MatrixView::new(&values, 8);
        let part = whole.part(2..5, 3..7);
        assert_eq!((part.rows(), part.cols()), (3, 4));
        assert!((0..3).all(|r| (0..4).all(|c| at(part, r, c) == at(whole, r + 2, c + 3) && at(part.turned(), c, r) == at(part, r, c))));
    }
}
