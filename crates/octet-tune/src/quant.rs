//! Quantized matrices that learn: scales, and codes and zero points rounded straight through.

use crate::{Adam, Rule, TuneError, parallel::each};
use octet_kernels::Engine;
use octet_tensor::{Alphabet, Dtype, QMatrix, RowFactor, Table, WeightScheme};

/// Weights of a piece of work, about.
const PIECE: usize = 1 << 15;

/// How far from the edge of its code a latent begins at least, so that no code changes before anything is learnt.
const EDGE: f32 = 0.49;

/// How fast each part of a quantized matrix learns; zero for what stays as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learning {
    /// Of the scales, relative to each at the start.
    pub scales: f32,
    /// Of the codes, in codes.
    pub codes: f32,
    /// Of the zero points, in codes.
    pub zeros: f32,
    /// Where latents begin: at 0 in the middle of their code, at 1 at the original weight as far as the code reaches. A code
    /// that a solver chose against the nearest one is worth keeping until gradients agree that it is not.
    pub near: f32,
    /// Share of the way to the middle of its code that a latent goes back in a step, so that only gradients that agree move codes: noise
    /// alone would spread latents over ever more codes (dampening of oscillations: Nagel et al., arXiv 2203.11086).
    pub settle: f32,
}

/// A quantized matrix w = scale · (code − zero) that learns from the gradient of w.
///
/// A scale is its first value times 1 + θ, rounded to its stored type (whole ones to multiples of what the row had at first, or
/// of what its largest needs once that has outgrown it); a code is its latent rounded to the nearest, and
/// the latent takes the code's gradient (Bengio et al., arXiv 1308.3432; learned step sizes: Esser et al., arXiv 1902.08153). The
/// latent of a table's code is its place among the levels.
#[derive(Clone)]
pub struct QuantParam {
    /// The parameter of the network.
    pub number: usize,
    shape: (usize, usize),
    scheme: WeightScheme,
    alphabet: Alphabet,
    dtype: Dtype,
    base: Vec<f32>,
    /// What the scales of each row are multiples of at first, where they are whole.
    factors: Vec<RowFactor>,
    state: State,
    moments: [Adam; 3],
}

/// What is learnt.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct State {
    /// θ of every scale.
    pub(crate) scales: Vec<f32>,
    /// Codes before they are rounded, of a table their places; empty where they stay.
    pub(crate) latents: Vec<f32>,
    /// Zero points before they are rounded; empty where there are none, or they stay.
    pub(crate) zeros: Vec<f32>,
    /// Codes as they are.
    pub(crate) codes: Vec<i8>,
    /// Zero points as they are.
    pub(crate) zero_codes: Vec<i8>,
}

impl QuantParam {
    /// Begins with `matrix`, whose unrounded codes are near `original`, the weights it stands for.
    ///
    /// # Errors
    /// If the original has another size.
    pub fn new(number: usize, matrix: &QMatrix, original: &[f32], learning: Learning) -> Result<Self, TuneError> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        if original.len() != rows * cols {
            let what = format!("{} weights for a {rows}x{cols} matrix", original.len());
            return Err(octet_tensor::Error::Malformed { name: "the original of a quantized matrix".into(), what }.into());
        }
        let mut state = State {
            scales: vec![0.0; matrix.scales().len()],
            latents: vec![],
            zeros: vec![],
            codes: matrix.codes().to_vec(),
            zero_codes: matrix.zeros().to_vec(),
        };
        // A coordinate of a point does not move by itself.
        if learning.codes > 0.0 && matrix.alphabet() != Alphabet::Lattice {
            let (size, places) = (matrix.scheme().group_size(cols), Places::new(matrix.scheme(), matrix.alphabet()));
            state.latents = Vec::with_capacity(original.len());
            for (row, values) in original.chunks_exact(cols.max(1)).enumerate() {
                for (col, &value) in values.iter().enumerate() {
                    let (scale, zero) = matrix.group(row, col / size);
                    let code = places.of(matrix.codes()[row * cols + col]);
                    let exact = if scale == 0.0 { code } else { places.exact(value / scale + zero as f32) };
                    state.latents.push(code + learning.near * (exact - code).clamp(-EDGE, EDGE));
                }
            }
        }
        if learning.zeros > 0.0 {
            state.zeros = state.zero_codes.iter().map(|&zero| f32::from(zero)).collect();
        }
        let moments = [state.scales.len(), state.latents.len(), state.zeros.len()].map(Adam::new);
        let (shape, scheme, alphabet, dtype) = ((rows, cols), matrix.scheme(), matrix.alphabet(), matrix.scale_dtype());
        let (base, factors) = (matrix.scales().to_vec(), matrix.factors().to_vec());
        Ok(Self { number, shape, scheme, alphabet, dtype, base, factors, state, moments })
    }

    /// Numbers that are learnt.
    pub fn learnt(&self) -> usize {
        self.state.scales.len() + self.state.latents.len() + self.state.zeros.len()
    }

    /// How the weights are represented.
    pub fn scheme(&self) -> WeightScheme {
        self.scheme
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    /// What is learnt and its moments, as runs of numbers.
    pub(crate) fn runs_mut(&mut self) -> Vec<&mut Vec<f32>> {
        let State { scales, latents, zeros, .. } = &mut self.state;
        let moments = self.moments.iter_mut().flat_map(|adam| [&mut adam.first, &mut adam.second]);
        [scales, latents, zeros].into_iter().chain(moments).collect()
    }

    /// The scale of every group, as it is stored.
    fn scales(&self) -> Vec<f32> {
        let exact = self.base.iter().zip(&self.state.scales).map(|(base, theta)| base * (1.0 + theta));
        if !self.scheme.has_whole_scales() {
            return exact.map(|scale| self.dtype.round(scale)).collect();
        }
        let mut scales: Vec<f32> = exact.collect();
        for (&first, scales) in self.factors.iter().zip(scales.chunks_exact_mut(self.scheme.groups(self.shape.1).max(1))) {
            let largest = scales.iter().fold(0.0f32, |most, scale| most.max(scale.abs()));
            let fits = largest - first.round(largest) <= first.unit();
            let factor = if fits { first } else { RowFactor::reaching(largest, self.dtype) };
            scales.iter_mut().for_each(|scale| *scale = factor.round(*scale));
        }
        scales
    }

    fn piece_rows(&self) -> usize {
        (PIECE / self.shape.1.max(1)).max(1)
    }

    /// The matrix as it is now.
    ///
    /// # Errors
    /// If a scale grew beyond its stored type.
    pub fn matrix(&self) -> Result<QMatrix, TuneError> {
        let State { codes, zero_codes, .. } = &self.state;
        Ok(QMatrix::spelt(self.alphabet, self.shape, self.scheme, codes.clone(), self.scales(), self.dtype, zero_codes.clone())?)
    }

    /// Writes the weights as they are now.
    pub fn write(&self, engine: &Engine, values: &mut [f32]) {
        let (scales, rows) = (self.scales(), self.piece_rows());
        let (cols, groups, size) = (self.shape.1, self.scheme.groups(self.shape.1), self.scheme.group_size(self.shape.1));
        let pieces = values.chunks_mut(rows * cols).enumerate().collect();
        each(engine, pieces, |(piece, values)| {
            let first = *piece * rows;
            for (row, values) in values.chunks_exact_mut(cols).enumerate() {
                let row = first + row;
                let codes = self.state.codes[row * cols..(row + 1) * cols].chunks(size);
                for (group, (values, codes)) in values.chunks_mut(size).zip(codes).enumerate() {
                    let at = row * groups + group;
                    let (scale, zero) = (scales[at], self.state.zero_codes.get(at).map_or(0.0, |&zero| f32::from(zero)));
                    values.iter_mut().zip(codes).for_each(|(value, &code)| *value = scale * (f32::from(code) - zero));
                }
            }
        });
    }

    /// Learns from the gradient of the weights, which is changed.
    pub fn learn(&mut self, engine: &Engine, gradient: &mut [f32], rates: Learning, rule: Rule) {
        let scales = self.scales();
        let (along, across) = self.fold(engine, gradient, &scales, rates.codes > 0.0 && !self.state.latents.is_empty());
        let [of_scales, of_codes, of_zeros] = &mut self.moments;
        if rates.scales > 0.0 {
            let gradients: Vec<f32> = along.iter().zip(&self.base).map(|(sum, base)| sum * base).collect();
            rule.advance(engine, of_scales, &mut self.state.scales, &gradients, rates.scales);
        }
        if rates.zeros > 0.0 && !self.state.zeros.is_empty() {
            let gradients: Vec<f32> = across.iter().zip(&scales).map(|(sum, scale)| -sum * scale).collect();
            rule.advance(engine, of_zeros, &mut self.state.zeros, &gradients, rates.zeros);
        }
        if rates.codes > 0.0 && !self.state.latents.is_empty() {
            rule.advance(engine, of_codes, &mut self.state.latents, gradient, rates.codes);
            settle(engine, &mut self.state.latents, rates.settle);
        }
        self.round(engine);
    }

    /// Codes and zero points are what their latents round to.
    pub(crate) fn round(&mut self, engine: &Engine) {
        let mut state = std::mem::take(&mut self.state);
        self.rounded(engine, &mut state);
        self.state = state;
    }

    /// As [`QuantParam::round`], of any state of this matrix.
    pub(crate) fn rounded(&self, engine: &Engine, state: &mut State) {
        let places = Places::new(self.scheme, self.alphabet);
        round(engine, &mut state.latents, &mut state.codes, places.range, |place| places.code(place));
        let whole = (self.scheme.bits.min_code(), self.scheme.bits.max_code());
        round(engine, &mut state.zeros, &mut state.zero_codes, whole, |zero| zero);
    }

    /// Σ gradient · (code − zero) and Σ gradient of every group; the gradient becomes that of the codes where wanted.
    fn fold(&self, engine: &Engine, gradient: &mut [f32], scales: &[f32], of_codes: bool) -> (Vec<f32>, Vec<f32>) {
        let rows = self.piece_rows();
        let (cols, groups, size) = (self.shape.1, self.scheme.groups(self.shape.1), self.scheme.group_size(self.shape.1));
        let (mut along, mut across) = (vec![0.0; scales.len()], vec![0.0; scales.len()]);
        let sums = along.chunks_mut(rows * groups).zip(across.chunks_mut(rows * groups));
        let pieces = gradient.chunks_mut(rows * cols).zip(sums).enumerate().collect();
        each(engine, pieces, |(piece, (gradient, (along, across)))| {
            let first = *piece * rows;
            for (row, gradient) in gradient.chunks_exact_mut(cols).enumerate() {
                let codes = self.state.codes[(first + row) * cols..(first + row + 1) * cols].chunks(size);
                for (group, (gradient, codes)) in gradient.chunks_mut(size).zip(codes).enumerate() {
                    let (at, here) = ((first + row) * groups + group, row * groups + group);
                    let zero = self.state.zero_codes.get(at).map_or(0.0, |&zero| f32::from(zero));
                    along[here] = gradient.iter().zip(codes).map(|(g, &code)| g * (f32::from(code) - zero)).sum();
                    across[here] = gradient.iter().sum();
                    if of_codes {
                        gradient.iter_mut().for_each(|g| *g *= scales[at]);
                    }
                }
            }
        });
        (along, across)
    }
}

/// Where codes stand in their order: those of even steps at themselves, those of a table at their number.
#[derive(Clone, Copy)]
struct Places {
    table: Option<Table>,
    range: (i32, i32),
}

impl Places {
    fn new(scheme: WeightScheme, alphabet: Alphabet) -> Self {
        let table = alphabet.table().copied();
        Self { table, range: table.map_or(scheme.range(), |table| (0, table.levels().len() as i32 - 1)) }
    }

    fn of(self, code: i8) -> f32 {
        self.table.map_or(f32::from(code), |table| f32::from(table.number(code)))
    }

    fn code(self, place: i8) -> i8 {
        self.table.map_or(place, |table| table.level(place as u8))
    }

    /// Where a value in units of the scale stands, between places.
    fn exact(self, value: f32) -> f32 {
        let Some(table) = self.table else { return value };
        let (levels, level) = (table.levels(), |place: u8| f32::from(table.level(place)));
        let below = levels.partition_point(|&level| f32::from(level) <= value).clamp(1, levels.len() - 1) as u8 - 1;
        f32::from(below) + (value - level(below)) / (level(below + 1) - level(below))
    }
}

/// Adding and taking off 1.5 · 2²³ rounds a small number to the nearest, without a call.
fn nearest(value: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (value + MAGIC) - MAGIC
}

/// Latents go so far of the way to the middle of their code.
fn settle(engine: &Engine, latents: &mut [f32], share: f32) {
    each(engine, latents.chunks_mut(PIECE).collect(), |latents| {
        latents.iter_mut().for_each(|latent| *latent += share * (nearest(*latent) - *latent));
    });
}

/// Keeps latents within the range of places and rounds them to codes.
fn round(engine: &Engine, latents: &mut [f32], codes: &mut [i8], (low, high): (i32, i32), code_at: impl Fn(i8) -> i8 + Sync) {
    let (low, high) = (low as f32 - EDGE, high as f32 + EDGE);
    let pieces = latents.chunks_mut(PIECE).zip(codes.chunks_mut(PIECE)).collect();
    each(engine, pieces, |(latents, codes)| {
        for (latent, code) in latents.iter_mut().zip(codes.iter_mut()) {
            *latent = latent.clamp(low, high);
            *code = code_at(nearest(*latent) as i8);
        }
    });
}
