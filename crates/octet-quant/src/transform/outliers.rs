//! Activation outliers planted on purpose: to test what is made to cope with them.

use super::move_factors;
use crate::{BlockWeights, Error};
use octet_model::{BlockGraph, InputSite, Place};
use octet_tensor::Dtype;

/// How much larger than the others planted channels are.
pub const OUTLIER: f32 = 50.0;

/// Makes max(1, 1 %) of the channels of every value that factors may move out of [`OUTLIER`] times as large, and their readers'
/// columns as much smaller: the model computes the same, with activations as large models have them (Dettmers et al., arXiv
/// 2208.07339). Gives the inputs with the channels, evenly spread.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn plant_outliers(graph: &BlockGraph, dtype: Dtype, weights: &mut BlockWeights<'_>) -> Result<Vec<(InputSite, Vec<usize>)>, Error> {
    let mut planted = vec![];
    for place in (0..graph.blocks.len()).map(Place::Layer).chain([Place::Head]) {
        for fold in graph.folds(place).folds {
            let count = (fold.channels / 100).max(1);
            let channels: Vec<usize> = (0..count).map(|i| (2 * i + 1) * fold.channels / (2 * count)).collect();
            let mut factors = vec![1.0; fold.channels];
            channels.iter().for_each(|&channel| factors[channel] = OUTLIER.recip());
            move_factors(&fold, &factors, &|_| dtype, weights)?;
            planted.extend(fold.inputs.iter().map(|input| (*input, channels.clone())));
        }
    }
    Ok(planted)
}
