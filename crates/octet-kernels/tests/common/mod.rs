//! What every suite needs: an engine on each instruction set, numbers that repeat, and weights to test with.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use octet_kernels::{Engine, Isa, PackedLinear};
use octet_tensor::{
    Activations, Alphabet, Bytes, Dtype, FloatMatrix, Matrix, QMatrix, Scheme, StoredQuant, Symmetry, Table, Tensor, WeightScheme,
};
use std::{num::NonZeroUsize, sync::Arc};

pub fn engine(isa: Isa, threads: usize) -> Engine {
    Engine::new(isa, NonZeroUsize::new(threads).unwrap()).unwrap()
}

/// An engine of two threads on every instruction set of this CPU.
pub fn engines() -> Vec<Engine> {
    Isa::available().into_iter().map(|isa| engine(isa, 2)).collect()
}

/// Numbers that look random and repeat (Steele, Lea and Flood's SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Roughly normal: mean 0, deviation 1.
    pub fn normal(&mut self) -> f32 {
        let uniform = |v: u64| (v >> 40) as f32 / (1u64 << 24) as f32;
        (0..12).map(|_| uniform(self.next())).sum::<f32>() - 6.0
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

pub fn scheme(text: &str) -> Scheme {
    text.parse().unwrap()
}

/// A random matrix of a scheme; scales of both signs, exact in F16, BF16 and F32 alike.
pub fn quantized(rows: usize, cols: usize, scheme: Scheme, dtype: Dtype, numbers: &mut Numbers) -> QMatrix {
    let w = scheme.weights;
    let alphabet = alphabet(w, numbers);
    let range = 1usize << w.bits.get();
    let mut code = |_| (numbers.below(range) as i32 + w.bits.min_code()) as i8;
    let mut codes: Vec<i8> = (0..rows * cols).map(&mut code).collect();
    alphabet.read(&mut codes);
    let groups = rows * w.groups(cols);
    let zeros = if w.is_asymmetric() { (0..groups).map(&mut code).collect() } else { vec![] };
    let scales = (0..groups).map(|_| (1 + numbers.below(127)) as f32 / 4096.0 * if numbers.below(4) == 0 { -1.0 } else { 1.0 }).collect();
    QMatrix::spelt(alphabet, (rows, cols), w, codes, scales, dtype, zeros).unwrap()
}

/// The usual alphabet of a scheme, or random levels where a matrix has its own.
fn alphabet(scheme: WeightScheme, numbers: &mut Numbers) -> Alphabet {
    if scheme.symmetry != Symmetry::Learnt {
        return scheme.alphabet();
    }
    let mut levels = std::collections::BTreeSet::from([-128, 127]);
    while levels.len() < 16 {
        levels.insert(numbers.next() as i8);
    }
    let levels: Vec<i8> = levels.into_iter().collect();
    Alphabet::Table(Table::new(levels[..].try_into().unwrap()).unwrap())
}

pub fn stored(q: &QMatrix, scheme: Scheme) -> Matrix {
    Matrix::Quant(StoredQuant::new("test", Arc::new((q.clone(), scheme))))
}

pub fn pack(engine: &Engine, q: &QMatrix, scheme: Scheme) -> PackedLinear {
    PackedLinear::pack(engine, &stored(q, scheme), None).unwrap()
}

/// A float matrix whose bytes start `offset` bytes into their owner.
pub fn float(rows: usize, cols: usize, dtype: Dtype, values: &[f32], offset: usize) -> Matrix {
    let mut bytes = vec![0u8; offset];
    for &v in values {
        match dtype {
            Dtype::F16 => bytes.extend(half::f16::from_f32(v).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(half::bf16::from_f32(v).to_le_bytes()),
            _ => bytes.extend(v.to_le_bytes()),
        }
    }
    let len = bytes.len();
    let bytes = Bytes::new(bytes).slice(offset..len).unwrap();
    Matrix::Float(FloatMatrix::dense(Tensor::new("float", dtype, vec![rows, cols], bytes).unwrap()).unwrap())
}

/// The inputs as a product with these activations sees them: quantized and back, in f64.
pub fn seen_inputs(x: &[f32], cols: usize, activations: Activations) -> Vec<f64> {
    let group = match activations {
        Activations::Exact => return x.iter().map(|&v| f64::from(v)).collect(),
        // Columns beside the codes are taken out by whoever asks.
        Activations::Int8PerToken | Activations::Int8Beside(_) => cols,
        Activations::Int8Below(limit) => {
            let inside: Vec<f32> = x.iter().map(|&v| if v.abs() > limit.get() { 0.0 } else { v }).collect();
            let seen = seen_inputs(&inside, cols, Activations::Int8PerToken);
            return x.iter().zip(seen).map(|(&v, seen)| if v.abs() > limit.get() { f64::from(v) } else { seen }).collect();
        }
        Activations::Int8PerGroup(size) => size.get(),
    };
    let q = octet_tensor::quantize_activations(x, cols, group);
    let groups = cols.div_ceil(group);
    (0..x.len()).map(|i| f64::from(q.codes[i]) * f64::from(q.scales[i / cols * groups + i % cols / group])).collect()
}

/// x wᵀ in f64, and the sums of magnitudes that rounding errors are measured by.
pub fn oracle(x: &[f64], w: &[f32], rows: usize, cols: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for w in w.chunks_exact(cols).take(rows) {
            let products = x.iter().zip(w).map(|(x, &w)| x * f64::from(w));
            out.push((products.clone().sum(), products.map(f64::abs).sum()));
        }
    }
    out
}

/// Asserts that every output is within `tolerance` of the sum of magnitudes.
pub fn assert_close(found: &[f32], expected: &[(f64, f64)], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, &(value, magnitude))) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - value).abs();
        assert!(
            error <= tolerance * magnitude + 1e-30,
            "{what}: element {i} is {found}, expected {value} (error {error:e} of {magnitude:e})"
        );
    }
}
