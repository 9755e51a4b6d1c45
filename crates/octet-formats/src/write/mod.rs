//! Writing matrices of codes as other tools lay them out.
//!
//! [`Format::fit`] says how a format would store a matrix, or why it cannot hold it; [`tensor_specs`] which tensors that makes;
//! an [`Encoder`] turns rows into their bytes. Codes, zero points and scales are the ones given: nothing is rounded here, and what
//! would have to be is refused.

mod config;
mod encoder;
mod fit;

pub use config::{Described, quantization_config};
pub use encoder::{Encoder, tensor_specs};
pub use fit::{Fit, Format, Given};

use crate::{Error, Result};
use half::{bf16, f16};
use octet_tensor::Dtype;

/// Bytes of a stored tensor, to be written at an offset of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The tensor's name.
    pub tensor: String,
    /// Where in the tensor the bytes go.
    pub offset: usize,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Numbers in a floating-point type, each rounded to the nearest it holds.
///
/// # Errors
/// If the type is not one of F32, F16 and BF16.
pub fn floats(module: &str, values: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(values.len() * dtype.size());
    put_floats(module, values.iter().copied(), dtype, &mut out)?;
    Ok(out)
}

/// Appends numbers in a floating-point type.
pub(crate) fn put_floats(module: &str, values: impl Iterator<Item = f32>, dtype: Dtype, out: &mut Vec<u8>) -> Result<()> {
    match dtype {
        Dtype::F32 => values.for_each(|v| out.extend(v.to_le_bytes())),
        Dtype::F16 => values.for_each(|v| out.extend(f16::from_f32(v).to_le_bytes())),
        Dtype::Bf16 => values.for_each(|v| out.extend(bf16::from_f32(v).to_le_bytes())),
        other => return Err(Error::Encode { module: module.into(), what: format!("its numbers are {other}, expected F32, F16 or BF16") }),
    }
    Ok(())
}
