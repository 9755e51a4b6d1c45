//! The generation loop: one sequence that streams, or several that decode together.

use crate::{DecodeStream, Error, Result, Sampler, SamplerConfig, StopBuffer, TextModel, rng::Rng};
use octet_kernels::Engine;
use octet_model::{Logits, Sequence, Step};
use std::{
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Prompt tokens that go through the model at once: bounds the scratch memory, large enough to keep the kernels busy.
const PREFILL_CHUNK: usize = 512;

/// How much to generate, how, and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens after which a text ends.
    pub max_tokens: usize,
    /// Texts that end the generation; they are not part of what is given out.
    pub stop: Vec<String>,
    /// How tokens are drawn.
    pub sampler: SamplerConfig,
    /// Go on after an end-of-sequence token (for measuring speed).
    pub ignore_eos: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_tokens: 256, stop: vec![], sampler: SamplerConfig::greedy(), ignore_eos: false }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model gave an end-of-sequence token.
    EndOfText,
    /// A stop string appeared.
    StopString,
    /// The asked number of tokens was reached.
    MaxTokens,
    /// The model's context is full.
    ContextFull,
    /// The caller said stop.
    Cancelled,
}

/// How long the two phases of a generation took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prefill_tokens: usize,
    /// Seconds the prompt took.
    pub prefill_seconds: f64,
    /// Tokens that each took one decoding step.
    pub decode_tokens: usize,
    /// Seconds those steps took (of the whole batch while this sequence was in it).
    pub decode_seconds: f64,
}

impl Timings {
    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill_seconds)
    }

    /// Decoded tokens a second.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens, self.decode_seconds)
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// A generated text.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The text, without the prompt, stop strings and special tokens.
    pub text: String,
    /// The tokens, an end-of-sequence token included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// How long it took.
    pub timings: Timings,
}

/// What the caller of [`generate_batch`] may look at while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// The logits from which the next token of sequence `sequence` is about to be drawn.
    Logits {
        /// Index of the prompt.
        sequence: usize,
        /// One value for each token of the vocabulary.
        logits: &'a [f32],
    },
    /// Text of sequence `sequence` that is ready to be shown.
    Text {
        /// Index of the prompt.
        sequence: usize,
        /// Whole characters, never part of a stop string.
        text: &'a str,
    },
}

/// Generates from `prompt` (token ids), giving text to `on_text` as soon as its characters are complete; `on_text` may
/// break off.
///
/// # Errors
/// If the prompt is empty or fills the context, an option has no meaning, or the model fails.
pub fn generate(
    model: &TextModel,
    prompt: &[u32],
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generation> {
    let mut forward = |event: Event<'_>| match event {
        Event::Text { text, .. } => on_text(text),
        Event::Logits { .. } => ControlFlow::Continue(()),
    };
    let mut run = Run::start(model, 0, prompt, options.sampler, &options.stop)?;
    let mut batch = Batch { model, options, rows: vec![], on_event: &mut forward };
    batch.prefill(&mut run, prompt)?;
    batch.decode(std::slice::from_mut(&mut run))?;
    run.finish()
}

/// Generates from several prompts that decode together; a sequence that ends drops out. Sequence i draws from a random
/// stream of its own (seed and i), so that its text does not depend on its neighbours.
///
/// # Errors
/// As [`generate`].
pub fn generate_batch(
    model: &TextModel,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Vec<Generation>> {
    generate_several(model, prompts, &[options.sampler], options, on_event)
}

/// As [`generate_batch`], every prompt once for each of `samplers`, all of them together: sequence i + n · prompts is prompt i
/// drawn by sampler n, the same text as if that sampler were alone.
///
/// # Errors
/// As [`generate`].
pub fn generate_several(
    model: &TextModel,
    prompts: &[Vec<u32>],
    samplers: &[SamplerConfig],
    options: &GenerateOptions,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Vec<Generation>> {
    let mut runs = vec![];
    for sampler in samplers {
        for (i, prompt) in prompts.iter().enumerate() {
            let seed = Rng::stream(sampler.seed, i as u64).next_u64();
            runs.push(Run::start(model, runs.len(), prompt, SamplerConfig { seed, ..*sampler }, &options.stop)?);
        }
    }
    let prompt_of = |index: usize| &prompts[index % prompts.len()][..];
    let mut batch = Batch { model, options, rows: vec![], on_event };
    let mut rest = &mut runs[..];
    while let Some(first) = rest.first() {
        // Short prompts go through the model together.
        let room = PREFILL_CHUNK.saturating_sub(prompt_of(first.index).len());
        let more = rest[1..].iter().scan(room, |room, run| {
            *room = room.checked_sub(prompt_of(run.index).len())?;
            Some(())
        });
        let count = 1 + more.count();
        let (together, after) = rest.split_at_mut(count);
        match together {
            [run] => batch.prefill(run, prompt_of(run.index))?,
            _ => batch.prefill_together(together, &prompt_of)?,
        }
        rest = after;
    }
    batch.decode(&mut runs)?;
    runs.into_iter().map(Run::finish).collect()
}

/// One sequence on its way.
struct Run<'a> {
    index: usize,
    sequence: Sequence,
    sampler: Sampler,
    stream: DecodeStream<'a>,
    stops: StopBuffer,
    ids: Vec<u32>,
    text: String,
    position: usize,
    finish: Option<FinishReason>,
    timings: Timings,
}

impl<'a> Run<'a> {
    fn start(model: &'a TextModel, index: usize, prompt: &[u32], sampler: SamplerConfig, stop: &[String]) -> Result<Self> {
        let context = model.context();
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= context {
            return Err(Error::PromptTooLong { tokens: prompt.len(), context });
        }
        Ok(Self {
            index,
            sequence: model.model.new_sequence(),
            sampler: Sampler::new(sampler, prompt)?,
            stream: DecodeStream::new(&model.tokenizer, prompt),
            stops: StopBuffer::new(stop),
            ids: vec![],
            text: String::new(),
            position: prompt.len(),
            finish: None,
            timings: Timings { prefill_tokens: prompt.len(), ..Timings::default() },
        })
    }

    fn finish(self) -> Result<Generation> {
        let finish = self.finish.unwrap_or(FinishReason::MaxTokens);
        Ok(Generation { text: self.text, ids: self.ids, finish, timings: self.timings })
    }
}

/// Draws from each row of logits by its own sampler, a token that follows so many others; by all threads of `engine`.
pub fn draw_each(engine: &Engine, draws: Vec<(&mut Sampler, usize, &mut [f32])>) -> Vec<Result<u32>> {
    let slots: Vec<Mutex<_>> = draws.into_iter().map(|draw| Mutex::new((draw, Ok(0)))).collect();
    engine.run(slots.len(), &|task| {
        let mut slot = slots[task].lock().unwrap_or_else(PoisonError::into_inner);
        let ((sampler, position, row), drawn) = &mut *slot;
        *drawn = sampler.next(row, *position);
    });
    slots.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1).collect()
}

struct Batch<'a> {
    model: &'a TextModel,
    options: &'a GenerateOptions,
    /// Logits of the last step, a row for each sequence of it.
    rows: Vec<f32>,
    on_event: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
}

impl Batch<'_> {
    /// Puts the prompt through the model and draws the first token.
    fn prefill(&mut self, run: &mut Run<'_>, prompt: &[u32]) -> Result<()> {
        let started = Instant::now();
        let last = prompt.len().div_ceil(PREFILL_CHUNK) - 1;
        for (i, tokens) in prompt.chunks(PREFILL_CHUNK).enumerate() {
            let logits = if i == last { Logits::Last } else { Logits::None };
            self.model.model.forward(&mut [Step { sequence: &mut run.sequence, tokens, logits }], &mut self.rows, None)?;
        }
        run.timings.prefill_seconds = started.elapsed().as_secs_f64();
        let mut rows = std::mem::take(&mut self.rows);
        let result = if self.options.max_tokens == 0 { Ok(()) } else { self.draw(run, &mut rows) };
        self.rows = rows;
        result
    }

    /// Puts whole prompts through the model at once and draws the first token of each.
    fn prefill_together<'p>(&mut self, runs: &mut [Run<'_>], prompt_of: &dyn Fn(usize) -> &'p [u32]) -> Result<()> {
        let started = Instant::now();
        let mut steps = vec![];
        for run in &mut *runs {
            steps.push(Step { tokens: prompt_of(run.index), sequence: &mut run.sequence, logits: Logits::Last });
        }
        self.model.model.forward(&mut steps, &mut self.rows, None)?;
        let seconds = started.elapsed().as_secs_f64();
        let mut rows = std::mem::take(&mut self.rows);
        let mut active: Vec<_> = runs.iter_mut().zip(rows.chunks_exact_mut(self.model.vocab())).collect();
        active.iter_mut().for_each(|(run, _)| run.timings.prefill_seconds = seconds);
        if self.options.max_tokens > 0 {
            self.draw_all(&mut active)?;
        }
        self.rows = rows;
        Ok(())
    }

    /// Steps all sequences together until every one has ended.
    fn decode(&mut self, runs: &mut [Run<'_>]) -> Result<()> {
        let vocab = self.model.vocab();
        while self.options.max_tokens > 0 && runs.iter().any(|run| run.finish.is_none()) {
            let started = Instant::now();
            {
                let active = runs.iter_mut().filter(|run| run.finish.is_none());
                let mut steps: Vec<Step<'_>> = active
                    .map(|run| Step { sequence: &mut run.sequence, tokens: &run.ids[run.ids.len() - 1..], logits: Logits::Last })
                    .collect();
                self.model.model.forward(&mut steps, &mut self.rows, None)?;
            }
            let mut rows = std::mem::take(&mut self.rows);
            let seconds = started.elapsed().as_secs_f64();
            let mut active: Vec<_> = runs.iter_mut().filter(|run| run.finish.is_none()).zip(rows.chunks_exact_mut(vocab)).collect();
            for (run, _) in &mut active {
                run.position += 1;
                run.timings.decode_tokens += 1;
                run.timings.decode_seconds += seconds;
            }
            self.draw_all(&mut active)?;
            self.rows = rows;
        }
        Ok(())
    }

    /// Draws the next token of every sequence, by all threads, and gives out what text they complete.
    fn draw_all(&mut self, active: &mut [(&mut Run<'_>, &mut [f32])]) -> Result<()> {
        let mut watched = vec![];
        for (run, row) in &*active {
            watched.push((self.on_event)(Event::Logits { sequence: run.index, logits: row }));
        }
        let draws = active.iter_mut().map(|(run, row)| (&mut run.sampler, run.position, &mut **row)).collect();
        let drawn = draw_each(self.model.model.engine(), draws);
        for (((run, _), id), watched) in active.iter_mut().zip(drawn).zip(watched) {
            self.take(run, id?, watched)?;
        }
        Ok(())
    }

    /// Draws the next token of a sequence and gives out what text it completes.
    fn draw(&mut self, run: &mut Run<'_>, row: &mut [f32]) -> Result<()> {
        let watched = (self.on_event)(Event::Logits { sequence: run.index, logits: row });
        let id = run.sampler.next(row, run.position)?;
        self.take(run, id, watched)
    }

    /// Adds a token to a sequence and gives out what text it completes.
    fn take(&mut self, run: &mut Run<'_>, id: u32, watched: ControlFlow<()>) -> Result<()> {
        run.ids.push(id);
        let ended = !self.options.ignore_eos && self.model.generation.eos_ids.contains(&id);
        let (mut text, mut stopped) = if ended { Default::default() } else { run.stops.push(&run.stream.push(id)?) };
        let mut finish = if ended {
            Some(FinishReason::EndOfText)
        } else if stopped {
            Some(FinishReason::StopString)
        } else if run.ids.len() >= self.options.max_tokens {
            Some(FinishReason::MaxTokens)
        } else if run.position >= self.model.context() {
            Some(FinishReason::ContextFull)
        } else {
            watched.is_break().then_some(FinishReason::Cancelled)
        };
        if finish.is_some() && !stopped {
            let rest = run.stops.push(&run.stream.finish()?);
            text.push_str(&rest.0);
            stopped = rest.1;
            text.push_str(&run.stops.finish());
        }
        if stopped {
            finish = Some(FinishReason::StopString);
        }
        run.text.push_str(&text);
        if !text.is_empty() && (self.on_event)(Event::Text { sequence: run.index, text: &text }).is_break() {
            finish = finish.or(Some(FinishReason::Cancelled));
        }
        run.finish = finish;
        Ok(())
    }
}
