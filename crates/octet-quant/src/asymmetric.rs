//! Targets for a model that is already partly quantized: weights that make of its inputs what the original makes of its own.
//!
//! With x what flows into a linear of the original and x̃ what flows into it after the quantized linears before it,
//! ‖W·x − Q·x̃‖² is, up to a constant, ‖(W* − Q)·x̃‖² with W* = W + W·E\[(x − x̃)·x̃ᵀ\]·(H̃ + λ·I)⁻¹: solving for W* instead of W
//! lets every linear make good what those before it did (Li et al., GPTAQ, arXiv 2504.02692; Zhang et al., Qronos, arXiv
//! 2505.11695; this closed form differs from the latter in the first column only). A linear that adds to the residual
//! stream can make good the stream's own drift h − h̃ as well: its target is W·x + h − h̃.
//!
//! How far to go from W to W* is decided on tokens that W* was not made from: the error there is a parabola in α, whose lowest
//! point is known.

use crate::{Error, Hessian, HessianOptions, rows};
use octet_kernels::{CrossGram, CrossMoments, Engine, Gram, InputMoments, RowPanels, SymmetricMatrix};
use octet_tensor::{FloatMatrix, Tensor};
use std::sync::Mutex;

/// Every so many passes one is held out.
pub(crate) const HELD_OUT: usize = 8;

/// Rows α is decided on at most, and rows of a task.
const TASK_ROWS: usize = 96;

/// Furthest that the target is moved.
const FURTHEST: f64 = 1.25;

/// How the original's inputs lie beyond those of the quantized model.
#[derive(Clone, Debug)]
pub struct Beyond {
    all: Terms,
    held: Terms,
    /// E\[x̃·x̃ᵀ\] of the tokens held out.
    second: CrossMoments,
}

/// What a target is made of.
#[derive(Clone, Debug)]
struct Terms {
    /// E\[(x − x̃)·x̃ᵀ\]
    inputs: CrossMoments,
    /// E\[(h − h̃)·x̃ᵀ\], where the linear adds to the residual stream.
    stream: Option<CrossMoments>,
}

/// Gathers what flows into a linear of both models.
pub(crate) struct Pairs {
    gram: Gram,
    all: Sums,
    held: Sums,
    second: CrossGram,
    difference: Vec<f32>,
}

struct Sums {
    inputs: CrossGram,
    stream: Option<CrossGram>,
}

impl Sums {
    fn new(cols: usize, stream: usize) -> Self {
        Self { inputs: CrossGram::new(cols, cols), stream: (stream > 0).then(|| CrossGram::new(stream, cols)) }
    }

    fn add(&mut self, engine: &Engine, difference: &[f32], x: &[f32], drift: &[f32]) {
        self.inputs.add(engine, difference, x);
        if let Some(stream) = &mut self.stream {
            stream.add(engine, drift, x);
        }
    }

    fn finish(self, engine: &Engine) -> Terms {
        Terms { inputs: self.inputs.finish(engine), stream: self.stream.map(|stream| stream.finish(engine)) }
    }
}

impl Pairs {
    /// Nothing seen yet of `cols` inputs, beside a residual stream of `stream` (0: it does not matter).
    pub(crate) fn new(cols: usize, stream: usize) -> Self {
        let sums = || Sums::new(cols, stream);
        Self { gram: Gram::new(cols), all: sums(), held: sums(), second: CrossGram::new(cols, cols), difference: vec![] }
    }

    /// Bytes it takes.
    pub(crate) fn bytes(cols: usize, stream: usize) -> usize {
        Gram::bytes(cols) + 3 * CrossGram::bytes(cols, cols) + 2 * CrossGram::bytes(stream, cols)
    }

    /// Sees the same tokens in the original and in the quantized model `x`.
    pub(crate) fn add(&mut self, engine: &Engine, original: &[f32], x: &[f32], drift: &[f32], held_out: bool) {
        self.gram.add(engine, x);
        if original.len() != x.len() {
            return;
        }
        self.difference.clear();
        self.difference.extend(original.iter().zip(x).map(|(original, x)| original - x));
        self.all.add(engine, &self.difference, x, drift);
        if held_out {
            self.held.add(engine, &self.difference, x, drift);
            self.second.add(engine, x, x);
        }
    }

    pub(crate) fn finish(self, engine: &Engine) -> (Gram, Beyond) {
        let beyond = Beyond { all: self.all.finish(engine), held: self.held.finish(engine), second: self.second.finish(engine) };
        (self.gram, beyond)
    }
}

impl Terms {
    fn without(&self, part: &Self) -> Self {
        let stream = self.stream.as_ref().zip(part.stream.as_ref()).map(|(all, part)| all.without(part));
        Self { inputs: self.inputs.without(&part.inputs), stream }
    }

    /// Rows `first ..` of W·E\[(x − x̃)·x̃ᵀ\] + E\[(h − h̃)·x̃ᵀ\], whose places are inputs.
    fn product(&self, engine: &Engine, weights: &RowPanels, rows: &[usize]) -> RowPanels {
        let mut out = RowPanels::zeros(weights.rows(), weights.cols());
        if let Some(stream) = &self.stream {
            let cols = weights.cols();
            let values: Vec<f32> = rows.iter().flat_map(|&row| (0..cols).map(move |col| stream.at(row, col))).collect();
            out = RowPanels::from_rows(&values, cols, None);
        }
        self.inputs.times(engine, weights, &mut out);
        out
    }
}

/// The targets of linears that read one input.
pub(crate) struct Shift<'a> {
    beyond: &'a Beyond,
    rest: Terms,
    /// What the tokens that are not held out give.
    train: Hessian,
}

impl<'a> Shift<'a> {
    /// Prepares what was seen of the input `name`; `None` where nothing was held out or nothing differs.
    ///
    /// # Errors
    /// If moments are not finite.
    pub(crate) fn new(
        engine: &Engine,
        name: &str,
        (moments, beyond): (&InputMoments, &'a Beyond),
        options: HessianOptions,
    ) -> Result<Option<Self>, Error> {
        let (all, held) = (moments.tokens, beyond.second.tokens);
        if held == 0 || held >= all || beyond.all.inputs.tokens != all {
            return Ok(None);
        }
        let (whole, part) = (all as f64 / (all - held) as f64, held as f64 / (all - held) as f64);
        let rest = |r: usize, c: usize| {
            // What the diagonal lost to rounding must not become negative.
            let value = (f64::from(moments.second.at(r, c)) * whole - f64::from(beyond.second.at(r, c)) * part) as f32;
            if r == c { value.max(0.0) } else { value }
        };
        let second = SymmetricMatrix::from_lower(engine, moments.second.size(), &rest);
        let (mean_abs, max_abs) = (moments.mean_abs.clone(), moments.max_abs.clone());
        let train = Hessian::new(engine, name, &InputMoments { tokens: all - held, second, mean_abs, max_abs }, options)?;
        Ok(Some(Self { beyond, rest: beyond.all.without(&beyond.held), train }))
    }

    /// The target in the place of `matrix`, and how far it was moved; `hessian` is that of all tokens.
    ///
    /// # Errors
    /// If the weights cannot be read.
    pub(crate) fn target(&self, engine: &Engine, matrix: &FloatMatrix, hessian: &Hessian) -> Result<Option<(FloatMatrix, f64)>, Error> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let mut weights = vec![0f32; rows * cols];
        matrix.read_rows(0..rows, &mut weights)?;
        if rows == 0 || cols == 0 || !rows::all_finite(&weights) {
            return Ok(None);
        }
        let step = rows.div_ceil(TASK_ROWS);
        let sample: Vec<usize> = (0..rows).step_by(step).collect();
        let values: Vec<f32> = sample.iter().flat_map(|&row| &weights[row * cols..(row + 1) * cols]).copied().collect();
        let Some(alpha) = self.alpha(engine, &values, cols, &sample) else { return Ok(None) };
        let tasks: Vec<_> = weights.chunks_mut(TASK_ROWS * cols).map(Mutex::new).collect();
        engine.run(tasks.len(), &|task| {
            let mut weights = rows::lock(&tasks[task]);
            let own: Vec<usize> = (task * TASK_ROWS..task * TASK_ROWS + weights.len() / cols).collect();
            let Some(moves) = moves(engine, &self.beyond.all, hessian, (&weights, cols), &own) else { return };
            for (row, weights) in weights.chunks_exact_mut(cols).enumerate() {
                weights.iter_mut().enumerate().for_each(|(col, w)| *w += (alpha * f64::from(moves.at(row, col))) as f32);
            }
        });
        drop(tasks);
        if !rows::all_finite(&weights) {
            return Ok(None);
        }
        Ok(Some((FloatMatrix::dense(Tensor::from_f32(matrix.name(), vec![rows, cols], &weights)?)?, alpha)))
    }

    /// How far to go, by the tokens held out: there the error is α²·⟨S·H, S⟩ − 2·α·⟨S, T⟩ with S the way to go and T what it
    /// is to correct. `None` where nothing is to be corrected.
    fn alpha(&self, engine: &Engine, weights: &[f32], cols: usize, rows: &[usize]) -> Option<f64> {
        let way = moves(engine, &self.rest, &self.train, (weights, cols), rows)?;
        let wanted = self.beyond.held.product(engine, &RowPanels::from_rows(weights, cols, None), rows);
        let mut through = RowPanels::zeros(rows.len(), cols);
        self.beyond.second.times(engine, &way, &mut through);
        let dot = |other: &RowPanels| -> f64 {
            (0..rows.len())
                .flat_map(|r| (0..cols).map(move |c| (r, c)))
                .map(|(r, c)| f64::from(way.at(r, c)) * f64::from(other.at(r, c)))
                .sum()
        };
        let (gain, cost) = (dot(&wanted), dot(&through));
        let alpha = gain / cost;
        (gain > 0.0 && cost > 0.0 && alpha.is_finite()).then(|| alpha.min(FURTHEST))
    }
}

/// The way from rows of weights to their targets, places being inputs; `None` where the Hessian has no factor.
fn moves(engine: &Engine, terms: &Terms, hessian: &Hessian, (weights, cols): (&[f32], usize), rows: &[usize]) -> Option<RowPanels> {
    let wanted = terms.product(engine, &RowPanels::from_rows(weights, cols, None), rows);
    hessian.solve(engine, &wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_kernels::Isa;
    use std::num::NonZeroUsize;

    const COLS: usize = 24;

    fn numbers(count: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// The error of weights on the quantized inputs against the original on its own.
    fn error(original: &[f32], weights: &[f32], x: &[f32], y: &[f32], drift: &[f32]) -> f64 {
        let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        let rows = original.len() / COLS;
        let each = x.chunks_exact(COLS).zip(y.chunks_exact(COLS)).enumerate().map(|(t, (x, y))| {
            (0..rows)
                .map(|n| {
                    let row = n * COLS..(n + 1) * COLS;
                    let drift = drift.get(t * rows + n).map_or(0.0, |d| f64::from(*d));
                    (dot(&original[row.clone()], x) + drift - dot(&weights[row], y)).powi(2)
                })
                .sum::<f64>()
        });
        each.sum()
    }

    fn target(engine: &Engine, weights: &[f32], x: &[f32], y: &[f32], drift: &[f32]) -> Option<(Vec<f32>, f64)> {
        let tokens = x.len() / COLS;
        let rows = weights.len() / COLS;
        let stream = drift.len() / tokens;
        let mut pairs = Pairs::new(COLS, stream);
        for t in 0..8 {
            let part = t * tokens / 8..(t + 1) * tokens / 8;
            let of = |values: &'_ [f32], width: usize| values[part.start * width..part.end * width].to_vec();
            pairs.add(engine, &of(x, COLS), &of(y, COLS), &of(drift, stream), t == 7);
        }
        let (gram, beyond) = pairs.finish(engine);
        let (moments, options) = (gram.finish(engine), HessianOptions::default());
        let hessian = Hessian::new(engine, "x", &moments, options).unwrap();
        let shift = Shift::new(engine, "x", (&moments, &beyond), options).unwrap().unwrap();
        let matrix = FloatMatrix::dense(Tensor::from_f32("w", vec![rows, COLS], weights).unwrap()).unwrap();
        let (target, alpha) = shift.target(engine, &matrix, &hessian).unwrap()?;
        let mut values = vec![0.0; weights.len()];
        target.read_rows(0..rows, &mut values).unwrap();
        Some((values, alpha))
    }

    #[test]
    fn targets_leave_less_error_than_the_weights_on_other_tokens_too() {
        let engine = Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap();
        let (tokens, rows) = (1600, 130);
        let weights = numbers(rows * COLS, 1);
        let x = numbers(2 * tokens * COLS, 2);
        // The quantized model's inputs are the original's, mixed a little, with noise.
        let noise = numbers(x.len(), 3);
        let y: Vec<f32> = (0..x.len()).map(|i| 0.9 * x[i] + 0.3 * x[i / COLS * COLS + (i + 5) % COLS] + 0.1 * noise[i]).collect();
        for stream in [false, true] {
            let mixed = |t: usize, n: usize| 0.2 * y[t * COLS + n % COLS] - 0.1 * x[t * COLS + (n + 3) % COLS];
            let drift: Vec<f32> = (0..if stream { 2 * tokens * rows } else { 0 }).map(|i| mixed(i / rows, i % rows)).collect();
            let half = |v: &[f32]| (v[..v.len() / 2].to_vec(), v[v.len() / 2..].to_vec());
            let ((x, x2), (y, y2), (drift, drift2)) = (half(&x), half(&y), half(&drift));
            let (found, alpha) = target(&engine, &weights, &x, &y, &drift).unwrap();
            assert!((0.9..1.1).contains(&alpha), "{alpha}");
            for (x, y, drift) in [(&x, &y, &drift), (&x2, &y2, &drift2)] {
                let (before, after) = (error(&weights, &weights, x, y, drift), error(&weights, &found, x, y, drift));
                assert!(after < 0.2 * before, "{stream}: {before} to {after}");
            }
        }
    }

    #[test]
    fn inputs_that_differ_by_noise_alone_move_nothing_far() {
        let engine = Engine::new(Isa::best(), NonZeroUsize::new(1).unwrap()).unwrap();
        let (weights, y) = (numbers(20 * COLS, 1), numbers(200 * COLS, 2));
        let noise = numbers(y.len(), 9);
        let x: Vec<f32> = y.iter().zip(&noise).map(|(y, n)| y + 0.2 * n).collect();
        if let Some((_, alpha)) = target(&engine, &weights, &x, &y, &[]) {
            assert!(alpha < 0.4, "{alpha}");
        }
        assert!(target(&engine, &weights, &y, &y, &[]).is_none(), "equal inputs have nothing to correct");
    }
}
