//! `octet logits`: raw logits for given token ids.

use crate::{
    Ended,
    args::{Global, Logits, LogitsActivations},
    interrupt, machine, resolve,
    ui::{self, Progress},
};
use anyhow::{Context, Result, bail};
use octet_formats::{Checkpoint, npy};
use octet_kernels::KvDtype;
use octet_model::{ArchSpec, LoadOptions, Model, Step};
use octet_tensor::Activations;

/// Runs the command.
pub(crate) fn logits(args: &Logits, global: &Global) -> Result<Ended> {
    if args.out.exists() && !args.force {
        bail!("{} exists; give another name or --force", args.out.display());
    }
    let bytes = std::fs::read(&args.ids).with_context(|| format!("cannot read {}", args.ids.display()))?;
    let (shape, ids) = npy::read_i64(&bytes).with_context(|| format!("{} holds no token ids", args.ids.display()))?;
    let (batch, tokens) = match shape[..] {
        [batch, tokens] => (batch, tokens),
        [tokens] => (1, tokens),
        _ => bail!("{} has shape {shape:?}, expected [batch, tokens] or [tokens]; reshape it", args.ids.display()),
    };
    if ids.is_empty() {
        bail!("{} holds no token ids; give at least one", args.ids.display());
    }
    let engine = machine::engine(global.threads)?;
    let checkpoint = Checkpoint::open(&resolve::resolve(&args.model)?)?;
    let spec = ArchSpec::from_config(checkpoint.config())?;
    let ids = ids
        .iter()
        .map(|&id| {
            u32::try_from(id).ok().with_context(|| {
                format!("{} holds {id}, which is no token id; ids run from 0 to {}", args.ids.display(), spec.vocab_size() - 1)
            })
        })
        .collect::<Result<Vec<u32>>>()?;
    let activations = (args.activations == LogitsActivations::Exact).then_some(Activations::Exact);
    // f32 keys and values: this command exists to be compared with other implementations.
    let options = LoadOptions { activations, kv: KvDtype::F32, context: None };
    let model = Model::load(&engine, spec, &checkpoint, options, &mut |_, _| {})?;
    let vocab = model.spec().vocab_size();
    let mut all = Vec::with_capacity(batch * tokens * vocab);
    let (mut rows, mut progress) = (vec![], Progress::new());
    for (i, row) in ids.chunks(tokens.max(1)).enumerate() {
        let mut sequence = model.new_sequence();
        model.forward(&mut [Step { sequence: &mut sequence, tokens: row, logits: octet_model::Logits::All }], &mut rows, None)?;
        all.extend_from_slice(&rows);
        progress.update("logits", i as u64 + 1, batch as u64, "");
        if interrupt::asked() {
            return Ok(Ended::Interrupted);
        }
    }
    progress.finish();
    let shape = if shape.len() == 1 { vec![tokens, vocab] } else { vec![batch, tokens, vocab] };
    npy::write_f32(&args.out, &shape, &all).with_context(|| format!("cannot write {}", args.out.display()))?;
    if global.json {
        super::say_json(&serde_json::json!({ "out": args.out, "shape": shape, "dtype": "f32" }))?;
    } else {
        ui::say(&format!("wrote {} f32 {shape:?}", args.out.display()));
    }
    Ok(Ended::Done)
}
