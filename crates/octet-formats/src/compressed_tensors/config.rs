//! Writing `quantization_config`.

use super::{LATTICE_LEVELS, OWN_LEVELS, SCALES_FORMAT, TABLE_FORMAT, TABLE_LEVELS, is_one_byte};
use octet_tensor::{Activations, Granularity, Scheme, Symmetry, WeightScheme};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// octet's own argument of an activation observer: inputs beyond it are multiplied as floats.
pub(crate) const OUTLIER_LIMIT: &str = "outlier_threshold";

/// octet's own argument of an activation observer: the share of inputs that are multiplied as floats, with weights beside.
pub(crate) const OUTLIER_COLUMNS: &str = "outlier_columns_percent";

/// The version of compressed-tensors whose config this is.
const VERSION: &str = "0.20.0";

/// The quantization config of a checkpoint whose `modules` are stored as [`super::tensor_specs`] says.
///
/// One config group a scheme. Modules inside the numbered blocks that all share one scheme are targeted as `Linear`,
/// which is what transformers and vLLM expect; otherwise by name. Modules outside the blocks (embeddings, head) have
/// groups of their own with explicit targets: such a checkpoint is for octet, transformers does not load it.
/// `ignore` lists modules that stay float; names that are in `modules` are left out of it.
pub fn quantization_config(modules: &[(String, Scheme)], ignore: &[String]) -> Value {
    quantization_config_with_order(modules, &BTreeSet::new(), ignore)
}

/// As [`quantization_config`], where `ordered` modules are stored with the group of each input (`actorder: group`).
pub fn quantization_config_with_order(modules: &[(String, Scheme)], ordered: &BTreeSet<String>, ignore: &[String]) -> Value {
    let form = |name: &str, scheme: Scheme| Form { scheme, ordered: ordered.contains(name) };
    let (inside, outside): (Vec<_>, Vec<_>) = modules.iter().partition(|(name, _)| in_block(name));
    let mut groups: Vec<(Form, Vec<String>)> = by_form(inside.iter().map(|(name, scheme)| (name.clone(), form(name, *scheme))));
    if let [(_, targets)] = &mut groups[..] {
        *targets = vec!["Linear".into()];
    }
    groups.extend(by_form(outside.iter().map(|(name, scheme)| (outside_target(name), form(name, *scheme)))));
    let ignore: Vec<&String> = ignore.iter().filter(|name| !modules.iter().any(|(module, _)| module == *name)).collect();
    let mut formats: Vec<&str> = groups.iter().map(|(form, _)| format_of(form.scheme)).collect();
    formats.dedup();
    let format = if let [one] = formats[..] { one } else { "mixed-precision" };
    let groups: serde_json::Map<String, Value> =
        groups.into_iter().enumerate().map(|(i, (form, targets))| (format!("group_{i}"), group(form, &targets))).collect();
    json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    })
}

/// Whether a module belongs to one of the numbered blocks.
fn in_block(module: &str) -> bool {
    module.split('.').any(|part| part.parse::<usize>().is_ok())
}

/// How a module outside the blocks is targeted: by its last name wherever it hangs, or by name at the top.
fn outside_target(module: &str) -> String {
    module.rsplit_once('.').map_or_else(|| module.into(), |(_, last)| format!("re:.*{last}$"))
}

/// What the modules of a config group share.
#[derive(Clone, Copy, PartialEq)]
struct Form {
    scheme: Scheme,
    ordered: bool,
}

fn by_form(modules: impl Iterator<Item = (String, Form)>) -> Vec<(Form, Vec<String>)> {
    let mut groups: Vec<(Form, Vec<String>)> = vec![];
    for (target, form) in modules {
        match groups.iter_mut().find(|(known, _)| *known == form) {
            Some((_, targets)) => targets.push(target),
            None => groups.push((form, vec![target])),
        }
    }
    groups
}

fn format_of(scheme: Scheme) -> &'static str {
    match () {
        () if scheme.weights.has_whole_scales() => SCALES_FORMAT,
        () if scheme.weights.uneven().is_some() => TABLE_FORMAT,
        () if is_one_byte(scheme) => "int-quantized",
        () => "pack-quantized",
    }
}

fn group(Form { scheme, ordered }: Form, targets: &[String]) -> Value {
    let mut weights = weights(scheme.weights);
    if ordered {
        weights["actorder"] = "group".into();
    }
    json!({
        "targets": targets,
        "format": format_of(scheme),
        "weights": weights,
        "input_activations": activations(scheme.activations),
        "output_activations": null,
    })
}

fn weights(weights: WeightScheme) -> Value {
    let (strategy, group_size) = match weights.granularity {
        Granularity::PerChannel => ("channel", None),
        Granularity::Group(size) => ("group", Some(size)),
    };
    let zp_dtype = weights.is_asymmetric().then_some("torch.int8");
    let symmetric = !weights.is_asymmetric();
    let mut args = args(
        json!({"num_bits": weights.bits.get(), "symmetric": symmetric, "strategy": strategy, "group_size": group_size, "dynamic": false, "zp_dtype": zp_dtype}),
    );
    match weights.symmetry {
        Symmetry::Table => args["observer_kwargs"] = json!({TABLE_LEVELS: octet_tensor::LEVELS}),
        Symmetry::Learnt => args["observer_kwargs"] = json!({TABLE_LEVELS: OWN_LEVELS}),
        Symmetry::Lattice => args["observer_kwargs"] = json!({TABLE_LEVELS: LATTICE_LEVELS}),
        Symmetry::Symmetric | Symmetry::Asymmetric => {}
    }
    args
}

fn activations(activations: Activations) -> Value {
    let (strategy, group_size) = match activations {
        Activations::Exact => return Value::Null,
        Activations::Int8PerToken | Activations::Int8Below(_) | Activations::Int8Beside(_) => ("token", None),
        Activations::Int8PerGroup(size) => ("group", Some(size)),
    };
    let mut args =
        args(json!({"num_bits": 8, "symmetric": true, "strategy": strategy, "group_size": group_size, "dynamic": true, "zp_dtype": null}));
    // Other readers take the folder and multiply all inputs in 8 bits, which the codes of outliers are good for as well.
    match activations {
        Activations::Int8Below(limit) => args["observer_kwargs"] = json!({OUTLIER_LIMIT: f64::from(limit.get())}),
        Activations::Int8Beside(share) => args["observer_kwargs"] = json!({OUTLIER_COLUMNS: share.percent()}),
        _ => {}
    }
    args
}

/// Adds what every set of arguments of the tool spells out.
fn args(mut given: Value) -> Value {
    for key in ["actorder", "block_structure", "observer", "scale_dtype"] {
        given[key] = Value::Null;
    }
    given["type"] = "int".into();
    given["observer_kwargs"] = json!({});
    given
}
