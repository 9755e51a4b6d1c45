//! Scalar quantization of activations and codes: what every kernel must equal bit for bit.

/// Rounds half to even and clamps to `low..=high`; a NaN becomes `low` so that it is never taken for a good code.
#[inline]
pub fn round_code(value: f32, low: i32, high: i32) -> i32 {
    (value.round_ties_even().max(low as f32).min(high as f32)) as i32
}

/// Activations of some tokens as int8 codes with one scale a group of inputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActivationCodes {
    /// Codes `[tokens, cols]`, −128..=127.
    pub codes: Vec<i8>,
    /// Scales `[tokens, groups]`.
    pub scales: Vec<f32>,
    /// Sums of the codes of each group `[tokens, groups]`, for zero points and unsigned weights.
    pub sums: Vec<i32>,
}

/// Quantizes `x` `[tokens, cols]` to int8 with one scale for each `group` inputs (`group >= cols`: one a token).
///
/// As compressed-tensors does it: scale = absmax / 127.5, code = clamp(round half to even (x / scale), −128, 127);
/// a group of zeros gets scale 0 and codes 0. A group with a value that is not finite gets scale NaN, so that the
/// outputs are NaN and not silently wrong.
pub fn quantize_activations(x: &[f32], cols: usize, group: usize) -> ActivationCodes {
    let mut out = ActivationCodes::default();
    for token in x.chunks_exact(cols.max(1)) {
        for values in token.chunks(group.max(1)) {
            let absmax = values.iter().fold(0f32, |m, v| if v.is_nan() { f32::INFINITY } else { m.max(v.abs()) });
            let finite = absmax.is_finite();
            let scale = absmax / 127.5;
            let live = finite && scale > 0.0;
            let start = out.codes.len();
            out.codes.extend(values.iter().map(|&v| if live { round_code(v / scale, -128, 127) as i8 } else { 0 }));
            out.sums.push(out.codes[start..].iter().map(|&c| i32::from(c)).sum());
            out.scales.push(if finite { scale } else { f32::NAN });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounds_half_to_even_and_clamps() {
        assert_eq!([0.5, 1.5, -0.5, -1.5, 300.0, -300.0].map(|v| round_code(v, -128, 127)), [0, 2, 0, -2, 127, -128]);
        assert_eq!(round_code(f32::NAN, -8, 7), -8);
    }

    #[test]
    fn zeros_and_non_finite_groups_are_defined() {
        let q = quantize_activations(&[0.0, 0.0, 1.0, f32::NAN, f32::INFINITY, 2.0], 6, 2);
        assert_eq!((q.scales[0], &q.codes[..2]), (0.0, &[0i8, 0][..]));
        assert!(q.scales[1].is_nan() && q.scales[2].is_nan());
    }

    proptest! {
        #[test]
        fn error_is_at_most_half_a_step(values in prop::collection::vec(-100f32..100.0, 1..80), group in 1usize..40) {
            let q = quantize_activations(&values, values.len(), group);
            for (i, (&v, &c)) in values.iter().zip(&q.codes).enumerate() {
                let scale = q.scales[i / group];
                // One end of the range may clip: 127.5 rounds to 128 and is clamped to 127.
                prop_assert!((v - scale * f32::from(c)).abs() <= scale * 0.5001 + f32::EPSILON, "{v} {c} {scale}");
            }
            let sum: i32 = q.codes.iter().map(|&c| i32::from(c)).sum();
            prop_assert_eq!(sum, q.sums.iter().sum::<i32>());
        }
    }
}
