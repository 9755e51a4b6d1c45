//! What calibration tells about the inputs of linears.

use octet_model::{InputSite, Tap};
use std::collections::BTreeMap;

/// Gathers the mean square of every input of every distinct linear input: pass it as the tap of forward passes.
#[derive(Clone, Debug, Default)]
pub struct ImportanceObserver {
    sums: BTreeMap<InputSite, Seen>,
}

#[derive(Clone, Debug)]
struct Seen {
    squares: Vec<f64>,
    tokens: usize,
}

impl Tap for ImportanceObserver {
    fn input(&mut self, site: InputSite, x: &[f32], tokens: usize) {
        if tokens == 0 {
            return;
        }
        let cols = x.len() / tokens;
        let seen = self.sums.entry(site).or_insert_with(|| Seen { squares: vec![0.0; cols], tokens: 0 });
        seen.tokens += tokens;
        for token in x.chunks_exact(cols.max(1)) {
            for (sum, &value) in seen.squares.iter_mut().zip(token) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
    }
}

impl ImportanceObserver {
    /// What was seen, ready for solvers.
    pub fn finish(self) -> Importance {
        let one = |(site, seen): (InputSite, Seen)| (site, SiteImportance::new(&seen));
        Importance { sites: self.sums.into_iter().map(one).collect() }
    }
}

/// Importance of every input of every distinct linear input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    sites: BTreeMap<InputSite, SiteImportance>,
}

/// What calibration tells about one linear input.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteImportance {
    /// Mean square of each input divided by the mean of them all, and no less than a thousandth: text that leaves an
    /// input dark must not make its weights worthless.
    pub importance: Vec<f32>,
    /// Inputs that were zero on every token.
    pub dead: usize,
    /// Tokens seen.
    pub tokens: usize,
}

/// The least importance an input can have, of the mean.
const FLOOR: f64 = 1e-3;

impl SiteImportance {
    fn new(seen: &Seen) -> Self {
        let mean = seen.squares.iter().sum::<f64>() / seen.squares.len().max(1) as f64;
        let dead = seen.squares.iter().filter(|&&v| v == 0.0).count();
        let live = mean > 0.0 && mean.is_finite();
        let importance = seen.squares.iter().map(|v| if live { (v / mean).max(FLOOR) as f32 } else { 1.0 }).collect();
        Self { importance, dead, tokens: seen.tokens }
    }
}

impl Importance {
    /// Importance of each input of `site`, mean 1, or `None` where no token reached it.
    pub fn of(&self, site: InputSite) -> Option<&[f32]> {
        self.sites.get(&site).map(|seen| seen.importance.as_slice())
    }

    /// Everything that is known, by input.
    pub fn sites(&self) -> impl Iterator<Item = (InputSite, &SiteImportance)> {
        self.sites.iter().map(|(site, seen)| (*site, seen))
    }

    /// Dead inputs and inputs in all.
    pub fn coverage(&self) -> (usize, usize) {
        self.sites.values().fold((0, 0), |(dead, all), seen| (dead + seen.dead, all + seen.importance.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_model::InputKind;

    #[test]
    fn mean_squares_are_gathered_over_calls_and_normalised() {
        let site = InputSite { layer: Some(1), kind: InputKind::Mlp };
        let mut observer = ImportanceObserver::default();
        observer.input(site, &[1.0, 0.0, 3.0, 1.0, 0.0, -3.0], 2);
        observer.input(site, &[2.0, 0.0, 0.0], 1);
        let found = observer.finish();
        // Squares 6, 0, 18; their mean is 8.
        assert_eq!(found.of(site).unwrap(), [0.75, 1e-3, 2.25]);
        assert_eq!(found.coverage(), (1, 3));
        assert_eq!(found.of(InputSite { layer: None, kind: InputKind::Head }), None);
        assert_eq!(found.sites().next().unwrap().1.tokens, 3);
    }

    #[test]
    fn an_input_of_zeros_is_as_good_as_unknown() {
        let site = InputSite { layer: None, kind: InputKind::Head };
        let mut observer = ImportanceObserver::default();
        observer.input(site, &[0.0; 4], 2);
        assert_eq!(observer.finish().of(site).unwrap(), [1.0, 1.0]);
    }
}
