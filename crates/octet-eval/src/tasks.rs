//! Task accuracy: questions with answers, multiple choice by likelihood or by exact match of what is generated.

use crate::{
    Error, Progress, Result,
    score::{negative_log_likelihood, per_row, rows_at_once, tick},
    stats::{Interval, bootstrap_ratio},
};
use octet_model::{Logits, Sequence, Step};
use octet_runtime::{GenerateOptions, TextModel, generate_batch};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What the model reads.
    pub prompt: String,
    /// Possible continuations; empty where the answer is generated.
    pub choices: Vec<String>,
    /// The right one.
    pub answer: Answer,
}

/// What is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Index of the right choice.
    Choice(usize),
    /// The first line the model writes, blanks around it aside.
    Text(String),
}

/// Questions of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSet {
    /// Where they came from.
    pub name: String,
    /// The questions.
    pub tasks: Vec<Task>,
}

/// A line of a task file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(alias = "question")]
    prompt: String,
    #[serde(default)]
    choices: Vec<String>,
    answer: serde_json::Value,
    #[serde(default, rename = "id")]
    _id: serde_json::Value,
}

impl TaskSet {
    /// Reads JSON lines: `prompt` (or `question`), `answer`, and for multiple choice `choices`, of which the answer is the
    /// index (from 0) or the text.
    ///
    /// # Errors
    /// If a line is something else; the line and what is wrong with it are named.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut tasks = vec![];
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fail = |what: String| Error::Line { path: name.into(), line: i + 1, what };
            let line: Line = serde_json::from_str(line).map_err(|e| {
                fail(format!("no question ({e}); a line is {{\"prompt\": …, \"answer\": …}}, for multiple choice with \"choices\": [ … ]"))
            })?;
            tasks.push(line.task().map_err(fail)?);
        }
        if tasks.is_empty() {
            return Err(Error::Read {
                path: name.into(),
                what: "it holds no question; give JSON lines with \"prompt\" and \"answer\"".into(),
            });
        }
        Ok(Self { name: name.into(), tasks })
    }

    /// Text that tells this set from any other.
    pub fn key(&self) -> String {
        format!("{:?}", self.tasks)
    }
}

impl Line {
    fn task(self) -> std::result::Result<Task, String> {
        let Self { prompt, choices, answer, .. } = self;
        if prompt.trim().is_empty() {
            return Err("the prompt is empty; ask something".into());
        }
        let among = |at: Option<usize>| {
            at.map(Answer::Choice)
                .ok_or_else(|| format!("the answer is none of its {} choices; give its index from 0 or its text", choices.len()))
        };
        let answer = match (&answer, choices.len()) {
            (serde_json::Value::String(text), 0) if !text.trim().is_empty() => Answer::Text(text.trim().to_string()),
            (_, 0) => return Err("the answer is no text; give one, or \"choices\"".into()),
            (_, 1) => return Err("a single choice is always right; give two or more".into()),
            (serde_json::Value::String(text), _) => among(choices.iter().position(|choice| choice.trim() == text.trim()))?,
            (other, n) => among(other.as_u64().map(|at| at as usize).filter(|&at| at < n))?,
        };
        Ok(Task { prompt, choices, answer })
    }
}

/// Which questions `model` answers rightly, in their order.
///
/// A choice is as good as its log-likelihood after the prompt divided by its bytes, so that long ones are not at a
/// disadvantage. Numbers that are not finite make an answer wrong.
///
/// # Errors
/// If a question does not fit the model's context, the model fails, or `progress` breaks off.
pub fn answers(model: &TextModel, set: &TaskSet, progress: Progress<'_>) -> Result<Vec<bool>> {
    let mut right = vec![];
    for (i, task) in set.tasks.iter().enumerate() {
        right.push(match &task.answer {
            Answer::Text(answer) => writes(model, task, answer)?,
            Answer::Choice(answer) => {
                let candidates = task.choices.iter().map(|choice| Candidate::new(model, set, i, choice));
                likeliest(model, &candidates.collect::<Result<Vec<_>>>()?)? == Some(*answer)
            }
        });
        tick(progress, i + 1, set.tasks.len())?;
    }
    Ok(right)
}

/// Tokens that `model` reads to answer the questions, and tokens that it writes at the most.
///
/// # Errors
/// As [`answers`], for questions.
pub fn tokens(model: &TextModel, set: &TaskSet) -> Result<(usize, usize)> {
    let (mut read, mut written) = (0, 0);
    for (i, task) in set.tasks.iter().enumerate() {
        if let Answer::Text(answer) = &task.answer {
            read += model.tokenizer.encode(&task.prompt, true)?.len();
            written += longest(model, answer)?;
        }
        for choice in &task.choices {
            read += Candidate::new(model, set, i, choice)?.ids.len();
        }
    }
    Ok((read, written))
}

/// A choice after its prompt, as tokens.
struct Candidate {
    ids: Vec<u32>,
    /// The first token that is not the prompt's.
    from: usize,
    bytes: usize,
}

impl Candidate {
    fn new(model: &TextModel, set: &TaskSet, task: usize, choice: &str) -> Result<Self> {
        let prompt = &set.tasks[task].prompt;
        let blank = if prompt.ends_with(char::is_whitespace) || choice.starts_with(char::is_whitespace) { "" } else { " " };
        let whole = model.tokenizer.encode(&format!("{prompt}{blank}{choice}"), true)?;
        let alone = model.tokenizer.encode(prompt, true)?;
        if whole.len() > model.context() {
            let (name, limit) = (set.name.clone(), model.context());
            let what = format!("{} tokens are more than the model's context of {limit}; shorten the question", whole.len());
            return Err(Error::Line { path: name, line: task + 1, what });
        }
        let common = whole.iter().zip(&alone).take_while(|(a, b)| a == b).count();
        let from = common.clamp(1, whole.len().saturating_sub(1).max(1));
        Ok(Self { ids: whole, from, bytes: (blank.len() + choice.len()).max(1) })
    }
}

/// The candidate with the greatest likelihood a byte; `None` where the model's numbers are not finite.
fn likeliest(model: &TextModel, candidates: &[Candidate]) -> Result<Option<usize>> {
    let vocab = model.vocab();
    let mut best = (f64::NEG_INFINITY, None);
    for (group, first) in grouped(candidates, rows_at_once(&model.model, 1)) {
        let mut sequences: Vec<Sequence> = group.iter().map(|_| model.model.new_sequence()).collect();
        let step = |(candidate, sequence)| {
            let candidate: &Candidate = candidate;
            Step { sequence, tokens: &candidate.ids[..candidate.ids.len() - 1], logits: Logits::All }
        };
        let mut steps: Vec<Step<'_>> = group.iter().zip(&mut sequences).map(step).collect();
        let mut out = vec![];
        match model.model.forward(&mut steps, &mut out, None) {
            Err(octet_model::ForwardError::NonFinite { .. }) => return Ok(None),
            other => other?,
        }
        let mut row = 0;
        for (i, candidate) in group.iter().enumerate() {
            let (start, targets) = (row + candidate.from - 1, &candidate.ids[candidate.from..]);
            let engine = model.model.engine();
            let logits = |at: usize| &out[(start + at) * vocab..(start + at + 1) * vocab];
            let nll = per_row(engine, targets.len(), |at| negative_log_likelihood(engine, logits(at), targets[at]));
            let likelihood = -nll.iter().sum::<f64>() / candidate.bytes as f64;
            if likelihood > best.0 {
                best = (likelihood, Some(first + i));
            }
            row += candidate.ids.len() - 1;
        }
    }
    Ok(best.1)
}

/// Runs of candidates with at most `rows` tokens together (or a single one), each with the index of its first.
fn grouped(candidates: &[Candidate], rows: usize) -> Vec<(&[Candidate], usize)> {
    let (mut groups, mut first, mut sum) = (vec![], 0, 0);
    for (i, candidate) in candidates.iter().enumerate() {
        if i > first && sum + candidate.ids.len() > rows {
            groups.push((&candidates[first..i], first));
            (first, sum) = (i, 0);
        }
        sum += candidate.ids.len();
    }
    groups.push((&candidates[first..], first));
    groups
}

/// Tokens a generated answer may have beyond those of the right one.
const SPARE: usize = 4;

/// Tokens that are written to find out whether they are `answer`.
fn longest(model: &TextModel, answer: &str) -> Result<usize> {
    Ok(model.tokenizer.encode(answer, false)?.len() + SPARE)
}

/// Whether the first line `model` writes after the prompt is `answer`.
fn writes(model: &TextModel, task: &Task, answer: &str) -> Result<bool> {
    let prompt = model.tokenizer.encode(&task.prompt, true)?;
    let max_tokens = longest(model, answer)?;
    let options = GenerateOptions { max_tokens, ..GenerateOptions::default() };
    match generate_batch(model, &[prompt], &options, &mut |_| ControlFlow::Continue(())) {
        Err(error) if error.is_non_finite() => Ok(false),
        Err(error) => Err(error.into()),
        Ok(texts) => Ok(texts.first().is_some_and(|text| text.text.trim_start().lines().next().is_some_and(|line| line.trim() == answer))),
    }
}

/// Accuracy of both models on the same questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskFigures {
    /// Where the questions came from.
    pub name: String,
    /// Questions.
    pub questions: usize,
    /// Share the original answers rightly.
    pub base: f64,
    /// Share the quantized model answers rightly.
    pub quant: f64,
    /// `base` − `quant`.
    pub drop: f64,
    /// Paired 95 % interval of `drop`.
    pub drop_ci95: Option<[f64; 2]>,
}

impl TaskFigures {
    /// The figures from what both models answered rightly.
    ///
    /// The interval is a bootstrap over questions with one made-up question more that only the original answers and one
    /// that only the quantized model does (Agresti and Min 2005, "Simple improved confidence intervals for comparing
    /// matched proportions"), so that a set without a difference still leaves room for one.
    pub fn of(name: &str, base: &[bool], quant: &[bool], seed: u64) -> (Self, Option<Interval>) {
        let share = |right: &[bool]| right.iter().filter(|r| **r).count() as f64 / right.len().max(1) as f64;
        let difference = |(b, q): (&bool, &bool)| (f64::from(u8::from(*b)) - f64::from(u8::from(*q)), 1.0);
        let blocks: Vec<(f64, f64)> = base.iter().zip(quant).map(difference).chain([(1.0, 1.0), (-1.0, 1.0)]).collect();
        let (base_share, quant_share) = (share(base), share(quant));
        let drop = base_share - quant_share;
        let interval = bootstrap_ratio(&blocks, seed).map(|i| Interval { estimate: drop, ..i });
        let figures = Self {
            name: name.into(),
            questions: base.len(),
            base: base_share,
            quant: quant_share,
            drop,
            drop_ci95: interval.map(|i| i.ci95()),
        };
        (figures, interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gates::{self, Outcome, Thresholds};
    use octet_runtime::Rng;

    #[test]
    fn lines_are_questions_or_say_what_is_wrong() {
        let set = TaskSet::parse(
            "t",
            "{\"prompt\": \"a\", \"choices\": [\" x\", \" y\"], \"answer\": \"y\"}\n\n{\"question\": \"b\", \"answer\": \" z \"}",
        )
        .unwrap();
        assert_eq!((&set.tasks[0].answer, &set.tasks[1].answer), (&Answer::Choice(1), &Answer::Text("z".into())));
        for (line, says) in [
            ("nonsense", "no question"),
            ("{\"prompt\": \"a\"}", "no question"),
            ("{\"prompt\": \" \", \"answer\": \"x\"}", "empty"),
            ("{\"prompt\": \"a\", \"answer\": 3}", "no text"),
            ("{\"prompt\": \"a\", \"choices\": [\"x\"], \"answer\": 0}", "single"),
            ("{\"prompt\": \"a\", \"choices\": [\"x\", \"y\"], \"answer\": 2}", "none of its 2"),
            ("{\"prompt\": \"a\", \"choices\": [\"x\", \"y\"], \"answer\": \"q\"}", "none of its 2"),
        ] {
            let error = TaskSet::parse("t", line).unwrap_err().to_string();
            assert!(error.starts_with("t, line 1: ") && error.contains(says), "{error}");
        }
        assert!(TaskSet::parse("t", "\n").unwrap_err().to_string().contains("holds no question"));
    }

    #[test]
    fn drops_are_paired() {
        let mut rng = Rng::new(1);
        let base: Vec<bool> = (0..600).map(|_| rng.unit() < 0.6).collect();
        let (same, interval) = TaskFigures::of("t", &base, &base, 1);
        assert!(same.drop == 0.0 && interval.is_some_and(|i| i.high < 0.01 && i.low > -0.01), "{interval:?}");
        let outcome = |figures: &TaskFigures, interval| gates::tasks(figures, interval, &Thresholds::default()).outcome;
        assert_eq!(outcome(&same, interval), Outcome::Passed);
        let worse: Vec<bool> = base.iter().map(|&right| right && rng.unit() < 0.8).collect();
        let (figures, interval) = TaskFigures::of("t", &base, &worse, 1);
        assert!((0.08..0.17).contains(&figures.drop));
        assert_eq!(outcome(&figures, interval), Outcome::Failed);
        let (few, interval) = TaskFigures::of("t", &base[..40], &base[..40], 1);
        assert_eq!(outcome(&few, interval), Outcome::Undecided);
    }

    #[test]
    fn candidates_are_grouped_by_tokens() {
        let candidate = |n: usize| Candidate { ids: vec![0; n], from: 1, bytes: 1 };
        let all = [candidate(5), candidate(5), candidate(20), candidate(1)];
        let sizes: Vec<(usize, usize)> = grouped(&all, 10).iter().map(|(group, first)| (group.len(), *first)).collect();
        assert_eq!(sizes, [(2, 0), (1, 2), (1, 3)]);
    }
}
