//! The run of a quantization as an explicit state machine: evaluate, quantize, validate, review, until something is taken,
//! a person must be asked, or the original is kept.
//!
//! The states are types, so that only the transitions of [`TRANSITIONS`] can be written down; what each state does is asked
//! of [`Stages`]; which candidate comes next is the [`ladder`]'s to say; what is taken is the [`review`]'s. Every decision
//! is logged with its reason ([`log`]), and a run that was stopped goes on in the state it was in.

pub mod graph;
pub mod ladder;
pub mod log;
pub mod review;
mod run;
mod stages;

pub use ladder::{Candidate, Choice, Facts, Rung, Step};
pub use log::{Decision, DecisionLog, Entry, Identity, LOG_FILE, read_log};
pub use review::{Policy, Question, Verdict};
pub use run::{End, Ended, Request, run};
pub use stages::{Planned, Stages};

use serde::{Deserialize, Serialize};

/// The states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The original is opened and measured; candidates are lined up.
    Evaluate,
    /// A candidate is written.
    Quantize,
    /// It is opened again and judged.
    Validate,
    /// What was found decides what follows.
    Review,
    /// A person is asked.
    Ask,
    /// The end.
    Done,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Evaluate, Self::Quantize, Self::Validate, Self::Review, Self::Ask, Self::Done];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Evaluate => "evaluate",
            Self::Quantize => "quantize",
            Self::Validate => "validate",
            Self::Review => "review",
            Self::Ask => "ask",
            Self::Done => "done",
        }
    }
}

/// Which state may follow which, and when.
pub const TRANSITIONS: &[(Kind, Kind, &str)] = &[
    (Kind::Evaluate, Kind::Quantize, "planned"),
    (Kind::Quantize, Kind::Validate, "written"),
    (Kind::Validate, Kind::Review, "judged"),
    (Kind::Review, Kind::Quantize, "refused: next rung"),
    (Kind::Review, Kind::Ask, "open"),
    (Kind::Review, Kind::Done, "clear"),
    (Kind::Ask, Kind::Done, "answered"),
];
