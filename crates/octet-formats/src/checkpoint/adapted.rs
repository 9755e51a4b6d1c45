//! A checkpoint whose weights an adapter changes as they are read.

use super::{Entry, find, modules::Modules};
use crate::{
    Error, Result,
    peft::{Adapter, LowRank, PEFT, merged},
};
use octet_tensor::{FloatMatrix, Matrix};
use std::{collections::BTreeMap, sync::Arc};

/// The entries of the base with those that the adapter brings whole.
pub(super) fn entries(mut entries: Vec<Entry>, adapter: Option<&Arc<Adapter>>) -> Vec<Entry> {
    let Some(adapter) = adapter else { return entries };
    entries.retain(|entry| !adapter.whole.contains_key(&entry.name));
    entries.extend(adapter.whole.iter().map(|(name, tensor)| Entry {
        name: name.clone(),
        dtype: tensor.dtype(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.bytes().len(),
        shard: PEFT.into(),
        blocks: None,
        data: tensor.bytes().clone(),
    }));
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

/// Refuses an adapter of modules that the base does not have.
pub(super) fn check(adapter: &Adapter, modules: &Modules, entries: &[Entry]) -> Result<()> {
    match adapter.modules.keys().find(|module| !modules.holds(module) && find(entries, &format!("{module}.weight")).is_none()) {
        None => Ok(()),
        Some(module) => Err(Error::Adapter(format!("the base has no {module}; it was made for another model"))),
    }
}

/// What is decoded to floats because an adapter changes it, in words.
pub(super) fn describe(adapter: &Adapter, modules: &Modules, decoded: &mut BTreeMap<String, String>) {
    let schemes = modules.integer_schemes();
    for (module, low) in &adapter.modules {
        let kind = if low.magnitude.is_some() { "DoRA" } else { "LoRA" };
        let base = decoded.get(module).cloned().or_else(|| schemes.get(module).map(|scheme| scheme.weights.to_string()));
        let base = base.unwrap_or_else(|| "floats".into());
        decoded.insert(module.clone(), format!("{base} with a {kind} of rank {}", low.rank));
    }
}

/// The matrix of a module with what the adapter adds.
pub(super) fn matrix(
    module: &str,
    base: &Matrix,
    adapter: &Adapter,
    low: &Arc<LowRank>,
    entry: Option<&Entry>,
) -> octet_tensor::Result<Matrix> {
    let base = match (base, entry) {
        (Matrix::Float(float), Some(entry)) if adapter.inputs_first && float.dense_bytes().is_some() => {
            Matrix::Float(FloatMatrix::transposed(entry.tensor()?)?)
        }
        _ => base.clone(),
    };
    merged(module, base, low)
}
