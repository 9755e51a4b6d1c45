//! Measures whole steps of models with random weights against this machine's limits: `cargo bench -p octet-model`.
//!
//! Arguments: a scheme, a number of threads, and a part of the names of what to measure (`-- w8a8 2 prefill`). Limits are
//! taken between the repetitions, so that both see the same machine; the shortest of each counts.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use octet_kernels::{Engine, Isa, limits};
use octet_model::{ArchSpec, KvDtype, LoadOptions, Logits, Model, Role, Sequence, Step};
use octet_tensor::{Dtype, Matrix, QMatrix, Scheme, StoredQuant};
use octet_testkit::{MemorySource, Random};
use std::{num::NonZeroUsize, sync::Arc, time::Instant};

/// Qwen3-0.6B with a smaller vocabulary.
const BLOCKS_06B: &str = r#"{"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": LAYERS,
  "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 8192, "max_position_embeddings": 4096,
  "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": false}"#;
/// So small that what is between the products decides.
const SMALL: &str = r#"{"model_type": "qwen3", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 12,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 4096,
  "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": false}"#;

fn model(config: &str, scheme: Scheme, threads: usize) -> Model {
    let spec = ArchSpec::from_config(&serde_json::from_str(config).unwrap()).unwrap();
    let mut source = MemorySource::random(spec.other_tensors(), 1);
    let mut random = Random::new(2);
    for site in spec.linear_sites() {
        let w = scheme.weights;
        let range = 1usize << w.bits.get();
        let mut codes: Vec<i8> = (0..site.rows * site.cols).map(|_| (random.below(range) as i32 + w.bits.min_code()) as i8).collect();
        w.alphabet().read(&mut codes);
        let scale = 3.5 / range as f32 / (site.cols as f32).sqrt();
        let scales = vec![scale; site.rows * w.groups(site.cols)];
        let zeros = if w.is_asymmetric() { vec![0; scales.len()] } else { vec![] };
        let q = QMatrix::new(site.rows, site.cols, w, codes, scales, Dtype::F32, zeros).unwrap();
        source.insert_matrix(&site.module, Matrix::Quant(StoredQuant::new(site.module.clone(), Arc::new((q, scheme)))));
    }
    let engine = Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap();
    let options = LoadOptions { activations: None, kv: KvDtype::Int16, context: None };
    Model::load(&engine, spec, &source, options, &mut |_, _| ()).unwrap()
}

/// Weights of the blocks and of the head.
fn weights(model: &Model) -> (usize, usize) {
    let of = |role: fn(Role) -> bool| model.spec().linear_sites().iter().filter(|s| role(s.role)).map(|s| s.rows * s.cols).sum();
    (of(|role| !matches!(role, Role::Embedding | Role::Head)), of(|role| role == Role::Head))
}

fn ids(model: &Model, count: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(model.spec().vocab_size()) as u32).collect()
}

/// The shortest time of `f` and the highest of a limit, taken in turns.
fn in_turns(rounds: usize, limit: impl Fn() -> f64, mut f: impl FnMut()) -> (f64, f64) {
    f();
    (0..rounds).fold((f64::MAX, 0.0), |(shortest, highest), _| {
        let roof = limit();
        let started = Instant::now();
        f();
        (started.elapsed().as_secs_f64().min(shortest), roof.max(highest))
    })
}

fn prefill(model: &Model, name: &str, tokens: usize) {
    let (text, mut sequence, mut out) = (ids(model, tokens, 3), model.new_sequence(), vec![]);
    let (seconds, roof) = in_turns(
        12,
        || limits::int8_gop_s(model.engine()),
        || {
            sequence.clear();
            model.forward(&mut [Step { sequence: &mut sequence, tokens: &text, logits: Logits::Last }], &mut out, None).unwrap();
        },
    );
    let (blocks, head) = weights(model);
    let rate = 2.0 * (blocks * tokens + head) as f64 / seconds / 1e9;
    println!("{name} prefill {tokens}: {:8.2} ms {rate:7.0} GOP/s, {:4.1} % of {roof:.0}", seconds * 1e3, 100.0 * rate / roof);
}

fn decode(model: &Model, name: &str, batch: usize, context: usize, bytes: usize) -> f64 {
    let mut sequences: Vec<Sequence> = (0..batch).map(|_| model.new_sequence()).collect();
    let (text, mut out) = (ids(model, context + 1, 4), vec![]);
    for sequence in &mut sequences {
        model.forward(&mut [Step { sequence, tokens: &text[..context.max(1)], logits: Logits::None }], &mut out, None).unwrap();
    }
    let steps = 8;
    let (seconds, roof) = in_turns(
        12,
        || limits::streaming_read_gb_s(model.engine(), bytes),
        || {
            for _ in 0..steps {
                let mut batch: Vec<_> =
                    sequences.iter_mut().map(|sequence| Step { sequence, tokens: &text[context..], logits: Logits::Last }).collect();
                model.forward(&mut batch, &mut out, None).unwrap();
            }
            sequences.iter_mut().for_each(|sequence| sequence.truncate(context.max(1)));
        },
    );
    let (seconds, rate) = (seconds / steps as f64, bytes as f64 * steps as f64 / seconds / 1e9);
    let share = 100.0 * rate / roof;
    println!("{name} decode, batch {batch}, context {context}: {:8.1} us {rate:5.1} GB/s, {share:4.1} % of {roof:.1}", seconds * 1e6);
    batch as f64 / seconds
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let threads = args.get(1).map_or(2, |a| a.parse().unwrap());
    let only = |what: &str| args.get(2).is_none_or(|part| what.contains(part.as_str()));
    for text in ["w8a8", "w4a8-g128"].into_iter().filter(|text| args.first().is_none_or(|a| a == text || a == "all")) {
        for (name, config) in [("0.6b", BLOCKS_06B), ("small", SMALL)] {
            let model = |layers: &str, threads| model(&config.replace("LAYERS", layers), text.parse().unwrap(), threads);
            let what = format!("{text} {name}");
            if only(&format!("{name} prefill")) {
                // As many blocks as a median needs.
                prefill(&model("6", threads), &what, 512);
            }
            if only(&format!("{name} decode")) {
                // As many as make the weights come from memory.
                let model = model("28", threads);
                let one = decode(&model, &what, 1, 0, model.resident_bytes());
                let eight = decode(&model, &what, 8, 0, model.resident_bytes());
                println!("{what} batch 8 over batch 1: {:.2} times the tokens a second", eight / one);
            }
            if only(&format!("{name} crowd")) {
                let (few, many) = (model("6", threads), model("6", 4 * threads));
                let rate = |model: &Model| decode(model, &what, 1, 0, model.resident_bytes());
                let ratio = rate(&few) / rate(&many);
                println!("{what}: a step of {} threads takes {ratio:.2} times that of {threads}", 4 * threads);
            }
        }
    }
}
