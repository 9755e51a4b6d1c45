//! Which factors move before tensors are solved, with their settings.

use std::fmt;

/// The strengths that a search of SmoothQuant tries.
pub(crate) const ALPHAS: [f64; 13] = [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9];

/// What moves factors from inputs into weights, and its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TransformChoice {
    /// AWQ: weights of inputs that are large on average get finer. Needs calibration.
    Awq(AwqSettings),
    /// SmoothQuant: inputs that are hard to quantize get easier, their weights harder. Needs calibration.
    Smooth(SmoothSettings),
}

/// Settings of AWQ (Lin et al., arXiv 2306.00978).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwqSettings {
    /// Ratios tried, from 0 (nothing moves) to 1.
    pub grid: usize,
    /// Whether factors also depend on the mean size of the weights.
    pub duo: bool,
    /// Whether large weights are cut off where that helps, in tensors that are rounded to nearest.
    pub clip: bool,
}

/// Settings of SmoothQuant (Xiao et al., arXiv 2211.10438).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmoothSettings {
    /// How much of the inputs' size moves, 0 to 1; `None`: searched for every input.
    pub alpha: Option<f64>,
}

impl AwqSettings {
    /// Twenty ratios, weights considered, clipping.
    pub const USUAL: Self = Self { grid: 20, duo: true, clip: true };
}

impl SmoothSettings {
    /// Searched.
    pub const USUAL: Self = Self { alpha: None };
}

impl TransformChoice {
    /// Its action in recipes.
    pub fn action(self) -> &'static str {
        match self {
            Self::Awq(_) => "awq",
            Self::Smooth(_) => "smooth",
        }
    }

    /// What reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Awq(_) => "awq",
            Self::Smooth(_) => "smoothquant",
        }
    }

    /// Factors it tries for each value.
    pub(crate) fn trials(self) -> usize {
        match self {
            Self::Awq(AwqSettings { grid, .. }) => grid + 1,
            Self::Smooth(SmoothSettings { alpha: Some(_) }) => 2,
            Self::Smooth(SmoothSettings { alpha: None }) => ALPHAS.len() + 1,
        }
    }

    /// Whether it clips weights as well.
    pub(crate) fn clips(self) -> bool {
        matches!(self, Self::Awq(AwqSettings { clip: true, .. }))
    }
}

impl fmt::Display for TransformChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Awq(AwqSettings { grid, duo, clip }) => write!(f, "awq(grid {grid}, duo {duo}, clip {clip})"),
            Self::Smooth(SmoothSettings { alpha: Some(alpha) }) => write!(f, "smoothquant(alpha {alpha})"),
            Self::Smooth(SmoothSettings { alpha: None }) => f.write_str("smoothquant(alpha searched)"),
        }
    }
}
