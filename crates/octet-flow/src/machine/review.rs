//! The review: from a verdict, its score and its risk to what follows. A pure function.

use octet_eval::{Report, gates::Outcome, gates::Status};
use serde::{Deserialize, Serialize};

/// Who decides what.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Whether other rungs are tried after a refusal.
    pub ladder: bool,
    /// Minutes after which no further rung is begun.
    pub max_minutes: Option<f64>,
    /// Least score that a candidate must reach, as `--target-score` asks.
    pub target_score: Option<f64>,
    /// Accept alone only from this score on and up to this risk, and ask otherwise; `None`: the gates suffice, as where
    /// variants are made to be compared.
    pub auto: Option<(f64, f64)>,
    /// The answer to whatever would be asked.
    pub answer: Option<bool>,
}

impl Policy {
    /// Score and risk between which a run may decide alone.
    pub const AUTO: (f64, f64) = (90.0, 10.0);
}

impl Default for Policy {
    fn default() -> Self {
        Self { ladder: true, max_minutes: None, target_score: None, auto: Some(Self::AUTO), answer: None }
    }
}

/// What a person is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The question.
    pub question: String,
    /// What it is about.
    pub candidate: String,
    /// The score, of 100.
    pub score: f64,
    /// The risk, of 100.
    pub risk: f64,
    /// What speaks against taking it without a look.
    pub reasons: Vec<String>,
}

/// What follows from a verdict.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Take it.
    Accept(String),
    /// Ask first.
    Ask(Question),
    /// Try something else, if there is something.
    Climb(String),
    /// Nothing else can help.
    Stop(String),
}

/// Decides about the candidate that `report` judged; its score and risk are in the report.
pub fn review(report: &Report, policy: &Policy) -> Verdict {
    let score = report.trinity.as_ref().map_or(0.0, |trinity| trinity.score);
    let risk = report.risk.as_ref().map_or(100.0, |risk| risk.score);
    let named = |outcome: Outcome| -> Vec<&str> {
        report.gates.iter().filter(|gate| gate.blocking && gate.outcome == outcome).map(|gate| gate.name.as_str()).collect()
    };
    match report.status {
        Status::Refused => Verdict::Climb(format!("refused by {}", named(Outcome::Failed).join(", "))),
        Status::Undecided if is_thin(report) => {
            let note = report.gates.iter().find(|gate| gate.outcome == Outcome::Undecided).map_or("", |gate| gate.note.as_str());
            Verdict::Stop(format!("no scheme can be judged on so little text ({note})"))
        }
        Status::Undecided => Verdict::Climb(format!("{} is undecided", named(Outcome::Undecided).join(", "))),
        Status::Accepted | Status::FellBack => accepted(report, policy, score, risk),
    }
}

fn accepted(report: &Report, policy: &Policy, score: f64, risk: f64) -> Verdict {
    if let Some(target) = policy.target_score.filter(|target| score < *target) {
        return Verdict::Climb(format!("every gate passed, but the score {score:.1} is below the target {target:.1}"));
    }
    let Some((least, most)) = policy.auto else { return Verdict::Accept(format!("every gate passed; score {score:.1}, risk {risk:.1}")) };
    if score >= least && risk <= most {
        return Verdict::Accept(format!("AUTO: score {score:.1} of at least {least:.0}, risk {risk:.1} of at most {most:.0}"));
    }
    let mut reasons = vec![];
    if score < least {
        reasons.push(format!("the score {score:.1} is below {least:.0}"));
    }
    if risk > most {
        reasons.push(format!("the risk {risk:.1} is above {most:.0}"));
    }
    reasons.extend(report.risk.iter().flat_map(|risk| &risk.reasons).map(|reason| format!("{} (risk {:+.1})", reason.what, reason.points)));
    let candidate = report.scheme.clone();
    Verdict::Ask(Question { question: format!("every gate passed; take {candidate} all the same?"), candidate, score, risk, reasons })
}

/// Whether there was too little text for an interval, so that no other scheme would be decided either.
fn is_thin(report: &Report) -> bool {
    report.gates.iter().any(|gate| gate.name.starts_with("quality") && gate.outcome == Outcome::Undecided && gate.ci95.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_eval::{
        Measures,
        gates::Gate,
        machine::Machine,
        risk::Risk,
        trinity::{Inputs, Trinity},
    };

    fn report(gates: Vec<Gate>, score: f64, risk: f64) -> Report {
        let machine = Machine { cpu: "c".into(), cores: 1, threads: 1, isa: "scalar".into(), os: "o".into(), version: "v".into() };
        let mut report = Report::new("w8a16".into(), gates, false, Measures::default(), machine, vec![]);
        report.trinity = Some(Trinity { score, ..Trinity::of(&Inputs::default()) });
        report.risk = Some(Risk { score: risk, reasons: vec![] });
        report
    }

    #[test]
    fn it_decides_alone_only_where_score_and_risk_allow() {
        let good = |score, risk| report(vec![Gate::new("quality", 1.0, 1.02, Outcome::Passed, "")], score, risk);
        let gates_alone = Policy { auto: None, ..Policy::default() };
        assert!(matches!(review(&good(90.0, 10.0), &Policy::default()), Verdict::Accept(_)));
        for (score, risk, says) in [(89.9, 0.0, "score"), (99.0, 10.1, "risk")] {
            let Verdict::Ask(question) = review(&good(score, risk), &Policy::default()) else {
                panic!("{score} {risk} was not asked about")
            };
            assert!(question.reasons[0].contains(says), "{question:?}");
            assert!(matches!(review(&good(score, risk), &gates_alone), Verdict::Accept(_)));
        }
        let target = Policy { target_score: Some(95.0), ..Policy::default() };
        assert!(matches!(review(&good(94.9, 0.0), &target), Verdict::Climb(_)));
    }

    #[test]
    fn refusals_climb_and_thin_text_stops() {
        let refused = report(vec![Gate::new("health", 1.0, 1.02, Outcome::Failed, "")], 99.0, 0.0);
        assert_eq!(review(&refused, &Policy::default()), Verdict::Climb("refused by health".into()));
        let thin = Gate::new("quality", 1.0, 1.02, Outcome::Undecided, "needs more");
        assert!(matches!(review(&report(vec![thin.clone()], 99.0, 0.0), &Policy::default()), Verdict::Stop(_)));
        let close = Gate { ci95: Some([0.99, 1.03]), ..thin };
        assert!(matches!(review(&report(vec![close], 99.0, 0.0), &Policy::default()), Verdict::Climb(_)));
    }
}
