//! Where the hidden states of all calibration tokens wait between blocks.

use crate::SinkError;

/// The residual stream of every calibration token `[tokens, hidden]`, read and written in order, in place.
pub trait HiddenStates {
    /// Reads values from `offset` on.
    ///
    /// # Errors
    /// Whatever keeps it from reading.
    fn read(&mut self, offset: usize, out: &mut [f32]) -> Result<(), SinkError>;

    /// Writes values from `offset` on.
    ///
    /// # Errors
    /// Whatever keeps it from writing, a full disk above all.
    fn write(&mut self, offset: usize, values: &[f32]) -> Result<(), SinkError>;
}

/// Hidden states in memory.
#[derive(Debug, Default)]
pub struct InMemory(Vec<f32>);

impl InMemory {
    /// Room for so many values.
    pub fn new(values: usize) -> Self {
        Self(vec![0.0; values])
    }
}

impl HiddenStates for InMemory {
    fn read(&mut self, offset: usize, out: &mut [f32]) -> Result<(), SinkError> {
        out.copy_from_slice(self.0.get(offset..offset + out.len()).ok_or("hidden states out of range")?);
        Ok(())
    }

    fn write(&mut self, offset: usize, values: &[f32]) -> Result<(), SinkError> {
        self.0.get_mut(offset..offset + values.len()).ok_or("hidden states out of range")?.copy_from_slice(values);
        Ok(())
    }
}
