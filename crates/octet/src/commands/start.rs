//! Where to start by size: what is quantized where nobody said to what. docs/start.md has the table and what it rests on.

use octet_formats::{Checkpoint, Folder};
use octet_model::ArchSpec;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Start {
    /// What such a model is called.
    pub(super) size: &'static str,
    /// Most weights of such a model.
    most: u64,
    /// What is made of it, calibrated and judged.
    pub(super) judged: First,
}

/// What is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// The smallest allocation of bits that passes, by searching.
    Search,
    /// One scheme, by GPTQ.
    Scheme(&'static str),
}

/// From small to large.
const TABLE: [Start; 4] = [
    Start { size: "tiny", most: 20_000_000, judged: First::Search },
    Start { size: "small", most: 1_000_000_000, judged: First::Search },
    Start { size: "medium", most: 8_000_000_000, judged: First::Scheme("w4a16-g32") },
    Start { size: "large", most: u64::MAX, judged: First::Scheme("w4a16-g128") },
];

/// What is made of a model of any size that is not calibrated or not judged: nothing would say that fewer bits are good.
pub(super) const UNJUDGED: &str = "w8a16";

/// The row of a model with so many weights.
pub(super) fn of(weights: u64) -> Start {
    TABLE.into_iter().find(|row| weights <= row.most).unwrap_or(TABLE[TABLE.len() - 1])
}

/// Weights of all matrices of the model in `input`; `None` where it is not understood, which whoever plans it will say.
pub(super) fn weights(input: &Folder) -> Option<u64> {
    let checkpoint = Checkpoint::open(input).ok()?;
    Some(weights_of(&ArchSpec::from_config(checkpoint.config()).ok()?))
}

/// Weights of all matrices of a model.
pub(super) fn weights_of(spec: &ArchSpec) -> u64 {
    spec.linear_sites().iter().map(|site| site.rows as u64 * site.cols as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_its_row() {
        let sizes = [(0, "tiny"), (4_200_000, "tiny"), (20_000_000, "tiny"), (20_000_001, "small"), (596_000_000, "small")];
        for (weights, size) in sizes.into_iter().chain([(3_000_000_000, "medium"), (70_000_000_000, "large")]) {
            assert_eq!(of(weights).size, size, "{weights}");
        }
        assert!(TABLE.windows(2).all(|pair| pair[0].most < pair[1].most));
        assert_eq!((of(1).judged, of(1 << 30).judged), (First::Search, First::Scheme("w4a16-g32")));
        for row in TABLE {
            if let First::Scheme(scheme) = row.judged {
                assert!(scheme.parse::<octet_tensor::Scheme>().unwrap().weights.bits.get() < 8, "{scheme}");
            }
        }
    }

    #[test]
    fn the_built_in_model_is_tiny() {
        let weights = weights(&crate::builtin::folder()).unwrap();
        assert!((4_000_000..5_000_000).contains(&weights), "{weights}");
        assert_eq!(of(weights).size, "tiny");
    }
}
