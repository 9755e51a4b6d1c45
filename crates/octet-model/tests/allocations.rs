//! A decoding step allocates nothing once buffers have grown. A binary of its own: it counts what the whole process allocates.
#![allow(clippy::unwrap_used, unsafe_code, reason = "a test fails by panicking; an allocator is unsafe by its nature")]

mod support;

use octet_kernels::{Engine, Isa};
use octet_model::{KvDtype, LoadOptions, Logits, Model, Step};
use octet_tensor::Activations;
use octet_testkit::{TINY_GEMMA3, TINY_GPT2, TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Steps of a round: all within what a cache has room for once it holds the first token.
const STEPS: usize = 12;
/// Rounds until one must allocate nothing. Buffers grow to what is needed, each thread's own when its share needs it.
const ROUNDS: usize = 8;

/// Allocations of the steps after the first, which may make room in the caches.
fn round(model: &Model, batch: usize) -> usize {
    let mut sequences: Vec<_> = (0..batch).map(|_| model.new_sequence()).collect();
    let (mut out, mut steps, mut before) = (vec![0.0; batch * model.spec().vocab_size()], Vec::with_capacity(batch), 0);
    for step in 0..STEPS {
        let token = [step as u32 + 1];
        for sequence in &mut sequences {
            steps.push(Step { sequence, tokens: &token, logits: Logits::Last });
        }
        model.forward(&mut steps, &mut out, None).unwrap();
        steps = empty(steps);
        if step == 0 {
            before = ALLOCATIONS.load(Ordering::SeqCst);
        }
    }
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

#[test]
fn a_decoding_step_allocates_nothing() {
    for config in [TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE, TINY_GEMMA3, TINY_GPT2] {
        let spec = support::spec(config);
        for (source, activations) in [
            (support::weights(&spec), None),
            (support::quantized(&spec, "w8a8"), None),
            (support::quantized(&spec, "w8a8"), Some(Activations::Exact)),
        ] {
            for threads in [1, 2] {
                let engine = Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap();
                let options = LoadOptions { activations, kv: KvDtype::F16, context: None };
                let model = support::load_on(&engine, spec.clone(), &source, options);
                for batch in [1, 4] {
                    let counts: Vec<usize> = (0..ROUNDS).map(|_| round(&model, batch)).collect();
                    let what = format!("{}, {activations:?}, {threads} threads, batch {batch}", spec.family());
                    assert!(counts.contains(&0), "{what}: every round allocates, {counts:?} times");
                }
            }
        }
    }
}

/// The same memory for steps of other lifetimes.
fn empty<'a>(mut steps: Vec<Step<'_>>) -> Vec<Step<'a>> {
    steps.clear();
    steps.into_iter().map(|_| unreachable!()).collect()
}
