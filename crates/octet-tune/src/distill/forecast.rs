//! What a distillation will take, from shapes.

use super::Settings;
use crate::{Keep, trainer::LOGITS};
use octet_kernels::{Engine, MatrixView};
use octet_model::{
    ArchSpec,
    graph::{Node, PlainNode},
};
use std::time::{Duration, Instant};

/// How long products are tried.
const TRIAL: Duration = Duration::from_millis(40);

/// Rows, and the most inputs and outputs, of the products that are tried.
const ROWS: usize = 512;

/// What a distillation will take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needs {
    /// What is best kept of a pass within the memory there is.
    pub keep: Keep,
    /// Whether there is room for what the original makes of every window.
    pub lessons: bool,
    /// Bytes held at once.
    pub bytes: u64,
    /// Multiply-adds.
    pub work: f64,
}

/// What distilling on `count` windows of `length` tokens, `held` of them checked on, will take; everything a pass needs, and what
/// the original makes of the windows, is kept where that takes at most `budget` bytes.
pub fn needs(spec: &ArchSpec, settings: &Settings, (count, length, held): (usize, usize, usize), budget: u64) -> Needs {
    let graph = spec.graph();
    let weights: usize = graph.linear_sites().iter().map(|site| site.rows * site.cols).sum();
    // Those of the teacher, the student and its gradients; latents, their two moments and the best of them.
    let learnt = if settings.learning.codes > 0.0 { 4 } else { 0 };
    let codes = 2 * weights;
    let rows = settings.batch_tokens.max(1).next_multiple_of(length.max(1));
    let kept = |nodes: &[PlainNode]| -> usize {
        let width = |node: &PlainNode| match node {
            Node::Linears(group) => {
                group.linears.first().map_or(0, |l| l.site.cols) + group.linears.iter().map(|l| l.site.rows).sum::<usize>()
            }
            Node::Norm { .. } => spec.hidden(),
            _ => 0,
        };
        nodes.iter().map(width).sum()
    };
    let blocks: Vec<usize> = graph.blocks.iter().map(|nodes| rows * kept(nodes)).collect();
    let (all, most) = (blocks.iter().sum::<usize>(), blocks.iter().max().copied().unwrap_or(0));
    let logits = 4 * LOGITS.max(16 * spec.vocab_size());
    let fixed = (3 + learnt) * weights + 4 * rows * spec.hidden() + logits + 2 * most;
    let bytes = |activations: usize| (4 * (fixed + activations) + codes) as u64;
    let (whole, thin) = (bytes(all), bytes(most + graph.blocks.len() * rows * spec.hidden()));
    let keep = if whole <= budget { Keep::All } else { Keep::Blocks };
    let with_lessons = whole + (4 * count * length * spec.hidden()) as u64;
    let lessons = with_lessons <= budget;
    // Student, and the gradients of inputs and of weights; a block that is run again.
    let passes = if keep == Keep::All { 3.0 } else { 4.0 };
    let (learnt, checked) = (settings.steps * rows, held * length * super::CHECKS);
    let taught = if lessons { (learnt + checked).min(count * length) } else { learnt + checked };
    let work = weights as f64 * (passes * learnt as f64 + (checked + taught) as f64);
    let least = if keep == Keep::All { whole } else { thin };
    Needs { keep, lessons, bytes: if lessons { with_lessons } else { least }, work }
}

impl Needs {
    /// Seconds, by a trial of a few milliseconds with all threads of `engine` on products as wide as the model.
    pub fn seconds(&self, engine: &Engine, spec: &ArchSpec) -> f64 {
        let width = spec.hidden().clamp(16, ROWS);
        let sample = |count: usize| -> Vec<f32> { (0..count).map(|i| (i % 31) as f32 / 31.0 - 0.5).collect() };
        let (x, w, mut out) = (sample(ROWS * width), sample(width * width), vec![0.0; ROWS * width]);
        let mut once = || engine.product(MatrixView::new(&x, width), MatrixView::new(&w, width), &mut out, false);
        once();
        let (start, mut rounds) = (Instant::now(), 0);
        while rounds == 0 || start.elapsed() < TRIAL {
            once();
            rounds += 1;
        }
        let each = start.elapsed().as_secs_f64() / f64::from(rounds);
        self.work * each / (ROWS * width * width) as f64
    }
}
