//! AWQ (Lin et al., arXiv 2306.00978, section 3.2): inputs that are large on average get finer weights.

use super::{Part, readers::Readers, scaling::centred};
use crate::{Error, recipe::AwqSettings};

/// Factors are no smaller than this before they are centred.
const LEAST: f32 = 1e-4;

impl AwqSettings {
    /// The factors that leave the least error of the readers' outputs, none at all (ratio 0) among the candidates.
    pub(super) fn find(self, part: &mut Part<'_, '_>, readers: &Readers<'_>) -> Result<Option<(Vec<f32>, String)>, Error> {
        let inputs = readers.mean_inputs();
        let weights = if self.duo { mean_weights(readers) } else { vec![1.0; inputs.len()] };
        let without = readers.error(part.engine, None)?;
        let mut best: Option<(f64, f64, Vec<f32>)> = None;
        for point in 0..self.grid {
            (part.tick)()?;
            let ratio = point as f64 / self.grid as f64;
            if !self.duo && point == 0 {
                continue;
            }
            let factor = |(input, weight): (&f32, &f32)| {
                let weight = if self.duo { f64::from(*weight).powf(1.0 - ratio) + f64::from(LEAST) } else { 1.0 };
                ((f64::from(*input).powf(ratio) / weight) as f32).max(LEAST)
            };
            let Some(factors) = centred(inputs.iter().zip(&weights).map(factor).collect()) else { continue };
            let error = readers.error(part.engine, Some(&factors))?;
            if error < best.as_ref().map_or(without, |best| best.0) {
                best = Some((error, ratio, factors));
            }
        }
        Ok(best.map(|(error, ratio, factors)| (factors, format!("awq ratio {ratio:.2}, output error {without:.2e} -> {error:.2e}"))))
    }
}

/// Mean over all rows of |w| as a share of the largest in its group.
fn mean_weights(readers: &Readers<'_>) -> Vec<f32> {
    let rows: usize = readers.all.iter().map(|reader| reader.site.rows).sum();
    let of_reader: Vec<Vec<f32>> = readers
        .all
        .iter()
        .map(|reader| {
            let (cols, mut sums) = (reader.site.cols.max(1), vec![0f64; reader.site.cols]);
            let size = reader.planned.scheme.weights.group_size(cols);
            for row in reader.weights.chunks_exact(cols) {
                for (weights, sums) in row.chunks(size).zip(sums.chunks_mut(size)) {
                    let most = weights.iter().fold(0f32, |most, w| most.max(w.abs())).max(f32::MIN_POSITIVE);
                    sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += f64::from(w.abs() / most));
                }
            }
            sums.into_iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect()
        })
        .collect();
    let shares = |reader: usize, column: usize| of_reader[reader][column];
    let index = |site: &str| readers.all.iter().position(|reader| reader.site.module == site).unwrap_or(0);
    readers.channels(0.0, |reader, column| shares(index(&reader.site.module), column), |sum, value| sum + value)
}
