//! Buffers between nodes, and spare ones.

use octet_model::graph::Slot;

/// Buffers that are free to be used again.
#[derive(Default)]
pub(crate) struct Spare(Vec<Vec<f32>>);

impl Spare {
    /// A buffer of `len` elements of any value.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        // Room is a power of two, and only what has just that is taken: where small requests took large buffers, large ones would be
        // made for the next large request, until every buffer was as large as the largest. What is never written takes no memory.
        let room = len.next_power_of_two();
        let found = self.0.iter().rposition(|buffer| buffer.capacity() == room);
        let mut buffer = found.map_or_else(|| Vec::with_capacity(room), |at| self.0.swap_remove(at));
        buffer.resize(len, 0.0);
        buffer
    }

    /// A copy of `values`.
    pub(crate) fn copy(&mut self, values: &[f32]) -> Vec<f32> {
        let mut buffer = self.take(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    /// Buffers, and the elements they have room for.
    #[cfg(test)]
    pub(crate) fn room(&self) -> (usize, usize) {
        (self.0.len(), self.0.iter().map(Vec::capacity).sum())
    }

    /// Takes a buffer back.
    pub(crate) fn give(&mut self, buffer: Vec<f32>) {
        if buffer.capacity() > 0 {
            self.0.push(buffer);
        }
    }
}

/// What every slot holds; nothing where it is empty.
#[derive(Default)]
pub(crate) struct Slots([Vec<f32>; Slot::COUNT]);

impl Slots {
    pub(crate) fn get(&self, slot: Slot) -> &[f32] {
        &self.0[slot as usize]
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> &mut Vec<f32> {
        &mut self.0[slot as usize]
    }

    /// Takes what a slot holds; it is empty then.
    pub(crate) fn take(&mut self, slot: Slot) -> Vec<f32> {
        std::mem::take(&mut self.0[slot as usize])
    }

    /// Puts a buffer in; what was there becomes spare.
    pub(crate) fn put(&mut self, slot: Slot, buffer: Vec<f32>, spare: &mut Spare) {
        spare.give(std::mem::replace(&mut self.0[slot as usize], buffer));
    }

    /// Empties all slots.
    pub(crate) fn clear(&mut self, spare: &mut Spare) {
        self.0.iter_mut().for_each(|slot| spare.give(std::mem::take(slot)));
    }
}
