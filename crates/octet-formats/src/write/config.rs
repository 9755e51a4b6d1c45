//! What config.json says of a written checkpoint.

use super::{Fit, Format};
use octet_tensor::{Activations, Granularity, Scheme};
use serde_json::{Map, Value, json};

/// A module as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// Its path.
    pub module: String,
    /// How it is stored.
    pub fit: Fit,
    /// What its activations are to octet.
    pub activations: Activations,
    /// Whether its inputs belong to groups in an order of their own.
    pub ordered: bool,
}

impl Described {
    fn group(&self) -> i64 {
        match self.fit.weights.granularity {
            Granularity::PerChannel => -1,
            Granularity::Group(size) => size.get() as i64,
        }
    }

    fn kind(&self) -> (u32, i64) {
        (self.fit.weights.bits.get(), self.group())
    }
}

/// The quantization config of `modules`, where `kept` linears stay floats: the keys it adds to config.json.
pub fn quantization_config(format: Format, modules: &[Described], kept: &[String]) -> Map<String, Value> {
    let one = |value: Value| Map::from_iter([("quantization_config".to_string(), value)]);
    match format {
        Format::Gptq => one(gptq(modules, kept)),
        Format::Awq => one(awq(modules, kept)),
        Format::Bitsandbytes => one(bitsandbytes(modules, kept)),
        Format::Npz => one(npz(modules)),
        // mlx-lm reads the first, whatever looks for a quantized checkpoint the second.
        Format::Mlx => {
            let value = mlx(modules);
            Map::from_iter([("quantization".into(), value.clone()), ("quantization_config".into(), value)])
        }
    }
}

/// Width and group that most modules have (the first among equals).
fn usual(modules: &[Described]) -> (u32, i64) {
    let count = |kind: (u32, i64)| modules.iter().filter(|module| module.kind() == kind).count();
    let mut best = modules.first().map_or((4, 128), Described::kind);
    for module in modules {
        if count(module.kind()) > count(best) {
            best = module.kind();
        }
    }
    best
}

fn gptq(modules: &[Described], kept: &[String]) -> Value {
    let (bits, group) = usual(modules);
    let symmetric = modules.iter().all(|module| !module.fit.weights.is_asymmetric());
    let format = if symmetric { "gptq" } else { "gptq_v2" };
    let mut value = json!({
        "quant_method": "gptq", "method": "gptq", "bits": bits, "group_size": group,
        "desc_act": modules.iter().any(|module| module.ordered), "sym": symmetric, "lm_head": false,
        "checkpoint_format": format, "format": format, "pack_dtype": "int32", "true_sequential": true, "static_groups": false,
        "meta": {"quantizer": [format!("octet:{}", env!("CARGO_PKG_VERSION"))]},
    });
    // GPTQModel's way to say what differs: a pattern that adds keys, or one that leaves a module alone.
    let pattern = |sign: &str, module: &str| format!("{sign}:^{}$", module.replace('.', "\\."));
    let differing = modules.iter().filter(|module| module.kind() != (bits, group));
    let mut dynamic: Map<String, Value> =
        differing.map(|m| (pattern("+", &m.module), json!({"bits": m.kind().0, "group_size": m.kind().1}))).collect();
    dynamic.extend(kept.iter().filter(|name| in_block(name)).map(|name| (pattern("-", name), json!({}))));
    if !dynamic.is_empty() {
        value["dynamic"] = dynamic.into();
    }
    value
}

fn in_block(module: &str) -> bool {
    module.split('.').any(|part| part.parse::<usize>().is_ok())
}

fn awq(modules: &[Described], kept: &[String]) -> Value {
    let (bits, group) = usual(modules);
    let kept: Vec<&String> = kept.iter().filter(|name| in_block(name)).collect();
    json!({
        "quant_method": "awq", "method": "awq", "version": "gemm", "format": "gemm", "checkpoint_format": "gemm",
        "bits": bits, "group_size": group, "zero_point": true, "sym": false, "desc_act": false, "lm_head": false, "pack_dtype": "int32",
        "modules_to_not_convert": if kept.is_empty() { Value::Null } else { json!(kept) },
        "meta": {"quantizer": [format!("octet:{}", env!("CARGO_PKG_VERSION"))]},
    })
}

fn bitsandbytes(modules: &[Described], kept: &[String]) -> Value {
    let limit = modules.iter().find_map(|module| match module.activations {
        Activations::Int8Below(limit) => Some(f64::from(limit.get())),
        Activations::Int8PerToken => Some(0.0),
        _ => None,
    });
    json!({
        "quant_method": "bitsandbytes", "_load_in_4bit": false, "_load_in_8bit": true, "load_in_4bit": false, "load_in_8bit": true,
        "llm_int8_threshold": limit.unwrap_or(6.0), "llm_int8_skip_modules": kept, "llm_int8_has_fp16_weight": false,
        "llm_int8_enable_fp32_cpu_offload": false, "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": false,
    })
}

fn mlx(modules: &[Described]) -> Value {
    let (bits, group) = usual(modules);
    let mut value = json!({"group_size": group, "bits": bits, "mode": "affine"});
    for module in modules.iter().filter(|module| module.kind() != (bits, group)) {
        value[&module.module] = json!({"group_size": module.group(), "bits": module.kind().0, "mode": "affine"});
    }
    value
}

/// octet's own: every module with its scheme.
fn npz(modules: &[Described]) -> Value {
    let scheme = |m: &Described| Scheme { weights: m.fit.weights, activations: m.activations }.to_string();
    let modules: Map<String, Value> = modules.iter().map(|module| (module.module.clone(), scheme(module).into())).collect();
    json!({"quant_method": "octet-npz", "modules": modules})
}
