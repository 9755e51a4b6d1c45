//! Writing `quantization_config`.

use super::{TABLE_FORMAT, TABLE_LEVELS, is_one_byte};
use octet_tensor::{Activations, Granularity, Scheme, WeightScheme};
use serde_json::{Value, json};

/// octet's own argument of an activation observer: inputs beyond it are multiplied as floats.
pub(crate) const OUTLIER_LIMIT: &str = "outlier_threshold";

/// The version of compressed-tensors whose config this is.
const VERSION: &str = "0.20.0";

/// The quantization config of a checkpoint whose `modules` are stored as [`super::tensor_specs`] says.
///
/// One config group a scheme. Modules inside the numbered blocks that all share one scheme are targeted as `Linear`,
/// which is what transformers and vLLM expect; otherwise by name. Modules outside the blocks (embeddings, head) have
/// groups of their own with explicit targets: such a checkpoint is for octet, transformers does not load it.
/// `ignore` lists modules that stay float; names that are in `modules` are left out of it.
pub fn quantization_config(modules: &[(String, Scheme)], ignore: &[String]) -> Value {
    let (inside, outside): (Vec<_>, Vec<_>) = modules.iter().partition(|(name, _)| in_block(name));
    let mut groups: Vec<(Scheme, Vec<String>)> = by_scheme(inside.iter().map(|(name, scheme)| (name.clone(), *scheme)));
    if let [(_, targets)] = &mut groups[..] {
        *targets = vec!["Linear".into()];
    }
    groups.extend(by_scheme(outside.iter().map(|(name, scheme)| (outside_target(name), *scheme))));
    let ignore: Vec<&String> = ignore.iter().filter(|name| !modules.iter().any(|(module, _)| module == *name)).collect();
    let mut formats: Vec<&str> = groups.iter().map(|(scheme, _)| format_of(*scheme)).collect();
    formats.dedup();
    let format = if let [one] = formats[..] { one } else { "mixed-precision" };
    let groups: serde_json::Map<String, Value> =
        groups.into_iter().enumerate().map(|(i, (scheme, targets))| (format!("group_{i}"), group(scheme, &targets))).collect();
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

fn by_scheme(modules: impl Iterator<Item = (String, Scheme)>) -> Vec<(Scheme, Vec<String>)> {
    let mut groups: Vec<(Scheme, Vec<String>)> = vec![];
    for (target, scheme) in modules {
        match groups.iter_mut().find(|(known, _)| *known == scheme) {
            Some((_, targets)) => targets.push(target),
            None => groups.push((scheme, vec![target])),
        }
    }
    groups
}

fn format_of(scheme: Scheme) -> &'static str {
    match () {
        () if scheme.weights.is_table() => TABLE_FORMAT,
        () if is_one_byte(scheme) => "int-quantized",
        () => "pack-quantized",
    }
}

fn group(scheme: Scheme, targets: &[String]) -> Value {
    json!({
        "targets": targets,
        "format": format_of(scheme),
        "weights": weights(scheme.weights),
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
    if weights.is_table() {
        args["observer_kwargs"] = json!({TABLE_LEVELS: octet_tensor::LEVELS});
    }
    args
}

fn activations(activations: Activations) -> Value {
    let (strategy, group_size) = match activations {
        Activations::Exact => return Value::Null,
        Activations::Int8PerToken | Activations::Int8Below(_) => ("token", None),
        Activations::Int8PerGroup(size) => ("group", Some(size)),
    };
    let mut args =
        args(json!({"num_bits": 8, "symmetric": true, "strategy": strategy, "group_size": group_size, "dynamic": true, "zp_dtype": null}));
    if let Activations::Int8Below(limit) = activations {
        // Other readers take the folder and multiply all inputs in 8 bits.
        args["observer_kwargs"] = json!({OUTLIER_LIMIT: f64::from(limit.get())});
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
