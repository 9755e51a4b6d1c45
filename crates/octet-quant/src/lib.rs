//! Recipe, plan, observe, solve: one streaming pipeline.
#![forbid(unsafe_code)]

mod error;
mod report;
mod solve;

pub use error::Error;
pub use report::{ErrorSums, TensorReport};
pub use solve::{RowSolver, RowsMut, Rtn, Solver, TensorJob};
