//! GPTQ modules as matrices.

use super::Config;
use crate::{
    checkpoint::{Lookup, required},
    stored::{
        Decoded, check_rows, decoded, field, malformed, of_dtype, of_floats, of_module, of_words, quantized, transposed_floats, word, words,
    },
};
use octet_tensor::{
    Activations, Bits, Dtype, Error, Granularity, Matrix, QMatrix, QuantRows, Result, Scheme, StoredQuant, Symmetry, Tensor, WeightScheme,
};
use std::{num::NonZeroUsize, ops::Range, sync::Arc};

/// How a module is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub(crate) scheme: Scheme,
    pub(crate) zero_offset: u32,
    /// Whether inputs belong to groups in another order than their own (`desc_act`).
    pub(crate) ordered: bool,
}

/// A module over its stored tensors.
struct Stored {
    module: String,
    shape: Shape,
    rows: usize,
    cols: usize,
    groups: usize,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    /// The group of each input, where it is not the plain one.
    order: Option<Arc<[u32]>>,
}

/// How `module` is stored, read off the shapes of its tensors (which single modules of a checkpoint may have of their own).
pub(crate) fn layout(module: &str, config: &Config, lookup: Lookup<'_>) -> Result<Shape> {
    let codes = required(&format!("{module}.qweight"), lookup)?;
    let (lines, _) = of_words(&codes)?.dims2()?;
    let order = order(module, lookup)?;
    let cols = order.as_ref().map_or(lines * 32 / config.bits.get() as usize, Vec::len);
    let found = u32::try_from(lines * 32 / cols.max(1)).ok().and_then(Bits::new);
    let Some(bits) = found.filter(|bits| cols > 0 && (cols * bits.get() as usize).div_ceil(32) == lines) else {
        return Err(codes.wrong_shape(format!("[{cols} inputs of {} bits / 32, outputs]", config.bits.get())));
    };
    let scales = required(&format!("{module}.scales"), lookup)?;
    let (groups, _) = scales.dims2()?;
    let fits = |size: NonZeroUsize| cols.div_ceil(size.get()) == groups;
    let granularity = match (config.group.filter(|&size| fits(size)), groups) {
        (Some(size), _) => Granularity::Group(size),
        (None, 1) => Granularity::PerChannel,
        (None, _) => match NonZeroUsize::new(cols / groups.max(1)).filter(|&size| fits(size)) {
            Some(size) => Granularity::Group(size),
            None => return Err(scales.wrong_shape(format!("a group for every {:?} of {cols} inputs", config.group))),
        },
    };
    let symmetry = if config.symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric };
    let weights = WeightScheme::floats(bits, symmetry, granularity);
    let size = weights.group_size(cols);
    let ordered = order.is_some_and(|order| order.iter().enumerate().any(|(i, &group)| group as usize != i / size));
    Ok(Shape { scheme: Scheme { weights, activations: Activations::Exact }, zero_offset: config.zero_offset, ordered })
}

/// The group of each input as stored.
fn order(module: &str, lookup: Lookup<'_>) -> Result<Option<Vec<u32>>> {
    let Some(order) = lookup(&format!("{module}.g_idx"))? else { return Ok(None) };
    Ok(Some(words(of_dtype(&order, Dtype::I32)?).iter().map(|&b| u32::from_le_bytes(b)).collect()))
}

/// The matrix of a module: codes, or floats where inputs are grouped in an order of their own.
pub(crate) fn matrix(module: &str, shape: Shape, lookup: Lookup<'_>) -> Result<Matrix> {
    let stored = stored(module, shape, lookup)?;
    Ok(if stored.order.is_some() { decoded(module, Decoded(stored)) } else { quantized(module, stored) })
}

/// The codes of a module, with the group of each input where that is not the plain one.
pub(crate) fn codes(module: &str, shape: Shape, lookup: Lookup<'_>) -> Result<StoredQuant> {
    Ok(StoredQuant::new(module, Arc::new(stored(module, shape, lookup)?)))
}

fn stored(module: &str, shape: Shape, lookup: Lookup<'_>) -> Result<Stored> {
    let codes = required(&format!("{module}.qweight"), lookup)?;
    let (lines, rows) = of_words(&codes)?.dims2()?;
    let bits = shape.scheme.weights.bits.get() as usize;
    let order = order(module, lookup)?;
    let cols = order.as_ref().map_or(lines * 32 / bits, Vec::len);
    let groups = shape.scheme.weights.groups(cols);
    if lines != (cols * bits).div_ceil(32) {
        return Err(codes.wrong_shape(format!("[{}, outputs]", (cols * bits).div_ceil(32))));
    }
    let scales = of_floats(required(&format!("{module}.scales"), lookup)?, &[groups, rows])?;
    let zeros = required(&format!("{module}.qzeros"), lookup)?;
    if of_words(&zeros)?.shape() != [groups, (rows * bits).div_ceil(32)] {
        return Err(zeros.wrong_shape(format!("[{groups}, {}] zero points", (rows * bits).div_ceil(32))));
    }
    let order = order.filter(|_| shape.ordered);
    if let Some(group) = order.iter().flatten().find(|&&group| group as usize >= groups) {
        let what = format!("names group {group} of {groups}; the file is damaged, download it again");
        return Err(Error::Malformed { name: format!("{module}.g_idx"), what });
    }
    Ok(Stored { module: module.into(), shape, rows, cols, groups, codes, scales, zeros, order: order.map(Into::into) })
}

impl Stored {
    fn read_codes(&self, range: &Range<usize>) -> Vec<i8> {
        let mut codes = vec![0; range.len() * self.cols];
        match self.shape.scheme.weights.bits.get() {
            2 => self.unpack::<2>(range, &mut codes),
            3 => self.unpack::<3>(range, &mut codes),
            4 => self.unpack::<4>(range, &mut codes),
            5 => self.unpack::<5>(range, &mut codes),
            6 => self.unpack::<6>(range, &mut codes),
            7 => self.unpack::<7>(range, &mut codes),
            _ => self.unpack::<8>(range, &mut codes),
        }
        codes
    }

    /// Thirty-two inputs end where a word ends, whatever the width.
    fn unpack<const BITS: usize>(&self, range: &Range<usize>, out: &mut [i8]) {
        let words = words(&self.codes);
        let (half, mask) = (1i32 << (BITS - 1), (1u32 << BITS) - 1);
        for (run, first) in (0..self.cols).step_by(32).enumerate() {
            let inputs = 32.min(self.cols - first);
            for (row, output) in range.clone().enumerate() {
                let mut held = [0u32; 9];
                held.iter_mut().take(BITS).enumerate().for_each(|(k, w)| *w = word(words, (run * BITS + k) * self.rows + output));
                for (i, code) in out[row * self.cols + first..][..inputs].iter_mut().enumerate() {
                    let (at, shift) = (i * BITS / 32, i * BITS % 32);
                    let wide = u64::from(held[at]) | u64::from(held[at + 1]) << 32;
                    *code = (((wide >> shift) as u32 & mask) as i32 - half) as i8;
                }
            }
        }
    }

    /// Signed zero points `[range, groups]`; none for symmetric weights, whose zero points are all in the middle.
    fn read_zeros(&self, range: &Range<usize>) -> Result<Vec<i8>> {
        let (words, bits) = (words(&self.zeros), self.shape.scheme.weights.bits);
        let (line, mask) = (self.zeros.shape()[1], (1u32 << bits.get()) - 1);
        let zero = |row: usize, group: usize| {
            let stored = field(row * bits.get() as usize, bits.get(), |w| word(words, group * line + w));
            (((stored + self.shape.zero_offset) & mask) as i32 + bits.min_code()) as i8
        };
        let zeros: Vec<i8> = range.clone().flat_map(|row| (0..self.groups).map(move |group| zero(row, group))).collect();
        if self.shape.scheme.weights.is_asymmetric() {
            return Ok(zeros);
        }
        match zeros.iter().find(|&&zero| zero != 0) {
            None => Ok(vec![]),
            Some(zero) => {
                let what = format!("has a zero point {zero} off the middle, but the config says sym: true; set it to false");
                Err(malformed(&format!("{}.qzeros", self.module), what))
            }
        }
    }
}

impl QuantRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn scheme(&self) -> Scheme {
        self.shape.scheme
    }

    fn stored_bytes(&self) -> usize {
        let order = if self.order.is_some() { 4 * self.cols } else { 0 };
        self.codes.bytes().len() + self.scales.bytes().len() + self.zeros.bytes().len() + order
    }

    fn release(&self, range: Range<usize>) {
        // Rows lie across the whole file: what is given back is all of it, once the last row was read.
        if range.end == self.rows {
            self.codes.bytes().release();
        }
    }

    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        check_rows(&self.module, &range, self.rows)?;
        let (codes, zeros) = (self.read_codes(&range), self.read_zeros(&range)?);
        let scales = transposed_floats(&self.scales, &range)?;
        let made = QMatrix::new(range.len(), self.cols, self.shape.scheme.weights, codes, scales, self.scales.dtype(), zeros);
        let made = of_module(&self.module, made)?;
        match &self.order {
            Some(order) => made.with_order(order.clone()),
            None => Ok(made),
        }
    }
}
