//! AWQ and SmoothQuant as transforms: for every value that factors may move out of, find them and move them.

use super::{
    Part, Planned, Transform, clip,
    factors::move_factors,
    readers::{Readers, divide_statistics},
};
use crate::{Error, TransformChoice};
use octet_model::{BlockGraph, Fold, InputSite, LinearSite, Place};
use octet_tensor::Activations;
use std::collections::BTreeSet;

/// A step of a recipe that moves factors.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// How factors are found.
    pub choice: TransformChoice,
    /// Modules of the linears whose inputs are to be scaled.
    pub modules: BTreeSet<String>,
}

impl Scaling {
    /// Whether a linear's input is to be scaled for its sake.
    pub(crate) fn claims(&self, site: &LinearSite, planned: Planned) -> bool {
        // What smoothing makes easier is quantizing inputs.
        let gains = match self.choice {
            TransformChoice::Smooth(_) => planned.scheme.activations != Activations::Exact,
            TransformChoice::Awq(_) => true,
        };
        gains && self.modules.contains(&site.module)
    }

    /// The factors of one fold, with a word on them; `None` where none are better than any that were tried.
    fn find(&self, part: &mut Part<'_, '_>, fold: &Fold) -> Result<Option<(Vec<f32>, String)>, Error> {
        let readers = Readers::new(part, fold, &|site, planned| self.claims(site, planned))?;
        if readers.all.is_empty() {
            return Ok(None);
        }
        match self.choice {
            TransformChoice::Awq(settings) => settings.find(part, &readers),
            TransformChoice::Smooth(settings) => settings.find(part, &readers),
        }
    }
}

impl Transform for Scaling {
    fn wants(&self, graph: &BlockGraph, place: Place) -> BTreeSet<InputSite> {
        let folds = graph.folds(place).folds;
        let mut wanted: BTreeSet<InputSite> = folds
            .iter()
            .filter(|fold| fold.readers.iter().any(|site| self.modules.contains(&site.module)))
            .flat_map(|f| f.inputs.clone())
            .collect();
        if self.choice.clips() {
            let phases = graph.phases(place).into_iter();
            wanted.extend(phases.filter(|phase| phase.modules.iter().any(|module| self.modules.contains(module))).flat_map(|p| p.inputs));
        }
        wanted
    }

    fn apply(&self, part: &mut Part<'_, '_>) -> Result<Vec<String>, Error> {
        let mut remarks = vec![];
        for fold in part.graph.folds(part.place).folds {
            (part.tick)()?;
            let Some((factors, word)) = self.find(part, &fold)? else { continue };
            let lines = part.lines;
            let moved = move_factors(&fold, &factors, &|site| Part::dtype(lines, site), part.weights)?;
            for input in &fold.inputs {
                if let Some(statistics) = part.statistics.get_mut(input) {
                    divide_statistics(statistics, &fold, &moved);
                }
                if let Some(rows) = part.rows.get_mut(input) {
                    let cols = rows.cols();
                    let inverse: Vec<f32> = moved.iter().map(|factor| factor.recip()).collect();
                    super::factors::multiply_columns(&mut rows.values, &fold, cols, &inverse);
                }
            }
            let input = fold.inputs.first().map(ToString::to_string).unwrap_or_default();
            remarks.push(format!("{input}: {word}"));
        }
        if self.choice.clips() {
            remarks.extend(clip::apply(part, &self.modules)?);
        }
        Ok(remarks)
    }
}

/// Factors around 1: divided by √(largest · smallest), which changes no result but keeps 16-bit floats in range. `None` where a
/// factor is not a number above zero.
pub(super) fn centred(mut factors: Vec<f32>) -> Option<Vec<f32>> {
    let (least, most) = factors.iter().fold((f32::INFINITY, 0f32), |(least, most), &f| (least.min(f), most.max(f)));
    let middle = (f64::from(least) * f64::from(most)).sqrt();
    if !(middle.is_finite() && middle > 0.0) {
        return None;
    }
    factors.iter_mut().for_each(|factor| *factor = (f64::from(*factor) / middle) as f32);
    factors.iter().all(|factor| factor.is_finite() && *factor > 0.0).then_some(factors)
}
