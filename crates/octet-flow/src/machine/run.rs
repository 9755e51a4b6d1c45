//! The driver: one state after another, each decision logged.

use super::{
    Candidate, Choice, Decision, DecisionLog, Entry, Facts, Kind, Planned, Policy, Question, Rung, Stages, Step, Verdict, ladder,
    review::review,
};
use crate::{Staged, digest};
use octet_eval::{
    Report,
    gates::{Outcome, Status},
    report::RungReport,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::Instant,
};

/// What is added to a reason that was not found anew.
const REPLAYED: &str = " (in an earlier run)";

/// What a candidate's calibration is called among the inputs of an entry.
const CALIBRATION: &str = "calibration";

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Request {
    /// What was asked, and what there is to fall back on.
    pub facts: Facts,
    /// Where the log is while the run goes on; a run of the same identity goes on with it.
    pub log: PathBuf,
    /// Whether an earlier run's log is thrown away.
    pub restart: bool,
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// A candidate was taken.
    Accepted {
        /// Its folder.
        path: PathBuf,
        /// Its report.
        report: Box<Report>,
    },
    /// Nothing was: the original stays what it is.
    Kept {
        /// The report on what was asked for.
        report: Option<Box<Report>>,
        /// Why.
        reason: String,
    },
    /// A person must say; the candidate waits, unfinished in name only.
    Asked {
        /// What.
        question: Question,
        /// The report on it.
        report: Box<Report>,
    },
}

/// A run and what it went through.
pub struct Ended {
    /// How it ended.
    pub end: End,
    /// Every rung.
    pub tried: Vec<RungReport>,
    /// Every decision.
    pub entries: Vec<Entry>,
    /// The transcript.
    pub transcript: String,
}

/// The states, with what each works on.
enum State {
    Evaluate,
    Quantize(Box<Trial>),
    Validate(Box<Trial>, Box<Staged>),
    Review(Box<Trial>, Box<Staged>, Box<Report>),
    Ask(Box<Trial>, Box<Staged>, Box<Report>, Question),
    Done(End),
}

/// A candidate at work.
struct Trial {
    candidate: Candidate,
    planned: Planned,
    plan: String,
}

struct Machine<'a, S: Stages> {
    stages: &'a mut S,
    policy: &'a Policy,
    log: DecisionLog,
    rungs: VecDeque<Step>,
    tried: Vec<RungReport>,
    /// What was refused, with the verdict on it.
    refused: Vec<(Candidate, Report)>,
    started: Instant,
}

/// Runs the machine to an end.
///
/// # Errors
/// As the stages. Work that can be gone on with stays, together with the log.
pub fn run<S: Stages>(stages: &mut S, request: &Request, policy: &Policy) -> Result<Ended, S::Error> {
    let identity = stages.identity()?;
    let log = DecisionLog::open(&request.log, &identity, request.restart)?;
    let rungs = if policy.target_score.is_some() { ladder::search(&request.facts) } else { ladder::ladder(&request.facts) };
    let rungs = rungs.into_iter().take(if policy.ladder || policy.target_score.is_some() { usize::MAX } else { 1 }).collect();
    let mut machine = Machine { stages, policy, log, rungs, tried: vec![], refused: vec![], started: Instant::now() };
    let mut state = State::Evaluate;
    let end = loop {
        let next = match state {
            State::Done(end) => break end,
            other => machine.step(other),
        };
        state = match next {
            Ok(next) => next,
            Err(error) => {
                if !(machine.stages.is_stop(&error) && machine.has_work()) {
                    machine.log.remove();
                }
                return Err(error);
            }
        };
    };
    let transcript = machine.log.text()?;
    if !matches!(end, End::Asked { .. }) {
        machine.log.remove();
    }
    Ok(Ended { end, tried: machine.tried, entries: machine.log.entries().to_vec(), transcript })
}

impl<S: Stages> Machine<'_, S> {
    fn step(&mut self, state: State) -> Result<State, S::Error> {
        match state {
            State::Evaluate => self.evaluate(),
            State::Quantize(trial) => self.quantize(trial),
            State::Validate(trial, staged) => self.validate(trial, staged),
            State::Review(trial, staged, report) => self.review(trial, staged, report),
            State::Ask(trial, staged, report, question) => self.ask(&trial, *staged, report, question),
            State::Done(end) => Ok(State::Done(end)),
        }
    }

    fn evaluate(&mut self) -> Result<State, S::Error> {
        let figures = self.stages.evaluate()?;
        let inputs = self.stages.identity()?;
        let rungs = self.rungs.iter().filter(|step| step.what.is_ok()).count();
        let reason = format!("{rungs} candidates are lined up");
        self.log(Kind::Evaluate, None, inputs, figures, Decision::Go, reason, None)?;
        self.next_rung()
    }

    /// Whether there is something to go on with: a rung that was refused, or a calibrated candidate that was written.
    fn has_work(&self) -> bool {
        let calibrated = |entry: &Entry| entry.state == Kind::Quantize && entry.inputs.contains_key(CALIBRATION);
        !self.refused.is_empty() || self.log.entries().iter().any(calibrated)
    }

    /// The next rung that can be tried, or the end.
    fn next_rung(&mut self) -> Result<State, S::Error> {
        while let Some(step) = self.rungs.pop_front() {
            if self.is_over(0.0) {
                let most = self.policy.max_minutes.unwrap_or_default();
                return self.keep(format!("the {most} minutes are over; {} and what follows were not tried", step.rung.words()));
            }
            let candidate = match step.what.and_then(|candidate| self.settled(candidate)) {
                Ok(candidate) => candidate,
                Err(reason) => {
                    self.pass_over(step.rung, None, reason)?;
                    continue;
                }
            };
            let last = self.refused.last().map_or(&[][..], |(_, report)| &report.gates);
            if let Some(reason) = ladder::cannot_help(&candidate, last) {
                self.pass_over(step.rung, Some(&candidate), reason)?;
                continue;
            }
            if self.climbed(&candidate).is_none() {
                self.stages.begins(&candidate);
            }
            match self.stages.plan(&candidate) {
                Ok(Planned { seconds: Some(seconds), .. }) if self.is_over(seconds) => {
                    let (takes, most) = (seconds / 60.0, self.policy.max_minutes.unwrap_or_default());
                    let reason = format!("it takes about {takes:.1} minutes, more than is left of the {most} that the run may take");
                    self.pass_over(step.rung, Some(&candidate), reason)?;
                }
                Ok(planned) => {
                    let plan = planned.prepared.plan_digest();
                    return Ok(State::Quantize(Box::new(Trial { candidate, planned, plan })));
                }
                Err(error) if candidate.rung == Rung::Asked || self.stages.is_stop(&error) => return Err(error),
                Err(error) => self.pass_over(step.rung, Some(&candidate), error.to_string())?,
            }
        }
        self.keep("nothing else is left to try".into())
    }

    /// Whether the time of the run is over, or would be after so many seconds more. What was asked for is tried in any case.
    fn is_over(&self, seconds: f64) -> bool {
        let spent = self.started.elapsed().as_secs_f64() + seconds;
        !self.tried.is_empty() && self.policy.max_minutes.is_some_and(|most| spent > 60.0 * most)
    }

    /// The candidate of a rung, as far as what was refused before has a say in it.
    fn settled(&self, candidate: Candidate) -> Result<Candidate, String> {
        if matches!(candidate.choice, Choice::Learning(_)) { ladder::nearest(&self.refused) } else { Ok(candidate) }
    }

    fn pass_over(&mut self, rung: Rung, candidate: Option<&Candidate>, reason: String) -> Result<(), S::Error> {
        let label = candidate.map_or_else(String::new, |candidate| candidate.label.clone());
        self.tried.push(RungReport {
            rung: rung.words().into(),
            scheme: label,
            outcome: "passed over".into(),
            note: reason.clone(),
            ..RungReport::default()
        });
        let about = (rung, candidate.map(|candidate| candidate.label.clone()));
        self.log(Kind::Review, Some(about), BTreeMap::new(), Value::Null, Decision::Skip, reason, None)
    }

    fn quantize(&mut self, trial: Box<Trial>) -> Result<State, S::Error> {
        let (rung, label) = (trial.candidate.rung, trial.candidate.label.clone());
        // What an earlier run finished and refused needs no second look.
        if let Some(known) = self.climbed(&trial.candidate)
            && let Some(report) = self.known(Kind::Validate, &trial).and_then(|entry| entry.report)
        {
            let reason = if known.reason.ends_with(REPLAYED) { known.reason } else { known.reason + REPLAYED };
            let about = Some((rung, Some(label)));
            self.log(Kind::Validate, about, BTreeMap::new(), Value::Null, Decision::Go, reason.clone(), Some(report.clone()))?;
            self.record(&trial, &report, word(&report), &reason);
            self.log_review(&trial, &report, Decision::Climb, reason)?;
            return self.climb(trial.candidate, *report);
        }
        let mut inputs = BTreeMap::from([("plan".to_string(), trial.plan.clone())]);
        if let Some(calibration) = &trial.planned.calibration {
            inputs.insert(CALIBRATION.into(), calibration.digest());
        }
        let earlier = self.known(Kind::Quantize, &trial).and_then(|entry| entry.figures["artefact"].as_str().map(str::to_string));
        let reopened = match &earlier {
            Some(artefact) => trial.planned.prepared.reopen(&trial.planned.target, trial.planned.calibration.as_ref(), artefact)?,
            None => None,
        };
        let (staged, reason) = match reopened {
            Some(staged) => (staged, "written by an earlier run, and unchanged".to_string()),
            None => (self.stages.quantize(&trial.planned)?, trial.candidate.why.clone()),
        };
        let figures = json!({
            "artefact": digest::tree(&staged.path())?,
            "bytes": staged.bytes()?,
            "forecast_bytes": staged.forecast_bytes,
            "calibration": staged.calibration,
            "tensors": staged.tensor_figures(),
        });
        self.log(Kind::Quantize, Some((rung, Some(label))), inputs, figures, Decision::Go, reason, None)?;
        Ok(State::Validate(trial, Box::new(staged)))
    }

    fn validate(&mut self, trial: Box<Trial>, mut staged: Box<Staged>) -> Result<State, S::Error> {
        let earlier = self.known(Kind::Validate, &trial).and_then(|entry| entry.report);
        let mut report = match earlier {
            Some(report) => report,
            None => match self.stages.validate(&trial.planned, &staged) {
                Ok(report) => Box::new(report),
                Err(error) => {
                    // What took long to make is judged by the next run.
                    if self.stages.is_stop(&error) && trial.planned.calibration.is_some() {
                        staged.keep();
                    }
                    return Err(error);
                }
            },
        };
        let fell_back = trial.candidate.rung != Rung::Asked && self.policy.target_score.is_none();
        report.status = Status::of(&report.gates, fell_back);
        report.tensors = staged.tensor_figures();
        if report.tensors.is_empty() {
            let earlier =
                self.known(Kind::Quantize, &trial).and_then(|entry| serde_json::from_value(entry.figures["tensors"].clone()).ok());
            report.tensors = earlier.unwrap_or_default();
        }
        let inputs = BTreeMap::from([("artefact".to_string(), digest::tree(&staged.path())?)]);
        let reason = format!("{} gates", report.gates.len());
        let about = Some((trial.candidate.rung, Some(trial.candidate.label.clone())));
        self.log(Kind::Validate, about, inputs, figures(&report), Decision::Go, reason, Some(report.clone()))?;
        Ok(State::Review(trial, staged, report))
    }

    fn review(&mut self, trial: Box<Trial>, staged: Box<Staged>, report: Box<Report>) -> Result<State, S::Error> {
        match review(&report, self.policy) {
            Verdict::Accept(reason) => self.accept(Kind::Review, &trial, *staged, *report, reason),
            Verdict::Ask(question) => {
                self.log_review(&trial, &report, Decision::Ask, question.reasons.join("; "))?;
                Ok(State::Ask(trial, staged, report, question))
            }
            Verdict::Climb(reason) => {
                // What is accepted and climbed from all the same is short of the target score.
                let outcome = if matches!(report.status, Status::Accepted | Status::FellBack) { "short" } else { word(&report) };
                self.record(&trial, &report, outcome, &reason);
                self.log_review(&trial, &report, Decision::Climb, reason)?;
                staged.discard();
                self.climb(trial.candidate, *report)
            }
            Verdict::Stop(reason) => {
                self.record(&trial, &report, word(&report), &reason);
                self.log_review(&trial, &report, Decision::Keep, reason.clone())?;
                staged.discard();
                let first = self.take_first().unwrap_or(*report);
                Ok(State::Done(End::Kept { report: Some(Box::new(first)), reason }))
            }
        }
    }

    /// On from a candidate that was refused.
    fn climb(&mut self, candidate: Candidate, report: Report) -> Result<State, S::Error> {
        self.refused.push((candidate, report));
        self.next_rung()
    }

    /// The verdict on what was asked for, where it was not taken.
    fn take_first(&mut self) -> Option<Report> {
        std::mem::take(&mut self.refused).into_iter().next().map(|(_, report)| report)
    }

    fn ask(&mut self, trial: &Trial, mut staged: Staged, report: Box<Report>, question: Question) -> Result<State, S::Error> {
        let answer = self.policy.answer.or_else(|| self.stages.ask(&question, &report));
        match answer {
            Some(true) => self.accept(Kind::Ask, trial, staged, *report, "the answer was yes".into()),
            Some(false) => {
                let reason = "the answer was no".to_string();
                self.record(trial, &report, "declined", &reason);
                let about = Some((trial.candidate.rung, Some(trial.candidate.label.clone())));
                self.log(Kind::Ask, about, BTreeMap::new(), figures(&report), Decision::Keep, reason.clone(), None)?;
                staged.discard();
                Ok(State::Done(End::Kept { report: Some(report), reason }))
            }
            None => {
                staged.keep();
                Ok(State::Done(End::Asked { question, report }))
            }
        }
    }

    fn accept(&mut self, state: Kind, trial: &Trial, staged: Staged, mut report: Report, reason: String) -> Result<State, S::Error> {
        self.record(trial, &report, word(&report), &reason);
        report.ladder = self.tried.clone();
        let about = Some((trial.candidate.rung, Some(trial.candidate.label.clone())));
        self.log(state, about, inputs_of(&report), figures(&report), Decision::Accept, reason.clone(), None)?;
        let done = format!("{} is the result", report.scheme);
        self.log(Kind::Done, None, BTreeMap::new(), Value::Null, Decision::Accept, done, None)?;
        let path = self.stages.commit(&trial.planned, staged, &report, &self.log.text()?)?;
        Ok(State::Done(End::Accepted { path, report: Box::new(report) }))
    }

    /// The end without a result.
    fn keep(&mut self, reason: String) -> Result<State, S::Error> {
        self.tried.push(RungReport {
            rung: Rung::Original.words().into(),
            outcome: "kept".into(),
            note: reason.clone(),
            ..RungReport::default()
        });
        self.log(Kind::Done, Some((Rung::Original, None)), BTreeMap::new(), Value::Null, Decision::Keep, reason.clone(), None)?;
        let report = self.take_first().map(|report| Box::new(Report { ladder: self.tried.clone(), ..report }));
        Ok(State::Done(End::Kept { report, reason }))
    }

    /// The entry of an earlier run that went on from this candidate.
    fn climbed(&self, candidate: &Candidate) -> Option<Entry> {
        let review = self.log.earlier(Kind::Review, candidate.rung, &candidate.label);
        review.filter(|entry| entry.decision == Decision::Climb).cloned()
    }

    fn known(&self, state: Kind, trial: &Trial) -> Option<Entry> {
        self.log.earlier(state, trial.candidate.rung, &trial.candidate.label).cloned()
    }

    fn record(&mut self, trial: &Trial, report: &Report, outcome: &str, note: &str) {
        let (rung, scheme) = (trial.candidate.rung.words(), &trial.candidate.label);
        self.tried.push(RungReport::of(rung, scheme, outcome, note, report));
    }

    fn log_review(&mut self, trial: &Trial, report: &Report, decision: Decision, reason: String) -> Result<(), S::Error> {
        let about = Some((trial.candidate.rung, Some(trial.candidate.label.clone())));
        self.log(Kind::Review, about, inputs_of(report), figures(report), decision, reason, None)
    }

    #[allow(clippy::too_many_arguments, reason = "each is one field of an entry")]
    fn log(
        &mut self,
        state: Kind,
        about: Option<(Rung, Option<String>)>,
        inputs: BTreeMap<String, String>,
        figures: Value,
        decision: Decision,
        reason: String,
        report: Option<Box<Report>>,
    ) -> Result<(), S::Error> {
        let (rung, candidate) = about.map_or((None, None), |(rung, candidate)| (Some(rung), candidate));
        let entry = self.log.add(Entry { step: 0, state, rung, candidate, inputs, figures, decision, reason, report })?;
        self.stages.decided(entry);
        Ok(())
    }
}

fn word(report: &Report) -> &'static str {
    match report.status {
        Status::Accepted | Status::FellBack => "accepted",
        Status::Refused => "refused",
        Status::Undecided => "undecided",
    }
}

/// The figures a review decides by.
fn figures(report: &Report) -> Value {
    let failed: Vec<&str> = report.gates.iter().filter(|g| g.blocking && g.outcome == Outcome::Failed).map(|g| g.name.as_str()).collect();
    let m = &report.measures;
    json!({
        "status": report.status,
        "failed": failed,
        "ppl_ratio": m.ppl.and_then(|ppl| ppl.ratio),
        "ppl_ratio_ci95": m.ppl.and_then(|ppl| ppl.ratio_ci95),
        "kl": m.kl.map(|kl| kl.mean),
        "top1": m.top1,
        "size_ratio": m.size.map(|size| size.ratio),
        "decode_speedup": m.speed.as_ref().and_then(|speed| speed.decode.ratio).map(|ratio| ratio.estimate),
        "score": report.trinity.as_ref().map(|trinity| trinity.score),
        "risk": report.risk.as_ref().map(|risk| risk.score),
    })
}

/// What a review rests on: the report's own digest.
fn inputs_of(report: &Report) -> BTreeMap<String, String> {
    let text = report.to_json().unwrap_or_default();
    BTreeMap::from([("report".to_string(), digest::of_bytes(text.as_bytes()))])
}
