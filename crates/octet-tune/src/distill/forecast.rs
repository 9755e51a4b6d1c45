//! What a distillation will take, from shapes.

use super::{Settings, blocks};
use crate::{Batch, Gradients, Keep, Lesson, Network, ParamKind, Trainer, trainer::LOGITS};
use octet_kernels::{Engine, MatrixView};
use octet_model::{
    ArchSpec,
    graph::{Node, PlainNode},
};
use std::time::{Duration, Instant};

/// How long a trial takes at least.
const TRIAL: Duration = Duration::from_millis(60);

/// Multiply-adds of a step of learning up to which it is tried as it is; of larger models products are tried, which are nearly
/// all of their work.
const TRIED: f64 = 6e10;

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
    /// Multiply-adds of products.
    pub work: f64,
    /// Tokens of a window, and windows of a step.
    pub batch: (usize, usize),
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
    // What the original makes of a window goes through its head whenever it is learnt from.
    let (all, head) = multiplied(spec);
    let mut work = all * (passes * learnt as f64 + (checked + taught) as f64) + head * (learnt + checked) as f64;
    let (mut bytes_of_streams, streams) = (0, (count.min(blocks::MOST) + held) * length);
    if settings.block_steps > 0 {
        // A block forwards and back at a time; both models go through every window once, and what is held out ten times.
        work += (all - head) * (3 * settings.block_steps * rows + 2 * streams + 10 * held * length) as f64;
        bytes_of_streams = (3 * 4 * streams * spec.hidden()) as u64;
    }
    let least = if keep == Keep::All { whole } else { thin };
    let bytes = if lessons { with_lessons } else { least }.max(thin + bytes_of_streams);
    let batch = (length.max(1), rows / length.max(1));
    Needs { keep, lessons, bytes, work, batch }
}

/// Multiply-adds of a token: of everything, and of the head alone.
fn multiplied(spec: &ArchSpec) -> (f64, f64) {
    let graph = spec.graph();
    let of = |nodes: &[PlainNode]| -> f64 {
        nodes.iter().flat_map(Node::linears).map(|linear| (linear.site.rows * linear.site.cols) as f64).sum()
    };
    let head = of(&graph.head);
    (graph.blocks.iter().map(|nodes| of(nodes)).sum::<f64>() + head, head)
}

impl Needs {
    /// Seconds, by a trial with all threads of `engine`: of a step of learning, or of products where a step would take long.
    pub fn seconds(&self, engine: &Engine, spec: &ArchSpec) -> f64 {
        self.work * learning(engine, spec, self.batch).unwrap_or_else(|| products(engine, spec))
    }
}

/// Seconds that `once` takes.
fn tried(mut once: impl FnMut()) -> f64 {
    once();
    let (start, mut rounds) = (Instant::now(), 0);
    while rounds == 0 || start.elapsed() < TRIAL {
        once();
        rounds += 1;
    }
    start.elapsed().as_secs_f64() / f64::from(rounds)
}

fn sample(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 31) as f32 / 31.0 - 0.5).collect()
}

/// Seconds a multiply-add of products as wide as the model.
fn products(engine: &Engine, spec: &ArchSpec) -> f64 {
    let width = spec.hidden().clamp(16, ROWS);
    let (x, w, mut out) = (sample(ROWS * width), sample(width * width), vec![0.0; ROWS * width]);
    let each = tried(|| engine.product(MatrixView::new(&x, width), MatrixView::new(&w, width), &mut out, false));
    each / (ROWS * width * width) as f64
}

/// Seconds a multiply-add of learning, all that goes with it included, on a model of that shape; `None` where a window would
/// take long, or the model cannot learn.
fn learning(engine: &Engine, spec: &ArchSpec, (length, windows): (usize, usize)) -> Option<f64> {
    let (all, head) = multiplied(spec);
    let a_token = 3.0 * all + head;
    let windows = windows.min((TRIED / (a_token * length as f64)) as usize);
    if windows == 0 {
        return None;
    }
    let network = Network::new(spec).ok()?;
    // Small enough for every norm and softmax to stay finite.
    let of = |[rows, cols]: [usize; 2], kind: &ParamKind| match kind {
        ParamKind::Matrix(_) => sample(rows * cols).into_iter().map(|v| v / (cols as f32).sqrt()).collect(),
        ParamKind::Small { .. } => vec![1.0; rows * cols],
    };
    let values: Vec<Vec<f32>> = network.parameters().iter().map(|parameter| of(parameter.shape, &parameter.kind)).collect();
    let ids: Vec<u32> = (0..length * windows).map(|i| (i % spec.vocab_size().max(1)) as u32).collect();
    let batch = Batch::new(ids.chunks(length));
    let mut trainer = Trainer::new(engine, &network);
    let mut gradients = Gradients::new(&network, |_| true);
    let hidden = trainer.hidden(&values, &batch);
    let each = tried(|| {
        trainer.learn(&values, &batch, Lesson::Teacher { values: &values, hidden: &hidden }, Keep::All, &mut gradients);
    });
    Some(each / (a_token * batch.rows() as f64))
}
