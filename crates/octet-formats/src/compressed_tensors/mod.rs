//! compressed-tensors: `pack-quantized` and `int-quantized` weights, read and written; NVFP4 and MXFP4, read.
//!
//! Source: the `compressed-tensors` package, version 0.20 (`compressors/quantized_compressors`), checked against
//! checkpoints made by llm-compressor.

pub(crate) mod bits;
mod config;
mod encode;
mod read;

pub use crate::write::Piece;
pub(crate) use config::{OUTLIER_COLUMNS, OUTLIER_LIMIT};
pub use config::{quantization_config, quantization_config_with_order};
pub use encode::{encode_rows, order_spec, tensor_specs};
pub(crate) use read::{codes, int8, mxfp4, nvfp4, own_order, packed};

use octet_tensor::{Activations, Scheme};

/// octet's own format: as `pack-quantized`, but what is packed are the numbers of a table's levels, or of points of a lattice. Other readers refuse a format that
/// they do not know.
pub(crate) const TABLE_FORMAT: &str = "octet-table";

/// octet's own format: as `pack-quantized`, or with levels as [`TABLE_FORMAT`], but a group's scale is a whole number of eight bits times
/// a factor of the row.
pub(crate) const SCALES_FORMAT: &str = "octet-scales";

/// Suffix of the factors that whole scales are multiples of, in parts of 128.
const FACTOR: &str = "weight_scale_factor";

/// octet's own argument of the weights: the levels, that every matrix has its own, or that eight codes are a point of a lattice.
pub(crate) const TABLE_LEVELS: &str = "levels";
pub(crate) const OWN_LEVELS: &str = "tensor";
pub(crate) const LATTICE_LEVELS: &str = "e8";

/// Suffix of the levels that a matrix has for itself.
const LEVELS: &str = "weight_levels";

/// Suffixes of what octet alone stores: which inputs are outliers, and their weights (see [`Activations::Int8Beside`]).
const OUTLIER_INDEX: &str = "weight_outlier_columns";
const OUTLIER_WEIGHTS: &str = "weight_outliers";

/// Suffix of the group of each input.
const ORDER: &str = "weight_g_idx";

/// Whether codes of a scheme are stored one a byte (`int-quantized`) rather than as a bit stream (`pack-quantized`).
///
/// Only 8-bit weights under integer activations are, with scales that other engines read: that is the form in which they run W8A8.
fn is_one_byte(scheme: Scheme) -> bool {
    scheme.weights.bits.get() == 8 && scheme.activations != Activations::Exact && !scheme.weights.has_whole_scales()
}
