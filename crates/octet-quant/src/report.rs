//! What quantizing a tensor cost.

use crate::Line;
use octet_tensor::Scheme;
use serde::{Deserialize, Serialize};

/// Sums of squared errors and weights; sums of parts of a tensor add up to those of the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorSums {
    /// Σ (w − q)²
    pub error: f64,
    /// Σ w²
    pub weight: f64,
    /// Σ h·(w − q)² with h the importance of the input (equal to `error` without statistics), or tr((W − Q)·H·(W − Q)ᵀ) with
    /// its Hessian.
    pub weighted_error: f64,
    /// Σ h·w², or tr(W·H·Wᵀ)
    pub weighted_weight: f64,
    /// What rounding every weight to nearest with the solver's first scales would have made of `weighted_error` (equal to it
    /// for round-to-nearest).
    pub nearest_error: f64,
    /// Largest |w − q|.
    pub max_error: f64,
}

impl ErrorSums {
    /// Adds the sums of another part.
    pub fn add(&mut self, other: &Self) {
        self.error += other.error;
        self.weight += other.weight;
        self.weighted_error += other.weighted_error;
        self.weighted_weight += other.weighted_weight;
        self.nearest_error += other.nearest_error;
        self.max_error = self.max_error.max(other.max_error);
    }

    /// ‖W − Q‖² / ‖W‖², 0 for a tensor of zeros kept exactly.
    pub fn relative(&self) -> f64 {
        ratio(self.error, self.weight)
    }

    /// The error of the outputs, as far as statistics tell: every input weighted by its importance, or, where a solver had
    /// one, by the whole Hessian.
    pub fn weighted_relative(&self) -> f64 {
        ratio(self.weighted_error, self.weighted_weight)
    }
}

impl ErrorSums {
    /// [`ErrorSums::weighted_relative`] of rounding to nearest with the solver's first scales.
    pub fn nearest_relative(&self) -> f64 {
        ratio(self.nearest_error, self.weighted_weight)
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if part == 0.0 { 0.0 } else { part / whole }
}

/// What became of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Module path of a quantized matrix, name of a kept tensor.
    pub name: String,
    /// The representation it was given, `None` where it was kept.
    #[serde(with = "as_text")]
    pub scheme: Option<Scheme>,
    /// Its error, all zeros where it was kept.
    pub error: ErrorSums,
    /// Bits a weight takes, scales and zero points included.
    pub bits_per_weight: f64,
    /// How much of the way from its weights to those that make what the original makes of its own inputs the target was moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// The solver it was planned for, `None` where it was kept.
    pub solver: Option<String>,
    /// What is worth knowing: damping that was raised, a solver that could not solve it.
    pub remark: Option<String>,
}

impl TensorReport {
    /// A tensor that is not quantized.
    pub(crate) fn kept(line: &Line) -> Self {
        let bits_per_weight = 8.0 * line.bytes as f64 / line.elements().max(1) as f64;
        let (name, error) = (line.name.clone(), ErrorSums::default());
        Self { name, scheme: None, error, bits_per_weight, shift: None, solver: None, remark: None }
    }

    /// A quantized tensor with its error.
    pub(crate) fn quantized(line: &Line, scheme: Scheme, error: ErrorSums) -> Self {
        Self { scheme: Some(scheme), error, ..Self::kept(line) }
    }
}

/// A scheme as its own text.
pub(crate) mod as_text {
    use octet_tensor::Scheme;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(scheme: &Option<Scheme>, serializer: S) -> Result<S::Ok, S::Error> {
        scheme.map(|scheme| scheme.to_string()).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Scheme>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}
