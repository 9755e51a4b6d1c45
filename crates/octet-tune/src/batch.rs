//! Tokens that go through a network together.

use octet_model::rope::Rope;
use std::ops::Range;

/// Sequences of tokens, each seen from its first token on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    lengths: Vec<usize>,
}

impl Batch {
    /// The sequences, one after the other.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            batch.ids.extend_from_slice(sequence);
            batch.lengths.push(sequence.len());
        }
        batch
    }

    /// All tokens.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens of every sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Tokens in all.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Positions of all tokens in their sequences.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> {
        self.lengths.iter().flat_map(|&length| 0..length)
    }

    /// The tables by which a rotary embedding turns every token, and turns it back.
    pub(crate) fn turns(&self, rope: &Rope) -> Turns {
        let mut table = vec![];
        for &length in &self.lengths {
            rope.append_table(&rope.frequencies(length), 0..length, &mut table);
        }
        let mut back = table.clone();
        let half = rope.dims / 2;
        for sines in back.chunks_exact_mut(rope.dims.max(1)).map(|row| &mut row[half..]) {
            sines.iter_mut().for_each(|sine| *sine = -*sine);
        }
        Turns { table, back }
    }
}

/// What a rotary embedding turns tokens by.
pub(crate) struct Turns {
    pub(crate) table: Vec<f32>,
    pub(crate) back: Vec<f32>,
}

/// Runs of at most `step` rows.
pub(crate) fn runs(rows: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(step.max(1)).map(move |start| start..rows.min(start + step))
}
