//! SmoothQuant (Xiao et al., arXiv 2211.10438, section 4): what makes inputs hard to quantize moves into the weights.

use super::{Part, readers::Readers, scaling::centred};
use crate::{
    Error,
    recipe::{ALPHAS, SmoothSettings},
};

/// Factors are no smaller than this before they are centred.
const LEAST: f32 = 1e-5;

impl SmoothSettings {
    /// The factors of the strength that was given, or of the one that leaves the least error of the readers' outputs when
    /// inputs and weights are quantized; no smoothing is a candidate of the search.
    pub(super) fn find(self, part: &mut Part<'_, '_>, readers: &Readers<'_>) -> Result<Option<(Vec<f32>, String)>, Error> {
        let inputs = readers.largest_inputs();
        let columns: Vec<Vec<f32>> = readers.all.iter().map(|reader| largest_weights(&reader.weights, reader.site.cols)).collect();
        let index = |site: &str| readers.all.iter().position(|reader| reader.site.module == site).unwrap_or(0);
        let weights = readers.channels(0.0, |reader, column| columns[index(&reader.site.module)][column], |most, value| most.max(value));
        let factors = |alpha: f64| {
            let factor = |(input, weight): (&f32, &f32)| {
                // A channel without inputs or weights has nothing to move.
                let live = *input > 0.0 && *weight > 0.0;
                let factor = f64::from(*input).powf(alpha) / f64::from(*weight).powf(1.0 - alpha);
                live.then_some((factor as f32).max(LEAST))
            };
            let found: Vec<Option<f32>> = inputs.iter().zip(&weights).map(factor).collect();
            let live = centred(found.iter().flatten().copied().collect())?;
            let mut live = live.into_iter();
            Some(found.iter().map(|factor| factor.and_then(|_| live.next()).unwrap_or(1.0)).collect::<Vec<f32>>())
        };
        let without = readers.error(part.engine, None)?;
        let mut best: Option<(f64, f64, Vec<f32>)> = None;
        for alpha in self.alpha.as_ref().map_or(&ALPHAS[..], std::slice::from_ref) {
            (part.tick)()?;
            let Some(factors) = factors(*alpha) else { continue };
            let error = readers.error(part.engine, Some(&factors))?;
            if self.alpha.is_some() || error < best.as_ref().map_or(without, |best| best.0) {
                best = Some((error, *alpha, factors));
            }
        }
        Ok(best.map(|(error, alpha, factors)| (factors, format!("smoothed with alpha {alpha}, output error {without:.2e} -> {error:.2e}"))))
    }
}

/// Largest |w| of every column.
fn largest_weights(weights: &[f32], cols: usize) -> Vec<f32> {
    let mut most = vec![0f32; cols];
    for row in weights.chunks_exact(cols.max(1)) {
        most.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs()));
    }
    most
}
