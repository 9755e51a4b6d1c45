//! Every eight values times Sylvester's Hadamard matrix over √8: a rotation that is its own inverse and its own transpose.

use crate::{
    Engine,
    counters::Kernel,
    simd::{LANES, Op, Simd},
};

/// Values that are turned together.
pub const EIGHT: usize = 8;

/// 1 / √8.
const ROOT: f32 = 0.353_553_39;

/// What the lane `i` of a vector is multiplied by before lane `i ^ step` is added, for steps of 1, 2 and 4.
const SIGNS: [[f32; LANES]; 3] = {
    let (mut signs, mut i) = ([[1.0; LANES]; 3], 0);
    while i < LANES {
        let mut bit = 0;
        while bit < 3 {
            if i >> bit & 1 == 1 {
                signs[bit][i] = -1.0;
            }
            bit += 1;
        }
        i += 1;
    }
    signs
};

impl Engine {
    /// Turns every eight values of `x` in place.
    ///
    /// # Panics
    /// If the length is no multiple of eight.
    pub fn turn_eights(&self, x: &mut [f32]) {
        assert!(x.len().is_multiple_of(EIGHT), "{} values are no eights", x.len());
        self.count(Kernel::Elementwise);
        // Whole vectors a task, so that no eight is cut.
        self.each_rows(x, EIGHT, 2 * EIGHT, &|_, x| self.vectorize(TurnEights { x: None, out: x }));
    }
}

/// Turns every eight values of `x`, or of `out` itself, into `out`.
pub(crate) struct TurnEights<'a> {
    pub(crate) x: Option<&'a [f32]>,
    pub(crate) out: &'a mut [f32],
}

impl Op for TurnEights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, out } = self;
        let signs = [s.load(&SIGNS[0]), s.load(&SIGNS[1]), s.load(&SIGNS[2])];
        let (out, rest) = out.as_chunks_mut::<LANES>();
        for (i, out) in out.iter_mut().enumerate() {
            let from = match x {
                Some(x) => x.as_chunks::<LANES>().0.get(i).map_or(s.splat(0.0), |x| s.load(x)),
                None => s.load(out),
            };
            s.store(turned(s, from, signs), out);
        }
        if !rest.is_empty() {
            // One eight is left over.
            let mut last = [0.0; LANES];
            last[..rest.len()].copy_from_slice(x.map_or(&*rest, |x| &x[x.len() - rest.len()..]));
            let y = turned(s, s.load(&last), signs);
            s.store(y, &mut last);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

/// The two eights of a vector turned. A product with ±1 is exact, so that every instruction set rounds alike.
#[inline(always)]
fn turned<S: Simd>(s: S, x: S::F, signs: [S::F; 3]) -> S::F {
    let x = s.fma(x, signs[0], s.swapped::<1>(x));
    let x = s.fma(x, signs[1], s.swapped::<2>(x));
    let x = s.fma(x, signs[2], s.swapped::<4>(x));
    s.mul(x, s.splat(ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use std::num::NonZeroUsize;

    /// The specification: sums and differences one after the other.
    fn plain(values: &mut [f32]) {
        for x in values.as_chunks_mut::<EIGHT>().0 {
            for step in [1, 2, 4] {
                for i in (0..EIGHT).filter(|i| i & step == 0) {
                    (x[i], x[i + step]) = (x[i] + x[i + step], x[i] - x[i + step]);
                }
            }
            x.iter_mut().for_each(|x| *x *= ROOT);
        }
    }

    #[test]
    fn every_instruction_set_turns_alike_and_turns_back() {
        for isa in Isa::available() {
            let engine = Engine::new(isa, NonZeroUsize::new(2).unwrap()).unwrap();
            for len in [0, 8, 16, 24, 4096 + 8] {
                let values: Vec<f32> = (0..len).map(|i| ((i * 7919 % 1000) as f32 - 500.0) * 0.37).collect();
                let (mut expected, mut there) = (values.clone(), values.clone());
                plain(&mut expected);
                engine.turn_eights(&mut there);
                assert!(there.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}, {len}");
                let mut apart = vec![1.0; len];
                engine.vectorize(TurnEights { x: Some(&values), out: &mut apart });
                assert_eq!(apart, there);
                let size = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>();
                assert!((size(&there) - size(&values)).abs() <= 1e-5 * size(&values));
                engine.turn_eights(&mut there);
                assert!(there.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-3));
            }
        }
    }

    #[test]
    fn a_value_that_is_not_a_number_spoils_its_eight_alone() {
        for isa in Isa::available() {
            let engine = Engine::new(isa, NonZeroUsize::MIN).unwrap();
            let mut values = vec![1.0f32; 24];
            values[11] = f32::NAN;
            engine.turn_eights(&mut values);
            assert!(values[8..16].iter().all(|v| v.is_nan()) && values[..8].iter().chain(&values[16..]).all(|v| v.is_finite()));
        }
    }
}
