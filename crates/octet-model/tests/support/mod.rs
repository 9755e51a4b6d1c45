//! Opening fixtures and making tiny models.
#![allow(dead_code, reason = "each test binary uses its own part")]

use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, Isa};
use octet_model::{ArchSpec, ForwardError, KvDtype, LoadOptions, Logits, Model, Sequence, Step};
use octet_tensor::WeightSource;
use octet_testkit::MemorySource;
use serde_json::Value;
use std::{num::NonZeroUsize, path::Path};

pub(crate) const EXACT: LoadOptions = LoadOptions { activations: None, kv: KvDtype::F32, context: None };

pub(crate) fn engine() -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap()
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(crate) fn checkpoint(path: &Path) -> Checkpoint {
    Checkpoint::open(&Folder::disk(path).unwrap()).unwrap()
}

/// An engine on each instruction set this CPU has.
pub(crate) fn engines() -> Vec<Engine> {
    Isa::available().into_iter().map(|isa| Engine::new(isa, NonZeroUsize::new(2).unwrap()).unwrap()).collect()
}

pub(crate) fn load(spec: ArchSpec, source: &dyn WeightSource, options: LoadOptions) -> Model {
    load_on(&engine(), spec, source, options)
}

pub(crate) fn load_on(engine: &Engine, spec: ArchSpec, source: &dyn WeightSource, options: LoadOptions) -> Model {
    Model::load(engine, spec, source, options, &mut |_, _| ()).unwrap()
}

pub(crate) fn spec(config: &str) -> ArchSpec {
    ArchSpec::from_config(&serde_json::from_str(config).unwrap()).unwrap()
}

/// Random weights of a spec, stored as its checkpoint would store them.
pub(crate) fn weights(spec: &ArchSpec) -> MemorySource {
    let stored = |site: octet_model::LinearSite| {
        let shape = if site.transposed { vec![site.cols, site.rows] } else { vec![site.rows, site.cols] };
        (format!("{}.weight", site.module), shape)
    };
    MemorySource::random(spec.linear_sites().into_iter().map(stored).chain(spec.other_tensors()), 7)
}

pub(crate) fn tiny(config: &str) -> Model {
    let spec = spec(config);
    let source = weights(&spec);
    load(spec, &source, EXACT)
}

/// One step of one sequence.
pub(crate) fn feed(model: &Model, sequence: &mut Sequence, tokens: &[u32], logits: Logits) -> Result<Vec<f32>, ForwardError> {
    let mut out = Vec::new();
    model.forward(&mut [Step { sequence, tokens, logits }], &mut out, None).map(|()| out)
}
