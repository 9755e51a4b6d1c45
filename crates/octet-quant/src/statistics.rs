//! What calibration tells solvers and transforms about a linear's input.

use crate::{Error, asymmetric::Beyond};
use octet_kernels::InputMoments;
use octet_model::{InputSite, Place};

/// What calibration tells about one linear input; every vector has a number for each input.
#[derive(Clone, Debug, Default)]
pub struct InputStatistics {
    /// Tokens seen.
    pub tokens: usize,
    /// Mean of x².
    pub mean_square: Vec<f32>,
    /// Mean of |x|.
    pub mean_abs: Vec<f32>,
    /// Largest |x|.
    pub max_abs: Vec<f32>,
    /// All second moments, where a solver asked for them.
    pub moments: Option<InputMoments>,
    /// How the original's inputs differ, where a solver asked for that.
    pub beyond: Option<Beyond>,
}

/// The least importance an input can have, of the mean.
pub(crate) const FLOOR: f64 = 1e-3;

impl InputStatistics {
    /// Mean square of each input divided by the mean of them all, and no less than a thousandth: text that leaves an input
    /// dark must not make its weights worthless. All ones where nothing flowed in.
    pub fn importance(&self) -> Vec<f32> {
        let mean = self.mean_square.iter().map(|&v| f64::from(v)).sum::<f64>() / self.mean_square.len().max(1) as f64;
        let live = mean > 0.0 && mean.is_finite();
        self.mean_square.iter().map(|&v| if live { (f64::from(v) / mean).max(FLOOR) as f32 } else { 1.0 }).collect()
    }

    /// Inputs that were zero on every token.
    pub fn dead(&self) -> usize {
        self.max_abs.iter().filter(|&&v| v == 0.0).count()
    }

    /// Inputs that were beyond 6 on some token (Dettmers et al., arXiv 2208.07339).
    pub fn outliers(&self) -> usize {
        self.max_abs.iter().filter(|&&v| v > octet_tensor::Limit::USUAL.get()).count()
    }

    /// Refuses what is not finite.
    ///
    /// # Errors
    /// If a value that flowed in was infinite or not a number; `site` is named.
    pub fn check(&self, site: InputSite) -> Result<(), Error> {
        let place = site.layer.map_or(Place::Head, Place::Layer);
        let finite = self.mean_square.iter().chain(&self.max_abs).all(|v| v.is_finite());
        if finite { Ok(()) } else { Err(Error::NonFiniteInput { place: place.to_string(), input: site.to_string() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_model::InputKind;

    #[test]
    fn importance_is_relative_and_has_a_floor() {
        let seen = InputStatistics { mean_square: vec![2.0, 0.0, 6.0], max_abs: vec![1.0, 0.0, 3.0], ..Default::default() };
        assert_eq!(seen.importance(), [0.75, 1e-3, 2.25]);
        assert_eq!((seen.dead(), seen.outliers()), (1, 0));
        let dark = InputStatistics { mean_square: vec![0.0; 2], ..Default::default() };
        assert_eq!(dark.importance(), [1.0, 1.0]);
    }

    #[test]
    fn values_that_are_not_finite_are_refused_with_their_place() {
        let site = InputSite { layer: Some(3), kind: InputKind::MlpDown };
        let seen = InputStatistics { mean_square: vec![1.0, f32::NAN], ..Default::default() };
        let error = seen.check(site).unwrap_err().to_string();
        assert!(error.contains("layer 3 mlp activations"), "{error}");
        assert!(InputStatistics { mean_square: vec![1.0], ..Default::default() }.check(site).is_ok());
    }
}
