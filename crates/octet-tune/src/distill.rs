//! A quantized model learns from the logits of the original.

mod blocks;
mod course;
mod forecast;
mod lessons;
mod small;

pub use course::{Progress, Text, Watch};
pub use forecast::{Needs, needs};

use crate::{Batch, Gradients, Keep, Learning, Lesson, Network, QuantParam, Rule, Trainer, TuneError, Values};
use blocks::Rebuilt;
use course::{Best, Course, Order};
use lessons::Lessons;
use octet_kernels::Engine;
use octet_model::load::matrix;
use octet_tensor::{Matrix, QMatrix, Tensor, WeightSource};
use small::Small;
use std::sync::atomic::{AtomicBool, Ordering};

/// Checks on held-out text in the course of a distillation.
const CHECKS: usize = 20;

/// Share of the steps in which rates rise from zero.
const WARM_UP: f32 = 0.05;

/// How a model is distilled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Steps of every block by itself, before all of them learn together.
    pub block_steps: usize,
    /// Steps of all of them together.
    pub steps: usize,
    /// Tokens of a step, about: whole windows.
    pub batch_tokens: usize,
    /// How fast quantized matrices learn at the most.
    pub learning: Learning,
    /// How fast norms and biases learn, relative to the mean magnitude of each tensor.
    pub norms: f32,
    /// Decides the order of the windows.
    pub seed: u64,
    /// What is kept of a pass.
    pub keep: Keep,
    /// Whether what the original makes of every window is kept, so that it runs once.
    pub lessons: bool,
}

/// What a distillation gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distilled {
    /// Divergence on the held-out windows before it, in nats a token.
    pub before: f64,
    /// After it.
    pub after: f64,
    /// After every block learnt by itself, where they did and it was better than the beginning.
    pub blocks: Option<f64>,
    /// The step whose result was kept; 0 where none was better than the beginning, or than what the blocks had learnt.
    pub best: usize,
}

/// A model that is being distilled.
pub struct Distiller<'a> {
    engine: &'a Engine,
    network: &'a Network,
    teacher: Values,
    student: Values,
    quants: Vec<QuantParam>,
    smalls: Vec<Small>,
    settings: Settings,
    /// Blocks that have learnt by themselves.
    rebuilt: Rebuilt,
    course: Option<Course>,
}

impl<'a> Distiller<'a> {
    /// The model in `student`, some of whose matrices are quantized, is to learn from the one in `teacher`.
    ///
    /// # Errors
    /// If weights cannot be read, or nothing is quantized.
    pub fn new(
        engine: &'a Engine,
        network: &'a Network,
        teacher: &dyn WeightSource,
        student: &dyn WeightSource,
        settings: Settings,
    ) -> Result<Self, TuneError> {
        let (teacher, values) = (network.values(teacher)?, network.values(student)?);
        let mut quants = vec![];
        let graph = network.spec().graph();
        for linear in graph.nodes().flat_map(|node| node.linears()).filter(|linear| !linear.tied) {
            let Matrix::Quant(stored) = matrix(student, linear)? else { continue };
            let Some(number) = network.number(&linear.site.module) else { continue };
            let codes = stored.read_rows(0..stored.rows())?;
            // Columns beside the codes are no codes that could learn; what is in them stays exact.
            if codes.beside().is_none() {
                quants.push(QuantParam::new(number, &codes, &teacher[number], settings.learning)?);
            }
        }
        if quants.is_empty() {
            return Err(TuneError::NothingToLearn);
        }
        let smalls = if settings.norms > 0.0 { small::of(network, student, &values)? } else { vec![] };
        let mut distiller =
            Self { engine, network, teacher, student: values, quants, smalls, settings, rebuilt: Rebuilt::default(), course: None };
        distiller.write();
        Ok(distiller)
    }

    /// Numbers that are learnt.
    pub fn learnt(&self) -> usize {
        self.quants.iter().map(QuantParam::learnt).sum::<usize>() + self.smalls.iter().map(|small| small.exact.len()).sum::<usize>()
    }

    /// Distils on the windows of `text`, checking on those held out; what was best there is kept.
    ///
    /// # Errors
    /// If there is nothing to learn from, a loss is not finite, or `cancel` is set.
    pub fn run(&mut self, text: &Text<'_>, cancel: &AtomicBool, watch: &mut dyn Watch) -> Result<Distilled, TuneError> {
        if text.windows.is_empty() || text.held.is_empty() {
            return Err(TuneError::TooLittleText { needed: 2, found: text.windows.len() + text.held.len() });
        }
        if self.course.is_none() && self.settings.block_steps > 0 {
            self.rebuild(text, cancel, watch)?;
        }
        let mut trainer = Trainer::new(self.engine, self.network);
        let wanted = |number| self.quants.iter().any(|q| q.number == number) || self.smalls.iter().any(|s| s.number == number);
        let mut gradients = Gradients::new(self.network, wanted);
        let [mut lessons, mut exam] = [text.windows, text.held].map(|windows| Lessons::new(windows.len(), self.settings.lessons));
        let mut course = match self.course.take() {
            Some(course) if course.order.count() == text.windows.len() => course,
            Some(course) => return Err(TuneError::State { what: format!("it is of {} windows", course.order.count()) }),
            None => {
                let held = self.divergence_by(&mut trainer, &mut exam, text.held);
                let best = Best { held, step: 0, state: self.snapshot() };
                Course { done: 0, before: held, best, held, order: Order::new(text.windows.len(), self.settings.seed) }
            }
        };
        let (total, every) = (self.settings.steps, self.settings.steps.div_ceil(CHECKS).max(1));
        // Blocks that learnt by themselves are part of the way.
        let first = self.network.blocks.len() * self.settings.block_steps;
        let at = |done: usize, loss, held| Progress { block: None, done: first + done, total: first + total, loss, held };
        watch.progress(at(course.done, course.held, course.held));
        while course.done < total {
            if cancel.load(Ordering::Relaxed) {
                let done = course.done;
                watch.save(true, &mut || self.state(&course));
                return Err(TuneError::Interrupted { done: first + done, total: first + total });
            }
            let loss = self.step((&mut trainer, &mut lessons), text.windows, &mut course, &mut gradients)?;
            if course.done.is_multiple_of(every) || course.done == total {
                course.held = self.divergence_by(&mut trainer, &mut exam, text.held);
                if course.held < course.best.held {
                    course.best = Best { held: course.held, step: course.done, state: self.snapshot() };
                }
            }
            watch.progress(at(course.done, loss, course.held));
            watch.save(false, &mut || self.state(&course));
        }
        let Course { before, best, .. } = course;
        self.restore(best.state);
        let Rebuilt { before: first, after: blocks, .. } = self.rebuilt;
        Ok(Distilled { before: first.unwrap_or(before), after: best.held, blocks, best: best.step })
    }

    /// One step: a batch forwards and back, and everything moves.
    fn step(
        &mut self,
        (trainer, lessons): (&mut Trainer<'_>, &mut Lessons),
        windows: &[&[u32]],
        course: &mut Course,
        gradients: &mut Gradients,
    ) -> Result<f64, TuneError> {
        let chosen = course.order.batch(windows, self.settings.batch_tokens);
        let batch = Batch::new(chosen.iter().map(|&window| windows[window]));
        let hidden = lessons.of(trainer, &self.teacher, windows, &chosen);
        let lesson = Lesson::Teacher { values: &self.teacher, hidden: &hidden };
        gradients.clear();
        let loss = trainer.learn(&self.student, &batch, lesson, self.settings.keep, gradients);
        trainer.recycle(hidden);
        course.done += 1;
        if !loss.is_finite() {
            return Err(TuneError::NonFinite { step: course.done });
        }
        self.learn(gradients, course.done);
        self.write();
        Ok(loss)
    }

    /// The matrices that learnt, by module.
    ///
    /// # Errors
    /// If a scale grew beyond its stored type.
    pub fn matrices(&self) -> Result<Vec<(&str, QMatrix)>, TuneError> {
        let name = |quant: &QuantParam| self.network.parameters()[quant.number].name.as_str();
        self.quants.iter().map(|quant| Ok((name(quant), quant.matrix()?))).collect()
    }

    /// The small tensors that learnt, as they are stored.
    ///
    /// # Errors
    /// Never for shapes a network has.
    pub fn tensors(&self) -> Result<Vec<Tensor>, TuneError> {
        self.smalls.iter().map(|small| small.tensor(&self.network.parameters()[small.number])).collect()
    }

    /// The divergence from the teacher on some windows, in nats a token.
    pub fn divergence(&self, windows: &[&[u32]]) -> f64 {
        self.divergence_by(&mut Trainer::new(self.engine, self.network), &mut Lessons::new(windows.len(), false), windows)
    }

    fn divergence_by(&self, trainer: &mut Trainer<'_>, lessons: &mut Lessons, windows: &[&[u32]]) -> f64 {
        let (mut sum, mut tokens) = (0.0, 0);
        for now in course::batches(windows, self.settings.batch_tokens) {
            let batch = Batch::new(now.iter().map(|&window| windows[window]));
            let hidden = lessons.of(trainer, &self.teacher, windows, &now);
            let lesson = Lesson::Teacher { values: &self.teacher, hidden: &hidden };
            sum += trainer.loss(&self.student, &batch, lesson) * batch.rows() as f64;
            trainer.recycle(hidden);
            tokens += batch.rows();
        }
        sum / tokens.max(1) as f64
    }

    /// Rates rise in the first steps and fall along a cosine in all.
    fn share(&self, step: usize) -> f32 {
        let done = (step as f32 - 0.5) / self.settings.steps.max(1) as f32;
        (done / WARM_UP).min(1.0) * 0.5 * (1.0 + (std::f32::consts::PI * done).cos())
    }

    fn learn(&mut self, gradients: &mut Gradients, step: usize) {
        let (share, full) = (self.share(step), self.settings.learning);
        let (scales, codes, zeros) = (full.scales * share, full.codes * share, full.zeros * share);
        let rates = Learning { scales, codes, zeros, settle: full.settle * share, ..full };
        for quant in &mut self.quants {
            if let Some(gradient) = gradients.of(quant.number) {
                quant.learn(self.engine, gradient, rates, Rule::Adam(step));
            }
        }
        for small in &mut self.smalls {
            if let Some(gradient) = gradients.of(small.number) {
                small.learn(self.engine, gradient, self.settings.norms * share, step);
            }
        }
    }

    /// Writes the student's weights as they are now.
    fn write(&mut self) {
        self.quants.iter().for_each(|quant| quant.write(self.engine, &mut self.student[quant.number]));
        for small in &self.smalls {
            self.student[small.number].iter_mut().zip(small.run()).for_each(|(to, value)| *to = value);
        }
    }
}
