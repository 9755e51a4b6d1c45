//! Recipe, plan, observe, transform, solve: one streaming pipeline.
//!
//! A [`Recipe`] (what the user asks) and an [`Inventory`] (what the checkpoint holds) make a [`Plan`]: one explicit
//! line a tensor, computed before anything is touched. A [`Run`] carries it out, a chunk of rows in memory at a time:
//! a [`Solver`] turns rows into codes, scales and zero points, a [`Sink`] takes them. A [`CalibratedRun`] does so block by
//! block, with statistics of what flows in ([`InputStatistics`]); finished blocks are durable ([`Journal`]).
//!
//! Where groups of tensors get different widths, [`SensitivityRun`] measures what each width costs each group and
//! [`allocate()`] chooses within a budget.
//!
//! What does not live here: file formats (a sink packs bytes), judging the result, hot loops.
#![forbid(unsafe_code)]

mod allocate;
mod anew;
mod asymmetric;
mod behind;
mod block_rows;
mod calibrated;
mod chunks;
mod cost;
mod error;
mod experts;
mod forecast;
mod hidden;
mod inventory;
mod observe;
mod outliers;
mod packed;
mod pipeline;
mod plan;
mod recipe;
mod report;
mod rotate;
mod rows;
mod samples;
mod sensitivity;
mod solve;
mod statistics;
mod transform;

pub use allocate::{Alternative, OverBudget, allocate, least_bytes};
pub use anew::{decoded, round_anew};
pub use asymmetric::Beyond;
pub use calibrated::{BlockWeights, CalibratedOptions, CalibratedRun, CalibrationForecast, Event, InputRecord, Journal, StageRecord};
pub use cost::{Cost, Costs, products_a_token};
pub use error::Error;
pub use experts::{EXPERT_TOKENS, fewest_expert_tokens, topped_up};
pub use forecast::{Forecast, SolveRates};
pub use hidden::{HiddenStates, InMemory};
pub use inventory::{Inventory, OtherTensor, Site};
pub use observe::{InputObserver, Want};
pub use pipeline::{Progress, Run, Sink, SinkError};
pub use plan::{Action, Line, Plan};
pub use recipe::{
    AwqSettings, DistillStep, Flags, GptqSettings, MixedStep, Precision, Recipe, RotateStep, RotationKind, SmoothSettings, SolverChoice,
    Step, Target, TransformChoice,
};
pub use report::{ErrorSums, TensorReport};
pub use rotate::{BlockRotation, EIGHT, RotationRecord, RotationRun, So8, Turned, Turns, Where};
pub use samples::Samples;
pub use sensitivity::{Effort, FusedGroup, GroupLosses, Ledger, Menu, Method, OptionLoss, Sensitivities, SensitivityRun, watch};
pub use solve::{ActOrder, BlockJob, Gptq, Hessian, HessianOptions, RowSolver, RowsMut, Rtn, Solver, TensorJob};
pub use statistics::InputStatistics;
pub use transform::{OUTLIER, Part, SampleRows, Scaling, Transform, move_factors, plant_outliers};
