//! What calibration tells solvers and transforms about a linear's input.

use crate::Error;
use octet_model::{InputSite, Place};

/// H = Σ xᵀx / tokens of a linear input (half the Hessian of its squared output error; Frantar et al., arXiv 2210.17323).
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    size: usize,
    values: Vec<f32>,
}

impl Hessian {
    /// One from all its values, `[size, size]`, both triangles.
    ///
    /// # Panics
    /// If there are not `size` · `size` of them.
    pub fn new(size: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), size * size, "a Hessian of {size} inputs");
        Self { size, values }
    }

    /// Number of inputs.
    pub fn size(&self) -> usize {
        self.size
    }

    /// All values, `[size, size]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// One row (or column).
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.size..(row + 1) * self.size]
    }

    /// Mean square of each input.
    pub fn diagonal(&self) -> impl Iterator<Item = f32> {
        (0..self.size).map(|i| self.values[i * self.size + i])
    }
}

/// What calibration tells about one linear input; every vector has a number for each input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputStatistics {
    /// Tokens seen.
    pub tokens: usize,
    /// Mean of x².
    pub mean_square: Vec<f32>,
    /// Mean of |x|.
    pub mean_abs: Vec<f32>,
    /// Largest |x|.
    pub max_abs: Vec<f32>,
    /// The Hessian, where a solver asked for it.
    pub hessian: Option<Hessian>,
}

/// The least importance an input can have, of the mean.
const FLOOR: f64 = 1e-3;

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
        assert_eq!(seen.dead(), 1);
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

    #[test]
    fn a_hessian_knows_its_rows_and_diagonal() {
        let h = Hessian::new(2, vec![1.0, 2.0, 2.0, 5.0]);
        assert_eq!((h.row(1), h.diagonal().collect::<Vec<_>>()), (&[2.0, 5.0][..], vec![1.0, 5.0]));
    }
}
