//! How small a quantized model is: bits a weight of its linears and bytes of its folder.

use crate::Result;
use octet_tensor::{Matrix, WeightSource};
use serde::{Deserialize, Serialize};

/// Sizes of a quantized model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// Weights in quantized matrices.
    pub quantized_weights: u64,
    /// Bits each of them takes in the file: codes, scales, zero points and padding.
    pub bits_per_weight: f64,
    /// Bits each of them takes by name of its scheme (4 for w4…), averaged over the weights.
    pub nominal_bits: f64,
    /// Bytes of the whole folder.
    pub folder_bytes: u64,
    /// Bytes the same model takes in 16 bits.
    pub base_bytes: u64,
    /// `folder_bytes` over `base_bytes`.
    pub ratio: f64,
    /// Bytes of the folder that the plan forecast.
    pub forecast_bytes: Option<u64>,
}

/// Codes, stored bytes and nominal bits of the quantized matrices of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QuantizedMatrices {
    weights: u64,
    stored_bytes: u64,
    nominal_bits: u64,
}

impl QuantizedMatrices {
    /// Adds up the matrices called `modules` in `source`; those stored as floats do not count.
    ///
    /// # Errors
    /// If a matrix cannot be read.
    pub fn of<'a>(source: &dyn WeightSource, modules: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut all = Self::default();
        for module in modules {
            if let Some(Matrix::Quant(matrix)) = source.matrix(module)? {
                let weights = (matrix.rows() * matrix.cols()) as u64;
                all.weights += weights;
                all.stored_bytes += matrix.stored_bytes() as u64;
                all.nominal_bits += weights * u64::from(matrix.scheme().weights.bits.get());
            }
        }
        Ok(all)
    }

    /// The sizes of a folder of `folder_bytes` holding these matrices, for a model of `parameters` weights in all.
    pub fn size(&self, folder_bytes: u64, parameters: u64, forecast_bytes: Option<u64>) -> Size {
        let each = |bits: u64| if self.weights > 0 { bits as f64 / self.weights as f64 } else { 16.0 };
        let base_bytes = 2 * parameters;
        Size {
            quantized_weights: self.weights,
            bits_per_weight: each(8 * self.stored_bytes),
            nominal_bits: each(self.nominal_bits),
            folder_bytes,
            base_bytes,
            ratio: folder_bytes as f64 / base_bytes.max(1) as f64,
            forecast_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_tensor::{Dtype, QMatrix, Scheme, StoredQuant, Tensor};
    use std::sync::Arc;

    struct Mixed;

    impl WeightSource for Mixed {
        fn matrix(&self, module: &str) -> octet_tensor::Result<Option<Matrix>> {
            let scheme: Scheme = match module {
                "four" => "w4a16-g32-asym".parse().unwrap(),
                "eight" => "w8a16".parse().unwrap(),
                _ => return Ok(None),
            };
            let groups = scheme.weights.groups(64);
            let zeros = if scheme.weights.is_asymmetric() { vec![0; 2 * groups] } else { vec![] };
            let q = QMatrix::new(2, 64, scheme.weights, vec![1; 128], vec![1.0; 2 * groups], Dtype::F16, zeros)?;
            Ok(Some(Matrix::Quant(StoredQuant::new(module, Arc::new((q, scheme))))))
        }

        fn tensor(&self, _: &str) -> octet_tensor::Result<Option<Tensor>> {
            Ok(None)
        }

        fn names(&self) -> Vec<String> {
            vec![]
        }
    }

    #[test]
    fn everything_is_counted() {
        let size = QuantizedMatrices::of(&Mixed, ["four", "eight", "none"]).unwrap().size(1000, 1000, Some(990));
        assert_eq!((size.quantized_weights, size.nominal_bits, size.base_bytes, size.ratio), (256, 6.0, 2000, 0.5));
        // 4 + 20 / 32 and 8 + 16 / 64 bits.
        assert!((size.bits_per_weight - (4.625 + 8.25) / 2.0).abs() < 0.05, "{size:?}");
        assert_eq!(QuantizedMatrices::default().size(10, 5, None).bits_per_weight, 16.0);
    }
}
