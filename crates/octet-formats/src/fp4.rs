//! E2M1 weights, two a byte, the earlier in the low nibble: MXFP4 and NVFP4.
//!
//! Twice an E2M1 number is a whole number from −12 to 12, so both run on the kernels of integers, exactly. Sources: OCP
//! Microscaling Formats 1.0, section 5.3.3; compressed-tensors 0.20 (`nvfp4-pack-quantized`).

use crate::stored::{check_rows, e2m1_doubled, e8m0, of_dtype, of_module, quantized};
use octet_tensor::{Activations, Bits, Dtype, Granularity, Matrix, QMatrix, QuantRows, Result, Scheme, Symmetry, Tensor, WeightScheme};
use std::{num::NonZeroUsize, ops::Range};

/// Which kind of scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fp4 {
    /// A power of two for 32 inputs.
    Mx,
    /// An E4M3 number for 16 inputs, divided by one number for the whole matrix.
    Nv { global: f32 },
}

/// The scheme that weights have in the kernels.
pub(crate) fn scheme(is_mx: bool) -> Scheme {
    // Codes of five bits are stored in runs of 32 inputs; groups of 16 would be filled up to that.
    let (bits, size) = if is_mx { (Bits::new(5).unwrap_or(Bits::B8), 32) } else { (Bits::B8, 16) };
    let granularity = NonZeroUsize::new(size).map_or(Granularity::PerChannel, Granularity::Group);
    Scheme { weights: WeightScheme::floats(bits, Symmetry::Symmetric, granularity), activations: Activations::Exact }
}

struct Stored {
    module: String,
    rows: usize,
    cols: usize,
    nibbles: Tensor,
    scales: Tensor,
    kind: Fp4,
}

/// The matrix whose nibbles are `[outputs, inputs / 2]` bytes.
pub(crate) fn matrix(module: &str, nibbles: Tensor, scales: Tensor, kind: Fp4) -> Result<Matrix> {
    let (rows, pairs) = of_dtype(&nibbles, Dtype::U8)?.dims2()?;
    let cols = pairs.checked_mul(2).ok_or_else(|| nibbles.wrong_shape("[outputs, inputs / 2]"))?;
    let groups = scheme(kind == Fp4::Mx).weights.groups(cols);
    let dtype = if kind == Fp4::Mx { Dtype::U8 } else { Dtype::F8E4m3 };
    if of_dtype(&scales, dtype)?.shape() != [rows, groups] {
        return Err(scales.wrong_shape(format!("[{rows}, {groups}]")));
    }
    Ok(quantized(module, Stored { module: module.into(), rows, cols, nibbles, scales, kind }))
}

impl QuantRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn scheme(&self) -> Scheme {
        scheme(self.kind == Fp4::Mx)
    }

    fn stored_bytes(&self) -> usize {
        self.nibbles.bytes().len() + self.scales.bytes().len()
    }

    fn release(&self, range: Range<usize>) {
        if let Some(bytes) = self.nibbles.bytes().slice(range.start * self.cols / 2..range.end * self.cols / 2) {
            bytes.release();
        }
    }

    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        check_rows(&self.module, &range, self.rows)?;
        let bytes = self.nibbles.element_bytes(range.start * self.cols / 2..range.end * self.cols / 2);
        let codes = bytes.iter().flat_map(|&byte| [e2m1_doubled(byte & 15), e2m1_doubled(byte >> 4)]).collect();
        let weights = self.scheme().weights;
        let groups = weights.groups(self.cols);
        let mut scales = vec![0.0; range.len() * groups];
        match self.kind {
            Fp4::Mx => {
                let bytes = self.scales.element_bytes(range.start * groups..range.end * groups);
                scales.iter_mut().zip(bytes).for_each(|(scale, &byte)| *scale = e8m0(byte) / 2.0);
            }
            Fp4::Nv { global } => {
                self.scales.read_f32(range.start * groups, &mut scales)?;
                scales.iter_mut().for_each(|scale| *scale = *scale / global / 2.0);
            }
        }
        of_module(&self.module, QMatrix::new(range.len(), self.cols, weights, codes, scales, Dtype::F32, vec![]))
    }
}
