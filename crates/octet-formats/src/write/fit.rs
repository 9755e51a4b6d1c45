//! Whether a format can hold a matrix as it is.

use octet_tensor::{Activations, Dtype, Granularity, Scheme, WeightScheme};
use std::num::NonZeroUsize;

/// A format of matrices beside compressed-tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// GPTQ: symmetric as format 1, asymmetric as format 2, whose zero points need no wrapping.
    Gptq,
    /// AWQ in the gemm layout.
    Awq,
    /// MLX, affine.
    Mlx,
    /// LLM.int8 of bitsandbytes.
    Bitsandbytes,
    /// One signed byte a code in an archive of numpy arrays.
    Npz,
}

/// A matrix that is to be stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Given {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// How it is represented.
    pub scheme: Scheme,
    /// The type its scales are representable in.
    pub scale_dtype: Dtype,
    /// Whether inputs belong to groups in an order of their own.
    pub ordered: bool,
}

/// How a format stores a matrix without changing a code or a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Widths and groups as stored: a group may be cut into several that repeat its scale.
    pub weights: WeightScheme,
    /// The type of the stored scales.
    pub scale_dtype: Dtype,
    /// Stored groups for each group given.
    pub repeats: usize,
}

/// Why a format cannot hold something, as the end of a sentence that begins with the module.
type Refusal = String;

impl Format {
    /// The name that people write.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Mlx => "mlx",
            Self::Bitsandbytes => "bnb8",
            Self::Npz => "npz",
        }
    }

    /// Whether embedding and head may be quantized.
    pub fn holds_tables(self) -> bool {
        matches!(self, Self::Mlx | Self::Npz)
    }

    /// Whether its config can name modules of another width.
    pub fn mixes(self) -> bool {
        !matches!(self, Self::Awq)
    }

    /// Whether whoever reads it rounds activations to 8 bits for every token.
    pub fn rounds_activations(self) -> bool {
        self == Self::Bitsandbytes
    }

    /// How the matrix would be stored.
    ///
    /// # Errors
    /// Why it cannot be, as the end of a sentence that begins with the module.
    pub fn fit(self, given: &Given) -> Result<Fit, Refusal> {
        let bits = given.scheme.weights.bits.get();
        let widths: &[u32] = match self {
            Self::Gptq => &[2, 3, 4, 8],
            Self::Awq => &[4],
            Self::Mlx => &[2, 3, 4, 5, 6, 8],
            Self::Bitsandbytes => &[8],
            Self::Npz => &[2, 3, 4, 5, 6, 7, 8],
        };
        if !widths.contains(&bits) {
            return Err(format!("has {bits}-bit codes; {} has {}", self.name(), listed(widths)));
        }
        if let Some(codes) = given.scheme.weights.uneven() {
            return Err(format!("has {codes}; {} has even steps", self.name()));
        }
        if given.scheme.weights.has_whole_scales() {
            return Err(format!("has whole scales times a factor of the row; {} has a float for every group", self.name()));
        }
        if given.ordered && self != Self::Gptq {
            return Err(format!("has inputs in activation order; {} has no place for it", self.name()));
        }
        match self {
            Self::Gptq => self.words(given, 32),
            Self::Awq => self.words(given, 8),
            Self::Mlx => mlx(given),
            Self::Bitsandbytes => bitsandbytes(given),
            Self::Npz => Ok(Fit { weights: given.scheme.weights, scale_dtype: given.scale_dtype, repeats: 1 }),
        }
    }

    /// GPTQ and AWQ: words along the outputs, whole groups, scales of 16 bits.
    fn words(self, given: &Given, outputs: usize) -> Result<Fit, Refusal> {
        let Given { rows, cols, scheme, scale_dtype, .. } = *given;
        if !rows.is_multiple_of(outputs) || !cols.is_multiple_of(32) {
            return Err(format!("is {rows}x{cols}; {} needs outputs in multiples of {outputs} and inputs of 32", self.name()));
        }
        whole_groups(self, given)?;
        if !matches!(scale_dtype, Dtype::F16 | Dtype::Bf16) {
            return Err(format!("has {scale_dtype} scales; {} stores 16-bit ones", self.name()));
        }
        Ok(Fit { weights: scheme.weights, scale_dtype, repeats: 1 })
    }
}

fn whole_groups(format: Format, given: &Given) -> Result<(), Refusal> {
    let size = given.scheme.weights.group_size(given.cols);
    if given.cols.is_multiple_of(size) {
        return Ok(());
    }
    Err(format!("has {} inputs in groups of {size}, the last one shorter; {} has whole groups only", given.cols, format.name()))
}

fn listed(widths: &[u32]) -> String {
    let (last, rest) = widths.split_last().map_or((0, &[][..]), |(last, rest)| (*last, rest));
    let rest: Vec<String> = rest.iter().map(u32::to_string).collect();
    if rest.is_empty() { format!("{last}") } else { format!("{} or {last}", rest.join(", ")) }
}

/// Groups of 32, 64 or 128: a larger one is cut into several of 128, 64 or 32 inputs with its scale. The offset of a group is the
/// zero point times the scale: exact in 16 bits for the middle of the codes (a power of two), in 32 bits for every one.
fn mlx(given: &Given) -> Result<Fit, Refusal> {
    whole_groups(Format::Mlx, given)?;
    let (cols, weights) = (given.cols, given.scheme.weights);
    let size = weights.group_size(cols);
    let stored = if [32, 64, 128].contains(&size) { Some(size) } else { [128, 64, 32].into_iter().find(|n| size.is_multiple_of(*n)) };
    let Some(stored) = stored.and_then(NonZeroUsize::new) else {
        return Err(format!("has groups of {size} inputs; mlx has 32, 64 or 128"));
    };
    let scale_dtype = if weights.is_asymmetric() { Dtype::F32 } else { given.scale_dtype };
    let repeats = size / stored.get();
    Ok(Fit { weights: WeightScheme { granularity: Granularity::Group(stored), ..weights }, scale_dtype, repeats })
}

fn bitsandbytes(given: &Given) -> Result<Fit, Refusal> {
    let weights = given.scheme.weights;
    if weights.is_asymmetric() || weights.group_size(given.cols) != given.cols {
        return Err(format!("is {weights}; bnb8 has one scale a row and no zero points (w8-pc-sym)"));
    }
    // Its absolute maximum, scale · 127, has seven bits more than the scale: too many for one of 24.
    if given.scale_dtype == Dtype::F32 {
        return Err("has F32 scales, whose multiples by 127 F32 does not hold".into());
    }
    if matches!(given.scheme.activations, Activations::Int8PerGroup(_)) {
        return Err("rounds activations in groups; bnb8 rounds whole tokens".into());
    }
    Ok(Fit { weights, scale_dtype: Dtype::F32, repeats: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(scheme: &str, scale_dtype: Dtype) -> Given {
        Given { rows: 64, cols: 256, scheme: scheme.parse().unwrap(), scale_dtype, ordered: false }
    }

    #[test]
    fn what_each_format_holds() {
        let fits = |format: Format, scheme: &str| format.fit(&given(scheme, Dtype::F16)).is_ok();
        for (scheme, holding) in [
            ("w4a16-g128", vec![Format::Gptq, Format::Awq, Format::Mlx, Format::Npz]),
            ("w4a16-g32-asym", vec![Format::Gptq, Format::Awq, Format::Mlx, Format::Npz]),
            ("w8a16", vec![Format::Gptq, Format::Mlx, Format::Bitsandbytes, Format::Npz]),
            ("w8a8-o6", vec![Format::Gptq, Format::Mlx, Format::Bitsandbytes, Format::Npz]),
            ("w5a16", vec![Format::Mlx, Format::Npz]),
            ("w7a16", vec![Format::Npz]),
        ] {
            let all = [Format::Gptq, Format::Awq, Format::Mlx, Format::Bitsandbytes, Format::Npz];
            let found: Vec<Format> = all.into_iter().filter(|&format| fits(format, scheme)).collect();
            assert_eq!(found, holding, "{scheme}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let say = |format: Format, given: Given| format.fit(&given).unwrap_err();
        assert!(say(Format::Awq, given("w8a16", Dtype::F16)).contains("8-bit codes; awq has 4"));
        assert!(say(Format::Gptq, given("w8a16", Dtype::F32)).contains("F32 scales"));
        for format in [Format::Gptq, Format::Awq, Format::Mlx, Format::Npz] {
            assert!(say(format, given("w4a16-g32-s8", Dtype::F16)).contains("factor of the row"));
        }
        assert!(say(Format::Bitsandbytes, given("w8a16", Dtype::F32)).contains("F32"));
        assert!(say(Format::Gptq, Given { cols: 288, ..given("w4a16-g128", Dtype::F16) }).contains("last one shorter"));
        assert!(say(Format::Gptq, Given { rows: 20, ..given("w4a16-g128", Dtype::F16) }).contains("multiples of 32"));
        assert!(say(Format::Mlx, Given { ordered: true, ..given("w4a16-g128", Dtype::F16) }).contains("activation order"));
    }

    #[test]
    fn mlx_cuts_long_groups() {
        let fit = Format::Mlx.fit(&given("w8a16", Dtype::Bf16)).unwrap();
        assert_eq!((fit.repeats, fit.weights.groups(256), fit.scale_dtype), (2, 2, Dtype::Bf16));
        assert_eq!(Format::Mlx.fit(&given("w4a16-g64-asym", Dtype::Bf16)).unwrap().scale_dtype, Dtype::F32);
    }
}
