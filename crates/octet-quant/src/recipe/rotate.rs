//! The step that turns values before tensors are solved.

use crate::Where;
use std::fmt;

/// Which rotations are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationKind {
    /// Hadamard matrices of eight, with signs.
    Hadamard,
    /// Rotations of eight that are learnt from what rounding leaves, starting with none.
    Learned,
    /// Both, whichever leaves less.
    Search,
}

impl RotationKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Hadamard, Self::Learned, Self::Search];

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hadamard => "hadamard",
            Self::Learned => "learned",
            Self::Search => "search",
        }
    }
}

/// Values to be turned in blocks of eight, folded into the weights that make and read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotateStep {
    /// Which values.
    pub place: Where,
    /// What is tried.
    pub kind: RotationKind,
    /// Whether a rotation is kept only where the measured loss falls.
    pub gate: bool,
}

impl fmt::Display for RotateStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, kind, gate } = self;
        write!(f, "rotate {}, {}{}", place.name(), kind.name(), if *gate { "" } else { ", kept whatever it costs" })
    }
}
