//! Norms, biases and positions that learn.

use crate::{Adam, Network, ParamKind, Parameter, TuneError, Values};
use octet_kernels::Engine;
use octet_tensor::{Dtype, Tensor, WeightSource};

/// A small tensor that learns: kept exact, run as it will be stored.
pub(super) struct Small {
    pub(super) number: usize,
    pub(super) exact: Vec<f32>,
    pub(super) adam: Adam,
    dtype: Dtype,
    shape: Vec<usize>,
    plus_one: bool,
    /// Mean magnitude at the start.
    size: f32,
}

/// All small tensors of a network, as `source` stores them.
pub(super) fn of(network: &Network, source: &dyn WeightSource, values: &Values) -> Result<Vec<Small>, TuneError> {
    let mut smalls = vec![];
    for (number, parameter) in network.parameters().iter().enumerate() {
        let ParamKind::Small { plus_one } = parameter.kind else { continue };
        let Some(tensor) = source.tensor(&parameter.name)? else { continue };
        let exact = values[number].clone();
        let size = exact.iter().map(|value| value.abs()).sum::<f32>() / exact.len().max(1) as f32;
        let (dtype, shape, adam) = (tensor.dtype(), tensor.shape().to_vec(), Adam::new(exact.len()));
        smalls.push(Small { number, exact, adam, dtype, shape, plus_one, size });
    }
    Ok(smalls)
}

impl Small {
    /// What the model multiplies with and what is stored differ by this.
    fn offset(&self) -> f32 {
        f32::from(u8::from(self.plus_one))
    }

    /// The values a model runs with once they are stored.
    pub(super) fn run(&self) -> impl Iterator<Item = f32> {
        let offset = self.offset();
        self.exact.iter().map(move |&value| self.dtype.round(value - offset) + offset)
    }

    /// The tensor as it is stored.
    pub(super) fn tensor(&self, parameter: &Parameter) -> Result<Tensor, TuneError> {
        let values: Vec<f32> = self.exact.iter().map(|value| value - self.offset()).collect();
        Ok(Tensor::rounded(parameter.name.as_str(), self.dtype, self.shape.clone(), &values)?)
    }

    /// Learns from a gradient; the rate is relative to the mean magnitude.
    pub(super) fn learn(&mut self, engine: &Engine, gradient: &[f32], rate: f32, step: usize) {
        self.adam.step(engine, &mut self.exact, gradient, rate * self.size, step);
    }
}
