//! The buffers of a pass: hidden states and everything between the nodes, one row a token.

use crate::{graph::Slot, rope::Rope, spec::ArchSpec};

/// A run of tokens of one sequence within a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Position of its first token in its sequence.
    pub position: usize,
    /// How many tokens.
    pub tokens: usize,
    /// How long the sequence will be after the call it belongs to (some rotary embeddings depend on it).
    pub total: usize,
}

/// The buffers of a pass; made once, reused by every pass.
pub struct Workspace {
    slots: [Vec<f32>; Slot::COUNT],
    ropes: Vec<Turns>,
    pub(crate) ids: Vec<u32>,
    pub(crate) spans: Vec<Span>,
    pub(crate) routes: crate::experts::Routes,
    rows: usize,
}

/// A rotary embedding, its frequencies and the table of this pass.
struct Turns {
    rope: Rope,
    short: Vec<f32>,
    long: Vec<f32>,
    table: Vec<f32>,
}

impl Workspace {
    /// Empty buffers for a model.
    pub fn new(spec: &ArchSpec) -> Self {
        let turns =
            |rope: &Rope| Turns { short: rope.frequencies(0), long: rope.frequencies(usize::MAX), rope: rope.clone(), table: Vec::new() };
        Self {
            slots: Default::default(),
            ropes: spec.ropes().iter().map(turns).collect(),
            ids: Vec::new(),
            spans: Vec::new(),
            routes: Default::default(),
            rows: 0,
        }
    }

    /// Starts a pass over `spans`, whose tokens are `ids` one span after the other.
    ///
    /// `ids` may be empty when the hidden states are put in with [`Workspace::set_hidden`] instead of by an embedding.
    pub fn begin(&mut self, ids: &[u32], spans: &[Span]) {
        self.ids.clear();
        self.ids.extend_from_slice(ids);
        self.spans.clear();
        self.spans.extend_from_slice(spans);
        self.rows = spans.iter().map(|s| s.tokens).sum();
        for turns in &mut self.ropes {
            turns.table.clear();
            for span in spans {
                let far = turns.rope.switches_at().is_some_and(|limit| span.total > limit);
                let frequencies = if far { &turns.long } else { &turns.short };
                turns.rope.append_table(frequencies, span.position..span.position + span.tokens, &mut turns.table);
            }
        }
    }

    /// Rows (tokens) of this pass.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The residual stream `[rows, hidden]`.
    pub fn hidden(&self) -> &[f32] {
        self.slot(Slot::Hidden)
    }

    /// Puts hidden states `[rows, hidden]` in, as an earlier block left them.
    pub fn set_hidden(&mut self, values: &[f32]) {
        let hidden = &mut self.slots[Slot::Hidden as usize];
        hidden.clear();
        hidden.extend_from_slice(values);
    }

    /// The logits `[rows, vocab]` that the head left.
    pub fn logits(&self) -> &[f32] {
        self.slot(Slot::Logits)
    }

    /// Keeps these rows of the residual stream (ascending) and drops the others: what comes before a head that only
    /// some tokens need.
    pub fn keep_rows(&mut self, rows: &[usize]) {
        let width = self.hidden().len() / self.rows.max(1);
        let hidden = &mut self.slots[Slot::Hidden as usize];
        for (to, &from) in rows.iter().enumerate() {
            hidden.copy_within(from * width..(from + 1) * width, to * width);
        }
        hidden.truncate(rows.len() * width);
        self.rows = rows.len();
    }

    pub(crate) fn slot(&self, slot: Slot) -> &[f32] {
        &self.slots[slot as usize]
    }

    /// Takes a buffer out, to be put back with [`Workspace::put`].
    pub(crate) fn take(&mut self, slot: Slot) -> Vec<f32> {
        std::mem::take(&mut self.slots[slot as usize])
    }

    pub(crate) fn take_sized(&mut self, slot: Slot, len: usize) -> Vec<f32> {
        let mut buffer = self.take(slot);
        buffer.resize(len, 0.0);
        buffer
    }

    pub(crate) fn put(&mut self, slot: Slot, buffer: Vec<f32>) {
        self.slots[slot as usize] = buffer;
    }

    pub(crate) fn swap_logits(&mut self, other: &mut Vec<f32>) {
        std::mem::swap(&mut self.slots[Slot::Logits as usize], other);
    }

    pub(crate) fn rope_table(&self, rope: usize) -> &[f32] {
        &self.ropes[rope].table
    }

    /// Bytes the buffers hold.
    pub fn bytes(&self) -> usize {
        4 * (self.slots.iter().map(Vec::capacity).sum::<usize>() + self.ropes.iter().map(|t| t.table.capacity()).sum::<usize>())
    }
}
