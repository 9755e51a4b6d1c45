//! Opening fixtures and making tiny models.
#![allow(dead_code, reason = "each test binary uses its own part")]

use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, Isa};
use octet_model::{ArchSpec, ForwardError, KvDtype, LoadOptions, Logits, Model, Sequence, Step};
use octet_tensor::{Dtype, Matrix, QMatrix, Scheme, StoredQuant, WeightSource};
use octet_testkit::{MemorySource, Random};
use serde_json::Value;
use std::{num::NonZeroUsize, path::Path, sync::Arc};

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

/// Random weights of a spec, its linears as random codes of `scheme`.
pub(crate) fn quantized(spec: &ArchSpec, scheme: &str) -> MemorySource {
    let (mut source, mut random, scheme) = (weights(spec), Random::new(8), scheme.parse::<Scheme>().unwrap());
    for site in spec.linear_sites() {
        let w = scheme.weights;
        let range = 1usize << w.bits.get();
        let mut codes: Vec<i8> = (0..site.rows * site.cols).map(|_| (random.below(range) as i32 + w.bits.min_code()) as i8).collect();
        w.alphabet().read(&mut codes);
        let scales = vec![3.5 / range as f32 / (site.cols as f32).sqrt(); site.rows * w.groups(site.cols)];
        let zeros = if w.is_asymmetric() { vec![0; scales.len()] } else { vec![] };
        let q = QMatrix::new(site.rows, site.cols, w, codes, scales, Dtype::F32, zeros).unwrap();
        source.insert_matrix(&site.module, Matrix::Quant(StoredQuant::new(site.module.clone(), Arc::new((q, scheme)))));
    }
    source
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
