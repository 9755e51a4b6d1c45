//! What the original makes of windows: computed once where it can be kept.

use crate::{Batch, Trainer, Values};

/// The residual streams that a teacher leaves before its head, by window.
pub(super) struct Lessons {
    kept: Vec<Vec<f32>>,
    keep: bool,
}

impl Lessons {
    /// None yet of so many windows; whether they are kept.
    pub(super) fn new(windows: usize, keep: bool) -> Self {
        Self { kept: vec![vec![]; if keep { windows } else { 0 }], keep }
    }

    /// Those of the `chosen` windows, one after the other.
    pub(super) fn of(&mut self, trainer: &mut Trainer<'_>, teacher: &Values, windows: &[&[u32]], chosen: &[usize]) -> Vec<f32> {
        let batch = |of: &[usize]| Batch::new(of.iter().map(|&window| windows[window]));
        if !self.keep {
            return trainer.hidden(teacher, &batch(chosen));
        }
        let mut missing: Vec<usize> = chosen.iter().copied().filter(|&window| self.kept[window].is_empty()).collect();
        missing.sort_unstable();
        missing.dedup();
        let batch = batch(&missing);
        if batch.rows() > 0 {
            let hidden = trainer.hidden(teacher, &batch);
            let (mut rest, width) = (&hidden[..], hidden.len() / batch.rows());
            for &window in &missing {
                let (now, later) = rest.split_at(windows[window].len() * width);
                self.kept[window] = now.to_vec();
                rest = later;
            }
            trainer.recycle(hidden);
        }
        // A buffer of the trainer's own: it gets this one back, and would have one more after every step.
        let of = |window: &usize| &self.kept[*window][..];
        let mut hidden = trainer.buffer(chosen.iter().map(|window| of(window).len()).sum());
        let mut rest = &mut hidden[..];
        for lesson in chosen.iter().map(of) {
            let (now, later) = rest.split_at_mut(lesson.len());
            now.copy_from_slice(lesson);
            rest = later;
        }
        hidden
    }
}
