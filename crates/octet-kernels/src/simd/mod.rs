//! Sixteen lanes: what an instruction set must offer, and the crossing into code compiled for it.
//!
//! A value of a type that implements [`Simd`] is the proof that the CPU has its instructions: [`Level::detect`] makes
//! it after asking the CPU, and nothing else can. So an algorithm over `S: Simd` is safe code. Everything an algorithm
//! calls must be `#[inline(always)]`, since only code inlined into [`Simd::vectorize`] is compiled for the instruction set.

/// A loop over a register tile's constant, at most 12, that is unrolled whatever the optimizer thinks of it: a loop that is
/// left over keeps the tile's accumulators in memory.
///
/// Every copy of the body is checked by the compiler, and loops nest, so bounds that are known to be small (block rows `R`,
/// accumulators `D`, literals) make few copies.
macro_rules! unroll {
    ($i:ident < 2, $body:block) => { unroll!(@copies $i, 2, $body, 0 1) };
    ($i:ident < R, $body:block) => {{
        const { assert!(R <= 4) };
        unroll!(@copies $i, R, $body, 0 1 2 3)
    }};
    ($i:ident < D, $body:block) => {{
        const { assert!(D <= 4) };
        unroll!(@copies $i, D, $body, 0 1 2 3)
    }};
    ($i:ident < 8, $body:block) => { unroll!(@copies $i, 8, $body, 0 1 2 3 4 5 6 7) };
    ($i:ident < $n:expr, $body:block) => {{
        const { assert!($n <= 12) };
        unroll!(@copies $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    }};
    (@copies $i:ident, $n:expr, $body:block, $($copy:literal)+) => {{
        $(
            if const { $copy < $n } {
                let $i: usize = const { if $copy < $n { $copy } else { 0 } };
                $body
            }
        )+
    }};
}
pub(crate) use unroll;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use crate::Isa;

/// Lanes of a vector: rows of a block of packed weights, or consecutive elements.
pub(crate) const LANES: usize = 16;

/// An algorithm to be compiled for every instruction set.
pub(crate) trait Op {
    /// What it returns.
    type Output;
    /// Whether it uses [`Simd::dot`]. What does not is compiled once for AVX2 with and without AVX-VNNI, and once for NEON.
    const DOTS: bool = false;
    /// Runs it; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Sixteen f32 lanes (`F`), sixteen i32 lanes (`I`), and the integer dot product over four inputs a lane.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Row blocks and tokens of a register tile of the integer product.
    const INT_TILE: (usize, usize);
    /// Row blocks and tokens of a register tile of the float product.
    const FLOAT_TILE: (usize, usize);
    /// Whether codes up to 63 have a faster dot product than codes up to 255.
    const FAST_SMALL_CODES: bool;
    /// What [`Simd::dot`] takes from codes that are not small, on instruction sets that multiply signed bytes only.
    const BIAS: i32 = 0;
    /// Whether [`Simd::dot_two`] is faster than two [`Simd::dot`].
    const DOTS_IN_TWOS: bool = false;
    /// Whether [`Simd::dot_paired`] is faster than four [`Simd::dot`].
    const PAIRS: bool = false;

    /// f32 lanes.
    type F: Copy;
    /// i32 lanes.
    type I: Copy;
    /// Codes of 16 rows times 4 consecutive inputs, unsigned bytes.
    type W: Copy;
    /// Four signed activation bytes, the same for every lane.
    type A: Copy;

    /// Runs `op` compiled for this instruction set.
    fn vectorize<O: Op>(self, op: O) -> O::Output;

    fn splat(self, v: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn load_bytes(self, from: &[u8; 64]) -> Self::F;
    fn load_f16(self, from: &[u8; 32]) -> Self::F;
    fn load_bf16(self, from: &[u8; 32]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once on every instruction set.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Rounds half to even.
    fn round(self, a: Self::F) -> Self::F;
    /// a · 2^n for integral n in −126..=127.
    fn scale2(self, a: Self::F, n: Self::F) -> Self::F;
    /// `yes` where a < b, else `no`.
    fn select_less(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// The sum of the lanes, in an order that does not depend on the instruction set.
    fn sum(self, a: Self::F) -> f32;

    /// Lane i becomes what lane i ^ `STEP` was; `STEP` is 1, 2 or 4.
    fn swapped<const STEP: usize>(self, a: Self::F) -> Self::F;

    /// Lane j of vector i becomes lane i of vector j.
    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut square = [[0.0; LANES]; LANES];
        for (row, lanes) in rows.into_iter().zip(&mut square) {
            self.store(row, lanes);
        }
        std::array::from_fn(|i| self.load(&square.map(|row| row[i])))
    }

    fn splat_i(self, v: i32) -> Self::I;
    fn load_u8(self, from: &[u8; LANES]) -> Self::I;
    fn load_i8(self, from: &[i8; LANES]) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn to_f(self, a: Self::I) -> Self::F;
    /// Rounds half to even, clamps to −128..=127, and returns the codes as lanes too; for |v| below 2³¹.
    fn round_codes(self, v: Self::F, to: &mut [i8; LANES]) -> Self::I;

    /// Rounds half to even, clamps to −32768..=32767; for |v| below 2³¹.
    fn round_shorts(self, v: Self::F, to: &mut [i16; LANES]);

    /// 64 code bytes: lane l holds inputs 0..4 of row l.
    fn codes(self, from: &[u8; 64]) -> Self::W;
    /// 64 bytes of two four-bit codes: the low halves are inputs 0..4, the high halves inputs 4..8.
    fn nibbles(self, from: &[u8; 64]) -> [Self::W; 2];
    /// 64 bytes of points of the lattice as they are stored ([`octet_tensor::Alphabet::Lattice`]), four bytes each: their codes with 16 added.
    fn points(self, from: &[u8; 64]) -> [Self::W; 2];
    /// A table of sixteen bytes as [`Simd::levels`] takes it: in every run of sixteen bytes.
    fn table(self, from: &[u8; 16]) -> Self::W;
    /// Bytes below sixteen replaced by what they are the numbers of.
    fn levels(self, w: Self::W, table: Self::W) -> Self::W;
    fn store_codes(self, w: Self::W, to: &mut [u8; 64]);
    /// Of every byte the `bits` bits from bit `from` on, moved to bit `to`, the others zero.
    fn field(self, w: Self::W, from: usize, to: usize, bits: usize) -> Self::W;
    fn or(self, a: Self::W, b: Self::W) -> Self::W;
    fn quad(self, from: &[i8; 4]) -> Self::A;
    /// acc + Σ over four inputs of code · activation, exact; with `SMALL` every code is at most 63, else what is
    /// multiplied is code − [`Simd::BIAS`].
    fn dot<const SMALL: bool>(self, acc: Self::I, w: Self::W, a: Self::A) -> Self::I;
    /// [`Simd::dot`] of small codes over two runs of four inputs.
    #[inline(always)]
    fn dot_two(self, acc: Self::I, w: [Self::W; 2], a: [Self::A; 2]) -> Self::I {
        self.dot::<true>(self.dot::<true>(acc, w[0], a[0]), w[1], a[1])
    }

    /// Codes of an octet in the order that [`Simd::dot_paired`] takes.
    #[inline(always)]
    fn pair_codes(self, w: [Self::W; 2]) -> [Self::W; 2] {
        w
    }
    /// Sums of two tokens in the order that [`Simd::dot_paired`] keeps.
    #[inline(always)]
    fn pair(self, acc: [Self::I; 2]) -> [Self::I; 2] {
        acc
    }
    /// Undoes [`Simd::pair`].
    #[inline(always)]
    fn unpair(self, acc: [Self::I; 2]) -> [Self::I; 2] {
        acc
    }
    /// [`Simd::dot`] of an octet over two tokens, whose words of inputs 0..4 come first, then those of 4..8.
    #[inline(always)]
    fn dot_paired<const SMALL: bool>(self, acc: [Self::I; 2], w: [Self::W; 2], a: [[[i8; 4]; 2]; 2]) -> [Self::I; 2] {
        let of = |t: usize| {
            let first = self.dot::<SMALL>(acc[t], w[0], self.quad(&a[0][t]));
            self.dot::<SMALL>(first, w[1], self.quad(&a[1][t]))
        };
        [of(0), of(1)]
    }

    /// Sixteen i32.
    #[inline(always)]
    fn words(self, from: &[u8; 64]) -> Self::I {
        self.pairs(from)
    }
    /// Sixteen lanes of two signed 16-bit codes.
    fn pairs(self, from: &[u8; 64]) -> Self::I;
    /// acc + Σ over a lane's two codes of a · b, exact where the sum fits 32 bits; no code is −32768.
    fn dot_pairs(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I;

    /// Asks for the cache line `ahead` bytes after the start of `at`; any address is allowed.
    fn prefetch(self, at: &[u8], ahead: usize);
}

/// An instruction set that this CPU was seen to have.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Scalar(scalar::Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2<false>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(amx::Amx),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon<{ neon::BASE }>),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(neon::Neon<{ neon::DOTPROD }>),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(neon::Neon<{ neon::I8MM }>),
}

impl Level {
    /// The level of an instruction set, if this CPU has it.
    pub(crate) fn detect(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Scalar => Some(Self::Scalar(scalar::Scalar)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::<false>::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avx2::Avx2::<true>::detect().map(Self::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512::Avx512::detect().map(Self::Avx512),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => amx::Amx::detect().map(Self::Amx),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::Neon::detect().map(Self::Neon),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => neon::Neon::detect().map(Self::NeonDotprod),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => neon::Neon::detect().map(Self::NeonI8mm),
            _ => None,
        }
    }

    /// Runs `op` on this level.
    #[inline]
    pub(crate) fn run<O: Op>(self, op: O) -> O::Output {
        match self {
            Self::Scalar(s) => s.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(s) => s.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(s) if const { O::DOTS } => s.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(s) => s.without_vnni().vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(s) => s.vectorize(op),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(s) => s.vectors().vectorize(op),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(s) => s.vectorize(op),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(s) if const { O::DOTS } => s.vectorize(op),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(s) => s.without_dots().vectorize(op),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(s) if const { O::DOTS } => s.vectorize(op),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(s) => s.without_dots().vectorize(op),
        }
    }
}
