//! MLX's `quantization` and what it says of single modules.

use crate::{
    Error, Result,
    gptq::{bits, group},
    quantization::bad,
};
use octet_tensor::Bits;
use serde_json::Value;

/// What codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// scale · code + bias.
    Affine,
    /// E2M1 numbers times a power of two.
    Mxfp4,
}

/// How a module is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Width of a code.
    pub bits: Bits,
    /// Inputs of a group.
    pub group: usize,
    /// What codes stand for.
    pub form: Form,
}

/// An MLX config: what it says of all modules and, by name, of some.
#[derive(Clone, Debug, PartialEq)]
pub struct Config(Value);

impl Config {
    /// Reads `quantization`.
    ///
    /// # Errors
    /// If what it says of all modules makes no sense.
    pub fn read(raw: &Value) -> Result<Self> {
        let config = Self(raw.clone());
        config.shape("")?;
        Ok(config)
    }

    /// How `module` is stored, if it is quantized; overrides may leave out what the whole model says.
    ///
    /// # Errors
    /// If a key of it makes no sense.
    pub fn shape(&self, module: &str) -> Result<Shape> {
        let own = self.0.get(module).filter(|value| value.is_object());
        let with = |key: &str| own.filter(|own| own.get(key).is_some_and(|value| !value.is_null())).unwrap_or(&self.0);
        let form = match with("mode").get("mode").and_then(Value::as_str) {
            None | Some("affine") => Form::Affine,
            Some("mxfp4") => Form::Mxfp4,
            Some(other) => {
                let what = format!("its mode {other:?} is not read (affine and mxfp4 are)");
                return Err(Error::UnsupportedQuantization { method: "mlx".into(), what });
            }
        };
        let bits = bits(with("bits"), "bits")?;
        let Some(size) = group(with("group_size"), "group_size")? else { return bad("group_size", "is -1, expected a positive number") };
        if form == Form::Mxfp4 && (bits, size.get()) != (Bits::B4, 32) {
            return bad("quantization", format!("has mxfp4 codes of {} bits in groups of {size}, expected 4 bits and 32", bits.get()));
        }
        Ok(Shape { bits, group: size.get(), form })
    }
}
