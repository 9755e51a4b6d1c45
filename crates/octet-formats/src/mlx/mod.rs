//! MLX checkpoints, read: affine codes of 2 to 8 bits, and MXFP4.
//!
//! `weight` U32 `[outputs, inputs · bits / 32]`, a stream along the inputs, lowest bits first; `scales` and `biases`
//! `[outputs, groups]`: w = scale · code + bias. In the mode `mxfp4` codes are E2M1 numbers and `scales` are powers of two (E8M0).
//! Embedding and head may be stored so too. Source: MLX 0.32 (`mx.quantize`) and mlx-lm 0.32, checked against checkpoints it made.

mod config;
mod read;

pub use config::{Config, Form, Shape};
pub(crate) use read::matrix;
