//! Dtypes, tensors, quantization schemes and the scalar mathematics of quantization: the executable
//! specification that every other crate is held to.
//!
//! What lives here: [`Dtype`] and [`Tensor`] (raw bytes with a shape, shared and never copied),
//! [`Matrix`] (a linear's weights as stored, float or quantized), [`Scheme`] (how weights and
//! activations are represented), [`QMatrix`] (codes, scales and zero points), [`BlockRows`] (weights in blocks of blocks, as GGUF has them), and the scalar functions
//! that turn one into the other. What does not: input and output, threads, `unsafe`.
#![forbid(unsafe_code)]

mod alphabet;
mod blocks;
mod bytes;
mod divergence;
mod dtype;
mod error;
mod factor;
mod float_matrix;
mod fp8;
mod matrix;
mod qmatrix;
mod quantize;
mod rounding;
mod scheme;
mod source;
mod tensor;

pub use alphabet::{Alphabet, LEVELS, Table};
pub use blocks::{BlockCode, BlockRows, Levels, RunOffsets, RunScales};
pub use bytes::{Bytes, Owner};
pub use divergence::{Divergence, kl_divergence, kl_divergence_from, log_sum_exp};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use factor::RowFactor;
pub use float_matrix::{FloatMatrix, FloatRows};
pub use fp8::e4m3_to_f32;
pub use matrix::{Matrix, QuantRows, StoredQuant};
pub use qmatrix::{Beside, QMatrix};
pub use quantize::{ActivationCodes, quantize_activations, round_code};
pub use rounding::InputRounding;
pub use scheme::{Activations, Bits, Granularity, Limit, Scales, Scheme, SchemeError, Share, Symmetry, WeightScheme};
pub use source::WeightSource;
pub use tensor::Tensor;
