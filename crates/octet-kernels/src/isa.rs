//! The instruction sets kernels exist for, and which of them this CPU has.

use std::{fmt, str::FromStr};

/// An instruction set that kernels are written for; later ones are faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: the specification every other one is held to.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX2 with the 256-bit integer dot product of AVX-VNNI.
    AvxVnni,
    /// AVX-512 (F, BW, DQ, VL) with the 512-bit integer dot product of VNNI.
    Avx512Vnni,
    /// [`Isa::Avx512Vnni`], and the tile products of AMX for prompts with int8 activations; on Linux.
    Amx,
    /// NEON of Armv8.0.
    Neon,
    /// NEON with the integer dot product of FEAT_DotProd.
    NeonDotprod,
    /// NEON with the mixed-sign dot product and the matrix multiplication of FEAT_I8MM.
    NeonI8mm,
}

const NAMES: [(Isa, &str); 8] = [
    (Isa::Scalar, "scalar"),
    (Isa::Avx2, "avx2"),
    (Isa::AvxVnni, "avx-vnni"),
    (Isa::Avx512Vnni, "avx512-vnni"),
    (Isa::Amx, "amx"),
    (Isa::Neon, "neon"),
    (Isa::NeonDotprod, "neon-dotprod"),
    (Isa::NeonI8mm, "neon-i8mm"),
];

impl Isa {
    /// The instruction sets of this CPU, slowest first; [`Isa::Scalar`] is always one of them.
    pub fn available() -> Vec<Self> {
        NAMES.iter().map(|row| row.0).filter(|isa| crate::simd::Level::detect(*isa).is_some()).collect()
    }

    /// The fastest instruction set of this CPU.
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Scalar)
    }

    /// What kernels without tiles run on.
    pub(crate) fn without_tiles(self) -> Self {
        if self == Self::Amx { Self::Avx512Vnni } else { self }
    }

    /// Its name, such as `avx512-vnni`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|row| row.0 == self).map_or("scalar", |row| row.1)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no instruction set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no instruction set {text:?}; this CPU has {}", list(.available))]
pub struct UnknownIsa {
    text: String,
    available: Vec<Isa>,
}

pub(crate) fn list(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(text: &str) -> Result<Self, UnknownIsa> {
        let found = NAMES.iter().find(|row| row.1.eq_ignore_ascii_case(text)).map(|row| row.0);
        found.ok_or_else(|| UnknownIsa { text: text.into(), available: Self::available() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (isa, name) in NAMES {
            assert_eq!(name.parse(), Ok(isa));
            assert_eq!(isa.to_string(), name);
        }
        let error = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert!(error.contains("sse9") && error.contains("scalar"), "{error}");
    }

    #[test]
    fn scalar_is_always_there_and_best_is_available() {
        let all = Isa::available();
        assert_eq!(all[0], Isa::Scalar);
        assert!(all.contains(&Isa::best()));
    }
}
