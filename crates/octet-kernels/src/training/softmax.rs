//! How far logits are from what they should say, and the gradient of that.

use super::{exponentials, largest, map, padded};
use crate::{
    Engine,
    parallel::Shared,
    simd::{LANES, Op, Simd, math::exp},
};

/// What logits should say.
#[derive(Clone, Copy, Debug)]
pub enum Likeness<'a> {
    /// The distribution of these logits, as many as there are: the loss is KL(theirs ‖ ours).
    Logits(&'a [f32]),
    /// These tokens, one a row: the loss is −ln of their probability.
    Tokens(&'a [u32]),
}

impl Engine {
    /// The loss of every row of `logits` `[rows, width]` into `losses`, in nats; the logits become its gradient times `weight`.
    ///
    /// # Panics
    /// If lengths do not fit, or a token is no column.
    pub fn likeness_gradient(&self, logits: &mut [f32], likeness: Likeness<'_>, weight: f32, losses: &mut [f32]) {
        let rows = losses.len();
        assert!(rows > 0 && logits.len().is_multiple_of(rows), "{} logits are no {rows} rows", logits.len());
        let width = logits.len() / rows;
        match likeness {
            Likeness::Logits(other) => assert_eq!(other.len(), logits.len(), "as many logits to be like"),
            Likeness::Tokens(tokens) => {
                assert!(tokens.len() == rows && tokens.iter().all(|&t| (t as usize) < width), "a token a row, below {width}");
            }
        }
        let (all, losses) = (Shared::new(logits), Shared::new(losses));
        self.run(rows, &|row| {
            let range = row * width..(row + 1) * width;
            // SAFETY: every task has a row of its own.
            let (logits, loss) = unsafe { (all.part(range.clone()), losses.part(row..row + 1)) };
            loss[0] = match likeness {
                Likeness::Logits(other) => self.vectorize(Divergence { logits, other: &other[range], weight }),
                Likeness::Tokens(tokens) => self.vectorize(Entropy { logits, token: tokens[row] as usize, weight }),
            };
        });
    }
}

struct Divergence<'a> {
    logits: &'a mut [f32],
    other: &'a [f32],
    weight: f32,
}

impl Op for Divergence<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let Self { logits, other, weight } = self;
        let (top, other_top) = (largest(s, logits), largest(s, other));
        let (shift, other_shift) = (s.splat(top), s.splat(other_top));
        // Σ exp(other) and Σ exp(other) · (other − ours), shifted by the tops so that nothing overflows.
        let (mut total, mut apart) = (s.splat(0.0), s.splat(0.0));
        for at in (0..logits.len()).step_by(LANES) {
            let end = logits.len().min(at + LANES);
            let p = s.sub(s.load(&padded(&other[at..end], f32::NEG_INFINITY)), other_shift);
            // What fills up the last vector has no weight, and a difference that is finite.
            let p = s.max(s.splat(-1e30), p);
            let q = s.sub(s.load(&padded(&logits[at..end], top)), shift);
            let e = exp(s, p);
            total = s.add(total, e);
            apart = s.fma(e, s.sub(p, q), apart);
        }
        let total = s.sum(total);
        let sum = exponentials(s, logits, top);
        let loss = s.sum(apart) / total + (sum.ln() - total.ln());
        let (scale, other_scale) = (s.splat(weight / sum), s.splat(weight / total));
        for at in (0..logits.len()).step_by(LANES) {
            let end = logits.len().min(at + LANES);
            let p = exp(s, s.sub(s.load(&padded(&other[at..end], f32::NEG_INFINITY)), other_shift));
            let mut lanes = padded(&logits[at..end], 0.0);
            s.store(s.sub(s.mul(s.load(&lanes), scale), s.mul(p, other_scale)), &mut lanes);
            logits[at..end].copy_from_slice(&lanes[..end - at]);
        }
        loss
    }
}

struct Entropy<'a> {
    logits: &'a mut [f32],
    token: usize,
    weight: f32,
}

impl Op for Entropy<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let Self { logits, token, weight } = self;
        let (top, own) = (largest(s, logits), logits[token]);
        let sum = exponentials(s, logits, top);
        map(s, logits, 0.0, |q| s.mul(q, s.splat(weight / sum)));
        logits[token] -= weight;
        sum.ln() - (own - top)
    }
}
