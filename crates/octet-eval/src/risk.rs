//! How much a person should want to look before a variant is taken: 0 (nothing is open) to 100.
//!
//! | from | points |
//! |---|---|
//! | each blocking gate that is undecided | 40 |
//! | text below 20,000 tokens | up to 20, in proportion to what is missing |
//! | an interval over fewer than 100 blocks of text (it is approximate), or none | up to 10; 20 |
//! | quality near its gate | up to 10: the square of the share of the allowed increase that the interval's end uses |
//! | a fidelity guide that is exceeded | 10 each |
//! | inputs of the score that were not measured | 5 each |
//! | calibration: inputs never active; experts never reached | up to 10 (a tenth of all); 10 |
//!
//! The sum is cut at 100.

use crate::{
    Report,
    gates::{Gate, Outcome},
    stats::GOOD_BLOCKS,
    trinity::Trinity,
};
use serde::{Deserialize, Serialize};

/// Tokens from which a text is no longer thin.
const ENOUGH_TOKENS: f64 = 20_000.0;

/// Blocks from which an interval is no longer approximate.
const ENOUGH_BLOCKS: f64 = GOOD_BLOCKS as f64;

/// Risk with everything it comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Risk {
    /// From 0 to 100.
    pub score: f64,
    /// What adds to it.
    pub reasons: Vec<RiskReason>,
}

/// One thing that adds to the risk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RiskReason {
    /// What it is, with its figure.
    pub what: String,
    /// What it adds.
    pub points: f64,
}

/// What calibration left open; zeros without calibration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coverage {
    /// Share of the inputs that were never active.
    pub dead_inputs: f64,
    /// Experts that no token reached.
    pub unreached_experts: usize,
}

impl Risk {
    /// The risk of taking the variant that `report` judged.
    pub fn of(report: &Report, trinity: &Trinity, coverage: Coverage) -> Self {
        let mut reasons = vec![];
        let mut add = |points: f64, what: String| {
            if points >= 0.005 {
                reasons.push(RiskReason { what, points });
            }
        };
        for gate in &report.gates {
            if gate.blocking && gate.outcome == Outcome::Undecided {
                add(40.0, format!("{} is undecided", gate.name));
            }
            if gate.name.starts_with("fidelity") && gate.outcome == Outcome::Failed {
                add(10.0, format!("{} is beyond its guide", gate.name));
            }
        }
        let text = report.measures.text.as_ref();
        let tokens = text.map_or(0, |text| text.tokens);
        add(20.0 * (1.0 - tokens as f64 / ENOUGH_TOKENS).max(0.0), format!("judged on {tokens} tokens; {ENOUGH_TOKENS} are plenty"));
        match report.gates.iter().find(|gate| gate.name == "quality").map(|gate| (gate, gate.ci95)) {
            Some((gate, Some(interval))) => {
                // Reports of earlier versions count windows alone.
                let blocks = text.map_or(0, |text| text.blocks.max(text.windows));
                let what = format!("the interval rests on {blocks} blocks of text and is approximate");
                add(10.0 * (1.0 - blocks as f64 / ENOUGH_BLOCKS).max(0.0), what);
                let used = used(gate, interval);
                add(10.0 * used * used, format!("quality uses {:.0} % of what its gate allows", 100.0 * used));
            }
            _ => add(20.0, "quality has no interval".into()),
        }
        for input in &trinity.not_measured {
            add(5.0, format!("not measured: {input}"));
        }
        let dead = coverage.dead_inputs;
        add(10.0 * (10.0 * dead).min(1.0), format!("{:.1} % of the inputs were never active in calibration", 100.0 * dead));
        if coverage.unreached_experts > 0 {
            add(10.0, format!("{} experts were never reached in calibration", coverage.unreached_experts));
        }
        let score = reasons.iter().map(|reason| reason.points).sum::<f64>().min(100.0);
        Self { score, reasons }
    }
}

/// The share of the allowed increase that the upper end of the interval uses.
fn used(gate: &Gate, [_, high]: [f64; 2]) -> f64 {
    let allowed = gate.threshold.unwrap_or(1.0) - 1.0;
    if allowed > 0.0 { ((high - 1.0) / allowed).clamp(0.0, 1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        machine::Machine,
        report::{Measures, TextInfo},
        trinity::Inputs,
    };

    fn report(tokens: usize, windows: usize, quality: Gate) -> Report {
        let text = TextInfo { name: "text".into(), tokens, bytes: 4 * tokens, windows, blocks: windows, context: 512, bos: false };
        let machine = Machine { cpu: "c".into(), cores: 1, threads: 1, isa: "scalar".into(), os: "o".into(), version: "v".into() };
        let measures = Measures { text: Some(text), ..Measures::default() };
        Report::new("w8a16".into(), vec![quality], false, measures, machine, vec![])
    }

    fn quality(high: f64, outcome: Outcome) -> Gate {
        Gate { ci95: Some([1.0, high]), ..Gate::new("quality", 1.0, 1.02, outcome, "") }
    }

    fn measured() -> Trinity {
        Trinity { partial: false, not_measured: vec![], ..Trinity::of(&Inputs::default()) }
    }

    #[test]
    fn nothing_open_is_no_risk_and_everything_adds() {
        let risk = |report: &Report, coverage| Risk::of(report, &measured(), coverage).score;
        let sound = report(50_000, 100, quality(1.0, Outcome::Passed));
        assert_eq!(risk(&sound, Coverage::default()), 0.0);
        assert_eq!(risk(&report(10_000, 100, quality(1.0, Outcome::Passed)), Coverage::default()), 10.0);
        assert_eq!(risk(&report(50_000, 50, quality(1.0, Outcome::Passed)), Coverage::default()), 5.0);
        assert!((risk(&report(50_000, 100, quality(1.01, Outcome::Passed)), Coverage::default()) - 2.5).abs() < 1e-9);
        assert!(risk(&report(50_000, 100, quality(1.03, Outcome::Undecided)), Coverage::default()) >= 50.0);
        assert_eq!(risk(&sound, Coverage { dead_inputs: 0.05, unreached_experts: 1 }), 15.0);
        // One more thing open at a time: each adds by itself, and is named.
        let alone = |change: fn(&mut Report)| {
            let mut other = report(50_000, 100, quality(1.0, Outcome::Passed));
            change(&mut other);
            let risk = Risk::of(&other, &measured(), Coverage::default());
            assert_eq!(risk.reasons.len(), 1, "{risk:?}");
            (risk.score, risk.reasons[0].what.clone())
        };
        let fidelity = |report: &mut Report| {
            report.gates.push(Gate { blocking: false, ..Gate::new("fidelity.kl", 0.04, 0.03, Outcome::Failed, "") });
        };
        assert!(alone(fidelity).0 == 10.0 && alone(fidelity).1.contains("fidelity.kl"));
        let undecided = |report: &mut Report| report.gates.push(Gate::new("tasks", 0.0, 0.02, Outcome::Undecided, ""));
        assert!(alone(undecided).0 == 40.0 && alone(undecided).1.contains("tasks"));
        let unheard = |report: &mut Report| report.gates[0].ci95 = None;
        assert!(alone(unheard).0 == 20.0 && alone(unheard).1.contains("no interval"));
        assert_eq!(risk(&sound, Coverage { dead_inputs: 0.05, unreached_experts: 0 }), 5.0);
        assert_eq!(risk(&sound, Coverage { dead_inputs: 0.0, unreached_experts: 1 }), 10.0);
        let unmeasured = Risk::of(&sound, &Trinity::of(&Inputs::default()), Coverage::default());
        assert_eq!((unmeasured.score, unmeasured.reasons.len()), (65.0, 13));
    }
}
