//! Gathering statistics of what flows into linears.

use crate::{InputStatistics, asymmetric::Pairs};
use octet_kernels::{Engine, Gram};
use octet_model::{InputSite, Tap};
use std::{collections::BTreeMap, sync::Mutex};

/// What is wanted of one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// Magnitudes of each input.
    Magnitudes,
    /// Magnitudes and the Hessian.
    Hessian,
    /// These and how the original's inputs differ from the quantized model's.
    Asymmetric,
    /// These and how far the residual stream has drifted, for linears that add to it.
    Stream,
}

/// Gathers statistics of the inputs it was told about: pass it as the tap of forward passes.
pub struct InputObserver<'a> {
    engine: &'a Engine,
    wanted: BTreeMap<InputSite, Want>,
    seen: BTreeMap<InputSite, Seen>,
    sight: Sight,
    /// What the original had in the pass at work: inputs, and the residual stream (once the quantized model's is known, its drift).
    originals: BTreeMap<InputSite, Vec<f32>>,
    stream: Vec<f32>,
}

/// What is about to be seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sight {
    /// The original, whose inputs the quantized model's are compared with; it comes first.
    pub(crate) original: bool,
    /// Tokens that are held out of what the comparison gives, to check it.
    pub(crate) held_out: bool,
}

/// A tap that is told what it sees.
pub(crate) trait Watch: Tap {
    /// What comes next.
    fn next(&mut self, _sight: Sight) {}

    /// The residual stream before the inputs are shown.
    fn stream(&mut self, _hidden: &[f32]) {}
}

enum Seen {
    Hessian(Gram),
    Magnitudes(Magnitudes),
    Pairs(Box<Pairs>),
}

/// Sums of every input.
struct Magnitudes {
    tokens: usize,
    columns: Vec<Column>,
}

#[derive(Clone, Copy, Default)]
struct Column {
    square: f64,
    abs: f64,
    max: f32,
}

/// Inputs of a task.
const TASK_COLUMNS: usize = 128;

impl<'a> InputObserver<'a> {
    /// One that gathers what is `wanted`.
    pub fn new(engine: &'a Engine, wanted: BTreeMap<InputSite, Want>) -> Self {
        Self { engine, wanted, seen: BTreeMap::new(), sight: Sight::default(), originals: BTreeMap::new(), stream: vec![] }
    }

    /// What was seen; inputs that no token reached are missing.
    pub fn finish(self) -> BTreeMap<InputSite, InputStatistics> {
        let engine = self.engine;
        self.seen.into_iter().map(|(site, seen)| (site, seen.finish(engine))).collect()
    }
}

impl Tap for InputObserver<'_> {
    fn input(&mut self, site: InputSite, x: &[f32], tokens: usize) {
        let (Some(want), false) = (self.wanted.get(&site), x.is_empty()) else { return };
        if self.sight.original {
            if *want >= Want::Asymmetric {
                let original = self.originals.entry(site).or_default();
                original.clear();
                original.extend_from_slice(x);
            }
            return;
        }
        let cols = x.len() / tokens.max(1);
        let drift = if *want == Want::Stream { &self.stream[..] } else { &[] };
        let seen = self.seen.entry(site).or_insert_with(|| match want {
            Want::Hessian => Seen::Hessian(Gram::new(cols)),
            Want::Asymmetric | Want::Stream => Seen::Pairs(Box::new(Pairs::new(cols, drift.len() / tokens.max(1)))),
            Want::Magnitudes => Seen::Magnitudes(Magnitudes { tokens: 0, columns: vec![Column::default(); cols] }),
        });
        match seen {
            Seen::Hessian(gram) => gram.add(self.engine, x),
            Seen::Magnitudes(magnitudes) => magnitudes.add(self.engine, x),
            Seen::Pairs(pairs) => {
                pairs.add(self.engine, self.originals.get(&site).map_or(&[], Vec::as_slice), x, drift, self.sight.held_out)
            }
        }
    }
}

impl Watch for InputObserver<'_> {
    fn next(&mut self, sight: Sight) {
        self.sight = sight;
    }

    fn stream(&mut self, hidden: &[f32]) {
        if self.sight.original {
            self.stream.clear();
            self.stream.extend_from_slice(hidden);
        } else {
            self.stream.iter_mut().zip(hidden).for_each(|(original, hidden)| *original -= hidden);
        }
    }
}

impl Magnitudes {
    fn add(&mut self, engine: &Engine, x: &[f32]) {
        let cols = self.columns.len();
        self.tokens += x.len() / cols.max(1);
        let tasks: Vec<_> = self.columns.chunks_mut(TASK_COLUMNS).map(Mutex::new).collect();
        engine.run(tasks.len(), &|task| {
            let mut columns = crate::rows::lock(&tasks[task]);
            for token in x.chunks_exact(cols) {
                for (column, &value) in columns.iter_mut().zip(&token[task * TASK_COLUMNS..]) {
                    let size = value.abs();
                    column.square += f64::from(value) * f64::from(value);
                    column.abs += f64::from(size);
                    // Not `max`, which would lose a NaN.
                    column.max = if size <= column.max { column.max } else { size };
                }
            }
        });
    }
}

impl Seen {
    fn finish(self, engine: &Engine) -> InputStatistics {
        match self {
            Self::Pairs(pairs) => {
                let (gram, beyond) = pairs.finish(engine);
                InputStatistics { beyond: Some(beyond), ..Self::Hessian(gram).finish(engine) }
            }
            Self::Hessian(gram) => {
                let moments = gram.finish(engine);
                InputStatistics {
                    tokens: moments.tokens,
                    mean_square: moments.second.diagonal(),
                    mean_abs: moments.mean_abs.clone(),
                    max_abs: moments.max_abs.clone(),
                    moments: Some(moments),
                    beyond: None,
                }
            }
            Self::Magnitudes(Magnitudes { tokens, columns }) => {
                let mean = |sum: f64| (sum / tokens.max(1) as f64) as f32;
                InputStatistics {
                    tokens,
                    mean_square: columns.iter().map(|c| mean(c.square)).collect(),
                    mean_abs: columns.iter().map(|c| mean(c.abs)).collect(),
                    max_abs: columns.iter().map(|c| c.max).collect(),
                    moments: None,
                    beyond: None,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_kernels::Isa;
    use octet_model::InputKind;
    use std::num::NonZeroUsize;

    fn engine() -> Engine {
        Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap()
    }

    #[test]
    fn both_ways_of_gathering_agree_and_others_are_not_gathered() {
        let site = |layer| InputSite { layer: Some(layer), kind: InputKind::Mlp };
        let engine = engine();
        let wanted = [(site(0), Want::Magnitudes), (site(1), Want::Hessian)].into();
        let mut observer = InputObserver::new(&engine, wanted);
        for layer in 0..3 {
            observer.input(site(layer), &[1.0, 0.0, 3.0, 1.0, 0.0, -3.0], 2);
            observer.input(site(layer), &[2.0, 0.0, 0.0], 1);
        }
        let found = observer.finish();
        assert_eq!(found.len(), 2);
        for seen in found.values() {
            assert_eq!((seen.tokens, seen.dead()), (3, 1));
            assert_eq!(seen.mean_square, [2.0, 0.0, 6.0]);
            assert_eq!(seen.max_abs, [2.0, 0.0, 3.0]);
            assert!((seen.mean_abs[0] - 4.0 / 3.0).abs() < 1e-6 && seen.mean_abs[2] == 2.0);
        }
        assert_eq!(found[&site(1)].moments.as_ref().unwrap().second.at(2, 0), 0.0);
    }

    #[test]
    fn a_nan_is_not_lost() {
        let site = InputSite { layer: Some(1), kind: InputKind::Mlp };
        let engine = engine();
        let mut observer = InputObserver::new(&engine, [(site, Want::Magnitudes)].into());
        observer.input(site, &[1.0, f32::NAN, 2.0, 0.0], 2);
        assert!(observer.finish()[&site].check(site).is_err());
    }
}
