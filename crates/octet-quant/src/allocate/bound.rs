//! Lower convex hulls, the walk along them, and branch and bound.

use super::Alternative;

/// Steps after which branch and bound gives the best it has.
const MOST_STEPS: usize = 20_000;

/// A gain below this share of the loss is no gain: sums of the same losses in another order differ by as much.
const ROUNDING: f64 = 1e-12;

/// What stands for a loss that is not finite, so that sums of some stay finite.
const WORST: f64 = 1e30;

/// An alternative worth choosing, with its index in the group it came from.
#[derive(Clone, Copy, Debug)]
struct Point {
    bytes: u64,
    loss: f64,
    index: usize,
}

/// One step along the hull of a group: so many bytes more, so much loss less.
#[derive(Clone, Copy, Debug)]
struct Segment {
    group: usize,
    bytes: u64,
    gain: f64,
    /// The point it leads to.
    to: usize,
}

/// The alternatives worth choosing of all groups, and the steps of their hulls by falling gain a byte.
pub(super) struct Hulls {
    points: Vec<Vec<Point>>,
    segments: Vec<Segment>,
}

impl Hulls {
    pub(super) fn new(groups: &[Vec<Alternative>]) -> Self {
        let points: Vec<Vec<Point>> = groups.iter().map(|group| undominated(group)).collect();
        let mut segments: Vec<Segment> = points.iter().enumerate().flat_map(|(group, points)| hull(group, points)).collect();
        // Stable, and convex within a group: a group's steps stay in their order.
        segments.sort_by(|a, b| slope(b).total_cmp(&slope(a)));
        Self { points, segments }
    }

    pub(super) fn least(&self) -> u64 {
        self.points.iter().filter_map(|points| points.first()).map(|point| point.bytes).sum()
    }
}

fn slope(segment: &Segment) -> f64 {
    segment.gain / segment.bytes as f64
}

/// The alternatives that no smaller one is as good as, by rising size.
fn undominated(group: &[Alternative]) -> Vec<Point> {
    let loss = |a: &Alternative| if a.loss.is_finite() { a.loss.min(WORST) } else { WORST };
    let mut points: Vec<Point> = group.iter().enumerate().map(|(index, a)| Point { bytes: a.bytes, loss: loss(a), index }).collect();
    points.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut kept: Vec<Point> = vec![];
    for point in points {
        if kept.last().is_none_or(|last| point.loss < last.loss) {
            kept.push(point);
        }
    }
    kept
}

fn hull(group: usize, points: &[Point]) -> Vec<Segment> {
    let mut corners: Vec<usize> = vec![];
    for (next, point) in points.iter().enumerate() {
        while let [.., a, b] = corners[..] {
            let gain = |from: &Point, to: &Point| (from.loss - to.loss) / (to.bytes - from.bytes) as f64;
            if gain(&points[a], &points[b]) > gain(&points[b], point) {
                break;
            }
            corners.pop();
        }
        corners.push(next);
    }
    let step = |pair: &[usize]| {
        let (from, to) = (points[pair[0]], points[pair[1]]);
        Segment { group, bytes: to.bytes - from.bytes, gain: from.loss - to.loss, to: pair[1] }
    };
    corners.windows(2).map(step).collect()
}

/// Branch and bound, groups in order; the groups not yet fixed are bounded by the walk along their hulls.
pub(super) struct Search<'a> {
    hulls: &'a Hulls,
    budget: u64,
    /// Bytes and losses of the smallest points of groups `i ..`.
    least: Vec<(u64, f64)>,
    steps: usize,
    path: Vec<usize>,
    best: (f64, Vec<usize>),
}

impl<'a> Search<'a> {
    pub(super) fn new(hulls: &'a Hulls, budget: u64) -> Self {
        let mut least = vec![(0, 0.0)];
        for points in hulls.points.iter().rev() {
            let (bytes, loss) = least.last().copied().unwrap_or_default();
            least.push(points.first().map_or((bytes, loss), |point| (bytes + point.bytes, loss + point.loss)));
        }
        least.reverse();
        Self { hulls, budget, least, steps: 0, path: vec![], best: (f64::INFINITY, vec![]) }
    }

    /// The indices of the chosen alternatives.
    pub(super) fn run(mut self) -> Vec<usize> {
        let greedy = self.greedy();
        self.best = (self.loss(&greedy), greedy);
        self.branch(0, 0, 0.0);
        self.hulls.points.iter().zip(&self.best.1).map(|(points, &at)| points.get(at).map_or(0, |point| point.index)).collect()
    }

    fn loss(&self, chosen: &[usize]) -> f64 {
        // From the last group on, as the search adds them up.
        self.hulls.points.iter().zip(chosen).map(|(points, &at)| points.get(at).map_or(0.0, |p| p.loss)).sum()
    }

    /// The walk along the hulls, every step that still fits taken, then single points that fit.
    fn greedy(&self) -> Vec<usize> {
        let mut chosen = vec![0; self.hulls.points.len()];
        let mut left = self.budget - self.least[0].0;
        let mut stopped = vec![false; chosen.len()];
        for segment in &self.hulls.segments {
            if stopped[segment.group] || segment.bytes > left {
                stopped[segment.group] = true;
                continue;
            }
            chosen[segment.group] = segment.to;
            left -= segment.bytes;
        }
        loop {
            let gain = |group: usize, to: usize| {
                let points = &self.hulls.points[group];
                let (from, to) = (points[chosen[group]], points[to]);
                (to.bytes.saturating_sub(from.bytes) <= left).then_some(from.loss - to.loss)
            };
            let ahead = (0..chosen.len()).flat_map(|g| (chosen[g] + 1..self.hulls.points[g].len()).map(move |to| (g, to)));
            let best = ahead.filter_map(|(g, to)| Some((gain(g, to)?, g, to))).max_by(|a, b| a.0.total_cmp(&b.0));
            let Some((_, group, to)) = best else { return chosen };
            left -= self.hulls.points[group][to].bytes - self.hulls.points[group][chosen[group]].bytes;
            chosen[group] = to;
        }
    }

    /// The least loss that groups `from ..` could have with `left` bytes, were parts of a step possible.
    fn bound(&self, from: usize, left: u64) -> f64 {
        let (bytes, mut loss) = self.least[from];
        let Some(mut left) = left.checked_sub(bytes) else { return f64::INFINITY };
        for segment in self.hulls.segments.iter().filter(|segment| segment.group >= from) {
            if segment.bytes > left {
                return loss - segment.gain * left as f64 / segment.bytes as f64;
            }
            (left, loss) = (left - segment.bytes, loss - segment.gain);
        }
        loss
    }

    fn branch(&mut self, group: usize, used: u64, loss: f64) {
        let Some(points) = self.hulls.points.get(group) else {
            if loss < self.best.0 {
                self.best = (loss, self.path.clone());
            }
            return;
        };
        let count = points.len().max(1);
        let reach = |search: &Self, at: usize| {
            let (bytes, more) = points.get(at).map_or((0, 0.0), |point| (point.bytes, point.loss));
            let used = used + bytes;
            let bound = search.budget.checked_sub(used).map_or(f64::INFINITY, |left| search.bound(group + 1, left));
            (loss + more + bound, used, loss + more)
        };
        // The most promising first.
        let mut order: Vec<(f64, u64, f64, usize)> =
            (0..count).map(|at| reach(self, at)).enumerate().map(|(at, (bound, used, loss))| (bound, used, loss, at)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (bound, used, loss, at) in order {
            if self.steps >= MOST_STEPS || bound >= self.best.0 - ROUNDING * self.best.0.abs() {
                return;
            }
            self.steps += 1;
            self.path.push(at);
            self.branch(group + 1, used, loss);
            self.path.pop();
        }
    }
}
