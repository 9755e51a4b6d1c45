//! TorchAO modules as matrices.

use super::{CODES, Config};
use crate::{
    checkpoint::{Lookup, required},
    stored::{check_rows, malformed, of_dtype, of_floats, of_module, quantized},
};
use octet_tensor::{Dtype, Granularity, Matrix, QMatrix, QuantRows, Result, Scheme, Symmetry, Tensor, WeightScheme};
use std::{num::NonZeroUsize, ops::Range};

struct Stored {
    module: String,
    scheme: Scheme,
    rows: usize,
    cols: usize,
    codes: Tensor,
    scales: Tensor,
    zeros: Option<Tensor>,
}

/// The scheme of `module`, its group read off the shape of its scales.
pub(crate) fn layout(module: &str, config: &Config, lookup: Lookup<'_>) -> Result<Scheme> {
    let (_, cols) = required(&format!("{module}{CODES}"), lookup)?.dims2()?;
    let scales = required(&format!("{module}._weight_scale"), lookup)?;
    let (_, groups) = scales.dims2()?;
    let granularity = match (groups, NonZeroUsize::new(cols / groups.max(1))) {
        (1, _) => Granularity::PerChannel,
        (_, Some(size)) if groups > 0 && cols.is_multiple_of(groups) => Granularity::Group(size),
        _ => return Err(scales.wrong_shape(format!("[outputs, groups of {cols} inputs]"))),
    };
    let symmetry = if config.symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric };
    Ok(Scheme { weights: WeightScheme::floats(config.bits, symmetry, granularity), activations: config.activations })
}

/// The matrix of a module.
pub(crate) fn matrix(module: &str, scheme: Scheme, lookup: Lookup<'_>) -> Result<Matrix> {
    let codes = required(&format!("{module}{CODES}"), lookup)?;
    let (rows, cols) = of_dtype(&codes, Dtype::I8)?.dims2()?;
    let groups = scheme.weights.groups(cols);
    let scales = of_floats(required(&format!("{module}._weight_scale"), lookup)?, &[rows, groups])?;
    let zeros = lookup(&format!("{module}._weight_zero_point"))?;
    if let Some(zeros) = &zeros
        && of_dtype(zeros, Dtype::I8)?.shape() != [rows, groups]
    {
        return Err(zeros.wrong_shape(format!("[{rows}, {groups}]")));
    }
    Ok(quantized(module, Stored { module: module.into(), scheme, rows, cols, codes, scales, zeros }))
}

impl Stored {
    fn read_zeros(&self, range: &Range<usize>, groups: usize) -> Result<Vec<i8>> {
        let stored = self.zeros.as_ref().map(|zeros| zeros.element_bytes(range.start * groups..range.end * groups));
        if self.scheme.weights.is_asymmetric() {
            return Ok(stored.map_or_else(|| vec![0; range.len() * groups], |zeros| zeros.iter().map(|&z| z as i8).collect()));
        }
        match stored.into_iter().flatten().find(|&&zero| zero != 0) {
            None => Ok(vec![]),
            Some(&zero) => {
                let what = format!("has the zero point {}, but the config says that weights are symmetric", zero as i8);
                Err(malformed(&self.module, what))
            }
        }
    }
}

impl QuantRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn scheme(&self) -> Scheme {
        self.scheme
    }

    fn stored_bytes(&self) -> usize {
        self.codes.bytes().len() + self.scales.bytes().len() + self.zeros.as_ref().map_or(0, |z| z.bytes().len())
    }

    fn release(&self, range: Range<usize>) {
        if let Some(bytes) = self.codes.bytes().slice(range.start * self.cols..range.end * self.cols) {
            bytes.release();
        }
    }

    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        check_rows(&self.module, &range, self.rows)?;
        let groups = self.scheme.weights.groups(self.cols);
        let codes = self.codes.element_bytes(range.start * self.cols..range.end * self.cols).iter().map(|&b| b as i8).collect();
        let mut scales = vec![0.0; range.len() * groups];
        self.scales.read_f32(range.start * groups, &mut scales)?;
        let zeros = self.read_zeros(&range, groups)?;
        of_module(&self.module, QMatrix::new(range.len(), self.cols, self.scheme.weights, codes, scales, self.scales.dtype(), zeros))
    }
}
