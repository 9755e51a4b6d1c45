//! What a score is made from, read off a report.

use crate::{Report, health::Health};

/// The figures of one variant; `None` was not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inputs {
    /// Perplexity over that of the original.
    pub ppl_ratio: Option<f64>,
    /// Mean KL(original ‖ variant) in nats.
    pub kl: Option<f64>,
    /// Share of tokens with the same likeliest successor.
    pub top1: Option<f64>,
    /// Bytes of the folder over those of the original in 16 bits.
    pub size_ratio: Option<f64>,
    /// Bytes of weights resident while running over those of the original in 16 bits.
    pub resident_ratio: Option<f64>,
    /// Decoding speed over that of the original in 16 bits.
    pub decode_speedup: Option<f64>,
    /// Prefill speed over that of the original in 16 bits.
    pub prefill_speedup: Option<f64>,
    /// By how much figures of degenerate text exceed the original's: the mean over all figures, less what chance explains.
    pub health_excess: Option<f64>,
    /// Milliseconds from opening the folder to the first token that could be asked for.
    pub load_ms: Option<f64>,
    /// How much wider decoding times spread than the original's: (90 % − median) ÷ median, differenced.
    pub excess_spread: Option<f64>,
    /// Resident weights over the memory that was free.
    pub memory_share: Option<f64>,
    /// Share of the checks of the written files that hold.
    pub integrity: Option<f64>,
    /// Share of what is needed to do it again that is known.
    pub provenance: Option<f64>,
}

impl Inputs {
    /// The figures of the variant that `report` judged.
    pub fn of(report: &Report) -> Self {
        let m = &report.measures;
        let sixteen = m.size.as_ref().map(|size| size.base_bytes as f64);
        let resident = m.memory.and_then(|memory| memory.quant_weights).map(|bytes| bytes as f64);
        let speed = m.speed.as_ref();
        let checks = m.integrity.len() as f64;
        Self {
            ppl_ratio: m.ppl.and_then(|ppl| ppl.ratio),
            kl: m.kl.map(|kl| kl.mean),
            top1: m.top1,
            size_ratio: m.size.map(|size| size.ratio),
            resident_ratio: resident.zip(sixteen).map(|(bytes, sixteen)| bytes / sixteen.max(1.0)),
            decode_speedup: speed.and_then(|speed| speed.decode.ratio).map(|ratio| ratio.estimate),
            prefill_speedup: speed.and_then(|speed| speed.prefill.ratio).map(|ratio| ratio.estimate),
            health_excess: m.health.as_ref().and_then(excess),
            load_ms: m.ease.and_then(|ease| ease.load_ms),
            excess_spread: speed.and_then(|speed| Some((speed.decode.quant_spread? - speed.decode.base_spread?).max(0.0))),
            memory_share: resident.zip(m.ease.and_then(|ease| ease.free_bytes)).map(|(bytes, free)| bytes / (free as f64).max(1.0)),
            integrity: (checks > 0.0).then(|| m.integrity.iter().filter(|check| check.pass).count() as f64 / checks),
            provenance: m.ease.and_then(|ease| ease.provenance),
        }
    }

    /// The figures of the original that `report` judged against, in 16 bits: it equals itself.
    pub fn of_original(report: &Report) -> Self {
        let m = &report.measures;
        let sixteen = m.size.map(|size| size.base_bytes);
        let free = m.ease.and_then(|ease| ease.free_bytes);
        let known = |known: bool, value: f64| known.then_some(value);
        let own = Self::of(report);
        Self {
            ppl_ratio: known(own.ppl_ratio.is_some(), 1.0),
            kl: known(own.kl.is_some(), 0.0),
            top1: known(own.top1.is_some(), 1.0),
            size_ratio: known(own.size_ratio.is_some(), 1.0),
            resident_ratio: known(own.resident_ratio.is_some(), 1.0),
            decode_speedup: known(own.decode_speedup.is_some(), 1.0),
            prefill_speedup: known(own.prefill_speedup.is_some(), 1.0),
            health_excess: known(own.health_excess.is_some(), 0.0),
            load_ms: m.ease.and_then(|ease| ease.base_load_ms),
            excess_spread: known(own.excess_spread.is_some(), 0.0),
            memory_share: sixteen.zip(free).map(|(bytes, free)| bytes as f64 / (free as f64).max(1.0)),
            integrity: known(own.integrity.is_some(), 1.0),
            provenance: known(own.provenance.is_some(), 1.0),
        }
    }
}

/// Family-wise p-value from which on chance explains a worse figure well enough.
const CHANCE: f64 = 0.25;

/// Mean over all figures and modes of how much worse the variant's is, each weighted by how little chance explains it:
/// 1 − 4np with the p-value of the figure and the number n of figures, nothing from np = ¼ on. Infinite where texts broke off; `None` without texts.
pub(super) fn excess(health: &Health) -> Option<f64> {
    if health.non_finite {
        return Some(f64::INFINITY);
    }
    let count = health.figures.len() as f64;
    let weight = |p: f64| (1.0 - count * p / CHANCE).max(0.0);
    let worse = health.figures.iter().map(|f| (f.quant - f.base).max(0.0) * weight(f.p));
    (health.prompts > 0 && !health.figures.is_empty()).then(|| worse.sum::<f64>() / count)
}
