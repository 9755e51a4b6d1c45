//! FP8 E4M3FN (OCP 8-bit floating point specification 1.0, section 5.1).

/// The largest E4M3 number.
pub(crate) const LARGEST: f32 = 448.0;

/// The nearest E4M3 number, of two the even one; what is larger than the largest becomes it.
pub(crate) fn round_to_e4m3(value: f32) -> f32 {
    const SMALLEST_NORMAL: f32 = 1.0 / 64.0;
    let size = value.abs().min(LARGEST);
    let rounded = if value.is_nan() {
        return value;
    } else if size < SMALLEST_NORMAL {
        // Steps of 2⁻⁹.
        (size * 512.0).round_ties_even() / 512.0
    } else {
        // Three bits after the first are kept of 23.
        let bits = size.to_bits();
        f32::from_bits((bits + 0x7_ffff + (bits >> 20 & 1)) & !0xf_ffff)
    };
    rounded.copysign(value)
}

/// The value of an E4M3FN byte: bias 7, subnormals, ±448 the largest, 0x7F and 0xFF not a number.
pub fn e4m3_to_f32(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(byte >> 3 & 0x0f);
    let mantissa = f32::from(byte & 0x07);
    match (exponent, byte & 0x07) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa / 8.0 * 2f32.powi(-6),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// All 256 values, for loops that decode many bytes.
pub(crate) fn table() -> &'static [f32; 256] {
    static TABLE: std::sync::OnceLock<[f32; 256]> = std::sync::OnceLock::new();
    TABLE.get_or_init(|| std::array::from_fn(|byte| e4m3_to_f32(byte as u8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(e4m3_to_f32(0x00), 0.0);
        assert_eq!(e4m3_to_f32(0x38), 1.0);
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
        assert_eq!(e4m3_to_f32(0xfe), -448.0);
        assert_eq!(e4m3_to_f32(0x01), 2f32.powi(-9));
        assert_eq!(e4m3_to_f32(0x08), 2f32.powi(-6));
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
    }

    #[test]
    fn numbers_round_to_their_nearest_neighbour() {
        let mut all: Vec<f32> = (0..0x7f).map(e4m3_to_f32).collect();
        all.sort_by(f32::total_cmp);
        for pair in all.windows(2) {
            let (low, high) = (pair[0], pair[1]);
            let middle = (low + high) / 2.0;
            let even = if (0..0x7f).step_by(2).any(|byte| e4m3_to_f32(byte) == low) { low } else { high };
            for (value, expected) in [(low, low), (middle, even), (middle.next_down(), low), (middle.next_up(), high)] {
                assert_eq!((round_to_e4m3(value), round_to_e4m3(-value)), (expected, -expected), "{value}");
            }
        }
        assert_eq!((round_to_e4m3(1e9), round_to_e4m3(f32::NEG_INFINITY)), (448.0, -448.0));
        assert!(round_to_e4m3(f32::NAN).is_nan());
    }
}
