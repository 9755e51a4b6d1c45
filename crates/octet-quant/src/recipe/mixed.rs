//! Steps whose schemes are chosen by measurement: what they say, and what becomes of them once the choice is made.

use super::{GptqSettings, Recipe, SolverChoice, Step, Target, is_tied, parse};
use crate::{Error, FusedGroup, Inventory, Menu, Site, plan::deciding_steps};
use octet_model::Role;
use octet_tensor::Scheme;
use std::fmt;

/// A step that gives each group of tensors the width that pays, within a budget that all of them share.
#[derive(Clone, Debug, PartialEq)]
pub struct MixedStep {
    /// Which tensors.
    pub targets: Vec<Target>,
    /// The schemes to choose from; none for the usual ones ([`Menu::USUAL`]).
    pub schemes: Vec<Scheme>,
    /// Bits a weight of all weight matrices together; `None`: whoever carries the recipe out decides.
    pub bits_per_weight: Option<f64>,
    /// What chooses the codes of all tensors but tables that are looked up.
    pub solver: SolverChoice,
    /// Whether all targets get the same scheme: each of `schemes` is then tried whole, instead of one found for each group.
    pub whole: bool,
}

/// The scheme that stands for a choice not made yet, in forecasts.
const PROVISIONAL: &str = "w4a16-g64";

impl MixedStep {
    /// All linears, embedding and head, with the usual schemes and solver.
    pub fn usual() -> Self {
        let targets = ["linears", "embedding", "head"].map(Target::named).into();
        Self { targets, schemes: vec![], bits_per_weight: None, solver: SolverChoice::Gptq(GptqSettings::USUAL), whole: false }
    }

    /// The schemes to choose from.
    pub fn menu(&self, portable: bool) -> Menu {
        if self.schemes.is_empty() { Menu::usual(portable) } else { Menu { schemes: self.schemes.clone(), portable } }
    }

    /// The solver of a group of these sites: tables that are looked up are rounded to nearest, the head's too where it is the
    /// same, because what makes good a head's outputs moves the embedding.
    pub fn solver_of(&self, sites: &[&Site]) -> SolverChoice {
        let looked_up = sites.iter().all(|site| site.linear.role == Role::Embedding);
        if looked_up { SolverChoice::Rtn { candidates: self.solver.candidates() } } else { self.solver }
    }

    pub(super) fn write_keys(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.schemes.is_empty() {
            let schemes: Vec<String> = self.schemes.iter().map(|scheme| parse::quoted(&scheme.to_string())).collect();
            writeln!(f, "schemes = [{}]", schemes.join(", "))?;
        }
        if self.whole {
            writeln!(f, "whole = true")?;
        }
        self.bits_per_weight.map_or(Ok(()), |bits| writeln!(f, "bits_per_weight = {bits:?}"))
    }
}

impl Recipe {
    /// The recipe of one mixed step over everything.
    pub fn mixed(portable: bool) -> Self {
        Self { steps: vec![Step::Mixed(MixedStep::usual())], portable }
    }

    /// Its mixed step, where it has one.
    pub fn mixed_step(&self) -> Option<&MixedStep> {
        self.steps.iter().find_map(|step| match step {
            Step::Mixed(mixed) => Some(mixed),
            _ => None,
        })
    }

    /// Module paths of the matrices of `inventory` that the mixed step decides about.
    ///
    /// # Errors
    /// If a target matches nothing or a step decides nothing.
    pub fn mixed_sites(&self, inventory: &Inventory) -> Result<Vec<String>, Error> {
        let deciding = deciding_steps(self, &inventory.sites)?;
        let mixed = |step: &Option<usize>| step.is_some_and(|step| matches!(self.steps.get(step), Some(Step::Mixed(_))));
        let sites = inventory.sites.iter().zip(&deciding).filter(|(_, step)| mixed(step));
        Ok(sites.map(|(site, _)| site.linear.module.clone()).collect())
    }

    /// The recipe with 4 bits, or the first scheme that is to be tried whole, in the place of its mixed step: for forecasts, before
    /// anything was measured.
    pub fn provisional(&self) -> Self {
        let scheme = |mixed: &MixedStep| match mixed.schemes.first() {
            Some(first) if mixed.whole => Ok(*first),
            _ => PROVISIONAL.parse(),
        };
        let settle = |step: &Step| match step {
            Step::Mixed(mixed) => match scheme(mixed) {
                Ok(scheme) => Step::Quantize { targets: mixed.targets.clone(), scheme, solver: mixed.solver },
                Err(_) => Step::Keep { targets: mixed.targets.clone() },
            },
            other => other.clone(),
        };
        Self { steps: self.steps.iter().map(settle).collect(), portable: self.portable }
    }

    /// The recipe with a step for every scheme and solver that was chosen in the place of its mixed step.
    ///
    /// # Errors
    /// If a module's path cannot be written as a target.
    pub fn settled(&self, inventory: &Inventory, chosen: &[(&FusedGroup, Option<Scheme>)]) -> Result<Self, Error> {
        let mut steps = vec![];
        for step in &self.steps {
            match step {
                Step::Mixed(mixed) => steps.extend(mixed.settled(inventory, chosen)?),
                other => steps.push(other.clone()),
            }
        }
        Ok(Self { steps, portable: self.portable })
    }

    /// This recipe, as [`Recipe::settled`] made it, with a table that is embedding and head at once solved with `solver` instead of
    /// rounded; `None` where there is no such table.
    pub fn solving_table(&self, inventory: &Inventory, solver: SolverChoice) -> Option<Self> {
        let table = inventory.sites.iter().find(|site| is_tied(&site.linear))?;
        let target = Target::site(&table.linear).ok()?;
        let mut solving = self.clone();
        for step in &mut solving.steps {
            if let Step::Quantize { targets, solver: own, .. } = step
                && targets.contains(&target)
            {
                *own = solver;
            }
        }
        (solving != *self).then_some(solving)
    }
}

impl MixedStep {
    fn settled(&self, inventory: &Inventory, chosen: &[(&FusedGroup, Option<Scheme>)]) -> Result<Vec<Step>, Error> {
        type Choice = Option<(Scheme, SolverChoice)>;
        let mut steps: Vec<(Choice, Vec<Target>)> = vec![];
        for (group, scheme) in chosen {
            let sites: Vec<&Site> = inventory.sites.iter().filter(|site| group.modules.contains(&site.linear.module)).collect();
            let choice = scheme.map(|scheme| (scheme, self.solver_of(&sites)));
            let at = steps.iter().position(|(known, _)| *known == choice).unwrap_or_else(|| {
                steps.push((choice, vec![]));
                steps.len() - 1
            });
            for site in &sites {
                let target = Target::site(&site.linear).map_err(Error::Recipe)?;
                // All experts of a block share one.
                if !steps[at].1.contains(&target) {
                    steps[at].1.push(target);
                }
            }
        }
        let step = |(choice, targets): (Choice, Vec<Target>)| match choice {
            Some((scheme, solver)) => Step::Quantize { targets, scheme, solver },
            None => Step::Keep { targets },
        };
        Ok(steps.into_iter().map(step).collect())
    }
}
