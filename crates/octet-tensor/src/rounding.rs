//! Inputs of a product rounded at run time as the tool that made the weights rounds them, then multiplied as floats.
//!
//! Sources: compressed-tensors 0.20 (`dynamic` FP8 activations), bitsandbytes 0.50 (`int8_vectorwise_quant`).

use crate::{
    Limit,
    fp8::{LARGEST, round_to_e4m3},
};
use half::f16;
use std::{fmt, num::NonZeroUsize};

/// How the inputs of a product are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputRounding {
    /// To FP8 E4M3 under one scale a token, which makes its largest input the largest FP8 number.
    Float8PerToken,
    /// As above, under one scale for each run of this many inputs of a token.
    Float8PerGroup(NonZeroUsize),
    /// To whole numbers from -127 to 127 under one scale a token; inputs that reach the limit stay as they are (LLM.int8, each token
    /// for itself). Without a limit all are rounded.
    Int8(Option<Limit>),
}

impl fmt::Display for InputRounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float8PerToken => f.write_str("rounded to FP8, a scale a token"),
            Self::Float8PerGroup(size) => write!(f, "rounded to FP8, a scale for {size} inputs"),
            Self::Int8(None) => f.write_str("rounded to 8 bits, a scale a token"),
            Self::Int8(Some(limit)) => write!(f, "rounded to 8 bits below {limit}, a scale a token"),
        }
    }
}

impl InputRounding {
    /// Rounds a token's inputs. Where one of those who share a scale is not finite, all of them become NaN.
    pub fn round(self, token: &mut [f32]) {
        match self {
            Self::Float8PerToken => round_float8(token),
            Self::Float8PerGroup(size) => token.chunks_mut(size.get()).for_each(round_float8),
            Self::Int8(limit) => round_int8(token, limit.map_or(f32::INFINITY, Limit::get)),
        }
    }
}

/// The largest magnitude, `None` where a value is not finite.
fn largest(values: impl Iterator<Item = f32>) -> Option<f32> {
    let bits = values.fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff));
    Some(f32::from_bits(bits)).filter(|largest| largest.is_finite())
}

fn round_float8(run: &mut [f32]) {
    let scale = largest(run.iter().copied()).map_or(f32::NAN, |largest| largest / LARGEST);
    if scale != 0.0 {
        run.iter_mut().for_each(|value| *value = round_to_e4m3(*value / scale) * scale);
    }
}

/// The tool rounds its inputs to 16 bits first.
fn round_int8(token: &mut [f32], limit: f32) {
    let half = |value: f32| f16::from_f32(value).to_f32();
    // What reaches the limit sets no scale; what is not finite does, and spoils it.
    let small = |value: f32| !(half(value).abs() >= limit && value.is_finite());
    let most = largest(token.iter().copied().filter(|value| small(*value)).map(half)).unwrap_or(f32::NAN);
    if most == 0.0 {
        return;
    }
    let (up, down) = (127.0 / most, most / 127.0);
    for value in token.iter_mut().filter(|value| small(**value)) {
        *value = (half(*value) * up).round_ties_even() * down;
    }
    if most.is_nan() {
        token.fill(f32::NAN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float8_inputs_share_the_scale_of_their_run() {
        let inputs = [448.0, 1.06, -0.3, 0.0, 4.48, 0.0106, -0.003, f32::MIN_POSITIVE];
        let (mut token, mut groups) = (inputs, inputs);
        InputRounding::Float8PerToken.round(&mut token);
        assert_eq!(token[..5], [448.0, 1.0, -0.3125, 0.0, 4.5]);
        InputRounding::Float8PerGroup(NonZeroUsize::new(4).unwrap()).round(&mut groups);
        assert_eq!((groups[..4].to_vec(), groups[4]), (token[..4].to_vec(), 4.48));
        assert!((groups[5] - 0.01).abs() < 1e-6, "{}", groups[5]);
    }

    #[test]
    fn int8_inputs_leave_large_ones_alone() {
        let inputs = [127.0, 6.0, 1.4, -0.5, 5.0, 0.0];
        let (mut all, mut below) = (inputs, inputs);
        InputRounding::Int8(None).round(&mut all);
        assert_eq!(all, [127.0, 6.0, 1.0, 0.0, 5.0, 0.0]);
        InputRounding::Int8(Some(Limit::USUAL)).round(&mut below);
        let step = 5.0 / 127.0f32;
        assert_eq!((below[0], below[1], below[4], below[5]), (127.0, 6.0, 5.0, 0.0));
        assert!((below[2] - 36.0 * step).abs() < 1e-6 && (below[3] + 13.0 * step).abs() < 1e-6, "{below:?}");
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_spreads() {
        for rounding in [InputRounding::Float8PerToken, InputRounding::Int8(None), InputRounding::Int8(Some(Limit::USUAL))] {
            let mut zeros = [0.0; 3];
            rounding.round(&mut zeros);
            assert_eq!(zeros, [0.0; 3]);
            for bad in [f32::INFINITY, f32::NAN] {
                let mut token = [1.0, bad];
                rounding.round(&mut token);
                assert!(token.iter().all(|v| v.is_nan()), "{rounding:?} of {bad}");
            }
        }
    }
}
