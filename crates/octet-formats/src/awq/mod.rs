//! AWQ checkpoints in the `gemm` layout, read.
//!
//! `qweight` I32 `[inputs, outputs / 8]` and `qzeros` I32 `[groups, outputs / 8]` hold eight unsigned 4-bit codes of
//! consecutive outputs a word, in the order 0 4 1 5 2 6 3 7 from the lowest bits; `scales` `[groups, outputs]`. Source: AutoAWQ
//! (`modules/linear/gemm.py`) and GPTQModel 7.7, checked against a checkpoint it made.

mod read;

pub(crate) use read::{NIBBLE, matrix};

use crate::{
    Error, Result,
    gptq::{bits, group},
};
use octet_tensor::{Activations, Bits, Granularity, Scheme, Symmetry, WeightScheme};
use serde_json::Value;

/// The scheme that AWQ's `quantization_config` says of all modules.
///
/// # Errors
/// If a key is missing or makes no sense, or the layout is not `gemm`.
pub(crate) fn scheme(raw: &Value) -> Result<Scheme> {
    let refuse = |what: String| Err(Error::UnsupportedQuantization { method: "awq".into(), what });
    let version = raw.get("version").and_then(Value::as_str).unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return refuse(format!("its version {version:?} is laid out for a GPU's kernels; octet reads gemm"));
    }
    let of = |usual: &'static str, old: &'static str| if raw.get(usual).is_some() { usual } else { old };
    let width = bits(raw, of("bits", "w_bit"))?;
    if width != Bits::B4 {
        return refuse(format!("its codes have {} bits; the gemm layout has 4", width.get()));
    }
    let granularity = group(raw, of("group_size", "q_group_size"))?.map_or(Granularity::PerChannel, Granularity::Group);
    let weights = WeightScheme::floats(width, Symmetry::Asymmetric, granularity);
    Ok(Scheme { weights, activations: Activations::Exact })
}
