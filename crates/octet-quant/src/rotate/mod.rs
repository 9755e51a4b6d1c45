//! Rotations of the values between linears, folded into weights: the model computes the same, and other numbers are rounded.
//!
//! They are found before anything else is done, on the original: what is turned is then the model that calibration, solvers and
//! distillation work on, and any reader runs the result. Every rotation is block-diagonal in SO(8).

mod excerpt;
mod learn;
mod loss;
mod so8;
mod source;
mod spot;

pub use so8::{BlockRotation, EIGHT, So8};
pub use source::{Turned, Turns};
pub use spot::Where;

use crate::{Error, InputStatistics, Line, Plan, RotateStep, RotationKind, SampleRows, Samples, rows};
use learn::Piece;
use loss::{Measure, Seen, flows};
use octet_kernels::Engine;
use octet_model::{ArchSpec, BlockGraph};
use octet_tensor::WeightSource;
use serde::{Deserialize, Serialize};
use spot::Spot;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

/// Tokens that rotations are learnt from, and as many others that they are measured on, in windows of at most so many, and (for solvers that need them) so many for each input
/// of the widest linear.
const TOKENS: usize = 8192;
const WINDOW: usize = 512;
const TOKENS_AN_INPUT: usize = 4;

/// What became of one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RotationRecord {
    /// The place, such as `layer 3 heads`.
    pub place: String,
    /// `hadamard`, `learned`, or `none` where nothing was kept.
    pub kept: String,
    /// Mean relative squared error of the outputs of the linears it concerns, as they were.
    pub before: f64,
    /// The same under each kind that was tried.
    pub tried: Vec<(String, f64)>,
    /// ‖RᵀR − I‖ of the worst block that is kept.
    pub drift: f64,
    /// The determinant farthest from 1 of the blocks that are kept.
    pub determinant: f64,
}

/// One line for people.
impl fmt::Display for RotationRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, kept, before, tried, drift, determinant } = self;
        let tried: Vec<String> = tried.iter().map(|(kind, loss)| format!("{kind} {loss:.3e}")).collect();
        write!(f, "{place}: rotation {kept}, output error {before:.3e}, {}; ", tried.join(", "))?;
        write!(f, "|R'R - I| {drift:.1e}, det {determinant:+.6}")
    }
}

/// Finds the rotations that steps of a plan ask for.
pub struct RotationRun<'a> {
    /// What becomes of the tensors.
    pub plan: &'a Plan,
    /// What the model computes.
    pub spec: &'a ArchSpec,
    /// Its weights.
    pub source: &'a dyn WeightSource,
    /// Calibration text.
    pub samples: &'a Samples,
    /// Threads and kernels.
    pub engine: &'a Engine,
    /// Set it to stop.
    pub cancel: &'a AtomicBool,
}

impl Turns {
    /// Turns the values of a place by what `rotation` gives for so many blocks of eight, wherever it is in the model.
    ///
    /// # Errors
    /// If this model cannot have them turned, or norms cannot be read.
    pub fn of(
        graph: &BlockGraph,
        place: Where,
        source: &dyn WeightSource,
        rotation: &mut dyn FnMut(usize) -> BlockRotation,
    ) -> Result<Self, Error> {
        let mut turns = Self::default();
        for spot in find_spots(graph, place)? {
            turns.add(spot.turns(&rotation(spot.blocks), source)?);
        }
        Ok(turns)
    }
}

fn find_spots(graph: &BlockGraph, place: Where) -> Result<Vec<Spot>, Error> {
    spot::spots(graph, place).map_err(|why| Error::Recipe(format!("{place} {why}")))
}

/// Refuses a place that this model does not have.
///
/// # Errors
/// Why it cannot be turned.
pub(crate) fn check(graph: &BlockGraph, place: Where) -> Result<(), Error> {
    find_spots(graph, place).map(drop)
}

impl RotationRun<'_> {
    /// The rotations of the plan's steps and what was measured of them. They depend on nothing but weights, text and plan.
    ///
    /// # Errors
    /// If a step asks for what the model does not have, weights cannot be read, numbers are not finite, or it is cancelled.
    pub fn find(&self, progress: &mut dyn FnMut(&str)) -> Result<(Turns, Vec<RotationRecord>), Error> {
        let (mut turns, mut records) = (Turns::default(), vec![]);
        for step in self.plan.rotations() {
            let (found, said) = self.step(*step, &turns, progress)?;
            turns.add(found);
            records.extend(said);
        }
        Ok((turns, records))
    }

    fn step(&self, step: RotateStep, earlier: &Turns, progress: &mut dyn FnMut(&str)) -> Result<(Turns, Vec<RotationRecord>), Error> {
        let graph = self.spec.graph();
        let mut spots = find_spots(&graph, step.place)?;
        let quantized: BTreeSet<&str> = self.plan.quantized().map(|(line, _)| line.name.as_str()).collect();
        spots.retain(|spot| spot.members.iter().any(|member| quantized.contains(member.site().module.as_str())));
        // What is learnt is measured on other windows.
        let (to_learn, to_measure) = self.some().held_out(2);
        let spec = self.spec.with_turned_inputs(earlier.inputs().clone());
        let on = |samples| Measure { spec: &spec, plan: self.plan, samples, engine: self.engine, cancel: self.cancel };
        let (learning, measure) = (on(&to_learn), on(&to_measure));
        let modules: BTreeSet<&str> = spots.iter().flat_map(|spot| &spot.members).map(|member| member.site().module.as_str()).collect();
        let turned = |rotations: &[BlockRotation]| -> Result<(Vec<Turns>, Turned<&dyn WeightSource>), Error> {
            let each = spots.iter().zip(rotations).map(|(spot, r)| spot.turns(r, self.source)).collect::<Result<Vec<_>, _>>()?;
            let mut all = earlier.clone();
            each.iter().for_each(|turns| all.add(turns.clone()));
            Ok((each, Turned::new(self.source, Arc::new(all))))
        };
        progress("as it is");
        let before = measure.losses(&Turned::new(self.source, Arc::new(earlier.clone())), &modules)?;
        let mut candidates = vec![];
        for (kind, name) in [(RotationKind::Hadamard, "hadamard"), (RotationKind::Learned, "learned")] {
            if step.kind != kind && (step.kind != RotationKind::Search || step.place == Where::Inputs) {
                continue;
            }
            progress(name);
            let rotations = match kind {
                RotationKind::Hadamard if step.place == Where::Inputs => {
                    spots.iter().map(|spot| BlockRotation::plain_hadamard(spot.blocks)).collect()
                }
                RotationKind::Hadamard => spots.iter().map(|spot| BlockRotation::hadamard(spot.blocks)).collect(),
                _ => {
                    let neutral: Vec<_> = spots.iter().map(|spot| BlockRotation(vec![So8::IDENTITY; spot.blocks])).collect();
                    self.learnt(&learning, &spots, &turned(&neutral)?.1, &modules)?
                }
            };
            let (each, source) = turned(&rotations)?;
            let spec = self.spec.with_turned_inputs(source.turns().inputs().clone());
            let losses = Measure { spec: &spec, ..measure }.losses(&source, &modules)?;
            candidates.push((name, rotations, each, losses));
        }
        let (mut turns, mut records) = (Turns::default(), vec![]);
        for (at, spot) in spots.iter().enumerate() {
            let of = |losses: &BTreeMap<String, f64>| mean(spot.members.iter().filter_map(|member| losses.get(&member.site().module)));
            let own = of(&before);
            let tried: Vec<(String, f64)> = candidates.iter().map(|(name, .., losses)| ((*name).to_string(), of(losses))).collect();
            let best = (0..tried.len()).min_by(|&a, &b| tried[a].1.total_cmp(&tried[b].1));
            let kept = best.filter(|&best| !step.gate || tried[best].1 < own);
            let (drift, determinant) = kept.map_or((0.0, 1.0), |kept| candidates[kept].1[at].health());
            if let Some(kept) = kept {
                turns.add(candidates[kept].2[at].clone());
            }
            let kept = kept.map_or("none", |kept| candidates[kept].0).to_string();
            records.push(RotationRecord { place: spot.label.clone(), kept, before: own, tried, drift, determinant });
        }
        Ok((turns, records))
    }

    /// Some of the text, half of it to learn from and half to measure on.
    fn some(&self) -> Samples {
        let needs_hessian = |line: &&Line| line.action.solver().is_some_and(|solver| solver.needs_hessian());
        let widest = self.plan.lines().iter().filter(needs_hessian).filter_map(|line| line.linear.as_ref()).map(|site| site.cols).max();
        let tokens = TOKENS.max(TOKENS_AN_INPUT * widest.unwrap_or(0));
        let length = WINDOW.min(self.samples.lengths().max().unwrap_or(WINDOW));
        Samples::draw(self.samples.tokens(), 2 * tokens.div_ceil(length), length, 0)
    }

    /// Learns the rotation of every spot. `neutral` computes the same with what surrounds the rotations already moved.
    fn learnt(
        &self,
        measure: &Measure<'_>,
        spots: &[Spot],
        neutral: &dyn WeightSource,
        modules: &BTreeSet<&str>,
    ) -> Result<Vec<BlockRotation>, Error> {
        let mut pieces: Vec<Vec<Vec<Piece>>> = spots.iter().map(|spot| vec![vec![]; spot.blocks]).collect();
        let mut add = |line: &Line, seen: Option<(&InputStatistics, &SampleRows)>| -> Result<(), Error> {
            for (spot, pieces) in spots.iter().zip(&mut pieces) {
                for member in spot.members.iter().filter(|member| member.site().module == line.name) {
                    excerpt::meet(neutral, line, member, seen, pieces)?;
                }
            }
            Ok(())
        };
        measure.lines(modules).filter(|(_, site)| !flows(site)).try_for_each(|(line, _)| add(line, None))?;
        measure.look(neutral, modules, false, &mut |lines, (statistics, rows): Seen<'_>| {
            let seen = |line: &Line| line.linear.as_ref().and_then(|site| Some((statistics.get(&site.input)?, rows.get(&site.input)?)));
            lines.iter().try_for_each(|line| seen(line).map_or(Ok(()), |seen| add(line, Some(seen))))
        })?;
        let tasks: Vec<Mutex<(Vec<Piece>, So8)>> = pieces.into_iter().flatten().map(|pieces| Mutex::new((pieces, So8::IDENTITY))).collect();
        self.engine.run(tasks.len(), &|task| {
            let mut task = rows::lock(&tasks[task]);
            task.1 = learn::learn(&task.0);
        });
        let mut found = tasks.iter().map(|task| rows::lock(task).1);
        Ok(spots.iter().map(|spot| BlockRotation(found.by_ref().take(spot.blocks).collect())).collect())
    }
}

fn mean<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    sum / count.max(1) as f64
}
