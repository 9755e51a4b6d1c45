//! The forward pass against itself: batches, chunks, caches, taps, and what happens when something is wrong.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use octet_model::{
    ArchSpec, ForwardError, InputKind, InputSite, KvDtype, LoadOptions, Logits, Model, Place, Span, Stage, Step, Tap, Workspace,
    graph::Node,
};
use octet_tensor::{Activations, Dtype, Matrix, QMatrix, Scheme, StoredQuant};
use octet_testkit::{MemorySource, Random, TINY_GEMMA3, TINY_GPT2, TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE, fixtures, relative_error};
use std::{collections::BTreeSet, sync::Arc};
use support::{EXACT, checkpoint, engine, engines, feed, json, load, spec, tiny, weights};

const ALL: [&str; 5] = [TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE, TINY_GEMMA3, TINY_GPT2];

/// Rounding in another order: products of one row and of several may add up differently.
const SAME: f32 = 1e-5;

fn text(seed: u64, len: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.below(64) as u32).collect()
}

fn whole(model: &Model, tokens: &[u32]) -> Vec<f32> {
    feed(model, &mut model.new_sequence(), tokens, Logits::All).unwrap()
}

#[test]
fn several_sequences_together_equal_one_at_a_time() {
    for config in ALL {
        let model = tiny(config);
        let texts = [text(1, 13), text(2, 1), text(3, 29)];
        let mut sequences: Vec<_> = texts.iter().map(|_| model.new_sequence()).collect();
        let mut out = Vec::new();
        let wanted = [Logits::All, Logits::Last, Logits::None];
        let mut batch: Vec<_> =
            sequences.iter_mut().zip(&texts).zip(wanted).map(|((sequence, tokens), logits)| Step { sequence, tokens, logits }).collect();
        model.forward(&mut batch, &mut out, None).unwrap();
        let mut expected = whole(&model, &texts[0]);
        expected.extend(whole(&model, &texts[1]));
        assert!(relative_error(&out, &expected) < SAME, "{}", model.spec().family());
        assert_eq!(sequences[2].len(), 29);
    }
}

#[test]
fn chunks_and_single_tokens_equal_the_whole() {
    for config in ALL {
        let model = tiny(config);
        let tokens = text(4, 40);
        let expected = whole(&model, &tokens);
        for chunk in [1, 7, 39] {
            let mut sequence = model.new_sequence();
            let found: Vec<f32> = tokens.chunks(chunk).flat_map(|c| feed(&model, &mut sequence, c, Logits::All).unwrap()).collect();
            assert!(relative_error(&found, &expected) < SAME, "{} in chunks of {chunk}", model.spec().family());
        }
    }
}

#[test]
fn inputs_longer_than_a_pass_equal_the_whole() {
    let model = tiny(&TINY_LLAMA.replace("128", "2048"));
    let tokens = text(5, 1100);
    let mut pieces = model.new_sequence();
    let found: Vec<f32> = tokens.chunks(300).flat_map(|c| feed(&model, &mut pieces, c, Logits::All).unwrap()).collect();
    let mut sequences = [model.new_sequence(), model.new_sequence()];
    let [first, second] = &mut sequences;
    let mut batch = [
        Step { sequence: first, tokens: &tokens, logits: Logits::All },
        Step { sequence: second, tokens: &tokens[..700], logits: Logits::Last },
    ];
    let mut out = Vec::new();
    model.forward(&mut batch, &mut out, None).unwrap();
    assert_eq!(out.len(), 1101 * 64);
    assert!(relative_error(&out[..1100 * 64], &found) < SAME);
    assert!(relative_error(&out[1100 * 64..], &found[699 * 64..700 * 64]) < SAME);
}

#[test]
fn a_truncated_sequence_goes_on_as_if_it_had_never_been_longer() {
    for config in ALL {
        let model = tiny(config);
        let (tokens, other) = (text(6, 20), text(7, 5));
        let mut sequence = model.new_sequence();
        feed(&model, &mut sequence, &tokens, Logits::None).unwrap();
        sequence.truncate(11);
        let found = feed(&model, &mut sequence, &other, Logits::All).unwrap();
        let expected = whole(&model, &[&tokens[..11], &other[..]].concat());
        assert!(relative_error(&found, &expected[11 * 64..]) < SAME, "{}", model.spec().family());
        sequence.clear();
        assert!(sequence.is_empty() && feed(&model, &mut sequence, &other, Logits::Last).unwrap() == expected_last(&model, &other));
    }
}

fn expected_last(model: &Model, tokens: &[u32]) -> Vec<f32> {
    feed(model, &mut model.new_sequence(), tokens, Logits::Last).unwrap()
}

#[test]
fn longrope_answers_as_if_the_whole_text_were_new() {
    let path = fixtures().join("arch/phi3-longrope");
    let model = load(ArchSpec::from_config(&json(&path.join("config.json"))).unwrap(), &checkpoint(&path), EXACT);
    let tokens = text(8, 24);
    let mut sequence = model.new_sequence();
    for len in 1..=tokens.len() {
        let found = feed(&model, &mut sequence, &tokens[len - 1..len], Logits::Last).unwrap();
        assert!(relative_error(&found, &expected_last(&model, &tokens[..len])) < SAME, "{len} tokens, frequencies switch after 16");
    }
    sequence.truncate(12);
    let found = feed(&model, &mut sequence, &tokens[12..14], Logits::Last).unwrap();
    assert!(relative_error(&found, &expected_last(&model, &tokens[..14])) < SAME, "back below the switch");
}

#[test]
fn keys_and_values_of_fewer_bits_are_close_and_smaller() {
    let spec = spec(TINY_QWEN3);
    let source = weights(&spec);
    let exact = load(spec.clone(), &source, EXACT);
    let tokens = text(9, 40);
    for (kv, most) in [(KvDtype::F16, 5e-3), (KvDtype::Int16, 5e-3), (KvDtype::Int8, 5e-2)] {
        let model = load(spec.clone(), &source, LoadOptions { kv, ..EXACT });
        let error = relative_error(&whole(&model, &tokens), &whole(&exact, &tokens));
        assert!(error > 0.0 && error < most, "{kv}: {error}");
        let mut sequence = model.new_sequence();
        feed(&model, &mut sequence, &tokens, Logits::Last).unwrap();
        assert_eq!(sequence.bytes(), spec.kv_bytes(tokens.len(), kv), "{kv}");
        assert!(spec.kv_bytes_per_token(kv) < spec.kv_bytes_per_token(KvDtype::F32), "{kv}");
    }
    assert_eq!(2 * spec.kv_bytes_per_token(KvDtype::F16), spec.kv_bytes_per_token(KvDtype::F32));
}

#[test]
fn quantized_weights_run_like_the_floats_they_stand_for() {
    let phi3 = r#"{"model_type": "phi3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}"#;
    for config in ALL.into_iter().chain([phi3]) {
        let spec = spec(config);
        let (mut float, mut quant) = (weights(&spec), weights(&spec));
        for site in spec.linear_sites() {
            let (dequantized, stored) = quantized(&float, &site);
            quant.insert_matrix(&site.module, Matrix::Quant(stored));
            let (shape, values) = if site.transposed {
                let flipped = (0..site.cols * site.rows).map(|i| dequantized[i % site.rows * site.cols + i / site.rows]);
                (vec![site.cols, site.rows], flipped.collect())
            } else {
                (vec![site.rows, site.cols], dequantized)
            };
            float.insert(&format!("{}.weight", site.module), shape, &values);
        }
        let tokens = text(10, 9);
        let expected = whole(&load(spec.clone(), &float, EXACT), &tokens);
        let found = whole(&load(spec, &quant, LoadOptions { activations: Some(Activations::Exact), ..EXACT }), &tokens);
        assert!(relative_error(&found, &expected) < 1e-4, "{config}");
    }
}

/// Eight-bit codes of a site's random weights: the numbers they stand for, and the matrix as a format would hand it over.
fn quantized(source: &MemorySource, site: &octet_model::LinearSite) -> (Vec<f32>, StoredQuant) {
    use octet_tensor::WeightSource;
    let scheme: Scheme = "w8a16".parse().unwrap();
    let values = source.tensor(&format!("{}.weight", site.module)).unwrap().unwrap().to_f32().unwrap();
    let codes: Vec<i8> = values.iter().map(|v| (v * 100.0).round().clamp(-128.0, 127.0) as i8).collect();
    let q = QMatrix::new(site.rows, site.cols, scheme.weights, codes, vec![0.01; site.rows], Dtype::F32, vec![]).unwrap();
    (q.dequantize(), StoredQuant::new(site.module.clone(), Arc::new((q, scheme))))
}

#[derive(Default)]
struct Seen(Vec<(InputSite, usize, usize)>);

impl Tap for Seen {
    fn input(&mut self, site: InputSite, x: &[f32], tokens: usize) {
        self.0.push((site, x.len() / tokens, tokens));
    }
}

#[test]
fn a_tap_sees_the_input_of_every_linear() {
    for config in ALL {
        let model = tiny(config);
        let (mut seen, tokens) = (Seen::default(), text(11, 30));
        let mut sequence = model.new_sequence();
        let mut step = [Step { sequence: &mut sequence, tokens: &tokens, logits: Logits::All }];
        model.forward(&mut step, &mut Vec::new(), Some(&mut seen)).unwrap();
        let sites = model.spec().linear_sites();
        let expected: BTreeSet<_> = sites.iter().map(|s| (s.input, s.cols)).filter(|s| s.0.kind != InputKind::Tokens).collect();
        assert_eq!(seen.0.iter().map(|&(site, width, _)| (site, width)).collect::<BTreeSet<_>>(), expected);
        let routed: usize = seen.0.iter().filter(|(site, ..)| matches!(site.kind, InputKind::Expert(_))).map(|seen| seen.2).sum();
        let sparse = if model.spec().family() == "qwen3_moe" { 2 * 2 * 30 } else { 0 };
        assert_eq!(routed, sparse, "tokens routed, in two layers to two experts each");
    }
}

/// The same model with every input turned that can be.
fn turned(spec: &ArchSpec) -> ArchSpec {
    let graph = spec.graph();
    let groups = graph.blocks.iter().flatten().filter(|node| matches!(node, Node::Linears(_)));
    let sites = groups.flat_map(|node| node.linears()).map(|linear| &linear.site).filter(|site| site.cols.is_multiple_of(8));
    let modules: BTreeSet<String> = sites.map(|site| site.module.clone()).collect();
    assert!(!modules.is_empty());
    spec.with_turned_inputs(modules)
}

#[test]
fn fused_and_watched_passes_give_the_same_values() {
    for spec in ALL.map(spec).into_iter().flat_map(|spec| [turned(&spec), spec]) {
        let sources = [weights(&spec), support::quantized(&spec, "w8a8"), support::quantized(&spec, "w4a8-g32")];
        for (source, engine) in sources.iter().flat_map(|source| engines().into_iter().map(move |engine| (source, engine))) {
            let model = support::load_on(&engine, spec.clone(), source, EXACT);
            for tokens in [text(20, 1), text(21, 5), text(22, 40)] {
                let (mut watched, mut sequence) = (Vec::new(), model.new_sequence());
                let mut step = [Step { sequence: &mut sequence, tokens: &tokens, logits: Logits::All }];
                model.forward(&mut step, &mut watched, Some(&mut Seen::default())).unwrap();
                assert_eq!(whole(&model, &tokens), watched, "{} on {}", spec.family(), engine.isa());
            }
        }
    }
}

#[test]
fn stages_run_one_at_a_time_equal_the_model() {
    for config in ALL {
        let (spec, engine) = (spec(config), engine());
        let source = weights(&spec);
        let (graph, texts) = (spec.graph(), [text(12, 9), text(13, 14)]);
        let spans: Vec<_> = texts.iter().map(|t| Span { position: 0, tokens: t.len(), total: t.len() }).collect();
        let stage = |place| Stage::load(&engine, &graph, place, &source, None).unwrap();
        let mut ws = Workspace::new(&spec);
        ws.begin(&texts.concat(), &spans);
        stage(Place::Embedding).run(&engine, &mut ws, &mut [], None).unwrap();
        let mut hidden = ws.hidden().to_vec();
        for layer in 0..spec.layers().len() {
            let mut caches: Vec<_> = texts.iter().map(|t| spec.new_cache(layer, KvDtype::F32, t.len())).collect();
            let mut ws = Workspace::new(&spec);
            ws.begin(&[], &spans);
            ws.set_hidden(&hidden);
            stage(Place::Layer(layer)).run(&engine, &mut ws, &mut caches.iter_mut().collect::<Vec<_>>(), None).unwrap();
            hidden = ws.hidden().to_vec();
        }
        ws.set_hidden(&hidden);
        stage(Place::Head).run(&engine, &mut ws, &mut [], None).unwrap();
        let model = load(spec, &source, EXACT);
        let expected = texts.map(|t| whole(&model, &t)).concat();
        assert!(relative_error(ws.logits(), &expected) < SAME, "{config}");
    }
}

#[test]
fn damage_is_named_and_leaves_the_sequence_as_it_was() {
    let spec = spec(TINY_LLAMA);
    let mut source = weights(&spec);
    let mut values = vec![0.1; 32 * 48];
    values[5] = f32::NAN;
    source.insert("model.layers.1.mlp.down_proj.weight", vec![32, 48], &values);
    // Integers in the cache hide nothing: not what an MLP breaks, not a key that is broken itself.
    for kv in KvDtype::ALL {
        let model = load(spec.clone(), &source, LoadOptions { kv, ..EXACT });
        let error = feed(&model, &mut model.new_sequence(), &[1, 2, 3], Logits::Last).unwrap_err();
        assert_eq!(error, ForwardError::NonFinite { place: Place::Layer(1) }, "{kv}");
        for projection in ["k_proj", "v_proj"] {
            let mut source = weights(&spec);
            let site =
                spec.linear_sites().into_iter().find(|site| site.module.ends_with(&format!("layers.0.self_attn.{projection}"))).unwrap();
            let mut values = vec![0.1; site.rows * site.cols];
            values[3] = f32::NAN;
            source.insert(&format!("{}.weight", site.module), vec![site.rows, site.cols], &values);
            let model = load(spec.clone(), &source, LoadOptions { kv, ..EXACT });
            let error = feed(&model, &mut model.new_sequence(), &[1, 2, 3], Logits::Last).unwrap_err();
            assert_eq!(error, ForwardError::NonFinite { place: Place::Layer(0) }, "{kv} {projection}");
        }
    }
    let model = load(spec, &source, EXACT);
    let mut sequence = model.new_sequence();
    let error = feed(&model, &mut sequence, &[1, 2, 3], Logits::Last).unwrap_err();
    assert_eq!(error, ForwardError::NonFinite { place: Place::Layer(1) });
    assert!(error.to_string().starts_with("layer 1 produced"), "{error}");
    assert!(sequence.is_empty());
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    let model = tiny(TINY_LLAMA);
    let mut sequence = model.new_sequence();
    feed(&model, &mut sequence, &text(14, 100), Logits::None).unwrap();
    let mut fails = |tokens: &[u32]| feed(&model, &mut sequence, tokens, Logits::Last).unwrap_err();
    assert_eq!(fails(&[1, 64]), ForwardError::Token { token: 64, vocab: 64 });
    assert_eq!(fails(&[]), ForwardError::Empty { step: 0 });
    assert_eq!(fails(&[0; 29]), ForwardError::ContextFull { position: 100, tokens: 29, context: 128 });
    assert_eq!(sequence.len(), 100);
    feed(&model, &mut sequence, &[0; 28], Logits::Last).unwrap();
}

#[test]
fn a_tied_head_is_held_once() {
    let tied = tiny(TINY_QWEN3);
    let untied = tiny(&TINY_QWEN3.replace("true", "false"));
    assert_eq!(untied.resident_bytes() - tied.resident_bytes(), 64 * 32 * 4);
}
