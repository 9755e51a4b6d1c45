//! Weights in memory, and random ones.

use octet_tensor::{FloatMatrix, Matrix, Result, Tensor, WeightSource};
use std::collections::BTreeMap;

/// A small deterministic generator (SplitMix64, Steele et al. 2014).
pub struct Random(u64);

impl Random {
    /// One that starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit.max(1) as u64) as usize
    }

    /// A number from −1 to 1.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Roughly normal, mean 0 and variance 1 (sum of twelve uniform ones).
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() / 2.0
    }
}

/// Weights by name, in memory.
#[derive(Clone, Default)]
pub struct MemorySource {
    tensors: BTreeMap<String, Tensor>,
    matrices: BTreeMap<String, Matrix>,
}

impl MemorySource {
    /// Random weights for these names and shapes: vectors near 1 where they are a norm's weight, else small; matrices
    /// such that a product keeps the size of its input.
    pub fn random(shapes: impl IntoIterator<Item = (String, Vec<usize>)>, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut source = Self::default();
        for (name, shape) in shapes {
            let norm = shape.len() == 1 && !name.ends_with("bias");
            let (mean, spread) = if norm { (1.0, 0.1) } else { (0.0, (shape[shape.len() - 1] as f32).sqrt().recip()) };
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| mean + spread * random.normal()).collect();
            source.insert(&name, shape, &values);
        }
        source
    }

    /// Puts a tensor in, or replaces it.
    pub fn insert(&mut self, name: &str, shape: Vec<usize>, values: &[f32]) {
        let tensor = Tensor::from_f32(name, shape, values).unwrap_or_else(|e| panic!("{e}"));
        self.tensors.insert(name.into(), tensor);
    }

    /// Puts the weights of a linear in as they are (quantized, say), in place of `<module>.weight`.
    pub fn insert_matrix(&mut self, module: &str, matrix: Matrix) {
        self.tensors.remove(&format!("{module}.weight"));
        self.matrices.insert(module.into(), matrix);
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// Renames every tensor.
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Self {
        let tensors = self.tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
        let matrices = self.matrices.iter().map(|(name, matrix)| (rename(name), matrix.clone())).collect();
        Self { tensors, matrices }
    }
}

impl WeightSource for MemorySource {
    fn matrix(&self, module: &str) -> Result<Option<Matrix>> {
        if let Some(matrix) = self.matrices.get(module) {
            return Ok(Some(matrix.clone()));
        }
        let Some(tensor) = self.tensors.get(&format!("{module}.weight")) else { return Ok(None) };
        FloatMatrix::dense(tensor.clone()).map(|m| Some(Matrix::Float(m)))
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.tensors.get(name).cloned())
    }

    fn names(&self) -> Vec<String> {
        let matrices = self.matrices.keys().map(|module| format!("{module}.weight"));
        let mut names: Vec<String> = self.tensors.keys().cloned().chain(matrices).collect();
        names.sort();
        names
    }
}
