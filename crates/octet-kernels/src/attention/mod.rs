//! Attention with an online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135): tiles of
//! keys are scored, weighed and forgotten, the score matrix never exists.
//!
//! A task is one key-value head and a few tokens, with all query heads that share the key-value head: a key is read once
//! for all of them. Where the tokens of a job make one task a head only, long caches are also cut along the keys, and
//! whichever task ends last merges the parts, in their order.
//!
//! Floating-point caches are computed with in floating point. With caches of integers the products are integers as well:
//! queries and weights become integers of 16 bits (or of two planes of 8 bits), so that their rounding is far below that
//! of the cache.

mod append;
mod cache;
mod floats;
mod ints;
mod merge;
mod softmax;
mod task;

pub use append::AppendJob;
pub use cache::{KvCache, KvDtype};
pub(crate) use merge::Partials;

use crate::{Engine, counters::Kernel, matmul::with_scratch, parallel::Shared};
use task::{Attend, Heads, Output, Tile};

/// Rows (tokens times query heads of a key-value head) of a task: full register tiles on the widest instruction set.
const ROWS: usize = 48;
/// Keys of a part, where a job is cut along them.
const PART: usize = 512;
/// Sequences of one parallel region; more run one region after another.
const JOBS: usize = 16;

/// Attention of some new tokens of one sequence.
pub struct AttentionJob<'a> {
    /// Queries `[tokens, heads · head_dim]`.
    pub q: &'a [f32],
    /// Keys and values; the last ones are those of these tokens.
    pub cache: &'a KvCache,
    /// Query heads, a multiple of the cache's key-value heads: query head h reads key-value head h / (heads / kv heads).
    pub heads: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// How many keys back a query sees, its own included; `None`: all.
    pub window: Option<usize>,
    /// Bounds scores: cap · tanh(score / cap).
    pub soft_cap: Option<f32>,
    /// Output `[tokens, heads · head_dim]`.
    pub out: &'a mut [f32],
}

/// A job and how it is cut into tasks.
struct Work<'a> {
    tile: Tile<'a>,
    out: Shared<'a, f32>,
    tokens: usize,
    tokens_a_task: usize,
    /// Parts that the keys are cut into; more than one only where all tokens are in one task.
    parts: usize,
    tasks: usize,
}

impl Engine {
    /// Computes every job's attention, all of them in one parallel region. Query i of n sees the cache's first
    /// `len − n + i + 1` keys, of those the last `window`.
    ///
    /// Results do not depend on the number of threads.
    ///
    /// # Panics
    /// If a job's slices, heads or cache do not fit each other.
    pub fn attention<'a>(&self, jobs: impl IntoIterator<Item = AttentionJob<'a>>) {
        let mut jobs = jobs.into_iter().filter(|job| !job.q.is_empty()).peekable();
        let mut partials = self.take_partials();
        while jobs.peek().is_some() {
            let mut work: [Option<Work<'_>>; JOBS] = [const { None }; JOBS];
            for (work, job) in work.iter_mut().zip(jobs.by_ref().take(JOBS)) {
                self.count(Kernel::Attention);
                *work = Some(Work::new(job));
            }
            let parted = work.iter().flatten().filter(|w| w.parts > 1);
            partials
                .begin(parted.map(|w| (w.tile.heads.all * w.tokens * w.parts * w.tile.partial_width(), w.tile.cache.layout().kv_heads)));
            let places = partials.places();
            self.run(work.iter().flatten().map(|w| w.tasks).sum(), &|mut task| {
                let (mut floats, mut counters) = (0, 0);
                for work in work.iter().flatten() {
                    if task < work.tasks {
                        work.run(self, task, &places, floats, counters);
                        return;
                    }
                    task -= work.tasks;
                    if work.parts > 1 {
                        floats += work.tile.heads.all * work.tokens * work.parts * work.tile.partial_width();
                        counters += work.tile.cache.layout().kv_heads;
                    }
                }
            });
        }
        self.return_partials(partials);
    }
}

impl<'a> Work<'a> {
    fn new(job: AttentionJob<'a>) -> Self {
        let (cache, heads) = (job.cache, job.heads);
        let (kv_heads, dim) = (cache.layout().kv_heads, cache.layout().head_dim);
        let width = heads * dim;
        assert!(heads > 0 && heads.is_multiple_of(kv_heads), "{heads} query heads over {kv_heads} key-value heads");
        assert!(job.q.len().is_multiple_of(width) && job.q.len() == job.out.len(), "queries are [tokens, {width}], outputs too");
        let tokens = job.q.len() / width;
        assert!(tokens <= cache.len(), "{tokens} queries over {} keys", cache.len());
        let group = heads / kv_heads;
        let tokens_a_task = (ROWS / group).clamp(1, tokens);
        let tile = Tile {
            q: job.q,
            cache,
            heads: Heads { all: heads, group, dim },
            position: cache.len() - tokens,
            scale: job.scale,
            window: job.window.unwrap_or(usize::MAX),
            soft_cap: job.soft_cap,
        };
        let runs = tokens.div_ceil(tokens_a_task);
        let parts = if runs == 1 { tile.keys(0..tokens).len().div_ceil(PART).max(1) } else { 1 };
        Self { tile, out: Shared::new(job.out), tokens, tokens_a_task, parts, tasks: kv_heads * runs * parts }
    }

    /// Runs task `task`; where the job is cut along the keys its parts lie from `floats` on in `places`, its counters
    /// from `counters` on.
    fn run(&self, engine: &Engine, task: usize, places: &merge::Places<'_>, floats: usize, counters: usize) {
        let kv_heads = self.tile.cache.layout().kv_heads;
        let (part, task) = (task % self.parts, task / self.parts);
        // Tasks of one head follow one another, so that its keys stay in the cache; the last tokens, which see the most, go first.
        let runs = self.tasks / self.parts / kv_heads;
        let (kv_head, run) = (task / runs, runs - 1 - task % runs);
        let first = run * self.tokens_a_task;
        let tokens = first..self.tokens.min(first + self.tokens_a_task);
        let mut keys = self.tile.keys(tokens.clone());
        let rows = tokens.len() * self.tile.heads.group;
        let size = rows * self.tile.partial_width();
        let floats = floats + kv_head * self.parts * size;
        let output = if self.parts == 1 {
            Output::Whole(&self.out)
        } else {
            keys = (keys.start + part * PART)..keys.end.min(keys.start + (part + 1) * PART);
            // SAFETY: a part of a head of a job is one task's, and its place is its own.
            Output::Part(unsafe { places.floats(floats + part * size..floats + (part + 1) * size) })
        };
        with_scratch(|scratch| {
            engine.vectorize(Attend { tile: &self.tile, kv_head, tokens: tokens.clone(), keys, output, scratch });
        });
        if self.parts > 1 && places.is_last(counters + kv_head, self.parts) {
            // SAFETY: all tasks that write these parts have ended, as the counter says.
            let parts = unsafe { places.floats(floats..floats + self.parts * size) };
            engine.vectorize(merge::Merge { tile: &self.tile, kv_head, tokens, parts, out: &self.out });
        }
    }
}
