//! Recipe, plan, observe, solve: one streaming pipeline.
//!
//! A [`Recipe`] (what the user asks) and an [`Inventory`] (what the checkpoint holds) make a [`Plan`]: one explicit
//! line a tensor, computed before anything is touched. A [`Run`] carries it out, a chunk of rows in memory at a time:
//! a [`Solver`] turns rows into codes, scales and zero points, a [`Sink`] takes them. [`ImportanceObserver`] gathers
//! from calibration what solvers can use.
//!
//! What does not live here: file formats (a sink packs bytes), judging the result, hot loops of the forward pass.
#![forbid(unsafe_code)]

mod behind;
mod chunks;
mod error;
mod forecast;
mod inventory;
mod observe;
mod pipeline;
mod plan;
mod recipe;
mod report;
mod solve;
mod statistics;

pub use error::Error;
pub use forecast::{Forecast, SolveRates};
pub use inventory::{Inventory, OtherTensor, Site};
pub use observe::{Importance, ImportanceObserver, SiteImportance};
pub use pipeline::{Progress, Run, Sink, SinkError};
pub use plan::{Action, Line, Plan};
pub use recipe::{ActOrder, Flags, GptqSettings, Precision, Recipe, SolverChoice, Step, Target};
pub use report::{ErrorSums, TensorReport};
pub use solve::{RowSolver, RowsMut, Rtn, Solver, TensorJob};
pub use statistics::{Hessian, InputStatistics};
