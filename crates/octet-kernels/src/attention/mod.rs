//! Attention with an online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135): tiles of
//! keys are scored, weighed and forgotten, the score matrix never exists.
//!
//! A task is one key-value head and a few tokens, with all query heads that share the key-value head: a key is read once
//! for all of them.

mod cache;
mod tile;

pub use cache::{KvCache, KvDtype};

use crate::{Engine, counters::Kernel, matmul::with_scratch, parallel::Shared};
use tile::{Heads, Tile};

/// Rows (tokens times query heads of a key-value head) of a task: two full register tiles on the widest instruction set.
const ROWS: usize = 24;
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
    pub fn attention(&self, jobs: &mut [AttentionJob<'_>]) {
        for jobs in jobs.chunks_mut(JOBS) {
            let mut work: [Option<Work<'_>>; JOBS] = [const { None }; JOBS];
            for (work, job) in work.iter_mut().zip(jobs) {
                if !job.q.is_empty() {
                    self.count(Kernel::Attention);
                    *work = Some(Work::new(job));
                }
            }
            self.run(work.iter().flatten().map(|w| w.tasks).sum(), &|mut task| {
                for work in work.iter().flatten() {
                    if task < work.tasks {
                        work.run(self, task);
                        return;
                    }
                    task -= work.tasks;
                }
            });
        }
    }
}

impl<'a> Work<'a> {
    fn new(job: &'a mut AttentionJob<'_>) -> Self {
        let (cache, heads) = (job.cache, job.heads);
        let (kv_heads, dim) = (cache.layout().kv_heads, cache.layout().head_dim);
        let width = heads * dim;
        assert!(heads > 0 && heads.is_multiple_of(kv_heads), "{heads} query heads over {kv_heads} key-value heads");
        assert!(job.q.len().is_multiple_of(width) && job.q.len() == job.out.len(), "queries are [tokens, {width}], outputs too");
        let tokens = job.q.len() / width;
        assert!(tokens <= cache.len(), "{tokens} queries over {} keys", cache.len());
        let group = heads / kv_heads;
        let tokens_a_task = (ROWS / group).clamp(1, tokens);
        let tasks = kv_heads * tokens.div_ceil(tokens_a_task);
        let tile = Tile {
            q: job.q,
            cache,
            heads: Heads { all: heads, group, dim },
            position: cache.len() - tokens,
            scale: job.scale,
            window: job.window.unwrap_or(usize::MAX),
            soft_cap: job.soft_cap,
        };
        Self { tile, out: Shared::new(job.out), tokens, tokens_a_task, tasks }
    }

    fn run(&self, engine: &Engine, task: usize) {
        let kv_heads = self.tile.cache.layout().kv_heads;
        // The last tokens see the most keys: they go first.
        let (kv_head, run) = (task % kv_heads, self.tasks / kv_heads - 1 - task / kv_heads);
        let first = run * self.tokens_a_task;
        let last = self.tokens.min(first + self.tokens_a_task);
        with_scratch(|scratch| {
            engine.vectorize(tile::Attend { tile: &self.tile, kv_head, tokens: first..last, out: &self.out, scratch });
        });
    }
}
