//! Carrying out a plan with calibration: a stage (the embedding, a block, the head) at a time, each seeing what the
//! quantized stages before it leave.
//!
//! For every block: observe what flows into its linears, transform its weights, solve them in the order in which their
//! inputs become known, then run the quantized block to get the next one's inputs. In memory at once: one block, its
//! statistics and solver's workspace, and the hidden states unless they are spilled. A finished stage is durable before
//! the next one begins, and a resumed run goes on from its results.

mod blocks;
mod forecast;
mod forward;
mod solving;
mod stage;
mod weights;

pub use forecast::CalibrationForecast;
pub(crate) use solving::{Hessians, in_place};
pub(crate) use stage::want;
pub use weights::BlockWeights;

use crate::{Error, HiddenStates, Line, Plan, Samples, Sink, SinkError, SolverChoice, TensorReport, Transform, cost::Costs};
use forward::Forward;
use octet_kernels::Engine;
use octet_model::{ArchSpec, BlockGraph, Place};
use octet_tensor::WeightSource;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

/// Everything a calibrated run needs.
pub struct CalibratedRun<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// What the model computes.
    pub spec: &'a ArchSpec,
    /// Opens the weights; called for every stage, so that what was mapped for one is given back before the next.
    pub open: &'a dyn Fn() -> Result<Box<dyn WeightSource>, SinkError>,
    /// What flows through the model.
    pub samples: &'a Samples,
    /// Applied to the weights of each block before they are solved, in order.
    pub transforms: &'a [Box<dyn Transform>],
    /// How the stages are run.
    pub options: CalibratedOptions,
    /// Threads and kernels.
    pub engine: &'a Engine,
    /// Set it to stop; the stage at work is abandoned.
    pub cancel: &'a AtomicBool,
}

/// How a calibrated run treats its stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibratedOptions {
    /// Whether linears of a block see what the already quantized linears of the same block leave (more forward passes).
    pub sequential: bool,
    /// Whether a tensor that a solver cannot solve is an error instead of being rounded to nearest.
    pub strict: bool,
}

/// Where results go, and what earlier runs of the same work left there.
pub trait Journal: Sink {
    /// Stages that are finished and durable, in order.
    fn finished(&self) -> &[StageRecord];

    /// The results of finished stages.
    ///
    /// # Errors
    /// If they cannot be opened.
    fn results(&self) -> Result<Box<dyn WeightSource>, SinkError>;

    /// Makes everything written since the last commit durable, then the record.
    ///
    /// # Errors
    /// Whatever keeps it from doing so.
    fn commit(&mut self, record: StageRecord) -> Result<(), SinkError>;
}

/// What became of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Which stage, such as `layer 3`.
    pub stage: String,
    /// Its tensors.
    pub tensors: Vec<TensorReport>,
    /// What reached its inputs.
    pub inputs: Vec<InputRecord>,
    /// What its transforms say.
    pub remarks: Vec<String>,
}

/// What reached one input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputRecord {
    /// The input, in words.
    pub input: String,
    /// Whether it is an expert's.
    pub expert: bool,
    /// Tokens that reached it.
    pub tokens: usize,
    /// Its width.
    pub width: usize,
    /// How many of its values were zero on every token.
    pub dead: usize,
    /// How many of its values were beyond 6 on some token, which is what LLM.int8 calls an outlier.
    #[serde(default)]
    pub outliers: usize,
}

/// Where a calibrated run stands.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// The stage at work.
    pub place: Place,
    /// What is being done: `observing`, `transforming`, `solving` or `running`.
    pub what: &'static str,
    /// The tensor at work, where there is one.
    pub tensor: Option<&'a str>,
    /// What became of that tensor, once it is finished.
    pub report: Option<&'a TensorReport>,
    /// Units of work done.
    pub done: u64,
    /// Units of work in all.
    pub total: u64,
}

impl CalibratedRun<'_> {
    /// Carries out the plan: quantizes and copies every tensor into `journal`, stage by stage, skipping the stages it has.
    ///
    /// # Errors
    /// If weights or activations are not finite, something cannot be read or written, a tensor cannot be solved (when
    /// strict), or the run is cancelled. Finished stages stay finished.
    pub fn quantize(
        &self,
        journal: &mut dyn Journal,
        hidden: &mut dyn HiddenStates,
        progress: &mut dyn FnMut(&Event<'_>),
    ) -> Result<Vec<StageRecord>, Error> {
        let graph = self.spec.graph();
        let lines = stages(self.plan, &graph);
        let costs = Costs::new(self.plan, &graph, self.samples.tokens().len(), self.options.sequential);
        let mut forward = Forward::new(self, hidden);
        let mut done = 0.0;
        let last_forward = self.last_forward(&graph, &lines);
        for (index, (place, lines)) in lines.iter().enumerate() {
            let runs_on = Some(index) < last_forward;
            let mut tick = |what, tensor: Option<&str>, report: Option<&TensorReport>, share: f64| {
                let here = done + share.min(1.0) * costs.of(*place);
                progress(&Event { place: *place, what, tensor, report, done: here as u64, total: costs.total() as u64 });
                if self.cancel.load(Ordering::Relaxed) { Err(self.interrupted(index, graph.blocks.len())) } else { Ok(()) }
            };
            let stage = stage::StageWork { run: self, graph: &graph, place: *place, lines, runs_on };
            if index < journal.finished().len() {
                // Once all is finished there is nothing to run for.
                if runs_on && Some(journal.finished().len()) <= last_forward {
                    stage.resume(&*journal, &mut forward, &mut tick)?;
                }
            } else {
                let record = stage.solve(journal, &mut forward, &mut tick)?;
                journal.commit(record).map_err(|source| Error::Sink { name: place.to_string(), source })?;
                // Blocks run as they are solved; the embedding runs from what was written.
                if *place == Place::Embedding && runs_on {
                    stage.resume(&*journal, &mut forward, &mut |what, tensor, report, _| tick(what, tensor, report, 1.0))?;
                }
            }
            done += costs.of(*place);
        }
        Ok(journal.finished().to_vec())
    }

    /// Whether what flows through the original is looked at too. Where transforms rewrite weights, a finished block's original is not
    /// kept anywhere, so a resumed run could not go on with it.
    fn is_asymmetric(&self) -> bool {
        self.transforms.is_empty() && compares(self.plan)
    }

    /// The last stage whose inputs are looked at.
    fn last_forward(&self, graph: &BlockGraph, stages: &[(Place, Vec<&Line>)]) -> Option<usize> {
        let observed = |lines: &[&Line]| lines.iter().any(|line| want(line).is_some());
        let transformed = |place: &Place| self.transforms.iter().any(|transform| !transform.wants(graph, *place).is_empty());
        stages.iter().rposition(|(place, lines)| *place != Place::Embedding && (observed(lines) || transformed(place)))
    }

    fn interrupted(&self, stage: usize, layers: usize) -> Error {
        Error::Interrupted { done: stage.saturating_sub(1), total: layers }
    }

    fn source(&self) -> Result<Box<dyn WeightSource>, Error> {
        (self.open)().map_err(Error::Source)
    }
}

/// Whether a solver of `plan` compares with the original, so that the hidden states of both are held.
pub(crate) fn compares(plan: &Plan) -> bool {
    let asymmetric = |line: &Line| line.action.solver().is_some_and(SolverChoice::is_asymmetric);
    !plan.has_scalings() && plan.lines().iter().any(asymmetric)
}

/// The plan's lines by stage. What is no part of the graph comes with the head; so does a table that is the head as well,
/// because its statistics are known last.
fn stages<'a>(plan: &'a Plan, graph: &BlockGraph) -> Vec<(Place, Vec<&'a Line>)> {
    let places: Vec<Place> =
        std::iter::once(Place::Embedding).chain((0..graph.blocks.len()).map(Place::Layer)).chain([Place::Head]).collect();
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for (index, nodes) in std::iter::once(std::slice::from_ref(&graph.embed)).chain(graph.blocks.iter().map(Vec::as_slice)).enumerate() {
        for node in nodes {
            let linears = node.linears();
            let tied = |site: &octet_model::LinearSite| index == 0 && crate::recipe::is_tied(site);
            names.extend(linears.iter().filter(|l| !tied(&l.site)).map(|l| (l.site.module.clone(), index)));
            names.extend(linears.iter().filter_map(|l| l.bias.as_ref()).map(|bias| (bias.name.clone(), index)));
            names.extend(node.params().into_iter().map(|param| (param.name.clone(), index)));
        }
    }
    let mut stages: Vec<(Place, Vec<&Line>)> = places.into_iter().map(|place| (place, vec![])).collect();
    let head = stages.len() - 1;
    for line in plan.lines() {
        stages[names.get(&line.name).copied().unwrap_or(head)].1.push(line);
    }
    stages
}
