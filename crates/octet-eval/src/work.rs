//! What a token costs a model: bytes that must be read and operations that must be done, counted from the checkpoint.

use octet_kernels::KvDtype;
use octet_model::{
    ArchSpec, Role,
    spec::{LayerSpec, Mlp},
};
use octet_tensor::{Dtype, Matrix, Result, WeightSource};

/// The work of a model.
#[derive(Clone, Debug)]
pub struct Work {
    parts: Vec<Part>,
    kv: Vec<KvLayer>,
    float: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    bytes: f64,
    weights: f64,
    /// The head: a prompt needs it only after its last token.
    head: bool,
    /// Experts a token is sent to and experts there are.
    chosen: Option<(usize, usize)>,
}

#[derive(Clone, Copy, Debug)]
struct KvLayer {
    /// Of one token.
    bytes: f64,
    window: Option<usize>,
}

impl Work {
    /// Counts the matrices of `spec` in `source`; keys and values are cached as `kv`.
    ///
    /// # Errors
    /// If a matrix makes no sense.
    pub fn of(source: &dyn WeightSource, spec: &ArchSpec, kv: KvDtype) -> Result<Self> {
        let tied = spec.head().tied;
        let (mut parts, mut float) = (vec![], None);
        for site in spec.linear_sites() {
            // A table that is only looked up is not read.
            if site.role == Role::Embedding && !tied {
                continue;
            }
            let matrix = source.matrix(&site.module)?;
            let weights = (site.rows * site.cols) as f64;
            let bytes = match &matrix {
                // These run as a decoded F32 copy.
                Some(Matrix::Float(m)) if matches!(m.dtype(), Dtype::F8E4m3 | Dtype::F64) => 4.0 * weights,
                Some(m) => m.stored_bytes() as f64,
                None => 0.0,
            };
            if let (None, Some(Matrix::Float(m))) = (float, &matrix) {
                float = Some(m.dtype().name());
            }
            let expert = matches!(site.role, Role::ExpertGate | Role::ExpertUp | Role::ExpertDown);
            let mlp = site.layer.filter(|_| expert).map(|layer| &spec.layers()[layer].mlp);
            let chosen = match mlp {
                Some(&Mlp::Experts { count, per_token, .. }) => Some((per_token, count)),
                _ => None,
            };
            parts.push(Part { bytes, weights, head: matches!(site.role, Role::Head | Role::Embedding), chosen });
        }
        Ok(Self { parts, kv: kv_layers(spec, kv), float })
    }

    /// The type of its first float matrix, in lower case, such as `bf16`; `None` where all are quantized.
    pub fn float_type(&self) -> Option<String> {
        self.float.map(str::to_lowercase)
    }

    /// Bytes of the weights a step of `batch` tokens reads (of experts: as many as so many tokens are expected to choose).
    pub fn weight_bytes(&self, batch: usize) -> f64 {
        let share = |part: &Part| match part.chosen {
            Some((per_token, count)) => 1.0 - (1.0 - per_token as f64 / count.max(1) as f64).powi(batch as i32),
            None => 1.0,
        };
        self.parts.iter().map(|part| part.bytes * share(part)).sum()
    }

    /// Bytes of keys and values that a token sees which is the `length`-th of its sequence.
    pub fn kv_bytes(&self, length: usize) -> f64 {
        self.kv.iter().map(|layer| layer.bytes * layer.window.map_or(length, |window| window.min(length)) as f64).sum()
    }

    /// Bytes an average step reads that decodes one of `steps` tokens of `batch` sequences from `context` on.
    pub fn decode_bytes(&self, batch: usize, context: usize, steps: usize) -> f64 {
        let kv: f64 = (1..=steps).map(|step| self.kv_bytes(context + step)).sum::<f64>() / steps.max(1) as f64;
        self.weight_bytes(batch) + batch as f64 * kv
    }

    /// Multiplications and additions of the linears for a step of `batch` tokens.
    pub fn decode_ops(&self, batch: usize) -> f64 {
        2.0 * batch as f64 * self.parts.iter().map(Part::active).sum::<f64>()
    }

    /// Multiplications and additions of the linears for a prompt of `tokens` tokens; the head runs once.
    pub fn prefill_ops(&self, tokens: usize) -> f64 {
        2.0 * self.parts.iter().map(|part| part.active() * if part.head { 1.0 } else { tokens as f64 }).sum::<f64>()
    }
}

impl Part {
    /// Weights that a token is multiplied with.
    fn active(&self) -> f64 {
        self.weights * self.chosen.map_or(1.0, |(per_token, count)| per_token as f64 / count.max(1) as f64)
    }
}

fn kv_layers(spec: &ArchSpec, kv: KvDtype) -> Vec<KvLayer> {
    let all = spec.kv_bytes_per_token(kv) as f64;
    let width = |layer: &LayerSpec| (layer.attention.kv_heads * layer.attention.head_dim) as f64;
    let widths: f64 = spec.layers().iter().map(width).sum();
    spec.layers().iter().map(|layer| KvLayer { bytes: all * width(layer) / widths.max(1.0), window: layer.attention.window }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(chosen: Option<(usize, usize)>) -> Work {
        let part = Part { bytes: 100.0, weights: 200.0, head: false, chosen };
        let kv = vec![KvLayer { bytes: 4.0, window: None }, KvLayer { bytes: 4.0, window: Some(3) }];
        Work { parts: vec![part, Part { bytes: 10.0, weights: 20.0, head: true, chosen: None }], kv, float: None }
    }

    #[test]
    fn heads_run_once_and_windows_end() {
        let dense = work(None);
        assert_eq!((dense.weight_bytes(1), dense.weight_bytes(8)), (110.0, 110.0));
        assert_eq!((dense.decode_ops(2), dense.prefill_ops(10)), (2.0 * 2.0 * 220.0, 2.0 * (2000.0 + 20.0)));
        assert_eq!((dense.kv_bytes(2), dense.kv_bytes(10)), (16.0, 40.0 + 12.0));
        // Tokens 2 and 3 of a sequence that held 1: (16 + 24) / 2 bytes of each of two sequences.
        assert_eq!(dense.decode_bytes(2, 1, 2), 110.0 + 2.0 * 20.0);
    }

    #[test]
    fn experts_are_read_as_they_are_chosen() {
        let sparse = work(Some((1, 4)));
        assert_eq!(sparse.weight_bytes(1), 25.0 + 10.0);
        assert!((sparse.weight_bytes(2) - (100.0 * (1.0 - 0.5625) + 10.0)).abs() < 1e-9);
        assert_eq!(sparse.decode_ops(1), 2.0 * (50.0 + 20.0));
    }
}
