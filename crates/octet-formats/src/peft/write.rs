//! Writing an adapter as PEFT does.

use super::{Adapter, CONFIG, LowRank, PEFT};
use crate::{
    Error, Result,
    safetensors::{SINGLE, TensorSpec, Writer},
    write::floats,
};
use octet_tensor::Dtype;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};

/// Writes `adapter` into the folder `dir` as PEFT saves a LoRA; its base is called `base`.
///
/// # Errors
/// If the disk is full or files are there already.
pub fn write(dir: &Path, adapter: &Adapter, base: &str) -> Result<()> {
    let name = |module: &str, part: &str| format!("base_model.model.{module}.{part}");
    let (mut specs, mut values) = (vec![], vec![]);
    for (module, low) in &adapter.modules {
        let [outputs, inputs] = low.dims();
        for (part, shape, numbers) in [
            ("lora_A.weight", vec![low.rank, inputs], Some(&low.a)),
            ("lora_B.weight", vec![outputs, low.rank], Some(&low.b)),
            ("lora_magnitude_vector", vec![outputs], low.magnitude.as_ref()),
        ] {
            if let Some(numbers) = numbers {
                specs.push(TensorSpec { name: name(module, part), dtype: Dtype::F32, shape });
                values.push((name(module, part), numbers));
            }
        }
    }
    for (whole, tensor) in &adapter.whole {
        specs.push(TensorSpec { name: format!("base_model.model.{whole}"), dtype: tensor.dtype(), shape: tensor.shape().to_vec() });
    }
    let mut writer = Writer::create(dir, specs, u64::MAX, &BTreeMap::new())?;
    for (name, numbers) in values {
        writer.write(&name, 0, &floats(&name, numbers, Dtype::F32)?)?;
    }
    for (whole, tensor) in &adapter.whole {
        writer.write(&format!("base_model.model.{whole}"), 0, tensor.bytes())?;
    }
    writer.finish()?;
    let (from, to) = (dir.join(SINGLE), dir.join(PEFT));
    std::fs::rename(&from, &to).map_err(Error::io("rename", &from))?;
    let config = dir.join(CONFIG);
    std::fs::write(&config, format!("{:#}\n", described(adapter, base))).map_err(Error::io("write", &config))
}

/// A config that gives every module its rank and factor.
fn described(adapter: &Adapter, base: &str) -> Value {
    let usual = adapter.modules.values().next();
    let (rank, alpha) = usual.map_or((1, 1.0), |low| (low.rank, alpha(low)));
    let differing = |test: &dyn Fn(&LowRank) -> Option<Value>| -> Map<String, Value> {
        adapter.modules.iter().filter_map(|(module, low)| Some((module.replace('.', "\\."), test(low)?))).collect()
    };
    let saved: Vec<&str> = adapter.whole.keys().filter_map(|name| name.strip_suffix(".weight")).collect();
    json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha,
        "rank_pattern": differing(&|low| (low.rank != rank).then(|| low.rank.into())),
        "alpha_pattern": differing(&|low| (self::alpha(low) != alpha).then(|| self::alpha(low).into())),
        "target_modules": adapter.modules.keys().collect::<Vec<_>>(),
        "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
        "use_dora": adapter.modules.values().any(|low| low.magnitude.is_some()), "use_rslora": false,
        "fan_in_fan_out": adapter.inputs_first, "bias": "none", "lora_dropout": 0.0, "init_lora_weights": true, "inference_mode": true,
    })
}

/// What gives the factor when it is divided by the rank.
fn alpha(low: &LowRank) -> f64 {
    f64::from(low.scale) * low.rank as f64
}
