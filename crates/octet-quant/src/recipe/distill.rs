//! The step that lets the quantized model learn from the original.

use std::fmt;

/// How a quantized model learns from the logits of the original.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillStep {
    /// Steps in which every block learns by itself to leave what the original's leaves, before all of them learn together.
    pub block_steps: usize,
    /// Steps of learning together.
    pub steps: usize,
    /// Tokens of a step, about: whole windows of the calibration text.
    pub batch_tokens: usize,
    /// How fast scales learn at the most, relative to each.
    pub scales: f64,
    /// How fast codes learn at the most, in codes; 0 for codes that stay as the solver chose them.
    pub codes: f64,
    /// Share of the way to the middle of its code that what becomes a code goes back in a step at the most.
    pub settle: f64,
    /// How fast norms and biases learn at the most, relative to their mean magnitude.
    pub norms: f64,
    /// Tokens that the original writes itself, to be learnt from beside the calibration text.
    pub own_text: usize,
}

/// Multiply-adds that learning may take where nobody says how many steps, and how many steps are worth that.
const WORK: f64 = 3.44e13;
const STEPS: (usize, usize) = (60, 1000);

/// Products of a step for every weight and token: of the original, forwards, and back to inputs and to weights.
const PASSES: f64 = 4.0;

impl DistillStep {
    /// [`DistillStep::USUAL`] with as many steps as pay for a model of so many weights: decided by multiply-adds, not by a clock, so
    /// that every machine comes to the same files. One of `runs` gets its share.
    pub fn of_size(weights: u64, runs: usize) -> Self {
        let each = PASSES * weights.max(1) as f64 * Self::USUAL.batch_tokens as f64 * runs.max(1) as f64;
        Self::of_steps(((WORK / each) as usize).clamp(STEPS.0, STEPS.1))
    }

    /// [`DistillStep::USUAL`] with so many steps, and half as many tokens written by the original as are learnt from.
    pub fn of_steps(steps: usize) -> Self {
        Self { steps, own_text: steps * Self::USUAL.batch_tokens / 2, ..Self::USUAL }
    }

    /// What pays on small models: docs/frontier.md has the measurements.
    pub const USUAL: Self =
        Self { block_steps: 0, steps: 400, batch_tokens: 2048, scales: 3e-3, codes: 0.015, settle: 0.004, norms: 1e-3, own_text: 0 };
}

impl fmt::Display for DistillStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block_steps, steps, batch_tokens, scales, codes, settle, norms, own_text } = self;
        if *block_steps > 0 {
            write!(f, "every block {block_steps} steps by itself, then ")?;
        }
        write!(f, "distill {steps} steps of {batch_tokens} tokens, scales {scales:?} codes {codes:?} settle {settle:?} norms {norms:?} ")?;
        write!(f, "own text {own_text}")
    }
}
