//! The ladder: what is tried after a refusal, and why; a pure function of what was asked and what there is.

use octet_eval::{
    Report,
    gates::{Gate, Outcome},
};
use octet_quant::{GptqSettings, SolverChoice};
use octet_tensor::{Activations, Dtype, Granularity, Scheme, WeightScheme};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// The rungs, first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// What was asked for.
    Asked,
    /// The same with a better solver.
    Solver,
    /// The same in smaller groups.
    Group,
    /// Bits where they matter, as many as before in all.
    Mixed,
    /// 8 bits.
    Int8,
    /// The best so far with more calibration text.
    Calibration,
    /// What came nearest, after learning from the original.
    Training,
    /// Another checkpoint of the same run: all of them are compared before one of them walks the ladder.
    Checkpoint,
    /// The original, kept.
    Original,
}

impl Rung {
    /// What it is, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Asked => "as asked",
            Self::Solver => "better solver",
            Self::Group => "smaller groups",
            Self::Mixed => "mixed precision",
            Self::Int8 => "8 bits",
            Self::Calibration => "more calibration",
            Self::Training => "training",
            Self::Checkpoint => "another checkpoint",
            Self::Original => "the original",
        }
    }
}

/// What a rung would quantize to.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// What the command says, whatever that is.
    Asked,
    /// This scheme for the linears.
    Scheme {
        /// The scheme.
        scheme: Scheme,
        /// What chooses the codes.
        solver: SolverChoice,
    },
    /// Widths found by a search, so that all weights together take so many bits each.
    Mixed {
        /// Bits a weight, scales included.
        bits_per_weight: f64,
    },
    /// One of the others, whose quantized matrices then learn from the original's predictions.
    Learning(Box<Choice>),
}

/// One thing to try.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The rung it stands on.
    pub rung: Rung,
    /// Its name in reports and folder names.
    pub label: String,
    /// What it is.
    pub choice: Choice,
    /// Times as many calibration windows as usual.
    pub calibration: usize,
    /// Why it may do better than what was refused.
    pub why: String,
}

/// A rung: something to try, or why there is nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The rung.
    pub rung: Rung,
    /// What to try; else the reason to pass it over.
    pub what: Result<Candidate, String>,
}

/// What a ladder depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The name of what was asked.
    pub label: String,
    /// Scheme and solver asked for; `None` where a recipe says more than that.
    pub scheme: Option<(Scheme, SolverChoice)>,
    /// How many times as much calibration text there is as is used; else why there is none.
    pub text: Result<usize, String>,
    /// Why mixed precision cannot be tried, if it cannot.
    pub no_mixed: Option<String>,
    /// Why nothing can learn from the original, if nothing can.
    pub no_training: Option<String>,
    /// Why no other checkpoint of the same training run is tried.
    pub no_checkpoint: String,
}

/// Most times the usual number of calibration windows.
pub const MOST_CALIBRATION: usize = 4;

/// Inputs that share a scale on the rung of smaller groups.
const SMALL_GROUP: usize = 32;

/// Inputs of a typical row, to state the budget of mixed precision.
const TYPICAL_INPUTS: usize = 4096;

/// Every rung from what was asked to the original.
pub fn ladder(facts: &Facts) -> Vec<Step> {
    let asked = Candidate {
        rung: Rung::Asked,
        label: facts.label.clone(),
        choice: Choice::Asked,
        calibration: 1,
        why: "it is what was asked for".into(),
    };
    let (solver, group) = (better_solver(facts), smaller_group(facts));
    // What more calibration is tried on: the best of fewer than 8 bits.
    let best = group.clone().or_else(|_| solver.clone());
    let steps = [
        (Rung::Asked, Ok(asked)),
        (Rung::Solver, solver),
        (Rung::Group, group),
        (Rung::Mixed, mixed(facts)),
        (Rung::Int8, int8(facts)),
        (Rung::Calibration, more_calibration(facts, best.ok())),
        (Rung::Training, training(facts)),
        (Rung::Checkpoint, Err(facts.no_checkpoint.clone())),
    ];
    steps.map(|(rung, what)| Step { rung, what }).into()
}

/// The variants that are tried for a target score, in order.
pub fn search(facts: &Facts) -> Vec<Step> {
    let rtn = SolverChoice::Rtn { candidates: None };
    let schemes = ["w8a16", "w8a8", "w8a8-g64", "w8a8-g128", "w8a8-g256"];
    let one = |name: &&str| {
        let why = "the search for the target score tries it next".to_string();
        let scheme = name.parse::<Scheme>().map_err(|e| e.to_string())?;
        Ok(Candidate { rung: Rung::Int8, label: scheme.short(), choice: Choice::Scheme { scheme, solver: rtn }, calibration: 1, why })
    };
    let mut steps: Vec<Step> = schemes.iter().map(|name| Step { rung: Rung::Int8, what: one(name) }).collect();
    steps.push(Step { rung: Rung::Mixed, what: mixed(facts) });
    steps
}

fn few_bits(facts: &Facts) -> Result<(Scheme, SolverChoice), String> {
    let (scheme, solver) = facts.scheme.ok_or("a recipe says itself how each tensor is quantized")?;
    if scheme.weights.bits.get() >= 8 {
        return Err("8 bits have nothing to gain from it".into());
    }
    Ok((scheme, solver))
}

fn gptq(solver: SolverChoice) -> SolverChoice {
    match solver {
        SolverChoice::Rtn { candidates } => SolverChoice::Gptq(GptqSettings { candidates, ..GptqSettings::USUAL }),
        other => other,
    }
}

fn better_solver(facts: &Facts) -> Result<Candidate, String> {
    let (scheme, solver) = few_bits(facts)?;
    if !matches!(solver, SolverChoice::Rtn { .. }) {
        return Err(format!("{} is the best solver of this build", solver.name()));
    }
    facts.text.as_ref().map_err(String::clone)?;
    let why = "GPTQ makes good with the other weights what rounding one of them costs".into();
    let choice = Choice::Scheme { scheme, solver: gptq(solver) };
    Ok(Candidate { rung: Rung::Solver, label: facts.label.clone(), choice, calibration: 1, why })
}

fn smaller_group(facts: &Facts) -> Result<Candidate, String> {
    let (scheme, solver) = few_bits(facts)?;
    if matches!(scheme.weights.granularity, Granularity::Group(size) if size.get() <= SMALL_GROUP) {
        return Err(format!("groups of {SMALL_GROUP} are the smallest"));
    }
    let size = NonZeroUsize::new(SMALL_GROUP).ok_or("no such group")?;
    let scheme = Scheme { weights: WeightScheme { granularity: Granularity::Group(size), ..scheme.weights }, ..scheme };
    let solver = if facts.text.is_ok() { gptq(solver) } else { solver };
    let why = format!("a scale for every {SMALL_GROUP} weights fits them more closely");
    Ok(Candidate { rung: Rung::Group, label: scheme.short(), choice: Choice::Scheme { scheme, solver }, calibration: 1, why })
}

fn mixed(facts: &Facts) -> Result<Candidate, String> {
    if let Some(reason) = &facts.no_mixed {
        return Err(reason.clone());
    }
    let (scheme, _) = few_bits(facts)?;
    let bits_per_weight = scheme.weights.bits_per_weight(TYPICAL_INPUTS, Dtype::Bf16);
    let why = format!("the {bits_per_weight:.2} bits a weight go where they matter most");
    Ok(Candidate { rung: Rung::Mixed, label: "mixed".into(), choice: Choice::Mixed { bits_per_weight }, calibration: 1, why })
}

fn int8(facts: &Facts) -> Result<Candidate, String> {
    let asked = facts.scheme.map(|(scheme, _)| scheme);
    let activations = asked.map_or(Activations::Exact, |scheme| scheme.activations);
    let eight = Scheme { weights: WeightScheme::W8, activations };
    let (scheme, why) = match asked {
        Some(scheme) if scheme.weights.bits.get() < 8 => (eight, "8 bits round 16 times as finely as 4"),
        None => (eight, "8 bits for all linears"),
        Some(scheme) if scheme.activations != Activations::Exact => {
            (Scheme { activations: Activations::Exact, ..eight }, "activations that stay floats lose nothing")
        }
        Some(_) => return Err("8-bit weights with exact activations are what was asked for".into()),
    };
    let choice = Choice::Scheme { scheme, solver: SolverChoice::Rtn { candidates: None } };
    Ok(Candidate { rung: Rung::Int8, label: scheme.short(), choice, calibration: 1, why: why.into() })
}

fn more_calibration(facts: &Facts, best: Option<Candidate>) -> Result<Candidate, String> {
    few_bits(facts)?;
    let times = facts.text.clone()?.min(MOST_CALIBRATION);
    let best = best.ok_or("no candidate uses calibration")?;
    if times < 2 {
        return Err("all of the calibration text is in use".into());
    }
    let why = format!("{times} times as much text says more about the inputs");
    Ok(Candidate { rung: Rung::Calibration, calibration: times, why, ..best })
}

/// Learning by what was asked for: [`nearest`] says what learns in its place.
fn training(facts: &Facts) -> Result<Candidate, String> {
    if let Some(reason) = &facts.no_training {
        return Err(reason.clone());
    }
    if facts.scheme.is_some() {
        few_bits(facts)?;
    }
    facts.text.as_ref().map_err(String::clone)?;
    let why = "it learns from the original's predictions".into();
    Ok(Candidate { rung: Rung::Training, label: facts.label.clone(), choice: Choice::Asked, calibration: 1, why }.learning())
}

impl Candidate {
    /// The same, learning from the original.
    fn learning(self) -> Self {
        let (label, choice) = (format!("{}-distilled", self.label), Choice::Learning(Box::new(self.choice)));
        Self { rung: Rung::Training, label, choice, ..self }
    }
}

/// Gates on what a model says, which learning can change; it changes neither size nor speed.
const LEARNABLE: [&str; 4] = ["quality", "fidelity", "health", "tasks"];

/// What learns on the rung of training: of what was refused for nothing but what it says, with fewer than 8 bits, the one whose
/// perplexity came nearest to the original's.
///
/// # Errors
/// If there is no such candidate.
pub fn nearest(refused: &[(Candidate, Report)]) -> Result<Candidate, String> {
    let learnable = |gate: &Gate| LEARNABLE.iter().any(|name| gate.name.starts_with(name));
    let curable = |(candidate, report): &&(Candidate, Report)| {
        candidate.rung != Rung::Int8 && report.gates.iter().filter(|gate| is_open(gate)).all(learnable)
    };
    let ratio = |report: &Report| report.measures.ppl.and_then(|ppl| ppl.ratio).filter(|ratio| ratio.is_finite());
    let measured = refused.iter().filter(curable).filter_map(|(candidate, report)| Some((candidate, ratio(report)?)));
    let (candidate, ratio) = measured
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .ok_or("nothing below 8 bits was refused for its quality alone, and learning changes neither size nor speed")?;
    let why = format!(
        "{} came nearest, at {:+.2} % of perplexity ({}): its scales learn from the original's predictions",
        candidate.label,
        100.0 * (ratio - 1.0),
        candidate.rung.words()
    );
    Ok(Candidate { why, ..candidate.clone().learning() })
}

/// Whether a gate keeps a model from being taken.
fn is_open(gate: &Gate) -> bool {
    gate.blocking && matches!(gate.outcome, Outcome::Failed | Outcome::Undecided)
}

/// Why `candidate` cannot cure the gates that failed, if it cannot.
pub fn cannot_help(candidate: &Candidate, failed: &[Gate]) -> Option<String> {
    let names: Vec<&str> = failed.iter().filter(|gate| is_open(gate)).map(|gate| gate.name.as_str()).collect();
    let all = |ends: &[&str]| !names.is_empty() && names.iter().all(|name| ends.iter().any(|end| name.starts_with(end)));
    if names.iter().any(|name| name.starts_with("integrity")) {
        return Some("what failed is the writing of files, not the scheme".into());
    }
    if all(&["speed", "memory"]) {
        return Some("it is no faster than what was refused for its speed".into());
    }
    if names.iter().any(|name| name.starts_with("size")) && matches!(candidate.rung, Rung::Group | Rung::Int8) {
        return Some("it is larger than what was refused for its size".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_eval::{Measures, machine::Machine, report::Perplexity};

    fn facts(scheme: &str) -> Facts {
        let scheme: Scheme = scheme.parse().unwrap();
        let solver = SolverChoice::Rtn { candidates: None };
        let (no_mixed, no_checkpoint) = (Some("not now".into()), "none was given".into());
        Facts { label: scheme.short(), scheme: Some((scheme, solver)), text: Ok(3), no_mixed, no_training: None, no_checkpoint }
    }

    fn labels(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|s| s.what.as_ref().map_or_else(|why| format!("({why})"), |c| format!("{} x{}", c.label, c.calibration))).collect()
    }

    #[test]
    fn four_bits_climb_every_rung() {
        let steps = ladder(&facts("w4a16"));
        let expected = ["w4a16 x1", "w4a16 x1", "w4a16-g32 x1", "(not now)", "w8a16 x1", "w4a16-g32 x3", "w4a16-distilled x1"];
        assert_eq!(labels(&steps)[..7], expected);
        assert!(matches!(&steps[1].what, Ok(Candidate { choice: Choice::Scheme { solver: SolverChoice::Gptq(_), .. }, .. })));
        assert!(steps.windows(2).all(|pair| pair[0].rung < pair[1].rung));
    }

    #[test]
    fn eight_bits_have_little_above_them() {
        assert_eq!(labels(&ladder(&facts("w8a16")))[4], "(8-bit weights with exact activations are what was asked for)");
        assert_eq!(labels(&ladder(&facts("w8a8")))[4], "w8a16 x1");
        assert_eq!(ladder(&facts("w8a16")).iter().filter(|step| step.what.is_ok()).count(), 1);
    }

    #[test]
    fn without_text_nothing_is_calibrated() {
        let without = Facts { text: Err("no text".into()), ..facts("w4a16-g32") };
        let steps = ladder(&without);
        assert_eq!(labels(&steps)[1..4], ["(no text)", "(groups of 32 are the smallest)", "(not now)"]);
        assert_eq!(labels(&steps)[5..7], ["(no text)", "(no text)"]);
        let recipe = Facts { scheme: None, ..facts("w4a16") };
        assert_eq!(labels(&ladder(&recipe))[4], "w8a16 x1");
        let once = Facts { text: Ok(1), ..facts("w4a16") };
        assert_eq!(labels(&ladder(&once))[5], "(all of the calibration text is in use)");
    }

    /// A candidate with the report that refused it by `gate`.
    fn refused(rung: Rung, label: &str, gate: &str, ratio: f64) -> (Candidate, Report) {
        let machine = Machine { cpu: "c".into(), cores: 1, threads: 1, isa: "scalar".into(), os: "o".into(), version: "v".into() };
        let gates = vec![Gate::new(gate, 0.0, 0.0, Outcome::Failed, ""), Gate::not_applicable("speed", "")];
        let mut report = Report::new(label.into(), gates, false, Measures::default(), machine, vec![]);
        report.measures.ppl =
            Some(Perplexity { base: 1.0, base_ci95: None, quant: None, quant_ci95: None, ratio: Some(ratio), ratio_ci95: None });
        (Candidate { rung, label: label.into(), choice: Choice::Asked, calibration: 3, why: String::new() }, report)
    }

    #[test]
    fn what_came_nearest_learns() {
        let mut all = vec![
            refused(Rung::Asked, "w4a16", "quality", 1.3),
            refused(Rung::Group, "w4a16-g32", "health", 1.1),
            refused(Rung::Solver, "w4a16", "quality.docs", 1.2),
            refused(Rung::Mixed, "mixed", "size.max", 1.01),
            refused(Rung::Int8, "w8a16", "quality", 1.001),
        ];
        let found = nearest(&all).unwrap();
        let choice = Choice::Learning(Box::new(Choice::Asked));
        assert_eq!((found.rung, &*found.label, &found.choice, found.calibration), (Rung::Training, "w4a16-g32-distilled", &choice, 3));
        assert!(found.why.contains("w4a16-g32 came nearest, at +10.00 %") && found.why.contains("smaller groups"), "{}", found.why);
        all.drain(..3);
        assert!(nearest(&all).unwrap_err().contains("neither size nor speed"));
    }

    #[test]
    fn nothing_learns_where_it_cannot() {
        assert_eq!(labels(&ladder(&facts("w8a16")))[6], "(8 bits have nothing to gain from it)");
        let untrainable = Facts { no_training: Some("a mixture of experts".into()), ..facts("w4a16") };
        assert_eq!(labels(&ladder(&untrainable))[6], "(a mixture of experts)");
        let recipe = Facts { scheme: None, label: "mine".into(), ..facts("w4a16") };
        assert_eq!(labels(&ladder(&recipe))[6], "mine-distilled x1");
    }

    #[test]
    fn the_search_for_a_score_begins_with_int8() {
        assert_eq!(labels(&search(&facts("w4a16")))[..5], ["w8a16 x1", "w8a8 x1", "w8a8-g64 x1", "w8a8-g128 x1", "w8a8-g256 x1"]);
    }

    #[test]
    fn a_rung_that_cannot_cure_is_passed_over() {
        let step = ladder(&facts("w4a16")).into_iter().find(|step| step.rung == Rung::Int8).unwrap();
        let candidate = step.what.unwrap();
        let failed = |name: &str| vec![Gate::new(name, 0.0, 0.0, Outcome::Failed, "")];
        assert_eq!(cannot_help(&candidate, &failed("quality")), None);
        for gate in ["speed", "size.max", "integrity"] {
            assert!(cannot_help(&candidate, &failed(gate)).is_some(), "{gate}");
        }
    }
}
