//! Training on the block graph.
//!
//! [`Network`] is the graph of a model with its parameters numbered; [`Trainer`] runs batches of tokens through it and
//! back, node by node, in f32. It knows dense weights only, and gives the gradient of every parameter that is wanted.
//! Gradients of anything a weight is made from (scales, rounded codes, an adapter's factors) follow from those of the
//! weight: [`QuantParam`] does that for quantized matrices, with codes rounded straight through.
//! On top stands [`Distiller`]: a quantized model learns from the original, block by block from what those leave and as a whole from
//! the logits.
//!
//! What it does not know: file formats, how a model was quantized, and whether the result is any good.
#![forbid(unsafe_code)]

mod adam;
mod backward;
mod batch;
mod distill;
mod error;
mod forward;
mod network;
mod parallel;
mod quant;
mod slots;
mod trainer;

pub use adam::{Adam, Rule};
pub use batch::Batch;
pub use distill::{Distilled, Distiller, Needs, Progress, Settings, Text, Watch, needs};
pub use error::TuneError;
pub use network::{Network, ParamKind, Parameter, TrainLinear, TrainNode};
pub use quant::{Learning, QuantParam};
pub use trainer::{Gradients, Keep, Lesson, Trainer, Values};
