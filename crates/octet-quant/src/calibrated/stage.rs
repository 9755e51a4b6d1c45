//! One stage: observe, transform, solve, run on.

use super::{
    BlockWeights, CalibratedRun, InputRecord, Journal, StageRecord,
    forward::{Forward, Look, Route, Sides},
    solving::{Hessians, Solving},
};
use crate::{
    Action, Error, InputObserver, InputStatistics, Line, TensorReport, Want, pipeline,
    recipe::is_tied,
    transform::{Part, Sampler},
};
use octet_model::{BlockGraph, InputKind, InputSite, Phase, Place, Stage};
use octet_tensor::{Activations, Scheme};
use std::collections::{BTreeMap, BTreeSet};

/// Statistics of distinct inputs.
pub(crate) type Statistics = BTreeMap<InputSite, InputStatistics>;

/// Told what is being done: words, the tensor, its report once it is finished, the share of the stage that is done.
pub(super) type StageTick<'a> = &'a mut dyn FnMut(&'static str, Option<&str>, Option<&TensorReport>, f64) -> Result<(), Error>;

/// Told of one tensor: its report once it is finished, the share of it that is done.
type TensorTick<'a> = &'a mut dyn FnMut(Option<&TensorReport>, f64) -> Result<(), Error>;

/// The statistics that can change what becomes of a tensor: 8 bits gain nothing from the importance of inputs.
pub(crate) fn want(line: &Line) -> Option<(InputSite, Want)> {
    let (Some(solver), Some(site)) = (line.action.solver(), &line.linear) else { return None };
    let (bits, outliers) = match &line.action {
        Action::Quantize { scheme, .. } => (f64::from(scheme.weights.bits.get()), has_outliers(*scheme)),
        Action::Blocks { code, .. } => (code.bits_per_weight(), false),
        _ => return None,
    };
    match site.input.kind {
        InputKind::Tokens => None,
        // Which tokens reach an expert may differ between the original and the quantized model.
        InputKind::Expert(_) | InputKind::ExpertDown(_) if solver.needs_hessian() => Some((site.input, Want::Hessian)),
        // A head's target would be moved away from what the embedding, the same table, is to give.
        _ if solver.is_asymmetric() && !is_tied(site) => Some((site.input, Want::Asymmetric)),
        _ if solver.needs_hessian() => Some((site.input, Want::Hessian)),
        _ if bits < 8.0 || outliers => Some((site.input, Want::Magnitudes)),
        _ => None,
    }
}

/// Whether calibration chooses outlier columns.
pub(crate) fn has_outliers(scheme: Scheme) -> bool {
    matches!(scheme.activations, Activations::Int8Beside(_))
}

/// A stage to be worked on.
pub(super) struct StageWork<'a> {
    pub(super) run: &'a CalibratedRun<'a>,
    pub(super) graph: &'a BlockGraph,
    pub(super) place: Place,
    pub(super) lines: &'a [&'a Line],
    /// Whether a later stage needs what flows out of this one.
    pub(super) runs_on: bool,
}

impl StageWork<'_> {
    /// Runs the tokens through the finished stage.
    pub(super) fn resume(&self, journal: &dyn Journal, forward: &mut Forward<'_>, tick: StageTick<'_>) -> Result<(), Error> {
        // A table that is the head as well is solved at the end.
        let embedding = self.place == Place::Embedding;
        let source = if embedding && self.run.spec.head().tied { self.run.source()? } else { journal.results().map_err(Error::Source)? };
        let stage = Stage::load(self.run.engine, self.graph, self.place, &*source, None)?;
        let original = self.original(&*self.run.source()?)?;
        let sides = Sides { quantized: &stage, original: original.as_ref() };
        let mut tick = |share| tick("running", None, None, share);
        if embedding {
            return forward.embed(sides, &mut tick);
        }
        forward.take(sides, Route { advance: 0..self.graph.node_count(self.place), look: None }, &mut tick)
    }

    /// The stage of the original, where a solver compares with it.
    fn original(&self, source: &dyn octet_tensor::WeightSource) -> Result<Option<Stage>, Error> {
        let load = || Stage::load(self.run.engine, self.graph, self.place, source, None);
        Ok(self.run.is_asymmetric().then(load).transpose()?)
    }

    /// Solves the stage and, where later ones need it, runs the tokens through it.
    pub(super) fn solve(&self, journal: &mut dyn Journal, forward: &mut Forward<'_>, tick: StageTick<'_>) -> Result<StageRecord, Error> {
        let base = self.run.source()?;
        let mut weights = BlockWeights::new(&*base);
        let mut record = StageRecord { stage: self.place.to_string(), tensors: vec![], inputs: vec![], remarks: vec![] };
        let in_block = matches!(self.place, Place::Layer(_));
        let phases = self.phases();
        let observes = phases.iter().any(|(_, wanted, _)| !wanted.is_empty());
        let (mut stage, mut original) = (None, None);
        if self.place != Place::Embedding {
            self.transform(&mut weights, forward, &mut record, &mut *tick)?;
        }
        if in_block || observes {
            stage = Some(Stage::load(self.run.engine, self.graph, self.place, &weights, None)?);
            original = self.original(&weights)?;
        }
        let steps = (2 * phases.len() + 1) as f64;
        let mut at = 0;
        let mut statistics = Statistics::new();
        // The head has one input only, and logits of all tokens would be large.
        let sequential = self.run.options.sequential || !in_block;
        if let (false, Some(stage), true) = (sequential, &stage, observes) {
            let wanted = phases.iter().flat_map(|(_, wanted, _)| wanted.clone()).collect();
            statistics =
                self.observe(Sides { quantized: stage, original: original.as_ref() }, Look::All, 0..0, wanted, forward, &mut |share| {
                    tick("observing", None, None, share / steps)
                })?;
        }
        let mut solved = BTreeSet::new();
        for (index, (phase, wanted, lines)) in phases.iter().enumerate() {
            let done = 2.0 * index as f64;
            if let (true, Some(stage), false) = (sequential, &stage, wanted.is_empty()) {
                let look = Look::Node(phase.start..phase.node);
                let mut tick = |share: f64| tick("observing", None, None, (done + share) / steps);
                let sides = Sides { quantized: stage, original: original.as_ref() };
                statistics = self.observe(sides, look, at..phase.start, wanted.clone(), forward, &mut tick)?;
                at = phase.start;
            }
            record.inputs.extend(wanted.keys().map(|site| input_record(*site, statistics.get(site))));
            let hessians = Hessians::new(self.run.engine, lines, &statistics)?;
            for (nth, line) in lines.iter().enumerate() {
                let mut tick = |report: Option<&TensorReport>, share: f64| {
                    tick("solving", Some(&line.name), report, (done + 1.0 + (nth as f64 + share) / lines.len() as f64) / steps)
                };
                let matrix = self.one(line, &weights, (&statistics, &hessians), journal, &mut record, &mut tick)?;
                if let (Some(stage), Some(matrix)) = (&mut stage, matrix) {
                    stage.replace(self.run.engine, self.graph, &line.name, matrix)?;
                }
                solved.insert(line.name.as_str());
            }
        }
        for line in self.lines.iter().filter(|line| !solved.contains(line.name.as_str())) {
            let mut tick = |report: Option<&TensorReport>, _| tick("solving", Some(&line.name), report, (steps - 1.0) / steps);
            self.one(line, &weights, (&statistics, &Hessians::default()), journal, &mut record, &mut tick)?;
        }
        if let (true, true, Some(stage)) = (self.runs_on, in_block, &stage) {
            let route = Route { advance: at..self.graph.node_count(self.place), look: None };
            let sides = Sides { quantized: stage, original: original.as_ref() };
            forward.take(sides, route, &mut |share| tick("running", None, None, (steps - 1.0 + share) / steps))?;
        }
        Ok(record)
    }

    /// The phases of the stage with what is wanted of their inputs and the lines to be solved in each.
    fn phases(&self) -> Vec<(Phase, BTreeMap<InputSite, Want>, Vec<&Line>)> {
        let quantized = |line: &&Line| line.action.solver().is_some();
        let of = |phase: Phase| {
            let lines: Vec<&Line> = self.lines.iter().copied().filter(|l| phase.modules.contains(&l.name)).filter(quantized).collect();
            let mut wanted = BTreeMap::new();
            for (site, want) in lines.iter().filter_map(|line| want(line)) {
                let want = match want {
                    Want::Asymmetric if !self.run.is_asymmetric() => Want::Hessian,
                    Want::Asymmetric if phase.into_stream && self.run.options.sequential => Want::Stream,
                    other => other,
                };
                let known = wanted.entry(site).or_insert(want);
                *known = want.max(*known);
            }
            (phase, wanted, lines)
        };
        self.graph.phases(self.place).into_iter().map(of).collect()
    }

    fn transform(
        &self,
        weights: &mut BlockWeights<'_>,
        forward: &mut Forward<'_>,
        record: &mut StageRecord,
        tick: StageTick<'_>,
    ) -> Result<(), Error> {
        let wanted: BTreeSet<InputSite> =
            self.run.transforms.iter().flat_map(|transform| transform.wants(self.graph, self.place)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let stage = Stage::load(self.run.engine, self.graph, self.place, weights, None)?;
        let phases = self.graph.phases(self.place);
        // Logits of all tokens would be large.
        let look = match (self.place, phases.first()) {
            (Place::Head, Some(phase)) => Look::Node(phase.start..phase.node),
            _ => Look::All,
        };
        let magnitudes = wanted.iter().map(|site| (*site, Want::Magnitudes)).collect();
        let mut sampler = Sampler::new(InputObserver::new(self.run.engine, magnitudes), wanted);
        let route = Route { advance: 0..0, look: Some((look, &mut sampler)) };
        forward.take(Sides { quantized: &stage, original: None }, route, &mut |_| tick("observing", None, None, 0.0))?;
        drop(stage);
        let (mut statistics, mut rows) = sampler.finish();
        statistics.iter().try_for_each(|(site, seen)| seen.check(*site))?;
        for transform in self.run.transforms {
            let mut tick = || tick("transforming", None, None, 0.0);
            let (place, graph, lines, engine) = (self.place, self.graph, self.lines, self.run.engine);
            let (statistics, rows) = (&mut statistics, &mut rows);
            let mut part = Part { place, graph, lines, statistics, rows, weights: &mut *weights, engine, tick: &mut tick };
            record.remarks.extend(transform.apply(&mut part)?);
        }
        Ok(())
    }

    fn observe(
        &self,
        sides: Sides<'_>,
        look: Look,
        advance: std::ops::Range<usize>,
        wanted: BTreeMap<InputSite, Want>,
        forward: &mut Forward<'_>,
        tick: &mut dyn FnMut(f64) -> Result<(), Error>,
    ) -> Result<Statistics, Error> {
        let mut observer = InputObserver::new(self.run.engine, wanted);
        forward.take(sides, Route { advance, look: Some((look, &mut observer)) }, tick)?;
        let statistics = observer.finish();
        statistics.iter().try_for_each(|(site, seen)| seen.check(*site))?;
        Ok(statistics)
    }

    /// Solves or keeps one tensor; a quantized matrix of a block comes back to be run.
    fn one(
        &self,
        line: &Line,
        weights: &BlockWeights<'_>,
        (statistics, hessians): (&Statistics, &Hessians<'_>),
        journal: &mut dyn Journal,
        record: &mut StageRecord,
        tick: TensorTick<'_>,
    ) -> Result<Option<octet_tensor::Matrix>, Error> {
        let (report, matrix) = match &line.action {
            Action::Quantize { .. } | Action::Blocks { .. } => {
                let solving = Solving { run: self.run, line, weights, statistics, hessians, keep: matches!(self.place, Place::Layer(_)) };
                solving.solve(journal, &mut |share| tick(None, share))?
            }
            Action::Keep { .. } => {
                let (name, tensor) = pipeline::kept(weights, line, self.run.engine)?;
                journal.tensor(&name, &tensor).map_err(|source| Error::Sink { name, source })?;
                (TensorReport::kept(line), None)
            }
            Action::Drop { .. } => (TensorReport::kept(line), None),
        };
        tick(Some(&report), 1.0)?;
        record.tensors.push(report);
        Ok(matrix)
    }
}

fn input_record(site: InputSite, seen: Option<&InputStatistics>) -> InputRecord {
    InputRecord {
        input: site.to_string(),
        expert: matches!(site.kind, InputKind::Expert(_) | InputKind::ExpertDown(_)),
        tokens: seen.map_or(0, |seen| seen.tokens),
        width: seen.map_or(0, |seen| seen.max_abs.len()),
        dead: seen.map_or(0, InputStatistics::dead),
        outliers: seen.map_or(0, InputStatistics::outliers),
    }
}
