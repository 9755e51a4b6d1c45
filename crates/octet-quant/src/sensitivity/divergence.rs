//! Divergence of many logits from the same original: what depends on the original alone is computed once.

use crate::rows::lock;
use octet_kernels::Engine;
use octet_tensor::log_sum_exp;
use std::sync::Mutex;

/// Rows of a task.
const TASK_ROWS: usize = 8;

/// Next-token distributions of the original, `[rows, vocab]`.
pub(super) struct Predictions {
    p: Vec<f32>,
    rows: Vec<Row>,
}

/// What one distribution p, made of logits a, adds to KL = Σ p·a − Σ p·q + Σ p · (lse(q) − lse(a)). All sums are over p as it
/// is stored, so that its rounding shifts nothing.
#[derive(Clone, Copy, Default)]
struct Row {
    expected: f64,
    sum: f64,
    lse: f64,
}

/// The distributions that `logits` stand for.
pub(super) fn predictions(engine: &Engine, mut logits: Vec<f32>, vocab: usize) -> Predictions {
    let mut rows = vec![Row::default(); logits.len() / vocab.max(1)];
    let tasks: Vec<_> = logits.chunks_mut((TASK_ROWS * vocab).max(1)).zip(rows.chunks_mut(TASK_ROWS)).map(Mutex::new).collect();
    engine.run(tasks.len(), &|task| {
        let mut task = lock(&tasks[task]);
        let (logits, rows) = &mut *task;
        for (logits, row) in logits.chunks_exact_mut(vocab).zip(rows.iter_mut()) {
            row.lse = log_sum_exp(logits);
            let lse = row.lse as f32;
            for logit in logits.iter_mut() {
                let p = (*logit - lse).exp();
                row.expected += f64::from(p) * f64::from(*logit);
                row.sum += f64::from(p);
                *logit = p;
            }
        }
    });
    drop(tasks);
    Predictions { p: logits, rows }
}

/// Σ over rows of KL(original ‖ softmax of the logits q), in nats; the same for any number of threads.
pub(super) fn losses(engine: &Engine, original: &Predictions, q: &[f32], vocab: usize) -> f64 {
    let mut sums = vec![0f64; original.rows.len()];
    let tasks: Vec<_> = sums.chunks_mut(TASK_ROWS).map(Mutex::new).collect();
    engine.run(tasks.len(), &|task| {
        for (i, sum) in lock(&tasks[task]).iter_mut().enumerate() {
            let row = task * TASK_ROWS + i;
            let (p, q) = (&original.p[row * vocab..(row + 1) * vocab], &q[row * vocab..(row + 1) * vocab]);
            let Row { expected, sum: total, lse } = original.rows[row];
            *sum = expected - dot(p, q) + total * (log_sum_exp(q) - lse);
        }
    });
    drop(tasks);
    sums.iter().sum()
}

/// Σ a·b in double precision, eight sums at a time.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0f64; 8];
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    sums.iter().sum::<f64>() + a_tail.iter().zip(b_tail).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_kernels::Isa;
    use octet_tensor::kl_divergence;
    use octet_testkit::Random;
    use std::num::NonZeroUsize;

    #[test]
    fn sums_of_divergences_are_those_of_the_definition() {
        let engine = Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap();
        let (vocab, rows) = (53, 21);
        let mut random = Random::new(3);
        let a: Vec<f32> = (0..vocab * rows).map(|_| 3.0 * random.normal()).collect();
        for spread in [0.0, 1e-2, 1.0] {
            let q: Vec<f32> = a.iter().map(|v| v + spread * random.normal()).collect();
            let expected: f64 = a.chunks(vocab).zip(q.chunks(vocab)).map(|(a, q)| kl_divergence(a, q).kl).sum();
            let found = losses(&engine, &predictions(&engine, a.clone(), vocab), &q, vocab);
            assert!((found - expected).abs() < 1e-5 * (1.0 + expected), "{found} {expected}");
        }
    }
}
