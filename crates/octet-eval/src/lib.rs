//! Judging models: perplexity, divergence, text health, speed and memory; gates and their report.
//!
//! What lives here: measurements of one model or of a pair ([`score`], [`health`], [`speed`], [`size`]), the statistics
//! that make them comparable ([`paired`], [`stats`]), pure functions from figures to gates ([`gates`]), and the
//! [`Report`] that holds both. What does not: files of models, quantization, printing.
#![forbid(unsafe_code)]

pub mod bench;
pub mod degeneration;
mod energy;
mod error;
pub mod fidelity;
pub mod gates;
pub mod health;
pub mod integrity;
pub mod machine;
pub mod memory;
mod number;
pub mod overlap;
pub mod paired;
pub mod permutation;
pub mod report;
pub mod risk;
pub mod roofline;
pub mod score;
mod sixteen_bit;
pub mod size;
pub mod speed;
pub mod stats;
pub mod text;
mod timing;
pub mod trinity;
pub mod windows;
pub mod work;

pub use error::{Error, Progress, Result};
pub use report::{Measures, Report};
pub use sixteen_bit::SixteenBit;
pub use windows::Windows;
