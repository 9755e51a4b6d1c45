//! Whether evaluation text was calibrated on: equal windows of tokens, found by hash.

use crate::{Error, Result};
use octet_runtime::Tokenizer;
use std::collections::HashSet;

/// Fewest tokens of a compared window: long enough that boilerplate frames around different facts do not match.
pub const OVERLAP_WINDOW: usize = 32;

/// Fewest bytes of text it stands for, about what so many tokens of a trained vocabulary are: where a token is a single letter,
/// 32 of them are a phrase that any two texts of one kind share.
pub const OVERLAP_BYTES: usize = 96;

/// Tokens that an estimate of bytes a token rests on.
const TRIAL: usize = 4096;

/// Tokens of a compared window of a text that `tokenizer` made: at least [`OVERLAP_WINDOW`], and [`OVERLAP_BYTES`] of text.
///
/// # Errors
/// If the ids cannot be decoded.
pub fn window(tokenizer: &Tokenizer, ids: &[u32]) -> Result<usize> {
    let ids = &ids[..ids.len().min(TRIAL)];
    let bytes = tokenizer.decode(ids)?.len().max(1);
    Ok(OVERLAP_WINDOW.max((OVERLAP_BYTES * ids.len()).div_ceil(bytes)))
}

/// Share of evaluation windows that may also occur in the calibration text (licence headers, repeated frames).
pub const OVERLAP_ALLOWED: f64 = 0.01;

/// How much of an evaluation text occurs in a calibration text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// Windows of the evaluation text, one at every token.
    pub windows: usize,
    /// Those that also occur somewhere in the calibration text.
    pub shared: usize,
    /// Tokens of a window.
    pub window: usize,
}

impl Overlap {
    /// Compares every run of `window` tokens (see [`window`]) of `evaluation` with every one of `calibration`.
    pub fn between(calibration: &[u32], evaluation: &[u32], window: usize) -> Self {
        let known: HashSet<u64> = calibration.windows(window.max(1)).map(hash).collect();
        let all = evaluation.windows(window.max(1));
        Self { windows: all.len(), shared: all.filter(|w| known.contains(&hash(w))).count(), window }
    }

    /// Share of the evaluation windows that occur in the calibration text.
    pub fn share(&self) -> f64 {
        self.shared as f64 / self.windows.max(1) as f64
    }

    /// Refuses more than [`OVERLAP_ALLOWED`].
    ///
    /// # Errors
    /// If more is shared, with the share.
    pub fn check(&self, calibration: &str, evaluation: &str) -> Result<()> {
        if self.share() <= OVERLAP_ALLOWED {
            return Ok(());
        }
        let (calibration, evaluation) = (calibration.to_string(), evaluation.to_string());
        Err(Error::Overlap { evaluation, calibration, share: self.share(), allowed: OVERLAP_ALLOWED, window: self.window })
    }
}

/// FNV-1a (Fowler, Noll and Vo; 64 bits) over whole ids, mixed once more at the end; among 10^6 windows a chance
/// collision has probability below 10^-7.
fn hash(window: &[u32]) -> u64 {
    let mixed = window.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &id| (h ^ u64::from(id)).wrapping_mul(0x0000_0100_0000_01b3));
    (mixed ^ (mixed >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u32, n: usize) -> Vec<u32> {
        (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 18).collect()
    }

    #[test]
    fn a_copied_passage_is_found_at_any_offset() {
        let calibration = text(1, 3_000);
        let mut evaluation = text(900_000_007, 2_000);
        assert_eq!(Overlap::between(&calibration, &evaluation, OVERLAP_WINDOW).shared, 0);
        evaluation.splice(501..501, calibration[117..217].to_vec());
        let overlap = Overlap::between(&calibration, &evaluation, OVERLAP_WINDOW);
        assert_eq!(overlap.shared, 100 - OVERLAP_WINDOW + 1);
        assert!(overlap.check("cal.txt", "eval.txt").unwrap_err().to_string().contains("eval.txt overlaps cal.txt: 3.3 %"));
    }

    #[test]
    fn short_frames_are_allowed() {
        let (calibration, mut evaluation) = (text(1, 5_000), text(900_000_007, 5_000));
        evaluation.splice(100..100, calibration[40..71].to_vec());
        assert_eq!(Overlap::between(&calibration, &evaluation, OVERLAP_WINDOW).shared, 0);
        evaluation.splice(100..100, calibration[400..440].to_vec());
        Overlap::between(&calibration, &evaluation, OVERLAP_WINDOW).check("c", "e").unwrap();
        Overlap::between(&calibration, &[], OVERLAP_WINDOW).check("c", "e").unwrap();
    }
}
