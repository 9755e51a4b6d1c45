//! A named tensor: shared bytes, an element type and a shape.

use crate::{Bytes, Dtype, Error, Result, fp8};
use half::{bf16, f16};
use std::ops::Range;

/// A named, row-major tensor over shared bytes (little endian, any alignment); cloning copies no data.
#[derive(Clone, Debug)]
pub struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Tensor {
    /// A tensor over `bytes`.
    ///
    /// # Errors
    /// If the bytes are not exactly as many as shape and dtype need.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: Vec<usize>, bytes: Bytes) -> Result<Self> {
        let name = name.into();
        let need = shape.iter().try_fold(dtype.size(), |all, &n| all.checked_mul(n));
        if need != Some(bytes.len()) {
            let what = format!("{dtype} {shape:?} does not fit {} bytes; the file is damaged, download it again", bytes.len());
            return Err(Error::Malformed { name, what });
        }
        Ok(Self { name, dtype, shape, bytes })
    }

    /// A tensor that owns a copy of `values` as F32.
    ///
    /// # Errors
    /// If the shape does not hold `values.len()` elements.
    pub fn from_f32(name: impl Into<String>, shape: Vec<usize>, values: &[f32]) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(name, Dtype::F32, shape, Bytes::new(bytes))
    }

    /// A tensor of `values` rounded to `dtype`, a floating-point type of 16 bits or more; F32 in the place of any other.
    ///
    /// # Errors
    /// If the shape does not hold `values.len()` elements.
    pub fn rounded(name: impl Into<String>, dtype: Dtype, shape: Vec<usize>, values: &[f32]) -> Result<Self> {
        let bytes: Vec<u8> = match dtype {
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
            _ => return Self::from_f32(name, shape, values),
        };
        Self::new(name, dtype, shape, Bytes::new(bytes))
    }

    /// The name the checkpoint gives it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Shape, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The raw bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The raw bytes of elements `range`.
    pub fn element_bytes(&self, range: Range<usize>) -> &[u8] {
        let size = self.dtype.size();
        &self.bytes[range.start * size..range.end * size]
    }

    /// Rows and columns of a two-dimensional tensor.
    ///
    /// # Errors
    /// If it has another number of dimensions.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self.shape[..] {
            [rows, cols] => Ok((rows, cols)),
            _ => Err(self.wrong_shape("two dimensions")),
        }
    }

    /// The error of this tensor having another shape than `expected` (in words).
    pub fn wrong_shape(&self, expected: impl Into<String>) -> Error {
        Error::Shape { name: self.name.clone(), expected: expected.into(), found: self.shape.clone() }
    }

    /// Decodes elements `start .. start + out.len()` of a float tensor to f32.
    ///
    /// # Errors
    /// If the elements are not floating-point numbers or the range reaches past the end.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) -> Result<()> {
        if start.checked_add(out.len()).is_none_or(|end| end > self.len()) {
            return Err(self.wrong_shape(format!("at least {} elements", start + out.len())));
        }
        let bytes = self.element_bytes(start..start + out.len());
        match self.dtype {
            Dtype::F32 => decode(bytes, out, f32::from_le_bytes),
            Dtype::F16 => decode(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            // The upper half of an f32; unlike `bf16::to_f32`, which quietens NaNs, it is one shift and vectorizes.
            Dtype::Bf16 => decode(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Dtype::F64 => decode(bytes, out, |b| f64::from_le_bytes(b) as f32),
            Dtype::F8E4m3 => decode(bytes, out, |[b]: [u8; 1]| fp8::table()[b as usize]),
            found => return Err(Error::Dtype { name: self.name.clone(), expected: "floating-point", found }),
        }
        Ok(())
    }

    /// All elements as f32.
    ///
    /// # Errors
    /// If the elements are not floating-point numbers.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.len()];
        self.read_f32(0, &mut out)?;
        Ok(out)
    }
}

fn decode<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (value, chunk) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = convert(*chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn decodes_every_float_type() {
        let cases: [(Dtype, Vec<u8>); 4] = [
            (Dtype::F32, [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect()),
            (Dtype::F16, [1.5f32, -2.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
            (Dtype::Bf16, [1.5f32, -2.0].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()),
            (Dtype::F8E4m3, vec![0x3c, 0xc0]),
        ];
        for (dtype, bytes) in cases {
            let tensor = Tensor::new("t", dtype, vec![2], Bytes::new(bytes)).unwrap();
            assert_eq!(tensor.to_f32().unwrap(), [1.5, -2.0], "{dtype}");
        }
    }

    #[test]
    fn a_shape_that_lies_is_refused() {
        assert!(Tensor::new("t", Dtype::F32, vec![3], Bytes::new(vec![0u8; 8])).is_err());
        assert!(Tensor::new("t", Dtype::F32, vec![usize::MAX, 2], Bytes::new(vec![0u8; 8])).is_err());
        let ok = Tensor::new("t", Dtype::I8, vec![2], Bytes::new(vec![0u8; 2])).unwrap();
        assert!(ok.to_f32().unwrap_err().to_string().contains("floating-point"));
    }
}
