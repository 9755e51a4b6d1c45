//! Text that the original writes itself: what a quantized model can learn from where there is little other text.
//!
//! Tokens are drawn at temperature 1 from the original's own distribution, each window from a few tokens of the calibration text on
//! (data-free distillation of LLM-QAT, arXiv 2305.17888). Every sequence has a random stream of its own, so the text is the same
//! however many decode together and on however many threads.

use crate::{Error, Prepared, Result};
use octet_kernels::Engine;
use octet_model::Place;
use octet_quant::Event;
use octet_runtime::{GenerateOptions, OpenOptions, Rng, SamplerConfig, TextModel, generate_batch};
use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
};

/// What writing is called in events.
pub const STAGE: &str = "own text";

/// Sequences that decode together: a step reads the weights once for all of them.
const TOGETHER: usize = 64;

/// Tokens of the calibration text that a window begins with.
const GIVEN: usize = 8;

/// So many times the windows that are needed are begun at the most: a model may end every text at once.
const PATIENCE: usize = 4;

/// Tells this random stream from others of the same seed.
const STREAM: u64 = 0x6f77_6e20_7465_7874;

/// Windows of at most `length` tokens, `tokens` together, each begun like some place in one of `from`.
///
/// # Errors
/// If the original cannot run, or `cancel` is set.
pub(crate) fn write(
    prepared: &Prepared,
    (from, length, tokens): (&[&[u32]], usize, usize),
    engine: &Engine,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(&Event<'_>),
) -> Result<Vec<Vec<u32>>> {
    let places: Vec<&[u32]> = from.iter().copied().filter(|window| window.len() >= GIVEN).collect();
    if tokens == 0 || places.is_empty() || length <= GIVEN {
        return Ok(vec![]);
    }
    let model = TextModel::open(&prepared.input, engine, OpenOptions::default())?;
    // What the tokenizer puts before any text.
    let bos = model.tokenizer.encode("", true)?.first().copied().filter(|first| Some(*first) == model.tokenizer.bos());
    let most = PATIENCE * tokens.div_ceil(length) + TOGETHER;
    let mut random = Rng::stream(prepared.settings.seed, STREAM);
    let (mut windows, mut begun, mut written) = (vec![], 0, 0);
    while written < tokens && begun < most {
        let beginnings: Vec<&[u32]> = (0..TOGETHER).map(|_| beginning(&places, &mut random)).collect();
        let prompts: Vec<Vec<u32>> = beginnings.iter().map(|given| bos.into_iter().chain(given.iter().copied()).collect()).collect();
        let sampler = SamplerConfig::sampled(1.0, random.next_u64());
        let options = GenerateOptions { max_tokens: length - GIVEN, sampler, ..GenerateOptions::default() };
        let stop = || cancel.load(Ordering::Relaxed);
        let mut watch = |_: octet_runtime::Event<'_>| if stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let texts = generate_batch(&model, &prompts, &options, &mut watch)?;
        if stop() {
            // All blocks are quantized by then, and stay.
            let blocks = prepared.spec.layers().len();
            return Err(Error::Paused { done: blocks, total: blocks });
        }
        for (given, text) in beginnings.iter().zip(texts).filter(|(_, text)| !text.ids.is_empty()) {
            let window: Vec<u32> = given.iter().chain(&text.ids).copied().collect();
            written += window.len();
            windows.push(window);
        }
        begun += TOGETHER;
        let (done, total) = (written.min(tokens) as u64, tokens as u64);
        progress(&Event { place: Place::Head, what: STAGE, tensor: None, report: None, done, total });
    }
    Ok(windows)
}

/// A few tokens from anywhere in one of the windows.
fn beginning<'a>(places: &[&'a [u32]], random: &mut Rng) -> &'a [u32] {
    let window = places[random.below(places.len())];
    let start = random.below(window.len() - GIVEN + 1);
    &window[start..start + GIVEN]
}
