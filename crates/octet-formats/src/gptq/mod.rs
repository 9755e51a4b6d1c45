//! GPTQ checkpoints as AutoGPTQ and GPTQModel write them, read.
//!
//! `qweight` I32 `[inputs · bits / 32, outputs]` and `qzeros` I32 `[groups, outputs · bits / 32]` are streams of unsigned
//! codes, lowest bits first, along the inputs and along the outputs; `scales` `[groups, outputs]`; `g_idx` I32 `[inputs]`
//! names each input's group. Format 1 stores zero points less one. Source: GPTQModel 7.7 (`nn_modules/qlinear`), checked
//! against checkpoints it made.

mod config;
mod read;

pub use config::Config;
pub(crate) use config::{bits, group};
pub use read::Shape;
pub(crate) use read::{codes, layout, matrix};
