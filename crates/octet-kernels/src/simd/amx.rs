//! AMX: eight registers of sixteen rows of 64 bytes, and products of two of them (Intel SDM, volume 1, chapter 18).
//!
//! The compiler has no intrinsics for them that are stable, so the instructions are written out. It never uses these
//! registers itself: between two blocks of instructions they keep what they hold.

use super::avx512::Avx512;
use crate::matmul::Line;
use std::{
    arch::{
        asm,
        x86_64::{__cpuid, __cpuid_count, _xgetbv},
    },
    marker::PhantomData,
    sync::OnceLock,
};

/// Rows of a tile: tokens of the inputs and of the sums, rows of a block of weights.
pub(crate) const TILE: usize = 16;
/// Bytes of a tile's row: inputs of one step of a product at most.
pub(crate) const RUN: usize = 64;

/// Proof that the CPU has tiles with products of bytes, that the system lets this process use them, and of [`Avx512`],
/// which does everything else.
#[derive(Clone, Copy)]
pub(crate) struct Amx {
    vectors: Avx512,
}

impl Amx {
    pub(crate) fn detect() -> Option<Self> {
        static USABLE: OnceLock<bool> = OnceLock::new();
        let vectors = Avx512::detect()?;
        USABLE.get_or_init(|| has_tiles() && is_permitted()).then_some(Self { vectors })
    }

    /// What runs beside the tiles.
    #[inline(always)]
    pub(crate) fn vectors(self) -> Avx512 {
        self.vectors
    }

    /// This thread's tiles, set up for steps of `run` inputs (a multiple of four, [`RUN`] at most); they are given back when
    /// they are dropped, so that a thread that waits has no such state to be saved. One at a time.
    #[inline(always)]
    pub(crate) fn tiles(self, run: usize) -> Tiles {
        Tiles::new(self, run)
    }
}

/// Whether the CPU has the instructions and tiles of the one known shape, and the system saves them.
fn has_tiles() -> bool {
    if __cpuid(0).eax < 0x1d {
        return false;
    }
    let (features, shape) = (__cpuid_count(7, 0).edx, __cpuid_count(0x1d, 1));
    let instructions = features >> 24 & 3 == 3;
    let expected = [1024 << 16 | 8192, 8 << 16 | RUN as u32, TILE as u32];
    // SAFETY: `Avx512::detect` has found AVX-512, which the standard library reports only where XGETBV exists.
    let saved = unsafe { _xgetbv(0) } >> 17 & 3 == 3;
    instructions && saved && [shape.eax, shape.ebx, shape.ecx & 0xffff] == expected
}

/// Asks Linux for the state of tiles, which it gives a process only on request (arch_prctl, ARCH_REQ_XCOMP_PERM).
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that reads and writes no memory of this process; the registers it changes are named.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") REQUEST, in("rsi") TILE_DATA, lateout("rcx") _,
            lateout("r11") _, options(nostack));
    }
    result == 0
}

/// The tiles of this thread: four of sums (two of tokens by two of rows), two of inputs, two of weights.
pub(crate) struct Tiles {
    run: usize,
    /// Tiles are this thread's alone.
    thread: PhantomData<*mut ()>,
}

/// Steps of the product of `$x` tiles of inputs and two tiles of weights.
macro_rules! steps {
    (one $dot:literal, $($operands:tt)*) => {
        steps!(@loop [
            "tileloadd tmm4, [{x} + {stride} * 1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            concat!($dot, " tmm1, tmm4, tmm7"),
        ] $($operands)*)
    };
    (two $dot:literal, $($operands:tt)*) => {
        steps!(@loop [
            "tileloadd tmm4, [{x} + {stride} * 1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm5, [{x2} + {stride} * 1]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            concat!($dot, " tmm2, tmm5, tmm6"),
            concat!($dot, " tmm3, tmm5, tmm7"),
            "add {x2}, {run}",
        ] $($operands)*)
    };
    (@loop [$($line:expr,)*] $($operands:tt)*) => {
        asm!(
            "2:",
            "tileloadd tmm6, [{w} + {line} * 1]",
            "tileloadd tmm7, [{w2} + {line} * 1]",
            $($line,)*
            "add {x}, {run}",
            "add {w}, {lines}",
            "add {w2}, {lines}",
            "dec {steps}",
            "jnz 2b",
            $($operands)*
            options(nostack)
        )
    };
}

impl Tiles {
    #[inline(always)]
    fn new(_: Amx, run: usize) -> Self {
        assert!(run.is_multiple_of(4) && (4..=RUN).contains(&run), "a step of {run} inputs");
        let mut shape = Line::ZERO;
        shape.0[0] = 1;
        for tile in 0..8 {
            let (rows, bytes) = match tile {
                4 | 5 => (TILE, run),
                6 | 7 => (run / 4, RUN),
                _ => (TILE, RUN),
            };
            shape.0[16 + 2 * tile] = bytes as u8;
            shape.0[48 + tile] = rows as u8;
        }
        // SAFETY: an `Amx` exists only where the instructions and the permission to use them do; the configuration is 64
        // bytes of the shape's one valid form.
        unsafe { asm!("ldtilecfg [{}]", in(reg) shape.0.as_ptr(), options(nostack, preserves_flags, readonly)) };
        Self { run, thread: PhantomData }
    }

    /// Sets all sums to zero.
    #[inline(always)]
    pub(crate) fn clear(&self) {
        // SAFETY: the tiles are configured (how `self` came to be); no memory is touched.
        unsafe { asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nomem, nostack, preserves_flags)) };
    }

    /// Adds Σ weight · input over `steps` steps: of 16 tokens (32 if `TWO`), whose codes lie `stride` bytes apart from
    /// the start of `x` on, with two blocks of sixteen rows. Weights are bytes with a sign if `SIGNED`, else without.
    #[inline(always)]
    pub(crate) fn multiply<const SIGNED: bool, const TWO: bool>(&self, steps: usize, x: &[i8], stride: usize, w: [&[Line]; 2]) {
        let (tokens, lines) = (if TWO { 2 * TILE } else { TILE }, self.run / 4);
        assert!(steps > 0 && x.len() >= (tokens - 1) * stride + steps * self.run, "{tokens} tokens, {steps} steps");
        assert!(w.iter().all(|w| w.len() >= steps * lines), "{steps} steps of weights");
        let second = x.as_ptr().wrapping_add(TILE * stride);
        macro_rules! of {
            ($tokens:tt $dot:literal, $($more:tt)*) => {
                // SAFETY: the tiles are configured (how `self` came to be), so every load takes sixteen rows of `run` bytes
                // of inputs, or `run / 4` lines of weights; all of them lie in the slices, as is asserted above.
                unsafe {
                    steps!($tokens $dot,
                        steps = inout(reg) steps => _,
                        x = inout(reg) x.as_ptr() => _,
                        w = inout(reg) w[0].as_ptr() => _,
                        w2 = inout(reg) w[1].as_ptr() => _,
                        stride = in(reg) stride,
                        line = in(reg) size_of::<Line>(),
                        run = in(reg) self.run,
                        lines = in(reg) lines * size_of::<Line>(),
                        $($more)*)
                }
            };
        }
        match (SIGNED, TWO) {
            (true, true) => of!(two "tdpbssd", x2 = inout(reg) second => _,),
            (true, false) => of!(one "tdpbssd",),
            (false, true) => of!(two "tdpbsud", x2 = inout(reg) second => _,),
            (false, false) => of!(one "tdpbsud",),
        }
    }

    /// Stores the sums, `[tiles of tokens][blocks of rows][tokens]`, a line the sixteen rows of a token.
    #[inline(always)]
    pub(crate) fn store(&self, to: &mut [Line; 4 * TILE]) {
        // SAFETY: the tiles are configured (how `self` came to be); four tiles of sixteen lines are the whole array.
        unsafe {
            asm!(
                "tilestored [{to} + {line} * 1], tmm0",
                "tilestored [{to} + {line} * 1 + 1024], tmm1",
                "tilestored [{to} + {line} * 1 + 2048], tmm2",
                "tilestored [{to} + {line} * 1 + 3072], tmm3",
                to = in(reg) to.as_mut_ptr(),
                line = in(reg) size_of::<Line>(),
                options(nostack, preserves_flags)
            );
        }
    }

    /// `rounds` rounds of four products and nothing else: what the tiles can do at most.
    pub(crate) fn spin(&self, rounds: usize) {
        // SAFETY: the tiles are configured (how `self` came to be); no memory is touched. At least one round is made.
        unsafe {
            asm!(
                "2:",
                "tdpbsud tmm0, tmm4, tmm6",
                "tdpbsud tmm1, tmm4, tmm7",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) rounds.max(1) => _,
                options(nomem, nostack)
            );
        }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the instruction exists, since `self` does; nothing else of this thread uses tiles.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}
