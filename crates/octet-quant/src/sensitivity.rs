//! What each representation of each group of linears costs in quality, measured one group at a time.
//!
//! A group is what the graph fuses (q, k and v; gate and up) and so gets one scheme; embedding and head are groups of their
//! own. Its loss under a scheme is KL(original ‖ original with only this group substituted), in nats a token, over some
//! thousand calibration tokens; losses of several groups add up to about the loss of all of them together. Where measuring
//! every scheme would take too long, some are measured and the others follow from the error they leave in the weights, which
//! the divergence is proportional to for small errors (a second-order estimate with its scale measured).

mod divergence;
mod fill;
mod groups;
mod measure;
mod probe;

pub use groups::{FusedGroup, Menu};
pub use measure::{Effort, SensitivityRun};
pub(crate) use probe::survey;
pub use probe::watch;

use crate::{Alternative, report::as_text};
use octet_tensor::Scheme;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How losses were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Every scheme of every group was substituted.
    Measured,
    /// Some schemes of every group were substituted, the others follow from the error they leave.
    Anchored,
    /// One scheme of some groups was substituted; groups of the same kind follow by the error they leave.
    Estimated,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Measured => "measured by substitution",
            Self::Anchored => "some measured by substitution, the others by their second-order error",
            Self::Estimated => "estimated from second-order errors, scaled by substitution in some layers",
        })
    }
}

/// What one scheme costs one group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptionLoss {
    /// The scheme; `None`: the group stays as it is.
    #[serde(with = "as_text")]
    pub scheme: Option<Scheme>,
    /// Bytes it takes.
    pub bytes: u64,
    /// Squared error of the weights relative to the weights, inputs weighted by their mean square.
    pub error: f64,
    /// KL divergence in nats a token.
    pub loss: f64,
    /// Whether the loss was measured by substitution.
    pub measured: bool,
}

/// The losses of one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupLosses {
    /// The group.
    pub group: FusedGroup,
    /// Its schemes, as it is among them.
    pub options: Vec<OptionLoss>,
}

/// Keeps the losses of groups while others are still measured, so that a measurement that was stopped goes on where it was.
pub trait Ledger {
    /// What was kept of the group `name`.
    fn known(&self, name: &str) -> Option<GroupLosses>;

    /// Keeps the losses of a group, as measured (others may still change those that were not).
    fn keep(&self, losses: &GroupLosses);
}

/// The losses of all groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivities {
    /// How they were found.
    pub method: Method,
    /// Calibration tokens.
    pub tokens: usize,
    /// Substitutions that were run.
    pub substitutions: usize,
    /// The groups, in the model's order.
    pub groups: Vec<GroupLosses>,
}

impl Sensitivities {
    /// What an allocation chooses from. `gain` says by what factor the solver of the final model lowers the loss of a group
    /// (one that stays as it is has none).
    pub fn alternatives(&self, gain: impl Fn(&FusedGroup) -> f64) -> Vec<Vec<Alternative>> {
        let of = |group: &GroupLosses| {
            let gain = gain(&group.group);
            group.options.iter().map(|option| Alternative { bytes: option.bytes, loss: option.loss * gain }).collect()
        };
        self.groups.iter().map(of).collect()
    }

    /// Weights of all groups.
    pub fn weights(&self) -> u64 {
        self.groups.iter().map(|group| group.group.weights).sum()
    }
}
