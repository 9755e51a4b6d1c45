//! Some of the rows that flow into linears, to try factors on.

use crate::{InputObserver, observe::Watch};
use octet_model::{InputSite, Tap};
use std::collections::{BTreeMap, BTreeSet};

/// Most rows kept of an input.
pub(crate) const SAMPLE_ROWS: usize = 512;

/// Rows of one input, evenly spread over everything that flowed in.
#[derive(Clone, Debug)]
pub struct SampleRows {
    /// The rows `[rows, cols]`.
    pub values: Vec<f32>,
    cols: usize,
    /// Every so many rows one is kept.
    stride: usize,
    seen: usize,
}

impl SampleRows {
    fn new(cols: usize) -> Self {
        Self { values: vec![], cols: cols.max(1), stride: 1, seen: 0 }
    }

    /// Values of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.cols
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn add(&mut self, row: &[f32]) {
        if self.seen.is_multiple_of(self.stride) {
            if self.len() == SAMPLE_ROWS {
                // Every second one goes, so that what remains is as if the stride had been twice as long all along.
                let cols = self.cols;
                let mut next = 0;
                self.values.retain(|_| {
                    next += 1;
                    ((next - 1) / cols).is_multiple_of(2)
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.values.extend_from_slice(row);
            }
        }
        self.seen += 1;
    }
}

/// Gathers statistics and rows together.
pub(crate) struct Sampler<'a> {
    statistics: InputObserver<'a>,
    wanted: BTreeSet<InputSite>,
    rows: BTreeMap<InputSite, SampleRows>,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(statistics: InputObserver<'a>, wanted: BTreeSet<InputSite>) -> Self {
        Self { statistics, wanted, rows: BTreeMap::new() }
    }

    pub(crate) fn finish(self) -> (BTreeMap<InputSite, crate::InputStatistics>, BTreeMap<InputSite, SampleRows>) {
        (self.statistics.finish(), self.rows)
    }
}

impl Watch for Sampler<'_> {}

impl Tap for Sampler<'_> {
    fn input(&mut self, site: InputSite, x: &[f32], tokens: usize) {
        self.statistics.input(site, x, tokens);
        if x.is_empty() || !self.wanted.contains(&site) {
            return;
        }
        let cols = x.len() / tokens.max(1);
        let rows = self.rows.entry(site).or_insert_with(|| SampleRows::new(cols));
        x.chunks_exact(cols.max(1)).for_each(|row| rows.add(row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_evenly_spread_however_many_flow_in() {
        for total in [1, 511, 512, 513, 1024, 5000, 40_000] {
            let mut rows = SampleRows::new(2);
            (0..total).for_each(|i| rows.add(&[i as f32, -(i as f32)]));
            assert!(rows.len() == total.min(SAMPLE_ROWS) || rows.len() > SAMPLE_ROWS / 2, "{} of {total}", rows.len());
            assert!(rows.len() <= SAMPLE_ROWS);
            for (i, row) in rows.values.chunks(2).enumerate() {
                assert_eq!(row, [(i * rows.stride) as f32, -((i * rows.stride) as f32)]);
            }
            assert!((rows.len()) * rows.stride >= total, "the end is covered");
        }
    }
}
