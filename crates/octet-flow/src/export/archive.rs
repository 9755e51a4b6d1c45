//! The documents beside an archive of arrays: whoever reads it needs no other file of octet's.

use super::convert::{Conversion, Job};
use crate::{Result, artefact::write_json};
use octet_formats::{npz, write::Format};
use octet_tensor::Granularity;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Writes `model_metadata.json`, `quantization_info.json` and `tokenizer_info.json`.
pub(super) fn documents(job: Job<'_>, plan: &Conversion, config: &Value, at: &Path) -> Result<()> {
    let (spec, input) = (&job.source.spec, &job.source.input);
    write_json(
        &at.join("model_metadata.json"),
        &json!({
            "name": input.name(), "octet_version": env!("CARGO_PKG_VERSION"), "tensors": npz::FILE, "family": spec.family(),
            "layers": spec.layers().len(), "hidden_size": spec.hidden(), "vocabulary": spec.vocab_size(), "context": spec.context(),
            "tied_head": spec.head().tied, "config": config,
        }),
    )?;
    write_json(&at.join("quantization_info.json"), &quantization(plan))?;
    if let Some(tokenizer) = job.source.tokenizer()? {
        let files: Vec<String> = input.files()?.into_iter().map(|(name, _)| name).filter(|name| name.contains("token")).collect();
        write_json(
            &at.join("tokenizer_info.json"),
            &json!({
                "tokens": tokenizer.len(), "bos": tokenizer.bos(), "bos_text": tokenizer.bos_text(), "eos": tokenizer.eos(),
                "eos_text": tokenizer.eos_text(), "files": files,
            }),
        )?;
    }
    Ok(())
}

/// Every module's scheme and how its arrays make its weights.
fn quantization(plan: &Conversion) -> Value {
    let mut modules = Map::new();
    for planned in &plan.matrices {
        let Some((scheme, _)) = planned.codes() else { continue };
        let group = match scheme.weights.granularity {
            Granularity::PerChannel => planned.site.cols,
            Granularity::Group(size) => size.get(),
        };
        modules.insert(
            planned.site.module.clone(),
            json!({
                "scheme": scheme.to_string(), "bits": scheme.weights.bits.get(), "group_size": group,
                "symmetric": !scheme.weights.is_asymmetric(), "shape": [planned.site.rows, planned.site.cols],
            }),
        );
    }
    json!({
        "layout": Format::Npz.name(),
        "arrays": {"codes": "int8 [rows, cols]", "scale": "float32 [rows, groups]", "zero": "int8 [rows, groups], where not symmetric"},
        "weight": "scale[r, c / group_size] * (codes[r, c] - zero[r, c / group_size])",
        "floats": "numbers numpy has no type for (bfloat16) are widened to float32",
        "modules": modules,
    })
}
