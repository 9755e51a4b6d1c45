//! Which solver chooses the codes, with its settings.

use crate::{ActOrder, Gptq, HessianOptions, Rtn, Solver};
use std::fmt;

/// A solver and its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SolverChoice {
    /// Round-to-nearest with a search of so many scale candidates (`None`: the usual number, 8 and fewer: a quick search).
    Rtn {
        /// Candidates of the first pass.
        candidates: Option<usize>,
    },
    /// GPTQ: errors of a column are made good by the columns that follow it. Needs calibration.
    Gptq(GptqSettings),
}

/// Settings of GPTQ (Frantar et al., arXiv 2210.17323).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GptqSettings {
    /// In which order columns are swept.
    pub act_order: ActOrder,
    /// Added to the Hessian's diagonal, as a share of its mean; raised where that is not enough.
    pub damping: f64,
    /// Whether the target is what the original makes of its own inputs, instead of the original weights.
    pub asymmetric: bool,
    /// Passes of refinement after the sweep.
    pub refine: usize,
    /// Candidates of the scale search, as in [`SolverChoice::Rtn`].
    pub candidates: Option<usize>,
}

impl GptqSettings {
    /// Static order, 1 % damping, the original's outputs as the target, the usual refinement.
    pub const USUAL: Self = Self { act_order: ActOrder::Static, damping: 0.01, asymmetric: true, refine: 3, candidates: None };

    fn solver(self) -> Gptq {
        Gptq { search: Rtn::with(self.candidates), refinements: self.refine }
    }
}

impl ActOrder {
    /// The orders a recipe may ask for.
    pub const ALL: [Self; 3] = [Self::Static, Self::Dynamic, Self::Off];

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Dynamic => "desc",
            Self::Off => "none",
        }
    }
}

impl SolverChoice {
    /// The solver itself.
    pub fn solver(self) -> Box<dyn Solver> {
        match self {
            Self::Rtn { candidates } => Box::new(Rtn::with(candidates)),
            Self::Gptq(settings) => Box::new(settings.solver()),
        }
    }

    /// Candidates of its scale search, where it was told how many.
    pub fn candidates(self) -> Option<usize> {
        match self {
            Self::Rtn { candidates } | Self::Gptq(GptqSettings { candidates, .. }) => candidates,
        }
    }

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rtn { .. } => "rtn",
            Self::Gptq(_) => "gptq",
        }
    }

    /// The Hessian it needs of codes that stand for themselves, `None` if it can do without calibration.
    pub fn hessian(self) -> Option<HessianOptions> {
        match self {
            Self::Rtn { .. } => None,
            Self::Gptq(GptqSettings { act_order, damping, .. }) => Some(HessianOptions { damping, act_order, eights: false }),
        }
    }

    /// Whether it wants what flows through the original beside what flows through the quantized model.
    pub fn is_asymmetric(self) -> bool {
        matches!(self, Self::Gptq(GptqSettings { asymmetric: true, .. }))
    }

    /// Whether groups of inputs are formed in an order of their own, which is stored beside the codes.
    pub fn orders_groups(self) -> bool {
        matches!(self, Self::Gptq(GptqSettings { act_order: ActOrder::Dynamic, .. }))
    }

    /// Whether it cannot do without calibration.
    pub fn needs_hessian(self) -> bool {
        self.hessian().is_some()
    }
}

impl fmt::Display for SolverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rtn { candidates: Some(n) } => write!(f, "rtn({n})"),
            Self::Rtn { candidates: None } => f.write_str("rtn"),
            Self::Gptq(gptq) if *gptq == GptqSettings::USUAL => f.write_str("gptq"),
            Self::Gptq(GptqSettings { act_order, damping, asymmetric, refine, candidates }) => {
                write!(f, "gptq({} order, damping {damping}, refine {refine}", act_order.name())?;
                if !asymmetric {
                    f.write_str(", symmetric")?;
                }
                candidates.map_or(Ok(()), |n| write!(f, ", {n} candidates"))?;
                f.write_str(")")
            }
        }
    }
}
