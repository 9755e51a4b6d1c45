//! Models exported to GGUF and read back: the same logits, or a refusal that says what would be lost.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use octet_flow::{
    Calibration,
    export::{ExportRun, Exported, Format, Place, Source},
};
use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, Isa, KvDtype};
use octet_model::{ArchSpec, LoadOptions, Logits, Model, Step};
use octet_quant::Samples;
use octet_runtime::{Tokenizer, open_gguf};
use octet_tensor::kl_divergence;
use octet_testkit::{arch_fixtures, fixtures, npy_i64, relative_error};
use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

fn engine() -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap()
}

fn logits(engine: &Engine, folder: &Folder, tokens: &[u32]) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let spec = ArchSpec::from_config(checkpoint.config()).unwrap();
    let options = LoadOptions { activations: None, kv: KvDtype::F32, context: None };
    let model = Model::load(engine, spec, &checkpoint, options, &mut |_, _| ()).unwrap();
    let (mut sequence, mut rows) = (model.new_sequence(), vec![]);
    model.forward(&mut [Step { sequence: &mut sequence, tokens, logits: Logits::All }], &mut rows, None).unwrap();
    rows
}

/// Exports, or says why not.
fn export(engine: &Engine, from: &Path, format: &str, to: &Path, calibration: Option<&Calibration>) -> Result<PathBuf, String> {
    let words = |e: octet_flow::Error| e.to_string();
    let source = Source::open(&Folder::disk(from).unwrap()).map_err(words)?;
    let export = format.parse::<Format>()?.prepare(&source, false).map_err(words)?;
    let cancel = AtomicBool::new(false);
    let run = ExportRun { calibration: calibration.filter(|_| export.wants_calibration()), engine, cancel: &cancel };
    let place = Place { target: to, force: false, deploy: false };
    Exported::write(&source, &*export, place, &run, &mut |_, _, _, _| ()).and_then(Exported::commit).map_err(words)
}

fn pocket() -> PathBuf {
    fixtures().join("../models/pocket")
}

#[test]
fn every_architecture_comes_back_as_it_was_or_is_refused() {
    // llama.cpp scales queries by the width of a head, whatever a Gemma's config says, and caps no logits of Gemma 3.
    let refused = [
        ("gemma2", "attention of block 0"),
        ("gemma3", "attention of block 0"),
        ("gemma3-pattern", "soft_cap"),
        ("gpt2-layerscale", "attention of block 1"),
        ("mistral", "window"),
        ("qwen2-window", "window"),
        ("qwen3-moe-mixed", ""),
        ("qwen3-tied", "bias of the attention's output"),
    ];
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let mut held = 0;
    let gemmas = ["gemma2", "gemma3", "gemma3-pattern"].map(|name| (format!("{name}, usual scale"), usual_scale(name, dir.path())));
    for (name, path) in arch_fixtures().into_iter().chain(gemmas) {
        let result = export(&engine, &path, "gguf:f32", &dir.path().join(format!("{name}.gguf")), None);
        let expected = refused.iter().find(|(known, _)| *known == name);
        match (result, expected) {
            (Ok(file), None) => {
                let tokens: Vec<u32> = npy_i64(&path.join("input_ids.npy")).1.iter().take(40).map(|&id| id as u32).collect();
                let (a, b) =
                    (logits(&engine, &Folder::disk(&path).unwrap(), &tokens), logits(&engine, &open_gguf(&file).unwrap(), &tokens));
                let error = relative_error(&b, &a);
                println!("{name:<24} {error:.1e}");
                assert!(error <= 2e-5, "{name}: {error:e}");
                held += 1;
            }
            (Err(why), Some((_, what))) => {
                println!("{name:<24} refused: {why}");
                assert!(why.contains(what) && why.contains("another format"), "{name}: {why}");
            }
            (Ok(_), Some(_)) => panic!("{name} was not refused"),
            (Err(why), None) => panic!("{name}: {why}"),
        }
    }
    assert!(held >= 18, "{held}");
}

/// A Gemma fixture with the scale of queries that its published models have.
fn usual_scale(name: &str, dir: &Path) -> PathBuf {
    let (from, to) = (fixtures().join("arch").join(name), dir.join(name));
    std::fs::create_dir(&to).unwrap();
    for file in ["model.safetensors", "input_ids.npy"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["query_pre_attn_scalar"] = config["head_dim"].clone();
    if name.starts_with("gemma3") {
        config["final_logit_softcapping"] = serde_json::Value::Null;
    }
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    to
}

#[test]
fn every_type_is_as_good_as_its_bits() {
    // Measured: mean divergence in nats over 512 tokens; more than half again as much is a fault.
    let most = [
        ("f16", 1e-6),
        ("bf16", 1e-9),
        ("q8_0", 3e-4),
        ("q6_k", 2.4e-3),
        ("q5_k_m", 6e-3),
        ("q5_1", 7e-3),
        ("q5_0", 9e-3),
        ("q4_k_m", 2e-2),
        ("iq4_nl", 3e-2),
        ("iq4_xs", 3e-2),
        ("q4_1", 3e-2),
        ("q4_0", 4e-2),
        ("q3_k_m", 6e-2),
        ("q2_k", 0.4),
    ];
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let folder = Folder::disk(&pocket()).unwrap();
    let text = std::fs::read_to_string(fixtures().join("../ARCHITECTURE.md")).unwrap();
    let mut tokens = Tokenizer::open(&folder).unwrap().encode(&text, false).unwrap();
    tokens.truncate(512);
    let original = logits(&engine, &folder, &tokens);
    let vocab = original.len() / tokens.len();
    let mut wrong = vec![];
    for (name, most) in most {
        let file = export(&engine, &pocket(), &format!("gguf:{name}"), &dir.path().join(format!("{name}.gguf")), None).unwrap();
        let found = logits(&engine, &open_gguf(&file).unwrap(), &tokens);
        let rows = original.chunks(vocab).zip(found.chunks(vocab));
        let mean = rows.map(|(a, b)| kl_divergence(a, b).kl).sum::<f64>() / tokens.len() as f64;
        println!("{name:<8} {mean:.2e}");
        wrong.extend((mean > most).then_some((name, mean)));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn feedback_inside_blocks_lowers_divergence() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let folder = Folder::disk(&pocket()).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let read = |name: &str, most: usize| {
        let text = std::fs::read_to_string(fixtures().join("..").join(name)).unwrap();
        let mut tokens = tokenizer.encode(&text, false).unwrap();
        tokens.truncate(most);
        tokens
    };
    let (calibration, tokens) = (read("CHANGELOG.md", 1 << 20), read("ARCHITECTURE.md", 512));
    let calibration = Calibration {
        texts: vec!["changelog".into()],
        sources: vec![],
        field: None,
        length: 512,
        samples: Samples::draw(&calibration, 12, 512, 1),
        text: Samples::default(),
        sequential: true,
        memory_budget: u64::MAX,
        restart: true,
    };
    let original = logits(&engine, &folder, &tokens);
    let vocab = original.len() / tokens.len();
    for name in ["q4_0", "q4_k_m", "iq4_xs", "q3_k_m"] {
        let mean = |calibration: Option<&Calibration>, file: &str| {
            let file = export(&engine, &pocket(), &format!("gguf:{name}"), &dir.path().join(file), calibration).unwrap();
            let found = logits(&engine, &open_gguf(&file).unwrap(), &tokens);
            original.chunks(vocab).zip(found.chunks(vocab)).map(|(a, b)| kl_divergence(a, b).kl).sum::<f64>() / tokens.len() as f64
        };
        let (plain, fed) = (mean(None, &format!("{name}-plain.gguf")), mean(Some(&calibration), &format!("{name}.gguf")));
        println!("{name:<8} {plain:.2e} -> {fed:.2e}");
        assert!(fed < 0.8 * plain, "{name}: {fed:e} against {plain:e}");
    }
}
