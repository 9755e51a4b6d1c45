//! Tensors that cannot take the scheme asked for.

use crate::Site;
use octet_model::Role;
use octet_tensor::{Dtype, Symmetry, WeightScheme};

/// Why a router is never quantized.
pub(super) const ROUTER: &str = "it is a router: a small error would pick other experts";

/// Why `site` cannot be represented as `scheme`, or `None` if it can.
pub(crate) fn misfit(site: &Site, scheme: WeightScheme, portable: bool) -> Option<String> {
    let linear = &site.linear;
    let size = scheme.group_size(linear.cols);
    if linear.role == Role::Router {
        return Some(ROUTER.into());
    }
    if portable && linear.transposed {
        return Some("it is a Conv1D, and other readers of compressed-tensors know Linear modules only".into());
    }
    if portable && linear.role == Role::Embedding {
        return Some("it is an embedding, and other readers of compressed-tensors know Linear modules only".into());
    }
    if portable && let Some(codes) = scheme.uneven() {
        return Some(format!("other readers of compressed-tensors have no {codes}"));
    }
    if portable && scheme.has_whole_scales() {
        return Some("other readers of compressed-tensors have a float for every scale".into());
    }
    if portable && !linear.cols.is_multiple_of(size) {
        return Some(format!("its {} inputs are no multiple of the group of {size}, which other readers need", linear.cols));
    }
    if scheme.symmetry == Symmetry::Lattice && !linear.cols.is_multiple_of(8) {
        return Some(format!("its {} inputs are no multiple of eight, of which a lattice has points", linear.cols));
    }
    let (now, then) = (16.0, scheme.bits_per_weight(linear.cols, Dtype::Bf16));
    (then >= now).then(|| format!("it has {} inputs only and would take {then:.1} bits a weight", linear.cols))
}
