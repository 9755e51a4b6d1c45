//! Inputs set aside: what is too large for a token's 8 bits is multiplied as floats (Dettmers et al., arXiv 2208.07339).
//!
//! The paper sets whole columns of a batch aside; here every token has its own, so that a token's result does not depend
//! on which others it is computed with.

use super::{Work, ints::Ints, packed::Body};
use crate::{Engine, counters::Kernel, simd::LANES};
use octet_tensor::Beside;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::Range,
};

/// Columns whose weights are floats beside the codes.
pub(crate) struct Columns {
    /// Says which columns they are: matrices that set the same ones aside share their inputs.
    pub(crate) id: u64,
    pub(crate) beside: Beside,
}

impl Columns {
    pub(crate) fn new(beside: Beside) -> Self {
        // The same in every run and process, but only compared within one.
        let mut hasher = DefaultHasher::new();
        beside.columns().hash(&mut hasher);
        Self { id: hasher.finish(), beside }
    }

    /// Bytes of the weights and their numbers.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.beside.values().len() + self.beside.columns().len())
    }

    /// Sums of what was set aside, by row.
    fn products(&self, rows: Range<usize>, values: &[(usize, f32)]) -> [f32; LANES] {
        let mut sums = [0.0; LANES];
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum = self.beside.row(row).iter().zip(values).map(|(weight, (_, value))| weight * value).sum();
        }
        sums
    }
}

/// What of a token's inputs is multiplied as floats.
#[derive(Default)]
pub(crate) struct Aside {
    /// Their columns and values.
    pub(crate) values: Vec<(usize, f32)>,
    /// The token with zeros in their place.
    rest: Vec<f32>,
}

impl Aside {
    /// Sets what is beyond `limit` aside, and gives the rest.
    pub(crate) fn split<'a>(&'a mut self, x: &'a [f32], limit: f32) -> &'a [f32] {
        self.take(x, x.iter().enumerate().filter(|(_, v)| v.abs() > limit).map(|(column, v)| (column, *v)))
    }

    /// Sets `columns` aside, and gives the rest.
    pub(crate) fn without<'a>(&'a mut self, x: &'a [f32], columns: &[u32]) -> &'a [f32] {
        self.take(x, columns.iter().map(|&column| (column as usize, x[column as usize])))
    }

    fn take<'a>(&'a mut self, x: &'a [f32], values: impl Iterator<Item = (usize, f32)>) -> &'a [f32] {
        self.values.clear();
        self.values.extend(values);
        if self.values.is_empty() {
            return x;
        }
        self.rest.clear();
        self.rest.extend_from_slice(x);
        self.values.iter().for_each(|(column, _)| self.rest[*column] = 0.0);
        &self.rest
    }
}

impl Engine {
    /// Adds the products of what was set aside; sums are taken column by column, the same on every instruction set.
    pub(super) fn add_aside(&self, work: &Work<'_>, inputs: &super::Inputs, tokens: usize) {
        let (true, Some(at)) = (work.weights.sets_aside(), work.cut.prepared) else { return };
        let (Body::Int { ints, .. } | Body::Exact(ints)) = work.weights.body() else { return };
        let columns = work.weights.columns();
        let aside = inputs.get(at).aside(tokens);
        if aside.iter().all(|aside| aside.values.is_empty()) {
            return;
        }
        self.count(Kernel::Aside);
        self.run(ints.blocks(), &|block| {
            let rows = block * LANES..ints.rows.min((block + 1) * LANES);
            for (token, aside) in aside.iter().enumerate().filter(|(_, aside)| !aside.values.is_empty()) {
                let sums = match columns {
                    Some(columns) => columns.products(rows.clone(), &aside.values),
                    None => block_products(ints, block, &aside.values),
                };
                let first = token * ints.rows;
                // SAFETY: a task has its rows to itself, and the tasks of the product are done.
                let out = unsafe { work.output.out.part(first + rows.start..first + rows.end) };
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            }
        });
    }
}

fn block_products(ints: &Ints, block: usize, values: &[(usize, f32)]) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    for &(column, value) in values {
        let weights = ints.column(block, column);
        sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += value * weight);
    }
    sums
}
