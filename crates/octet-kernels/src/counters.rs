//! Which kernels ran, and how often.

use crate::Isa;
use std::sync::atomic::{AtomicU64, Ordering};

/// The kinds of kernel that are counted, and their names on each instruction set.
macro_rules! kernels {
    ($($(#[$doc:meta])* $kind:ident = $name:literal),+ $(,)?) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kernel { $($(#[$doc])* $kind),+ }

        impl Kernel {
            const ALL: &[Self] = &[$(Self::$kind),+];

            /// Its name on an instruction set, such as `w4a8 avx512-vnni`.
            pub(crate) fn name(self, isa: Isa) -> &'static str {
                match (self, isa) {
                    $(
                        (Self::$kind, Isa::Scalar) => concat!($name, " scalar"),
                        (Self::$kind, Isa::Avx2) => concat!($name, " avx2"),
                        (Self::$kind, Isa::AvxVnni) => concat!($name, " avx-vnni"),
                        (Self::$kind, Isa::Avx512Vnni) => concat!($name, " avx512-vnni"),
                        (Self::$kind, Isa::Amx) => concat!($name, " amx"),
                        (Self::$kind, Isa::Neon) => concat!($name, " neon"),
                        (Self::$kind, Isa::NeonDotprod) => concat!($name, " neon-dotprod"),
                        (Self::$kind, Isa::NeonI8mm) => concat!($name, " neon-i8mm"),
                    )+
                }
            }
        }
    };
}

kernels! {
    /// Codes of a byte, int8 activations.
    W8A8 = "w8a8",
    /// Codes of four bits, int8 activations.
    W4A8 = "w4a8",
    /// Levels of a table, int8 activations.
    W4tA8 = "w4ta8",
    /// Levels of a table of the matrix, int8 activations.
    W4lA8 = "w4la8",
    /// Points of the lattice, int8 activations.
    W4eA8 = "w4ea8",
    /// Codes of two bits, int8 activations.
    W2A8 = "w2a8",
    /// Codes of three bits, int8 activations.
    W3A8 = "w3a8",
    /// Codes of five bits, int8 activations.
    W5A8 = "w5a8",
    /// Codes of six bits, int8 activations.
    W6A8 = "w6a8",
    /// Codes of a byte, float activations.
    W8A16 = "w8a16",
    /// Codes of four bits, float activations.
    W4A16 = "w4a16",
    /// Levels of a table, float activations.
    W4tA16 = "w4ta16",
    /// Levels of a table of the matrix, float activations.
    W4lA16 = "w4la16",
    /// Points of the lattice, float activations.
    W4eA16 = "w4ea16",
    /// Codes of two bits, float activations.
    W2A16 = "w2a16",
    /// Codes of three bits, float activations.
    W3A16 = "w3a16",
    /// Codes of five bits, float activations.
    W5A16 = "w5a16",
    /// Codes of six bits, float activations.
    W6A16 = "w6a16",
    /// F32 weights.
    F32 = "f32",
    /// F16 weights.
    F16 = "f16",
    /// BF16 weights.
    Bf16 = "bf16",
    /// Inputs beyond the range of int8 activations, multiplied as floats.
    Aside = "float-outliers",
    /// Attention.
    Attention = "attention",
    /// RMSNorm and LayerNorm.
    Norm = "norm",
    /// Rotary position embedding.
    Rope = "rope",
    /// Activation functions, gates and sums.
    Elementwise = "elementwise",
}

/// Calls of each kernel.
#[derive(Default)]
pub(crate) struct Counters {
    calls: [AtomicU64; Kernel::ALL.len()],
    /// Those of them that ran on tiles.
    tiled: [AtomicU64; Kernel::ALL.len()],
}

impl Counters {
    /// Counts a call.
    pub(crate) fn count(&self, kernel: Kernel, tiled: bool) {
        let calls = if tiled { &self.tiled } else { &self.calls };
        calls[kernel as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Names and calls of the kernels that ran.
    pub(crate) fn read(&self, isa: Isa) -> Vec<(&'static str, u64)> {
        let of = |calls: &[AtomicU64], isa, k: Kernel| (k.name(isa), calls[k as usize].load(Ordering::Relaxed));
        let both = |&k: &Kernel| [of(&self.tiled, isa, k), of(&self.calls, isa.without_tiles(), k)];
        Kernel::ALL.iter().flat_map(both).filter(|row| row.1 > 0).collect()
    }
}
