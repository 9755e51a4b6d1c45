//! Sequences that are generated together are those that are generated alone, however they begin and end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use octet_formats::Folder;
use octet_kernels::{Engine, Isa};
use octet_runtime::{
    Event, FinishReason, GenerateOptions, Generation, OpenOptions, Rng, SamplerConfig, TextModel, generate, generate_batch,
    generate_several,
};
use octet_testkit::fixtures;
use std::{num::NonZeroUsize, ops::ControlFlow};

/// Fewer tokens than the longest prompt and its text take.
const CONTEXT: usize = 540;

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

fn pocket() -> TextModel {
    let engine = Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap();
    let folder = Folder::disk(&fixtures().join("../models/pocket")).unwrap();
    TextModel::open(&folder, &engine, OpenOptions { context: Some(CONTEXT), ..OpenOptions::default() }).unwrap()
}

/// Prompts of one token, of several that go through the model together, and of more than go through it at once.
fn prompts(model: &TextModel) -> Vec<Vec<u32>> {
    let text = "PCI device 8086:10d3 is a network card. The kernel loads its driver, mounts the file system and starts init. ".repeat(40);
    let ids = model.tokenizer.encode(&text, false).unwrap();
    [1, 24, 3, 530, 200, 190, 180, 7].iter().enumerate().map(|(i, &length)| ids[3 * i..3 * i + length].to_vec()).collect()
}

/// What is drawn for prompt `i` by `sampler`, alone.
fn alone(model: &TextModel, i: usize, prompt: &[u32], sampler: SamplerConfig, options: &GenerateOptions) -> Generation {
    let seed = Rng::stream(sampler.seed, i as u64).next_u64();
    let options = GenerateOptions { sampler: SamplerConfig { seed, ..sampler }, ..options.clone() };
    generate(model, prompt, &options, &mut |_| CONTINUE).unwrap()
}

/// Generates together and alone; how each text ends.
fn check(model: &TextModel, options: &GenerateOptions) -> Vec<FinishReason> {
    let prompts = prompts(model);
    let samplers = [SamplerConfig::greedy(), SamplerConfig::sampled(0.8, 7), SamplerConfig { top_k: 5, ..SamplerConfig::sampled(1.2, 7) }];
    let mut seen = vec![0; samplers.len() * prompts.len()];
    let mut watch = |event: Event<'_>| {
        if let Event::Logits { sequence, logits } = event {
            assert_eq!(logits.len(), model.vocab());
            seen[sequence] += 1;
        }
        CONTINUE
    };
    let together = generate_several(model, &prompts, &samplers, options, &mut watch).unwrap();
    assert_eq!(together.len(), samplers.len() * prompts.len());
    for (at, found) in together.iter().enumerate() {
        let (sampler, i) = (samplers[at / prompts.len()], at % prompts.len());
        let expected = alone(model, i, &prompts[i], sampler, options);
        assert_eq!((&found.ids, &found.text, found.finish), (&expected.ids, &expected.text, expected.finish), "prompt {i} by {sampler:?}");
        assert_eq!((seen[at], found.timings.prefill_tokens), (found.ids.len(), prompts[i].len()), "prompt {i} by {sampler:?}");
        assert_eq!(found.timings.decode_tokens + 1, found.ids.len().max(1));
    }
    let batch = generate_batch(model, &prompts, &GenerateOptions { sampler: samplers[1], ..options.clone() }, &mut |_| CONTINUE).unwrap();
    assert!(batch.iter().zip(&together[prompts.len()..]).all(|(a, b)| a.ids == b.ids));
    together.iter().map(|generation| generation.finish).collect()
}

#[test]
fn together_is_alone() {
    let mut model = pocket();
    let options = GenerateOptions { max_tokens: 20, ..GenerateOptions::default() };
    let ends = check(&model, &options);
    let count = |ends: &[FinishReason], reason| ends.iter().filter(|end| **end == reason).count();
    assert!(count(&ends, FinishReason::ContextFull) == 3 && count(&ends, FinishReason::MaxTokens) > 3, "{ends:?}");

    // A token that some texts reach now ends them, while the others go on.
    let first = alone(&model, 1, &prompts(&model)[1], SamplerConfig::greedy(), &options);
    model.generation.eos_ids.push(first.ids[4]);
    let ends = check(&model, &options);
    assert!(ends[1] == FinishReason::EndOfText && count(&ends, FinishReason::MaxTokens) > 1, "{ends:?}");
    check(&model, &GenerateOptions { ignore_eos: true, ..options.clone() });
    model.generation.eos_ids.pop();

    let stop = first.text.chars().skip(6).take(3).collect();
    let ends = check(&model, &GenerateOptions { stop: vec![stop], ..options });
    assert!(ends[1] == FinishReason::StopString && count(&ends, FinishReason::MaxTokens) > 1, "{ends:?}");
}

#[test]
fn what_cannot_begin_is_an_error_and_who_stops_is_heard() {
    let model = pocket();
    let options = GenerateOptions { max_tokens: 5, ..GenerateOptions::default() };
    let several = |prompts: &[Vec<u32>]| {
        generate_several(&model, prompts, &[SamplerConfig::greedy()], &options, &mut |_| CONTINUE).map(|all| all.len())
    };
    assert!(several(&[vec![5], vec![]]).is_err() && several(&[vec![5; CONTEXT]]).is_err());
    assert_eq!(several(&[]).unwrap(), 0);
    let none = GenerateOptions { max_tokens: 0, ..options.clone() };
    let empty = generate_several(&model, &[vec![5], vec![6, 7]], &[SamplerConfig::greedy()], &none, &mut |_| CONTINUE).unwrap();
    assert!(empty.iter().all(|generation| generation.ids.is_empty()));
    let mut stop = |event: Event<'_>| if matches!(event, Event::Logits { sequence: 0, .. }) { ControlFlow::Break(()) } else { CONTINUE };
    let stopped = generate_several(&model, &[vec![5], vec![6, 7]], &[SamplerConfig::greedy()], &options, &mut stop).unwrap();
    let ends: Vec<_> = stopped.iter().map(|generation| (generation.ids.len(), generation.finish)).collect();
    assert_eq!(ends, [(1, FinishReason::Cancelled), (5, FinishReason::MaxTokens)]);
}
