//! Axes for the plots: a rectangle, two scales, ticks at round numbers.

use super::words::{escape, tick};
use std::fmt::Write;

/// One axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Axis {
    /// A straight axis around `values`, with some room; it reaches zero where `zero` asks for it.
    pub(super) fn linear(values: &[f64], zero: bool) -> Self {
        let finite = || values.iter().copied().filter(|v| v.is_finite());
        let (mut low, mut high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        if !low.is_finite() {
            (low, high) = (0.0, 1.0);
        }
        if zero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        let room = (high - low).max(high.abs() * 1e-3).max(1e-9) * 0.12;
        Self { from: if zero && low == 0.0 { 0.0 } else { low - room }, to: high + room, logarithmic: false }
    }

    /// A logarithmic axis over whole decades around the positive ones of `values`.
    pub(super) fn decades(values: &[f64]) -> Self {
        let logs = || values.iter().copied().filter(|v| v.is_finite() && *v > 0.0).map(f64::log10);
        let (low, high) = (logs().fold(f64::INFINITY, f64::min).floor(), logs().fold(f64::NEG_INFINITY, f64::max).ceil());
        let (low, high) = if low.is_finite() { (low, high.max(low + 1.0)) } else { (0.0, 1.0) };
        Self { from: low, to: high, logarithmic: true }
    }

    /// Where `value` lies, from 0 to 1.
    pub(super) fn share(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.max(1e-300).log10() } else { value };
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    /// Round numbers along it.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            return (self.from as i32..=self.to as i32).map(|decade| 10f64.powi(decade)).collect();
        }
        let raw = (self.to - self.from) / 5.0;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= raw).unwrap_or(10.0 * power);
        let first = (self.from / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|tick| *tick <= self.to + 1e-9 * step).take(20).collect()
    }
}

/// A plot being drawn.
pub(super) struct Chart {
    pub(super) out: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
}

pub(super) const WIDTH: f64 = 460.0;
pub(super) const HEIGHT: f64 = 300.0;
/// Edges of the plot: left, top, right, bottom.
const EDGES: [f64; 4] = [56.0, 18.0, 446.0, 256.0];

impl Chart {
    /// Axes with their names, for a plot that `title` describes to whoever cannot see it.
    pub(super) fn new(title: &str, x: Axis, y: Axis, names: [&str; 2], y_shown: &dyn Fn(f64) -> String) -> Self {
        let mut chart = Self { out: String::new(), x, y };
        let [left, top, right, bottom] = EDGES;
        let _ =
            write!(chart.out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>", escape(title));
        for at_tick in y.ticks() {
            let at = chart.at(0.0, at_tick).1;
            let _ = write!(
                chart.out,
                "<path class=\"l\" d=\"M{left} {at:.1}H{right}\"/><text class=\"s\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                left - 6.0,
                at + 4.0,
                escape(&y_shown(at_tick))
            );
        }
        for at_tick in x.ticks() {
            let at = left + x.share(at_tick) * (right - left);
            let shown = tick(at_tick);
            // At the edge of the drawing a long number stands to the left of its tick.
            let (anchor, place) = if at > right - 10.0 && shown.len() > 3 { ("end", WIDTH) } else { ("middle", at) };
            let _ = write!(
                chart.out,
                "<path class=\"x\" d=\"M{at:.1} {bottom}v4\"/><text class=\"s\" text-anchor=\"{anchor}\" x=\"{place:.1}\" y=\"{}\">{}</text>",
                bottom + 17.0,
                escape(&shown)
            );
        }
        let _ = write!(
            chart.out,
            "<path class=\"x\" d=\"M{left} {top}V{bottom}H{right}\"/>\
             <text class=\"s\" text-anchor=\"end\" x=\"{right}\" y=\"{}\">{}</text><text class=\"s\" x=\"{}\" y=\"{}\">{}</text>",
            HEIGHT - 8.0,
            escape(names[0]),
            left,
            top - 5.0,
            escape(names[1])
        );
        chart
    }

    /// The place of a point.
    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let [left, top, right, bottom] = EDGES;
        (left + self.x.share(x) * (right - left), bottom - self.y.share(y) * (bottom - top))
    }

    /// A dot with a label beside it, and what a pointer over it tells.
    pub(super) fn dot(&mut self, place: (f64, f64), radius: f64, class: &str, label: &str, told: &str) {
        self.dot_labelled(place, radius, class, label, told, 0.0);
    }

    /// A dot whose label stands so much lower.
    pub(super) fn dot_labelled(&mut self, (x, y): (f64, f64), radius: f64, class: &str, label: &str, told: &str, lower: f64) {
        let _ = write!(
            self.out,
            "<circle class=\"{class} o\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\"><title>{}</title></circle>",
            escape(told)
        );
        // Near the right edge the label stands on the left.
        let (anchor, tx) = if Self::is_near_the_edge(x) { ("end", x - radius - 4.0) } else { ("start", x + radius + 4.0) };
        if !label.is_empty() {
            let _ = write!(self.out, "<text text-anchor=\"{anchor}\" x=\"{tx:.1}\" y=\"{:.1}\">{}</text>", y + 4.0 + lower, escape(label));
        }
    }

    /// Whether a dot's label has no room on its right.
    pub(super) fn is_near_the_edge(x: f64) -> bool {
        x > EDGES[2] - 90.0
    }

    /// A line through points.
    pub(super) fn line(&mut self, points: &[(f64, f64)], class: &str) {
        let path: Vec<String> = points.iter().map(|&(x, y)| self.at(x, y)).map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        if !path.is_empty() {
            let _ = write!(self.out, "<path class=\"{class}\" d=\"M{}\"/>", path.join("L"));
        }
    }

    /// The finished drawing.
    pub(super) fn finish(self) -> String {
        self.out + "</svg>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::linear(&[0.0, 8.4], true);
        assert_eq!(axis.ticks(), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(Axis::decades(&[0.003, 0.2]).ticks().len(), 4);
        for axis in
            [Axis::linear(&[], false), Axis::linear(&[5.0], false), Axis::linear(&[f64::NAN, -3.0, 3.0], true), Axis::decades(&[0.0])]
        {
            let ticks = axis.ticks();
            assert!((1..=20).contains(&ticks.len()) && ticks.iter().all(|t| t.is_finite()), "{axis:?} {ticks:?}");
        }
    }
}
