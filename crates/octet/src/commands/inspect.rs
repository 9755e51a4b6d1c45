//! `octet inspect`: what a checkpoint is and what running it will take.

use super::say_json;
use crate::{
    Ended,
    args::{Global, Inspect},
    machine, resolve, ui,
};
use anyhow::{Result, bail};
use octet_formats::{Checkpoint, StoredQuantization};
use octet_kernels::KvDtype;
use octet_model::{
    ArchSpec, BlockGraph, Role,
    show::{ShownStage, ShownStep},
};
use octet_runtime::{MemoryForecast, MemoryNeeds};
use octet_tensor::{Matrix, WeightSource};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Runs the command.
pub(crate) fn inspect(args: &Inspect, global: &Global) -> Result<Ended> {
    let folder = resolve::resolve(&args.model)?;
    let checkpoint = Checkpoint::open(&folder)?;
    let mut spec = ArchSpec::from_config(checkpoint.config())?;
    spec.settle(&checkpoint)?;
    spec.check(&checkpoint)?;
    if args.check {
        check_weights(&checkpoint)?;
    }
    let graph = spec.graph();
    let needs = MemoryNeeds::of(&folder, None, global.threads.unwrap_or_else(|| machine::default_threads().get()))?;
    let facts = Facts::of(&checkpoint, &spec, needs, (args.context, args.cache.kv.into()))?;
    if global.json {
        let mut document = facts.document(&args.model);
        if args.tensors {
            document["tensors"] = tensors(&checkpoint);
        }
        if args.graph {
            document["graph"] = stages(&graph);
        }
        say_json(&document)?;
        return Ok(Ended::Done);
    }
    facts.show(&args.model);
    if args.graph {
        ui::say(&format!("\n{graph}"));
    }
    if args.tensors {
        let rows: Vec<Vec<String>> = checkpoint
            .entries()
            .iter()
            .map(|e| {
                vec![
                    e.name.clone(),
                    e.blocks.map_or_else(|| e.dtype.to_string(), Into::into),
                    format!("{:?}", e.shape),
                    ui::bytes(e.bytes as u64),
                ]
            })
            .collect();
        ui::say(&format!("\n{}", ui::table(&["tensor", "dtype", "shape", "size"], &rows)));
    }
    Ok(Ended::Done)
}

/// Refuses a checkpoint with values that are not finite; all tensors that hold some are named (the first 16).
fn check_weights(checkpoint: &Checkpoint) -> Result<()> {
    let counts = checkpoint.entries().iter().map(|entry| (&entry.name, checkpoint.scan_non_finite(&entry.name)));
    let damaged: Vec<String> = counts.filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} ({count})")).collect();
    if damaged.is_empty() {
        return Ok(());
    }
    let more = if damaged.len() > 16 { ", ..." } else { "" };
    let first = damaged[..damaged.len().min(16)].join(", ");
    bail!("some values are not finite, in {first}{more}; the checkpoint is damaged, get it again")
}

/// What there is to know without running anything.
struct Facts {
    family: String,
    layers: usize,
    hidden: usize,
    vocab: usize,
    context: usize,
    parameters: u64,
    stored_bytes: u64,
    linear_bits: f64,
    quantization: Option<(String, String)>,
    packed: std::result::Result<bool, String>,
    /// Stored forms that no kernel runs, and how many matrices have them.
    decoded: BTreeMap<String, usize>,
    /// What inputs are rounded to beside what schemes say, and of how many matrices.
    rounded: BTreeMap<String, usize>,
    activations: Option<String>,
    kv: KvDtype,
    kv_bytes_per_token: usize,
    needs: MemoryNeeds,
    asked_context: Option<usize>,
}

impl Facts {
    fn of(checkpoint: &Checkpoint, spec: &ArchSpec, needs: MemoryNeeds, asked: (Option<usize>, KvDtype)) -> Result<Self> {
        let (asked_context, kv) = asked;
        if let Some(context) = asked_context.filter(|&context| context == 0 || context > needs.longest()) {
            bail!("--context {context} is not between 1 and the model's own {}", needs.longest());
        }
        let (mut parameters, mut linear_bytes, mut linear_weights, mut rounded) = (0u64, 0u64, 0u64, BTreeMap::new());
        for site in spec.linear_sites() {
            let matrix = checkpoint.matrix(&site.module)?;
            let weights = (site.rows * site.cols) as u64;
            parameters += weights;
            if let Some(rounding) = matrix.as_ref().and_then(Matrix::inputs) {
                *rounded.entry(rounding.to_string()).or_default() += 1;
            }
            if !matches!(site.role, Role::Embedding | Role::Head | Role::Router) {
                linear_weights += weights;
                linear_bytes += matrix.as_ref().map_or(0, Matrix::stored_bytes) as u64;
            }
        }
        parameters += spec.graph().other_tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum::<u64>();
        let stored = checkpoint.quantization();
        let scheme = stored.and_then(|q| q.main_scheme());
        let mut decoded = BTreeMap::new();
        for form in checkpoint.decoded().into_values() {
            *decoded.entry(form).or_default() += 1;
        }
        Ok(Self {
            family: spec.family().into(),
            layers: spec.layers().len(),
            hidden: spec.hidden(),
            vocab: spec.vocab_size(),
            context: spec.context(),
            parameters,
            stored_bytes: checkpoint.entries().iter().map(|e| e.bytes as u64).sum(),
            linear_bits: 8.0 * linear_bytes as f64 / linear_weights.max(1) as f64,
            quantization: stored.map(|q| (named(q), scheme.map_or("mixed".into(), |s| s.to_string()))),
            packed: checkpoint.packed().map_err(str::to_string),
            decoded,
            rounded,
            activations: scheme.map(|s| format!("{:?}", s.activations)),
            kv,
            kv_bytes_per_token: spec.kv_bytes_per_token(kv),
            needs,
            asked_context,
        })
    }

    /// What running it with a context of `tokens` takes.
    fn running(&self, tokens: usize) -> MemoryForecast {
        self.needs.at(tokens, self.kv)
    }

    fn show(&self, model: &str) {
        ui::say(&format!(
            "{model}: {}, {} layers, hidden {}, vocabulary {}, context {}",
            self.family, self.layers, self.hidden, self.vocab, self.context
        ));
        ui::say(&format!("  parameters    {:.1} M", self.parameters as f64 / 1e6));
        ui::say(&format!("  weights       {} on disk, {:.2} bits a weight of the linears", ui::bytes(self.stored_bytes), self.linear_bits));
        if let Some((format, scheme)) = &self.quantization {
            ui::say(&format!("  quantization  {scheme} ({format})"));
        }
        match &self.packed {
            Ok(false) => {}
            Ok(true) => ui::say("  packed        model.packed: opening is a map"),
            Err(why) => ui::say(&format!("  packed        model.packed is not used, weights are packed again: {why}")),
        }
        ui::say(&format!("  KV cache      {} a token in {}", ui::bytes(self.kv_bytes_per_token as u64), self.kv));
        for (form, count) in &self.decoded {
            ui::say(&format!("  as floats     {count} matrices ({form}): decoded when loaded, no kernel runs this form"));
        }
        for (rounding, count) in &self.rounded {
            ui::say(&format!("  activations   {rounding}, of {count} matrices"));
        }
        let contexts = self.asked_context.map_or_else(|| vec![self.context.min(2048), self.context], |context| vec![context]);
        for (i, context) in contexts.iter().enumerate().filter(|(i, context)| *i == 0 || **context != contexts[0]) {
            let forecast = self.running(*context).to_string();
            // A line each for what is large, or it would not fit 80 columns.
            let lines = forecast.replace(", keys", &format!(",\n{:16}keys", "")).replace(", buffers", &format!(",\n{:16}buffers", ""));
            ui::say(&format!("  {:<13} {lines}", if i == 0 { "running" } else { "" }));
        }
    }

    fn document(&self, model: &str) -> Value {
        json!({
            "model": model,
            "family": self.family,
            "layers": self.layers,
            "hidden": self.hidden,
            "vocabulary": self.vocab,
            "context": self.context,
            "parameters": self.parameters,
            "stored_bytes": self.stored_bytes,
            "linear_bits_per_weight": self.linear_bits,
            "quantization": self.quantization.as_ref().map(|(format, scheme)| json!({ "format": format, "scheme": scheme, "activations": self.activations })),
            "rounded_inputs": self.rounded,
            "packed": self.packed.as_ref().map_or_else(|why| json!(why), |used| json!(used)),
            "decoded_to_floats": self.decoded,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "run_bytes": { "context_2048": self.running(self.context.min(2048)).total(), "full_context": self.running(self.context).total() },
            "running": super::memory_document(&self.running(self.asked_context.unwrap_or(self.context.min(2048)))),
        })
    }
}

/// The method and, where it says more, the format.
fn named(stored: &StoredQuantization) -> String {
    if stored.format == stored.method { stored.method.clone() } else { format!("{} {}", stored.method, stored.format) }
}

/// The graph's stages: operations, and those computed in one pass (numbers count from 0).
fn stages(graph: &BlockGraph) -> Value {
    let step = |step: &ShownStep| json!({ "operations": step.operations.clone().collect::<Vec<_>>(), "how": step.how });
    let stage = |stage: ShownStage| {
        let steps: Vec<Value> = stage.steps.iter().map(step).collect();
        json!({ "name": stage.name, "operations": stage.operations, "steps": steps })
    };
    graph.shown().into_iter().map(stage).collect()
}

fn tensors(checkpoint: &Checkpoint) -> Value {
    checkpoint
        .entries()
        .iter()
        .map(
            |e| json!({ "name": e.name, "dtype": e.blocks.unwrap_or(e.dtype.name()), "shape": e.shape, "bytes": e.bytes, "file": e.shard }),
        )
        .collect()
}
