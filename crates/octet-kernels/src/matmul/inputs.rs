//! The inputs of a product, laid out for the kernels: int8 codes or floats, in tiles of a few tokens.
//!
//! A tile of T tokens holds, for each run of four inputs (each input, for floats), that run of token 0, of token 1, …:
//! what a register tile reads next is what lies next. With one token that is the row itself.

use super::{
    Source,
    aside::Aside,
    digits::{DIGITS, Digits},
    layout::Segments,
    with_scratch,
};
use crate::{
    Engine,
    parallel::Shared,
    simd::{LANES, Op, Simd, unroll},
};
use std::ops::Range;

/// Token counts register tiles exist for, widest first; six only where nothing wider exists.
const WIDTHS: [usize; 6] = [12, 8, 6, 4, 2, 1];

/// The width of tiles that are rows: what tiles of AMX read, sixteen at a time. There is memory for as many as that.
pub(crate) const AS_ROWS: usize = 1;

/// The first tokens and widths of the tiles that `tokens` tokens are cut into, none wider than `widest`.
pub(crate) fn tiles(tokens: usize, widest: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let width = WIDTHS.into_iter().find(|&w| w <= widest && w <= tokens - next && (w != 6 || widest == 6))?;
        next += width;
        Some((next - width, width))
    })
}

/// How inputs are prepared: matrices that agree in it share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) form: Form,
    /// Which columns are set aside of every token, by [`super::aside::Columns::id`].
    pub(crate) without: Option<u64>,
    pub(crate) segments: Segments,
    /// Tokens of the widest tile.
    pub(crate) widest: usize,
}

/// What inputs become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Floats as they are.
    Floats,
    /// Int8 codes; so many inputs share a scale (`usize::MAX`: all of a token).
    Codes(usize),
    /// Int8 codes of all inputs up to a limit (the bits of a float), one scale a token; larger ones are set aside.
    Below(u32),
    /// Int8 digits, three columns a token; a segment shares a scale.
    Digits,
}

impl Form {
    /// Columns of a tile that a token takes.
    fn columns(self) -> usize {
        if self == Self::Digits { DIGITS } else { 1 }
    }

    /// Whether all inputs of a token share a scale.
    fn one_scale(self) -> bool {
        matches!(self, Self::Codes(usize::MAX) | Self::Below(_))
    }
}

/// Inputs prepared one way.
pub(crate) struct Prepared {
    key: Key,
    /// Codes, `[tiles][words of four inputs][tokens of the tile]`.
    codes: Vec<[i8; 4]>,
    /// Sums of the codes of a segment, `[tiles][segments][tokens of the tile]`.
    sums: Vec<i32>,
    /// Scales, `[tiles][segments][tokens of the tile]`, or one a token when all of a token share one.
    scales: Vec<f32>,
    /// Float inputs, `[tiles][padded inputs][tokens of the tile]`.
    floats: Vec<f32>,
    /// What was set aside of every token.
    aside: Vec<Aside>,
}

/// Int8 inputs of one tile of tokens.
#[derive(Clone, Copy)]
pub(crate) struct CodeTile<'a> {
    pub(crate) codes: &'a [[i8; 4]],
    pub(crate) sums: &'a [i32],
    /// `[segments, tokens]` when [`CodeTile::grouped`], else `[tokens]`.
    pub(crate) scales: &'a [f32],
    pub(crate) grouped: bool,
}

impl Prepared {
    fn new(key: Key) -> Self {
        Self { key, codes: Vec::new(), sums: Vec::new(), scales: Vec::new(), floats: Vec::new(), aside: Vec::new() }
    }

    fn scales_a_token(&self) -> usize {
        if self.key.form.one_scale() { 1 } else { self.key.segments.count() }
    }

    /// What was set aside of each of the tokens.
    pub(crate) fn aside(&self, tokens: usize) -> &[Aside] {
        self.aside.get(..tokens).unwrap_or_default()
    }

    /// Tokens of the widest tile.
    pub(crate) fn widest(&self) -> usize {
        self.key.widest
    }

    /// Whether inputs are digits: three columns a token.
    pub(crate) fn is_digits(&self) -> bool {
        self.key.form == Form::Digits
    }

    /// The int8 inputs of the tile of `width` columns (tokens, or digits of tokens) from `first` on.
    #[inline(always)]
    pub(crate) fn code_tile(&self, first: usize, width: usize) -> CodeTile<'_> {
        let (words, segments, scales) = (2 * self.key.segments.all_octets(), self.key.segments.count(), self.scales_a_token());
        CodeTile {
            codes: &self.codes[first * words..(first + width) * words],
            sums: &self.sums[first * segments..(first + width) * segments],
            scales: &self.scales[first * scales..(first + width) * scales],
            grouped: !self.key.form.one_scale(),
        }
    }

    /// All int8 inputs where they are rows ([`AS_ROWS`]), as tiles of one token that follow each other.
    pub(crate) fn code_rows(&self) -> CodeTile<'_> {
        let grouped = !self.key.form.one_scale();
        CodeTile { codes: &self.codes, sums: &self.sums, scales: &self.scales, grouped }
    }

    /// The float inputs of the tile of `width` tokens from `first` on, `[padded inputs, width]`.
    #[inline(always)]
    pub(crate) fn float_tile(&self, first: usize, width: usize) -> &[f32] {
        let inputs = 8 * self.key.segments.all_octets();
        &self.floats[first * inputs..(first + width) * inputs]
    }

    fn prepare(&mut self, engine: &Engine, source: Source<'_>, tokens: usize, cols: usize, without: &[u32]) {
        let (inputs, segments, scales) = (8 * self.key.segments.all_octets(), self.key.segments.count(), self.scales_a_token());
        let key = self.key;
        if key.form == Form::Floats {
            self.floats.resize(tokens * inputs, 0.0);
            let floats = Shared::new(&mut self.floats);
            each_row(engine, source, tokens, cols, key.widest, &|tile, token, x| {
                // SAFETY: tiles are disjoint runs of tokens, and so are their parts; a tile's tokens come one after the other.
                let out = unsafe { floats.part(tile.start * inputs..tile.end * inputs) };
                interleave_floats(x, key.segments, tile.len(), &mut out[token..]);
            });
            return;
        }
        let each = key.form.columns();
        let rows = if key.widest == AS_ROWS { tokens.next_multiple_of(LANES) } else { tokens };
        self.codes.resize(rows * each * inputs / 4, [0; 4]);
        self.sums.resize(tokens * each * segments, 0);
        self.scales.resize(tokens * each * scales, 0.0);
        let sets_aside = !without.is_empty() || matches!(key.form, Form::Below(_));
        if sets_aside && self.aside.len() < tokens {
            self.aside.resize_with(tokens, Aside::default);
        }
        let (codes, sums, scale) = (Shared::new(&mut self.codes), Shared::new(&mut self.sums), Shared::new(&mut self.scales));
        let aside = Shared::new(&mut self.aside);
        each_row(engine, source, tokens, cols, key.widest, &|tile, token, x| {
            let x = if sets_aside {
                let at = tile.start + token;
                // SAFETY: every token is visited once.
                let aside = &mut unsafe { aside.part(at..at + 1) }[0];
                match key.form {
                    Form::Below(limit) if without.is_empty() => aside.split(x, f32::from_bits(limit)),
                    _ => aside.without(x, without),
                }
            } else {
                x
            };
            let (tile, token) = (tile.start * each..tile.end * each, token * each);
            // SAFETY: tiles are disjoint runs of tokens, and so are their parts; a tile's tokens come one after the other.
            let codes = unsafe { codes.part(tile.start * inputs / 4..tile.end * inputs / 4) };
            // SAFETY: as above.
            let sums = unsafe { sums.part(tile.start * segments..tile.end * segments) };
            // SAFETY: as above.
            let scales = unsafe { scale.part(tile.start * scales..tile.end * scales) };
            let (codes, sums, scales) = (&mut codes[token..], &mut sums[token..], &mut scales[token..]);
            let (segments, width) = (key.segments, tile.len());
            match key.form {
                Form::Below(_) => engine.vectorize(Quantize { x, group: usize::MAX, segments, width, codes, sums, scales }),
                Form::Codes(group) => engine.vectorize(Quantize { x, group, segments, width, codes, sums, scales }),
                _ => engine.vectorize(Digits { x, segments, width, codes, sums, scales }),
            }
        });
    }
}

/// Told a tile's tokens, a token's place among them and its inputs.
type EachRow<'a> = dyn Fn(Range<usize>, usize, &[f32]) + Sync + 'a;

/// Calls `f` with every tile's tokens, a token's place among them and its inputs; tiles in parallel, where there are many.
fn each_row(engine: &Engine, source: Source<'_>, tokens: usize, cols: usize, widest: usize, f: &EachRow<'_>) {
    let count = tiles(tokens, widest).count();
    each_tile(engine, count, tokens, widest, &|first, width| {
        with_scratch(|scratch| {
            let [buffer] = scratch.floats([source.buffer(cols)]);
            for token in 0..width {
                f(first..first + width, token, source.row(engine, first + token, cols, buffer));
            }
        });
    });
}

/// Calls `f` with the first token and the width of every tile, in parallel where there are many.
fn each_tile(engine: &Engine, count: usize, tokens: usize, widest: usize, f: &(dyn Fn(usize, usize) + Sync)) {
    engine.run(count, &|i| {
        let start = (i * widest).min(tokens);
        // Every tile but the last few is of the widest width, so tile i starts at i · widest until those.
        let full = tokens / widest;
        let found = if i < full {
            Some((start, widest))
        } else {
            tiles(tokens - full * widest, widest).nth(i - full).map(|(t, w)| (t + full * widest, w))
        };
        if let Some((first, width)) = found {
            f(first, width);
        }
    });
}

/// Spreads a token's inputs, `width` elements apart.
fn interleave_floats(x: &[f32], segments: Segments, width: usize, out: &mut [f32]) {
    for segment in 0..segments.count() {
        let inputs = &x[segments.inputs(segment)];
        let octets = segments.octets(segment);
        let mut out = out[octets.start * 8 * width..].iter_mut().step_by(width).take(8 * octets.len());
        for (out, &v) in out.by_ref().zip(inputs.iter().chain(std::iter::repeat(&0.0))) {
            *out = v;
        }
    }
}

/// Quantizes a token of a tile of `width` tokens as `octet_tensor::quantize_activations` does, bit for bit; outputs
/// begin at the token's place in the tile.
struct Quantize<'a> {
    x: &'a [f32],
    group: usize,
    segments: Segments,
    width: usize,
    codes: &'a mut [[i8; 4]],
    sums: &'a mut [i32],
    scales: &'a mut [f32],
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, group, segments, width, codes, sums, scales } = self;
        let whole = if group == usize::MAX { scale_of(x) } else { 0.0 };
        if group == usize::MAX {
            scales[0] = whole;
        }
        for segment in 0..segments.count() {
            let inputs = segments.inputs(segment);
            let scale = if group == usize::MAX {
                whole
            } else {
                let first = inputs.start / group * group;
                let scale = scale_of(&x[first..x.len().min(first + group)]);
                scales[segment * width] = scale;
                scale
            };
            let octets = segments.octets(segment);
            let out = &mut codes[2 * octets.start * width..];
            let words = out.len().min(2 * octets.len() * width);
            sums[segment * width] = quantize(s, &x[inputs], scale, &mut out[..words], width);
        }
    }
}

/// The scale of a group: largest magnitude over 127.5, NaN where a value is not finite.
#[inline(always)]
fn scale_of(x: &[f32]) -> f32 {
    let bits = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(bits);
    if largest.is_finite() { largest / 127.5 } else { f32::NAN }
}

/// Vectors that are divided, or not, together.
const RUN: usize = 8;
/// A product with the reciprocal of the scale is off the rounded quotient by at most three half-units in the last place
/// of 128, 2.3e-5. What is further than that from the middle between two codes rounds to the same code.
const CLEAR: f32 = 0.5 - 3e-5;

/// Quantizes `x` into words of four codes, `stride` words apart, and returns the sum of the codes.
#[inline(always)]
fn quantize<S: Simd>(s: S, x: &[f32], scale: f32, out: &mut [[i8; 4]], stride: usize) -> i32 {
    let live = scale > 0.0;
    let (scales, inverse) = (s.splat(scale), 1.0 / scale);
    let mut sum = s.splat_i(0);
    let quick = live && inverse.is_finite();
    let mut together = [0i8; RUN * LANES];
    for (x, out) in x.chunks(RUN * LANES).zip(out.chunks_mut(stride * RUN * LANES / 4)) {
        let codes = if stride == 1 { out.as_flattened_mut() } else { &mut together[..] };
        if quick && let Some(of_run) = quantize_run(s, x, s.splat(inverse), codes) {
            sum = s.add_i(sum, of_run);
            if stride > 1 {
                spread(&together, out, stride);
            }
            continue;
        }
        let clear = quick && rounds_clearly(s, x, s.splat(inverse));
        for (x, out) in x.chunks(LANES).zip(out.chunks_mut(stride * LANES / 4)) {
            let mut codes = [0i8; LANES];
            if live {
                let mut last = [0.0; LANES];
                let x = match <&[f32; LANES]>::try_from(x) {
                    Ok(x) => s.load(x),
                    Err(_) => {
                        last[..x.len()].copy_from_slice(x);
                        s.load(&last)
                    }
                };
                let quotients = if clear { s.mul(x, s.splat(inverse)) } else { s.div(x, scales) };
                sum = s.add_i(sum, s.round_codes(quotients, &mut codes));
            }
            for (out, word) in out.iter_mut().step_by(stride).zip(codes.as_chunks::<4>().0) {
                *out = *word;
            }
        }
    }
    // What a segment is filled up with counts nothing, whatever it is multiplied by.
    let written = x.len().div_ceil(LANES) * LANES / 4;
    out.iter_mut().step_by(stride).skip(written).for_each(|word| *word = [0; 4]);
    // A segment's sum is below 2²⁴, so every sum of lanes is exact.
    s.sum(s.to_f(sum)) as i32
}

/// Puts words of four codes `stride` words apart.
#[inline(always)]
fn spread(codes: &[i8; RUN * LANES], out: &mut [[i8; 4]], stride: usize) {
    // Counted by hand: an iterator with a step divides before it begins.
    let mut at = 0;
    for word in codes.as_chunks::<4>().0 {
        out[at] = *word;
        at += stride;
    }
}

/// Quantizes a whole run to codes that lie together and returns their sums, in one pass; `None` where the run is not whole
/// or a product with the reciprocal of the scale might not give the codes that division gives.
#[inline(always)]
fn quantize_run<S: Simd>(s: S, x: &[f32], inverse: S::F, out: &mut [i8]) -> Option<S::I> {
    let (x, []) = x.as_chunks::<LANES>() else { return None };
    let (Ok(x), (out, _)) = (<&[[f32; LANES]; RUN]>::try_from(x), out.as_chunks_mut::<LANES>()) else { return None };
    let out = out.first_chunk_mut::<RUN>()?;
    let (mut farthest, mut sum) = (s.splat(0.0), s.splat_i(0));
    unroll!(i < 8, {
        let v = s.mul(s.load(&x[i]), inverse);
        let off = s.sub(v, s.round(v));
        farthest = s.max(farthest, s.max(off, s.sub(s.splat(0.0), off)));
        sum = s.add_i(sum, s.round_codes(v, &mut out[i]));
    });
    is_clear(s, farthest).then_some(sum)
}

/// Whether no quotient is so far from its rounded value that another computation could round it the other way.
#[inline(always)]
fn is_clear<S: Simd>(s: S, farthest: S::F) -> bool {
    let mut lanes = [0.0; LANES];
    s.store(farthest, &mut lanes);
    lanes.iter().fold(true, |clear, &off| clear & (off < CLEAR))
}

/// Whether products with the reciprocal of the scale give the same codes as division, which takes three times as long.
#[inline(always)]
fn rounds_clearly<S: Simd>(s: S, x: &[f32], inverse: S::F) -> bool {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut farthest = s.splat(0.0);
    for x in whole {
        let v = s.mul(s.load(x), inverse);
        let off = s.sub(v, s.round(v));
        farthest = s.max(farthest, s.max(off, s.sub(s.splat(0.0), off)));
    }
    rest.is_empty() && is_clear(s, farthest)
}

/// Inputs of one product, prepared every way its matrices ask for; the buffers are reused.
#[derive(Default)]
pub(crate) struct Inputs {
    prepared: Vec<Prepared>,
    used: usize,
    /// Normed rows, for products that read floats as they are.
    pub(super) rows: Vec<f32>,
}

impl Inputs {
    /// Forgets what was prepared; the buffers stay.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }

    /// Prepares `source` as `key` says unless that was done, and returns where; `without` are the columns that the key names.
    pub(crate) fn prepare(&mut self, engine: &Engine, key: Key, source: Source<'_>, tokens: usize, cols: usize, without: &[u32]) -> usize {
        if let Some(found) = self.prepared[..self.used].iter().position(|p| p.key == key) {
            return found;
        }
        if self.used == self.prepared.len() {
            self.prepared.push(Prepared::new(key));
        }
        self.prepared[self.used].key = key;
        self.prepared[self.used].prepare(engine, source, tokens, cols, without);
        self.used += 1;
        self.used - 1
    }

    /// What [`Inputs::prepare`] put at `at`.
    pub(crate) fn get(&self, at: usize) -> &Prepared {
        &self.prepared[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use octet_tensor::quantize_activations;
    use std::num::NonZeroUsize;

    #[test]
    fn tiles_cover_all_tokens() {
        for widest in [1, 2, 4, 6, 8, 12] {
            for tokens in 0..40 {
                let all: Vec<_> = tiles(tokens, widest).collect();
                assert_eq!(all.iter().map(|t| t.1).sum::<usize>(), tokens);
                assert!(all.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0) && all.iter().all(|t| t.1 <= widest));
            }
        }
    }

    #[test]
    fn codes_next_to_the_middle_are_those_of_the_quotient() {
        let (tokens, cols) = (40, 512);
        // Quotients within a few units in the last place of k + 1/2, where a product with the reciprocal may fall on the other side.
        let value = |i: usize| {
            let (token, k) = (i / cols, i % cols);
            let scale = 0.013 * (1.0 + token as f32 * 0.0371);
            let near = ((k % 255) as f32 - 127.0 + 0.5) * scale;
            if k == 0 {
                127.5 * scale
            } else {
                f32::from_bits(near.to_bits().wrapping_add((k / 255) as u32 + (i % 3) as u32).wrapping_sub(2))
            }
        };
        let x: Vec<f32> = (0..tokens * cols).map(value).collect();
        for isa in Isa::available() {
            let engine = Engine::new(isa, NonZeroUsize::MIN).unwrap();
            let segments = Segments::of_groups(cols, 512, usize::MAX);
            let mut inputs = Inputs::default();
            let at = inputs.prepare(
                &engine,
                Key { form: Form::Codes(usize::MAX), without: None, segments, widest: 1 },
                Source::rows(&x),
                tokens,
                cols,
                &[],
            );
            let expected = quantize_activations(&x, cols, cols);
            for token in 0..tokens {
                check_token(inputs.get(at).code_tile(token, 1), 0, 1, segments, &expected, token, cols, cols);
            }
        }
    }

    #[test]
    fn codes_scales_and_sums_equal_the_specification() {
        let (tokens, cols) = (15, 77);
        let mut x: Vec<f32> = (0..tokens * cols).map(|i| ((i * 7919 % 1000) as f32 - 500.0) * 0.37).collect();
        x[80] = f32::NAN;
        x[cols * 2..cols * 3].fill(0.0);
        x[cols * 4] = f32::INFINITY;
        x[cols * 5..cols * 6].fill(1e-41);
        for isa in Isa::available() {
            let engine = Engine::new(isa, NonZeroUsize::new(2).unwrap()).unwrap();
            for group in [usize::MAX, 32, 20] {
                let segments = Segments::of_groups(cols, 40, group);
                let mut inputs = Inputs::default();
                let at = inputs.prepare(
                    &engine,
                    Key { form: Form::Codes(group), without: None, segments, widest: 6 },
                    Source::rows(&x),
                    tokens,
                    cols,
                    &[],
                );
                let expected = quantize_activations(&x, cols, group.min(cols));
                for (first, width) in tiles(tokens, 6) {
                    let tile = inputs.get(at).code_tile(first, width);
                    for token in 0..width {
                        check_token(tile, token, width, segments, &expected, first + token, cols, group.min(cols));
                    }
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn check_token(
        tile: CodeTile<'_>,
        token: usize,
        width: usize,
        segments: Segments,
        expected: &octet_tensor::ActivationCodes,
        row: usize,
        cols: usize,
        group: usize,
    ) {
        for segment in 0..segments.count() {
            let mut sum = 0;
            for k in segments.inputs(segment) {
                let p = segments.position(k);
                let code = tile.codes[p / 4 * width + token][p % 4];
                assert_eq!(code, expected.codes[row * cols + k]);
                sum += i32::from(code);
                let scale = if tile.grouped { tile.scales[segment * width + token] } else { tile.scales[token] };
                let wanted = expected.scales[row * cols.div_ceil(group) + k / group];
                assert_eq!(scale.to_bits(), wanted.to_bits());
            }
            assert_eq!(tile.sums[segment * width + token], sum);
        }
    }
}
