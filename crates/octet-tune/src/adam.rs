//! Adam (Kingma and Ba, arXiv 1412.6980).

use crate::parallel::each;
use octet_kernels::Engine;

/// Decay of the means of gradients and of their squares.
const BETAS: (f32, f32) = (0.9, 0.99);

/// Keeps a step finite where a gradient is zero.
const EPS: f32 = 1e-12;

/// Values of a piece of work.
const PIECE: usize = 1 << 15;

/// Moments of the gradients of some values.
#[derive(Clone, Debug, Default)]
pub struct Adam {
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
}

/// A step's learning rate and its number from 1, which says how far the moments have warmed up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    step: f32,
    second: f32,
}

impl Rate {
    pub(crate) fn new(rate: f32, step: usize) -> Self {
        let warm = |beta: f32| 1.0 - (f64::from(beta).powi(step.min(100_000) as i32)) as f32;
        Self { step: rate / warm(BETAS.0), second: warm(BETAS.1).recip() }
    }
}

/// How gradients move what learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// By Adam; steps count from 1.
    Adam(usize),
    /// By their signs alone: every value by the whole rate (signSGD, Bernstein et al., arXiv 1802.04434).
    Signs,
}

impl Rule {
    /// Moves `values` against their gradients.
    pub(crate) fn advance(self, engine: &Engine, moments: &mut Adam, values: &mut [f32], gradients: &[f32], rate: f32) {
        let Self::Adam(step) = self else {
            let pieces = values.chunks_mut(PIECE).zip(gradients.chunks(PIECE)).collect();
            each(engine, pieces, |(values, gradients)| {
                values.iter_mut().zip(*gradients).filter(|(_, gradient)| **gradient != 0.0).for_each(|(v, g)| *v -= rate * g.signum());
            });
            return;
        };
        moments.step(engine, values, gradients, rate, step);
    }
}

impl Adam {
    /// No gradient seen yet of `count` values.
    pub fn new(count: usize) -> Self {
        Self { first: vec![0.0; count], second: vec![0.0; count] }
    }

    /// Moves `values` against their gradients; `step` counts from 1.
    pub fn step(&mut self, engine: &Engine, values: &mut [f32], gradients: &[f32], rate: f32, step: usize) {
        let rate = Rate::new(rate, step);
        let moments = self.first.chunks_mut(PIECE).zip(self.second.chunks_mut(PIECE));
        let pieces = values.chunks_mut(PIECE).zip(gradients.chunks(PIECE)).zip(moments).collect();
        each(engine, pieces, |((values, gradients), (first, second))| {
            for (((value, &gradient), first), second) in values.iter_mut().zip(*gradients).zip(first.iter_mut()).zip(second.iter_mut()) {
                *value -= moved(gradient, first, second, rate);
            }
        });
    }
}

/// By how much a value is to be lowered.
#[inline]
pub(crate) fn moved(gradient: f32, first: &mut f32, second: &mut f32, rate: Rate) -> f32 {
    *first += (1.0 - BETAS.0) * (gradient - *first);
    *second += (1.0 - BETAS.1) * (gradient * gradient - *second);
    rate.step * *first / ((*second * rate.second).sqrt() + EPS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_kernels::Isa;
    use std::num::NonZeroUsize;

    #[test]
    fn the_first_step_is_as_long_as_the_rate_and_a_bowl_is_descended() {
        let engine = Engine::new(Isa::best(), NonZeroUsize::MIN).unwrap();
        let (mut adam, mut x) = (Adam::new(2), [3.0, -2.0]);
        adam.step(&engine, &mut x, &[6.0, -4.0], 0.1, 1);
        assert!((x[0] - 2.9).abs() < 1e-6 && (x[1] + 1.9).abs() < 1e-6, "{x:?}");
        for step in 2..400 {
            let gradients = x.map(|x| 2.0 * x);
            adam.step(&engine, &mut x, &gradients, 0.1 * (1.0 - step as f32 / 400.0), step);
        }
        assert!(x.iter().all(|x| x.abs() < 0.05), "{x:?}");
    }
}
