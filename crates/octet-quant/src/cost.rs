//! What a calibrated run computes: products by kind, and the memory it holds at once.

use crate::{Line, Plan, Scaling, SolverChoice, Transform, asymmetric::Pairs, calibrated, transform::SAMPLE_ROWS};
use octet_kernels::{Gram, SymmetricMatrix};
use octet_model::{ArchSpec, BlockGraph, Place, graph::Node, graph::PlainNode};
use std::collections::BTreeMap;

/// Multiply-adds of a stage, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Of forward passes.
    pub forward: f64,
    /// Of second moments.
    pub moments: f64,
    /// Of solvers.
    pub solving: f64,
}

/// What every stage of a calibrated run costs.
#[derive(Clone, Debug)]
pub struct Costs {
    stages: Vec<(Place, Cost)>,
}

/// Solving runs at a fraction of the speed of large products.
const SOLVING_WEIGHT: f64 = 2.0;

/// Multiply-adds of a weight that is rounded to nearest: about forty candidates.
const ROUNDING: f64 = 80.0;

impl Cost {
    fn units(self) -> f64 {
        (self.forward + self.moments + SOLVING_WEIGHT * self.solving) / 1e3
    }
}

impl Costs {
    /// The costs of `plan` on so many calibration tokens.
    pub fn new(plan: &Plan, graph: &BlockGraph, tokens: usize, sequential: bool) -> Self {
        let lines: BTreeMap<&str, &Line> = plan.lines().iter().map(|line| (line.name.as_str(), line)).collect();
        let places = std::iter::once(Place::Embedding).chain((0..graph.blocks.len()).map(Place::Layer)).chain([Place::Head]);
        let of = |place: Place| {
            let mut cost = stage(graph, place, &lines, tokens as f64, sequential);
            if calibrated::compares(plan) {
                cost.forward *= 2.0;
            }
            plan.scalings().for_each(|scaling| scale(&mut cost, scaling, graph, place, &lines, tokens as f64));
            (place, cost)
        };
        Self { stages: places.map(of).collect() }
    }

    /// Everything together.
    pub fn sum(&self) -> Cost {
        self.stages.iter().fold(Cost::default(), |sum, (_, cost)| Cost {
            forward: sum.forward + cost.forward,
            moments: sum.moments + cost.moments,
            solving: sum.solving + cost.solving,
        })
    }

    pub(crate) fn of(&self, place: Place) -> f64 {
        self.stages.iter().find(|(known, _)| *known == place).map_or(0.0, |(_, cost)| cost.units())
    }

    pub(crate) fn total(&self) -> f64 {
        self.stages.iter().map(|(_, cost)| cost.units()).sum()
    }
}

fn stage(graph: &BlockGraph, place: Place, lines: &BTreeMap<&str, &Line>, tokens: f64, sequential: bool) -> Cost {
    let nodes = match place {
        Place::Layer(layer) => graph.blocks.get(layer).map_or(&[][..], Vec::as_slice),
        Place::Head => &graph.head,
        Place::Embedding => std::slice::from_ref(&graph.embed),
    };
    let products = |range: std::ops::Range<usize>| nodes.get(range).unwrap_or(&[]).iter().map(products).sum::<f64>();
    let mut cost = Cost::default();
    let mut at = 0;
    for phase in graph.phases(place) {
        let of_phase = || phase.modules.iter().filter_map(|module| lines.get(module.as_str()).copied());
        let mut inputs = BTreeMap::new();
        for (line, site) in of_phase().filter_map(|line| Some((line, line.linear.as_ref()?))) {
            cost.solving += solving(line);
            if let Some((input, want)) = calibrated::want(line) {
                let known = inputs.entry(input).or_insert((want, site.cols));
                known.0 = known.0.max(want);
            }
        }
        let gathered = |want| match want {
            crate::Want::Magnitudes => 0.0,
            crate::Want::Hessian => 0.5,
            // With the differences, and what is held out twice.
            crate::Want::Asymmetric | crate::Want::Stream => 1.75,
        };
        cost.moments += inputs.values().map(|&(want, cols)| gathered(want) * tokens * (cols * cols) as f64).sum::<f64>();
        if sequential && !inputs.is_empty() {
            cost.forward += tokens * (products(at..phase.start) + products(phase.start..phase.node));
            at = phase.start;
        }
    }
    if let Place::Layer(_) = place {
        cost.forward += tokens * products(at..nodes.len());
        if !sequential {
            cost.forward += tokens * products(0..nodes.len());
        }
    }
    if place == Place::Embedding {
        cost.solving +=
            nodes.iter().flat_map(Node::linears).filter_map(|l| lines.get(l.site.module.as_str())).map(|l| solving(l)).sum::<f64>();
    }
    cost
}

/// Adds what moving factors costs: another pass over the tokens, and every trial's rounding and products.
fn scale(cost: &mut Cost, scaling: &Scaling, graph: &BlockGraph, place: Place, lines: &BTreeMap<&str, &Line>, tokens: f64) {
    if scaling.wants(graph, place).is_empty() {
        return;
    }
    let nodes = match place {
        Place::Layer(layer) => graph.blocks.get(layer).map_or(&[][..], Vec::as_slice),
        _ => &[],
    };
    cost.forward += tokens * nodes.iter().map(products).sum::<f64>();
    let tried = lines.values().filter(|line| scaling.modules.contains(&line.name)).filter_map(|line| line.linear.as_ref());
    let weights: f64 =
        tried.filter(|site| graph.phases(place).iter().any(|p| p.modules.contains(&site.module))).map(|s| (s.rows * s.cols) as f64).sum();
    cost.solving += scaling.choice.trials() as f64 * weights * (ROUNDING + SAMPLE_ROWS as f64);
}

/// Multiply-adds of all products of a model for one token, the head's included.
pub fn products_a_token(spec: &ArchSpec) -> f64 {
    let graph = spec.graph();
    graph.blocks.iter().flatten().chain(&graph.head).map(products).sum()
}

/// Multiply-adds of a node for one token.
pub(crate) fn products(node: &PlainNode) -> f64 {
    let size = |l: &&octet_model::graph::Linear| (l.site.rows * l.site.cols) as f64;
    match node {
        Node::Embed { .. } => 0.0,
        Node::Experts { experts, per_token, .. } => {
            let all: f64 = node.linears().iter().map(size).sum();
            all * *per_token as f64 / experts.len().max(1) as f64
        }
        _ => node.linears().iter().map(size).sum(),
    }
}

fn solving(line: &Line) -> f64 {
    let (Some(solver), Some(site)) = (line.action.solver(), &line.linear) else { return 0.0 };
    let factors = if solver.is_asymmetric() { 2.0 } else { f64::from(u8::from(solver.needs_hessian())) };
    let factor = factors * (site.cols as f64).powi(3) / 3.0;
    solving_of(solver, site.rows, site.cols) + factor
}

/// Multiply-adds of solving rows, once what they share is done.
pub(crate) fn solving_of(solver: SolverChoice, rows: usize, cols: usize) -> f64 {
    let (rows, cols) = (rows as f64, cols as f64);
    match solver {
        SolverChoice::Rtn { .. } => ROUNDING * rows * cols,
        SolverChoice::Gptq(gptq) => {
            let target = if gptq.asymmetric { 3.0 } else { 0.0 };
            rows * cols * (ROUNDING + cols * (1.0 + target + gptq.refine as f64))
        }
    }
}

/// Bytes that solving one phase holds at most, beside its weights: moments while they are gathered, then the Hessians,
/// one being factored, and codes of a matrix.
pub(crate) fn workspace_bytes(graph: &BlockGraph, plan: &Plan, sequential: bool) -> u64 {
    let lines: BTreeMap<&str, &Line> = plan.lines().iter().map(|line| (line.name.as_str(), line)).collect();
    let mut most = 0;
    for place in (0..graph.blocks.len()).map(Place::Layer).chain([Place::Head]) {
        let (mut together, mut largest) = (0, 0);
        for phase in graph.phases(place) {
            let mut inputs = BTreeMap::new();
            let mut codes = 0;
            for line in phase.modules.iter().filter_map(|module| lines.get(module.as_str())) {
                if let (Some((input, want)), Some(site)) = (calibrated::want(line), &line.linear)
                    && want >= crate::Want::Hessian
                {
                    let stream = if phase.into_stream { site.rows } else { 0 };
                    let both = want > crate::Want::Hessian && calibrated::compares(plan);
                    let gathered = if both { Pairs::bytes(site.cols, stream) } else { Gram::bytes(site.cols) };
                    inputs.insert(input, (site.cols, gathered, if both { 2 } else { 1 }));
                    codes = codes.max(3 * site.rows * site.cols);
                }
            }
            let gathered: usize = inputs.values().map(|&(cols, gathered, _)| gathered + SymmetricMatrix::bytes(cols)).sum();
            let factored = inputs.values().map(|&(cols, _, factors)| 3 * factors * SymmetricMatrix::bytes(cols)).max().unwrap_or(0);
            let kept: usize =
                inputs.values().map(|&(cols, gathered, factors)| SymmetricMatrix::bytes(cols) + (factors - 1) * gathered / 2).sum();
            let phase = gathered.max(kept + factored + codes);
            largest = largest.max(phase);
            together += gathered;
        }
        most = most.max(if sequential { largest } else { largest.max(together) });
    }
    most as u64
}
