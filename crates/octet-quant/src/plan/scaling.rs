//! The steps of a recipe that move factors, resolved: which linears they are for, and whether that makes sense.

use super::{Action, Plan};
use crate::{Error, Recipe, Scaling, Site, Step, TransformChoice, Where, transform::Planned};
use octet_model::{BlockGraph, InputSite, LinearSite, Place};
use std::collections::{BTreeMap, BTreeSet};

/// A transform step with the linears its targets name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ScalingStep {
    /// Counted from 1.
    step: usize,
    scaling: Scaling,
}

/// The transform steps of `recipe` with the linears of `sites` they target.
pub(super) fn steps(recipe: &Recipe, sites: &[Site]) -> Vec<ScalingStep> {
    let of = |(index, step): (usize, &Step)| {
        let Step::Transform { targets, choice } = step else { return None };
        let named = sites.iter().map(|site| &site.linear).filter(|site| targets.iter().any(|target| target.matches(site)));
        let modules = named.map(|site| site.module.clone()).collect();
        Some(ScalingStep { step: index + 1, scaling: Scaling { choice: *choice, modules } })
    };
    recipe.steps.iter().enumerate().filter_map(of).collect()
}

impl ScalingStep {
    pub(super) fn canonical(&self) -> String {
        let modules: Vec<&str> = self.scaling.modules.iter().map(String::as_str).collect();
        format!("{}\t{}\n", self.scaling.choice, modules.join(" "))
    }

    fn fails(&self, why: impl Into<String>) -> Error {
        Error::Contradiction { step: self.step, what: format!("{} {}", self.scaling.choice.action(), why.into()) }
    }
}

impl Plan {
    /// What moves factors before tensors are solved, in the recipe's order.
    pub fn scalings(&self) -> impl Iterator<Item = &Scaling> {
        self.scalings.iter().map(|step| &step.scaling)
    }

    /// Whether anything moves factors, which needs calibration.
    pub fn has_scalings(&self) -> bool {
        !self.scalings.is_empty()
    }

    /// Refuses steps that move factors where none can move, for linears that nothing quantizes, or twice, and rotations of what
    /// this model cannot have turned.
    ///
    /// # Errors
    /// If there is such a step; it says why.
    pub fn check_scalings(&self, graph: &BlockGraph) -> Result<(), Error> {
        for rotate in &self.rotations {
            crate::rotate::check(graph, rotate.place)?;
            let at_run_time = rotate.place == Where::Inputs;
            if at_run_time && self.portable {
                return Err(Error::Recipe("a portable result has no inputs turned at run time; leave out that step, or portable".into()));
            }
        }
        let mut moved: BTreeMap<InputSite, usize> = BTreeMap::new();
        for step in &self.scalings {
            let claimed = self.claimed(step)?;
            let mut refused = None;
            let mut any = step.scaling.choice.clips();
            let places = (0..graph.blocks.len()).map(Place::Layer).chain([Place::Head]);
            for folds in places.map(|place| graph.folds(place)) {
                let mine = |inputs: &[InputSite]| claimed.iter().any(|site| inputs.contains(&site.input));
                for fold in folds.folds.iter().filter(|fold| mine(&fold.inputs)) {
                    any = true;
                    for input in &fold.inputs {
                        if let Some(other) = moved.insert(*input, step.step)
                            && other != step.step
                        {
                            return Err(step.fails(format!("and step {other} would both scale the {input}; leave one of them out")));
                        }
                    }
                }
                refused = refused.or_else(|| folds.refused.into_iter().find(|(input, _)| mine(&[*input])));
            }
            if let (false, Some((input, reason))) = (any, refused) {
                return Err(step.fails(format!("targets only inputs that cannot be scaled, such as the {input}: {reason}")));
            }
        }
        Ok(())
    }

    /// The quantized linears that a step is for.
    fn claimed(&self, step: &ScalingStep) -> Result<Vec<&LinearSite>, Error> {
        let quantized = || {
            self.lines.iter().filter_map(|line| match (&line.action, &line.linear) {
                (Action::Quantize { scheme, scale_dtype, solver }, Some(site)) if step.scaling.modules.contains(&line.name) => {
                    Some((site, Planned { scheme: *scheme, scale_dtype: *scale_dtype, solver: *solver }))
                }
                _ => None,
            })
        };
        let claimed: Vec<&LinearSite> =
            quantized().filter(|(site, planned)| step.scaling.claims(site, *planned)).map(|(site, _)| site).collect();
        if quantized().next().is_none() {
            return Err(step.fails("targets linears that no step quantizes; quantize them or leave it out"));
        }
        if claimed.is_empty() {
            let why = "targets linears whose activations stay exact, which gain nothing from it; ask for a scheme with a8, or use awq";
            return Err(step.fails(why));
        }
        Ok(claimed)
    }
}

/// Steps other than these decide what becomes of tensors.
pub(super) fn is_transform(step: &Step) -> bool {
    matches!(step, Step::Transform { .. } | Step::Rotate(_) | Step::Distill(_))
}

/// Modules that any transform touches, and how many linears that is in words for people.
impl std::fmt::Display for ScalingStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "before    {} for {} linears", self.scaling.choice, self.scaling.modules.len())
    }
}

/// Names of the transforms, each once.
pub(crate) fn names(plan: &Plan) -> Vec<&'static str> {
    let all: Vec<TransformChoice> = plan.scalings().map(|scaling| scaling.choice).collect();
    let mut distinct: BTreeSet<&'static str> = all.iter().map(|choice| choice.name()).collect();
    if !plan.rotations.is_empty() {
        distinct.insert("rotations");
    }
    distinct.into_iter().collect()
}
