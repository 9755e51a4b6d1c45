//! The Trinity Score: one figure from 0 to 100 that ranks variants of a model, from measurements alone.
//!
//! | pillar | points | inputs (points each) |
//! |---|---|---|
//! | truth | 35 | perplexity increase (15), mean KL divergence (12), same top token (8) |
//! | goodness | 35 | size ratio (14), resident ratio (5), decode speed-up (14), prefill speed-up (2) |
//! | beauty | 20 | excess of degenerate text (20) |
//! | serenity | 8 | load time (3), spread of decoding times (3), share of the free memory (2) |
//! | eternity | 2 | integrity of the files (1), provenance (1) |
//!
//! An input is worth a share of its points by a [`Curve`]: all of them from a saturation point on, none beyond the other end.
//! The saturation points are what a good 8-bit model reaches, so that 95 can be had by one and not by a bad one or by 4 bits
//! of a small model. An input that was not measured is worth nothing and makes the score *partial*. The
//! original scores all but goodness: a variant that equals it in everything scores the same, and must be smaller or faster to
//! earn more.

mod inputs;

pub use inputs::Inputs;

use serde::{Deserialize, Serialize};

/// Version of the formulas: a change of any raises it. Scores of different versions do not compare.
pub const VERSION: u32 = 1;

/// What the worth of a figure does between its two ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Curve {
    /// Straight from `full` (worth 1) to `none` (worth 0); either may be the larger.
    Linear {
        /// Where it is worth all.
        full: f64,
        /// Where it is worth nothing.
        none: f64,
    },
    /// Straight over the logarithm of the figure.
    Logarithmic {
        /// Where it is worth all.
        full: f64,
        /// Where it is worth nothing.
        none: f64,
    },
    /// Straight from nothing at 1 to `knee.1` at `knee.0`, then straight to all at `full`.
    Bent {
        /// A figure and what it is worth.
        knee: (f64, f64),
        /// Where it is worth all.
        full: f64,
    },
}

impl Curve {
    /// The worth of `value`, from 0 to 1; nothing for what is not a number.
    pub fn worth(self, value: f64) -> f64 {
        let straight = |value: f64, full: f64, none: f64| ((value - none) / (full - none)).clamp(0.0, 1.0);
        match self {
            _ if value.is_nan() => 0.0,
            Self::Linear { full, none } => straight(value, full, none),
            // The smaller end stands in for what has no logarithm.
            Self::Logarithmic { full, none } => straight(value.max(full.min(none) * 1e-3).ln(), full.ln(), none.ln()),
            Self::Bent { knee: (at, worth), .. } if value > at => worth * straight(value, at, 1.0),
            Self::Bent { knee: (at, worth), full } => worth + (1.0 - worth) * straight(value, full, at),
        }
    }

    /// The formula in words.
    pub fn formula(self) -> String {
        match self {
            Self::Linear { full, none } => format!("1 at {full}, 0 at {none}"),
            Self::Logarithmic { full, none } => format!("1 at {full}, 0 at {none}, logarithmic"),
            Self::Bent { knee: (at, worth), full } => format!("0 at 1, {worth} at {at}, 1 at {full}"),
        }
    }
}

/// One input of the score: where it counts, for how much, and how.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// The pillar.
    pub pillar: &'static str,
    /// The input.
    pub input: &'static str,
    /// Most points it gives.
    pub points: f64,
    /// What a figure is worth.
    pub curve: Curve,
    /// The figure.
    value: fn(&Inputs) -> Option<f64>,
}

/// Pillars in the order they are shown, with their other names.
pub const PILLARS: [(&str, &str); 5] = [("truth", "眞"), ("goodness", "善"), ("beauty", "美"), ("serenity", "孝"), ("eternity", "永")];

/// Every term of the score; this table is the definition.
pub const TERMS: [Term; 13] = {
    const fn term(pillar: &'static str, input: &'static str, points: f64, curve: Curve, value: fn(&Inputs) -> Option<f64>) -> Term {
        Term { pillar, input, points, curve, value }
    }
    const SMALLER: Curve = Curve::Bent { knee: (0.55, 0.92), full: 0.25 };
    [
        term("truth", "perplexity increase", 15.0, Curve::Logarithmic { full: 0.002, none: 0.1 }, |i| i.ppl_ratio.map(|r| r - 1.0)),
        term("truth", "mean KL, nats", 12.0, Curve::Logarithmic { full: 0.002, none: 0.2 }, |i| i.kl),
        term("truth", "same top token", 8.0, Curve::Linear { full: 0.98, none: 0.8 }, |i| i.top1),
        term("goodness", "size ratio", 14.0, SMALLER, |i| i.size_ratio),
        term("goodness", "resident ratio", 5.0, SMALLER, |i| i.resident_ratio),
        term("goodness", "decode speed-up", 14.0, Curve::Logarithmic { full: 1.75, none: 1.0 }, |i| i.decode_speedup),
        term("goodness", "prefill speed-up", 2.0, Curve::Logarithmic { full: 2.0, none: 1.0 }, |i| i.prefill_speedup),
        term("beauty", "excess of degenerate text", 20.0, Curve::Linear { full: 0.0, none: 0.05 }, |i| i.health_excess),
        term("serenity", "load time, ms", 3.0, Curve::Logarithmic { full: 1000.0, none: 30_000.0 }, |i| i.load_ms),
        term("serenity", "excess spread of decoding", 3.0, Curve::Linear { full: 0.1, none: 1.0 }, |i| i.excess_spread),
        term("serenity", "share of free memory", 2.0, Curve::Linear { full: 0.5, none: 1.0 }, |i| i.memory_share),
        term("eternity", "integrity", 1.0, Curve::Linear { full: 1.0, none: 0.0 }, |i| i.integrity),
        term("eternity", "provenance", 1.0, Curve::Linear { full: 1.0, none: 0.0 }, |i| i.provenance),
    ]
};

/// A score with everything it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trinity {
    /// See [`VERSION`].
    pub version: u32,
    /// From 0 to 100.
    pub score: f64,
    /// Whether an input was not measured.
    pub partial: bool,
    /// What was not.
    pub not_measured: Vec<String>,
    /// The pillars.
    pub pillars: Vec<Pillar>,
}

/// One pillar of a score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pillar {
    /// Its name.
    pub name: String,
    /// Its other name.
    pub sign: String,
    /// Points reached.
    pub points: f64,
    /// Points that can be reached.
    pub most: f64,
    /// What it was made from.
    pub inputs: Vec<Worth>,
}

/// One input of a pillar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worth {
    /// Its name.
    pub name: String,
    /// What was measured.
    pub value: Option<f64>,
    /// Points it gives.
    pub points: f64,
    /// Points it could give.
    pub most: f64,
    /// How.
    pub formula: String,
}

impl Trinity {
    /// The score of these figures.
    pub fn of(inputs: &Inputs) -> Self {
        let pillars: Vec<Pillar> = PILLARS.iter().map(|(name, sign)| pillar(name, sign, inputs)).collect();
        let score = pillars.iter().map(|pillar| pillar.points).sum();
        let missing = |pillar: &Pillar| -> Vec<String> {
            let unknown = pillar.inputs.iter().filter(|input| input.value.is_none());
            unknown.map(|input| format!("{}: {}", pillar.name, input.name)).collect()
        };
        let not_measured: Vec<String> = pillars.iter().flat_map(missing).collect();
        Self { version: VERSION, score, partial: !not_measured.is_empty(), not_measured, pillars }
    }
}

fn pillar(name: &str, sign: &str, inputs: &Inputs) -> Pillar {
    let worth = |term: &Term| {
        let value = (term.value)(inputs);
        let points = value.map_or(0.0, |value| term.points * term.curve.worth(value));
        Worth { name: term.input.into(), value, points, most: term.points, formula: term.curve.formula() }
    };
    let inputs: Vec<Worth> = TERMS.iter().filter(|term| term.pillar == name).map(worth).collect();
    let (points, most) = inputs.iter().fold((0.0, 0.0), |sum, input| (sum.0 + input.points, sum.1 + input.most));
    Pillar { name: name.into(), sign: sign.into(), points, most, inputs }
}

#[cfg(test)]
mod tests;
