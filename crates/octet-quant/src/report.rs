//! What quantizing a tensor cost.

/// Sums of squared errors and weights; sums of parts of a tensor add up to those of the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    /// Σ (w − q)²
    pub error: f64,
    /// Σ w²
    pub weight: f64,
    /// Σ h·(w − q)² with h the importance of the input (equal to `error` without statistics).
    pub weighted_error: f64,
    /// Σ h·w²
    pub weighted_weight: f64,
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
        self.max_error = self.max_error.max(other.max_error);
    }

    /// ‖W − Q‖² / ‖W‖², 0 for a tensor of zeros kept exactly.
    pub fn relative(&self) -> f64 {
        ratio(self.error, self.weight)
    }

    /// The same with every input weighted by its importance.
    pub fn weighted_relative(&self) -> f64 {
        ratio(self.weighted_error, self.weighted_weight)
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if part == 0.0 { 0.0 } else { part / whole }
}

/// What became of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorReport {
    /// Module path of a quantized matrix, name of a kept tensor.
    pub name: String,
    /// The representation it was given, `None` where it was kept.
    pub scheme: Option<octet_tensor::Scheme>,
    /// Its error, all zeros where it was kept.
    pub error: ErrorSums,
    /// Bits a weight takes, scales and zero points included.
    pub bits_per_weight: f64,
}
