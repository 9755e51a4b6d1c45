//! Substituting one group after the other.

use super::{
    FusedGroup, GroupLosses, Ledger, Menu, Method, OptionLoss, Sensitivities, fill,
    groups::groups,
    probe::{Probe, Variant},
};
use crate::{
    Error, ErrorSums, InputObserver, InputStatistics, Inventory, Rtn, Samples, Site, Solver, TensorJob, Want,
    chunks::Chunks,
    cost::products,
    outliers,
    plan::{scale_dtype, would_take},
    rows,
};
use octet_kernels::Engine;
use octet_model::{ArchSpec, BlockGraph, InputKind, InputSite, Place, Role, Stage};
use octet_tensor::{Matrix, Scheme, StoredQuant, Tensor, WeightSource};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Tokens of a window; longer ones would only cost more attention.
const WINDOW: usize = 512;

/// Scale candidates of the rounding that is substituted: a quick search, whose errors rank as those of a long one do.
const CANDIDATES: usize = 8;

/// How much may be spent on measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Some minutes at the most, decided by the forecast number of multiply-adds (not by a clock, so that every machine
    /// measures the same).
    Usual,
    /// As usual, but never every scheme of a group: some, which the others follow from.
    Brief,
    /// Every scheme of every group, however long it takes.
    Full,
}

/// Multiply-adds up to which a way of measuring is taken, with its tokens and schemes a group.
const WAYS: [(f64, usize, usize); 6] =
    [(5e11, 4096, usize::MAX), (5e12, 4096, 4), (3e13, 4096, 2), (3e13, 2048, 2), (6e13, 1024, 2), (6e13, 1024, 1)];

/// Everything a measurement needs.
pub struct SensitivityRun<'a> {
    /// What the model computes.
    pub spec: &'a ArchSpec,
    /// Its weight matrices.
    pub inventory: &'a Inventory,
    /// Where the weights are.
    pub source: &'a dyn WeightSource,
    /// A quantized model that all other groups are as in; `None`: as in the original. Losses of one group are then what it adds
    /// to that model's, so that they hold where losses of groups no longer add up.
    pub around: Option<&'a dyn WeightSource>,
    /// Calibration text; a few thousand tokens of it are used.
    pub samples: &'a Samples,
    /// The schemes to choose from.
    pub menu: &'a Menu,
    /// The matrices that are to be given a scheme.
    pub wanted: &'a dyn Fn(&Site) -> bool,
    /// How much may be spent.
    pub effort: Effort,
    /// Threads and kernels.
    pub engine: &'a Engine,
    /// Set it to stop.
    pub cancel: &'a AtomicBool,
    /// Where the losses of finished groups are kept.
    pub ledger: Option<&'a dyn Ledger>,
}

/// How the measurement is done.
struct Way {
    tokens: usize,
    /// Schemes of a group that are substituted.
    anchors: usize,
    /// Only every so many blocks.
    stride: usize,
}

/// A group at work.
struct Work<'s> {
    group: FusedGroup,
    sites: Vec<&'s Site>,
    schemes: Vec<(Scheme, u64)>,
    /// Which of them to substitute.
    anchors: Vec<usize>,
}

impl Work<'_> {
    /// Bytes where it stays as it is.
    fn kept(&self) -> u64 {
        self.sites.iter().map(|site| would_take(site, None)).sum()
    }

    /// Whether these are losses of this group under these schemes, measured as they would be.
    fn is(&self, known: &GroupLosses) -> bool {
        let measured = known.options.iter().enumerate().filter(|(_, o)| o.measured && o.scheme.is_some()).map(|(index, _)| index);
        let schemes = known.options.iter().filter_map(|option| option.scheme);
        let mut anchors = self.anchors.clone();
        anchors.sort_unstable();
        known.group == self.group && schemes.eq(self.schemes.iter().map(|(scheme, _)| *scheme)) && measured.eq(anchors)
    }
}

impl SensitivityRun<'_> {
    /// Multiply-adds that substituting will take, and whether of very large models only some blocks are tried.
    pub fn forecast(&self) -> (f64, bool) {
        let graph = self.spec.graph();
        let way = self.way(&graph);
        (way.tokens as f64 * self.work(&way).iter().map(|work| self.cost(&graph, work)).sum::<f64>(), way.stride > 1)
    }

    /// Measures; `progress` is told how much of the work is done, from 0 to 1, and the group at work.
    ///
    /// # Errors
    /// If weights or activations are not finite or cannot be read, or the run is cancelled.
    pub fn measure(&self, progress: &mut dyn FnMut(f64, &str)) -> Result<Sensitivities, Error> {
        let graph = self.spec.graph();
        let way = self.way(&graph);
        let length = WINDOW.min(self.spec.context());
        let samples = Samples::draw(self.samples.tokens(), way.tokens.div_ceil(length), length, 0);
        let inputs: BTreeMap<InputSite, Want> = self
            .inventory
            .sites
            .iter()
            .filter(|s| s.linear.input.kind != InputKind::Tokens)
            .map(|s| (s.linear.input, Want::Magnitudes))
            .collect();
        let mut observer = InputObserver::new(self.engine, inputs);
        progress(0.0, "the original");
        let mut probe = Probe::new(self.engine, self.spec, &graph, self.source, &samples, &mut observer)?;
        let statistics = observer.finish();
        statistics.iter().try_for_each(|(site, seen)| seen.check(*site))?;
        if let Some(around) = self.around {
            probe.settle_on(&graph, around)?;
        }
        let work = self.work(&way);
        let total: f64 = work.iter().map(|work| self.cost(&graph, work)).sum::<f64>().max(1.0);
        let (mut losses, mut done, mut layer, mut substitutions) = (vec![], 0.0, 0, 0);
        // Outside the blocks first: the first block is at work only once.
        let outside = work.iter().enumerate().filter(|(_, work)| work.group.layer.is_none());
        let inside = work.iter().enumerate().filter(|(_, work)| work.group.layer.is_some());
        for (index, work) in outside.chain(inside) {
            while work.group.layer.is_some_and(|own| layer < own) {
                probe.advance(layer)?;
                layer += 1;
            }
            let mut tick = |share: f64| {
                progress((done + share * self.cost(&graph, work)) / total, &work.group.name);
                if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted { done: index, total: 0 }) } else { Ok(()) }
            };
            let known = self.ledger.and_then(|ledger| ledger.known(&work.group.name)).filter(|known| work.is(known));
            let found = match known {
                Some(known) => known,
                None => {
                    let found = self.group(&graph, work, &mut probe, &statistics, &mut tick)?;
                    self.ledger.into_iter().for_each(|ledger| ledger.keep(&found));
                    found
                }
            };
            losses.push((index, found));
            substitutions += work.anchors.len();
            done += self.cost(&graph, work);
        }
        losses.sort_by_key(|(index, _)| *index);
        let mut groups: Vec<GroupLosses> = losses.into_iter().map(|(_, losses)| losses).collect();
        groups.iter_mut().filter(|group| group.options.iter().any(|o| o.measured && o.scheme.is_some())).for_each(fill::from_anchors);
        fill::from_others(&mut groups);
        let all = work.iter().all(|work| work.anchors.len() == work.schemes.len());
        let method = if way.stride > 1 {
            Method::Estimated
        } else if all {
            Method::Measured
        } else {
            Method::Anchored
        };
        Ok(Sensitivities { method, tokens: samples.tokens().len(), substitutions, groups })
    }

    /// The groups and what each scheme takes of them, no loss measured: for choices that are measured whole.
    pub fn unmeasured(&self) -> Sensitivities {
        let bytes = |scheme, bytes| OptionLoss { scheme, bytes, error: 0.0, loss: 0.0, measured: false };
        let of = |work: Work<'_>| {
            let mut options: Vec<OptionLoss> = work.schemes.iter().map(|&(scheme, of)| bytes(Some(scheme), of)).collect();
            options.push(bytes(None, work.kept()));
            GroupLosses { group: work.group, options }
        };
        let groups = self.work(&Way { tokens: 0, anchors: 0, stride: 1 }).into_iter().map(of).collect();
        Sensitivities { method: Method::Estimated, tokens: 0, substitutions: 0, groups }
    }

    /// The most exact way that the effort allows.
    fn way(&self, graph: &BlockGraph) -> Way {
        let cost = |tokens: usize, anchors: usize, stride: usize| -> f64 {
            let work = self.work(&Way { tokens, anchors, stride });
            tokens as f64 * work.iter().map(|work| self.cost(graph, work)).sum::<f64>()
        };
        let fits = |&(limit, tokens, anchors): &(f64, usize, usize)| match self.effort {
            Effort::Full => true,
            Effort::Brief if anchors == usize::MAX => false,
            Effort::Usual | Effort::Brief => cost(tokens, anchors, 1) <= limit,
        };
        if let Some((_, tokens, anchors)) = WAYS.into_iter().find(fits) {
            return Way { tokens, anchors, stride: 1 };
        }
        let (limit, tokens, anchors) = WAYS[WAYS.len() - 1];
        let stride = (cost(tokens, anchors, 1) / limit).ceil() as usize;
        Way { tokens, anchors, stride: stride.clamp(2, graph.blocks.len().max(2)) }
    }

    fn work(&self, way: &Way) -> Vec<Work<'_>> {
        let last = self.spec.layers().len().saturating_sub(1);
        let of = |(group, sites): (FusedGroup, Vec<_>)| {
            let schemes = self.menu.of(&sites);
            let measured = group.layer.is_none_or(|layer| layer % way.stride == 0 || layer == last);
            // Smaller is worse, which is all that choosing among schemes needs to know of their errors.
            let rank: Vec<f64> = schemes.iter().map(|&(_, bytes)| 1.0 / bytes.max(1) as f64).collect();
            let anchors = if measured { fill::anchors(&rank, way.anchors) } else { vec![] };
            Work { group, sites, schemes, anchors }
        };
        groups(self.inventory, self.wanted).into_iter().map(of).collect()
    }

    /// Multiply-adds a token of measuring a group.
    fn cost(&self, graph: &BlockGraph, work: &Work<'_>) -> f64 {
        let from = work.group.layer.unwrap_or(0);
        let blocks: f64 = graph.blocks.iter().skip(from).flatten().map(products).sum();
        let head: f64 = graph.head.iter().map(products).sum();
        work.anchors.len() as f64 * (blocks + head)
    }

    fn group(
        &self,
        graph: &BlockGraph,
        work: &Work<'_>,
        probe: &mut Probe<'_>,
        statistics: &BTreeMap<InputSite, InputStatistics>,
        tick: &mut dyn FnMut(f64) -> Result<(), Error>,
    ) -> Result<GroupLosses, Error> {
        let mut options = vec![];
        let mut stage = match work.group.layer {
            Some(layer) if !work.anchors.is_empty() => Some(Stage::load(self.engine, graph, Place::Layer(layer), self.base(), None)?),
            _ => None,
        };
        let mut diverged = |matrices: Vec<(&Site, Matrix)>, probe: &mut Probe<'_>| -> Result<f64, Error> {
            let Some(stage) = &mut stage else { return self.outside(graph, matrices, probe) };
            for (site, matrix) in matrices {
                stage.replace(self.engine, graph, &site.linear.module, matrix)?;
            }
            probe.divergence(work.group.layer.unwrap_or(0), Variant::Block(stage))
        };
        // What the other groups lose, this one as it is in the original.
        let others = match self.around {
            Some(_) if !work.anchors.is_empty() => diverged(self.originals(&work.sites)?, probe)?,
            _ => 0.0,
        };
        for (index, &(scheme, bytes)) in work.schemes.iter().enumerate() {
            tick(index as f64 / work.schemes.len() as f64)?;
            let (mut sums, mut matrices) = (ErrorSums::default(), vec![]);
            for &site in &work.sites {
                let (part, matrix) = self.rounded(site, scheme, statistics.get(&site.linear.input))?;
                sums.add(&part);
                matrices.push((site, matrix));
            }
            let measured = work.anchors.contains(&index);
            let loss = if measured { (diverged(matrices, probe)? - others).max(0.0) } else { 0.0 };
            options.push(OptionLoss { scheme: Some(scheme), bytes, error: sums.weighted_relative(), loss, measured });
        }
        options.push(OptionLoss { scheme: None, bytes: work.kept(), error: 0.0, loss: 0.0, measured: true });
        Ok(GroupLosses { group: work.group.clone(), options })
    }

    /// The model that groups are exchanged in.
    fn base(&self) -> &dyn WeightSource {
        self.around.unwrap_or(self.source)
    }

    /// The matrices of `sites` as they are in the original.
    fn originals<'s>(&self, sites: &[&'s Site]) -> Result<Vec<(&'s Site, Matrix)>, Error> {
        sites.iter().map(|&site| Ok((site, Matrix::Float(rows::matrix(self.source, &site.linear)?)))).collect()
    }

    /// Substitutes the embedding or the head.
    fn outside(&self, graph: &BlockGraph, matrices: Vec<(&Site, Matrix)>, probe: &mut Probe<'_>) -> Result<f64, Error> {
        let mut weights = Substituted { base: self.base(), matrices: BTreeMap::new() };
        let (mut embeds, mut heads) = (false, false);
        for (site, matrix) in matrices {
            embeds |= site.linear.role == Role::Embedding;
            heads |= site.linear.input.kind == InputKind::Head;
            weights.matrices.insert(site.linear.module.clone(), matrix);
        }
        let load = |place| Stage::load(self.engine, graph, place, &weights, None);
        let embed = embeds.then(|| load(Place::Embedding)).transpose()?;
        let head = heads.then(|| load(Place::Head)).transpose()?;
        probe.divergence(0, Variant::Outside(embed.as_ref(), head.as_ref()))
    }

    fn rounded(&self, site: &Site, scheme: Scheme, seen: Option<&InputStatistics>) -> Result<(ErrorSums, Matrix), Error> {
        let matrix = rows::matrix(self.source, &site.linear)?;
        let importance = seen.filter(|_| scheme.weights.bits.get() < 8).map(InputStatistics::importance);
        let job = TensorJob {
            module: &site.linear.module,
            shape: (site.linear.rows, site.linear.cols),
            scheme: scheme.weights,
            scale_dtype: scale_dtype(site.dtype, scheme.weights.granularity),
            importance: importance.as_deref(),
            hessian: None,
            table: None,
            engine: self.engine,
        };
        let job = job.with_levels_of(&matrix)?;
        let solver = Rtn::with(Some(CANDIDATES));
        let ready = solver.prepare(job)?;
        let chunks = Chunks::new(site.linear.rows, site.linear.cols);
        match rows::solve_rows(&matrix, &*ready, &job, &chunks, 0..site.linear.rows)? {
            Some((q, sums)) => {
                let q = match outliers::columns(scheme, site.linear.cols, seen) {
                    Some(columns) => outliers::attach(q, &matrix, 0, &columns)?,
                    None => q,
                };
                Ok((sums, Matrix::Quant(StoredQuant::new(site.linear.module.as_str(), Arc::new((q, scheme))))))
            }
            None => Err(rows::non_finite(&matrix, &site.linear.module)?),
        }
    }
}

/// A model with some matrices exchanged.
struct Substituted<'a> {
    base: &'a dyn WeightSource,
    matrices: BTreeMap<String, Matrix>,
}

impl WeightSource for Substituted<'_> {
    fn matrix(&self, module: &str) -> octet_tensor::Result<Option<Matrix>> {
        self.matrices.get(module).map_or_else(|| self.base.matrix(module), |matrix| Ok(Some(matrix.clone())))
    }

    fn tensor(&self, name: &str) -> octet_tensor::Result<Option<Tensor>> {
        self.base.tensor(name)
    }

    fn names(&self) -> Vec<String> {
        self.base.names()
    }
}
