//! The roofline of a machine with the phases of some models in it (Williams, Waterman and Patterson 2009), as one
//! self-contained SVG that is readable on light and dark ground.
//!
//! Across: operations for each byte read. Up: operations a second. The slanted roof is what memory can feed, the flat one
//! what int8 arithmetic can do; a phase is as good as it is near the roof above it.

use std::fmt::Write;

/// One phase of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What to write beside it, such as `prefill 512`.
    pub label: String,
    /// Operations for each byte of weights, keys and values.
    pub intensity: f64,
    /// Billions of operations a second.
    pub gop_s: f64,
}

/// The phases of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its phases.
    pub points: Vec<Point>,
}

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 560.0;
/// The plot's edges: left, top, right, bottom.
const PLOT: [f64; 4] = [76.0, 44.0, 856.0, 476.0];
/// Colours that differ in hue and lightness and keep contrast on white and on black (Okabe and Ito 2008, darkened).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#b8568f", "#8a7500", "#3f8fc4"];
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#222}.small{font-size:11px;fill:#555}.title{font-size:15px;font-weight:600}\
.ground{fill:#fff}.grid{stroke:#ddd;fill:none}.roof{stroke:#222;stroke-width:2;fill:none}.lead{stroke:#999;fill:none}\
@media(prefers-color-scheme:dark){text{fill:#eee}.small{fill:#bbb}.ground{fill:#161616}.grid{stroke:#383838}.roof{stroke:#eee}.lead{stroke:#888}}";
/// Width of a character and height of a line of labels, with room around.
const CHAR: f64 = 6.4;
const LINE: f64 = 14.0;

/// Draws the roofline; `read_gb_s` and `int8_gop_s` are the machine's limits.
pub fn svg(title: &str, series: &[Series], read_gb_s: f64, int8_gop_s: f64) -> String {
    let scale = Scale::of(series, read_gb_s, int8_gop_s);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\
         <title>{0}</title><style>{STYLE}</style><rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\
         <text class=\"title\" x=\"{1}\" y=\"26\">{0}</text>",
        escape(title),
        PLOT[0]
    );
    grid(&mut out, &scale);
    let is_limit = |value: f64| value.is_finite() && value > 0.0;
    let mut taken = vec![];
    if is_limit(read_gb_s) && is_limit(int8_gop_s) {
        taken = roofs(&mut out, &scale, read_gb_s, int8_gop_s);
    }
    let points: Vec<(usize, &Point)> =
        series.iter().enumerate().flat_map(|(s, series)| series.points.iter().map(move |p| (s, p))).collect();
    taken.extend(points.iter().map(|(_, p)| Box::around(scale.at(p.intensity, p.gop_s), 5.0)));
    for &(index, point) in &points {
        let (x, y) = scale.at(point.intensity, point.gop_s);
        let place = place((x, y), &point.label, &taken);
        taken.push(place);
        let (near_x, near_y) = (x.clamp(place.left, place.right), y.clamp(place.top, place.bottom));
        if (near_x - x).hypot(near_y - y) > 9.0 {
            let _ = write!(out, "<line class=\"lead\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{near_x:.1}\" y2=\"{near_y:.1}\"/>");
        }
        let colour = COLOURS[index % COLOURS.len()];
        let _ = write!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\"/><text class=\"small\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            place.left + 2.0,
            place.bottom - 3.5,
            escape(&point.label)
        );
    }
    legend(&mut out, series);
    out.push_str("</svg>\n");
    out
}

/// Logarithmic axes.
struct Scale {
    x: [f64; 2],
    y: [f64; 2],
}

impl Scale {
    /// Whole decades (halves of one at the upper end) that hold everything.
    fn of(series: &[Series], read_gb_s: f64, int8_gop_s: f64) -> Self {
        let points = || series.iter().flat_map(|s| &s.points);
        let knee = int8_gop_s / read_gb_s;
        let span = |values: &mut dyn Iterator<Item = f64>| {
            let logs: Vec<f64> = values.filter(|v| v.is_finite() && *v > 0.0).map(f64::log10).collect();
            let low = logs.iter().copied().fold(f64::INFINITY, f64::min);
            let high = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if low <= high { [(low - 0.15).floor(), ((high + 0.12) * 2.0).ceil() / 2.0] } else { [0.0, 1.0] }
        };
        let x = span(&mut points().map(|p| p.intensity).chain([knee, 10.0 * knee]));
        let y = span(&mut points().map(|p| p.gop_s).chain([int8_gop_s]));
        Self { x, y }
    }

    fn at(&self, intensity: f64, gop_s: f64) -> (f64, f64) {
        let part = |value: f64, [low, high]: [f64; 2]| ((value.max(1e-12).log10() - low) / (high - low)).clamp(0.0, 1.0);
        let (x, y) = (part(intensity, self.x), part(gop_s, self.y));
        (PLOT[0] + x * (PLOT[2] - PLOT[0]), PLOT[3] - y * (PLOT[3] - PLOT[1]))
    }
}

fn grid(out: &mut String, scale: &Scale) {
    let decades = |[low, high]: [f64; 2]| (low.ceil() as i32..=high.floor() as i32).map(|power| 10f64.powi(power));
    for value in decades(scale.x) {
        let (x, _) = scale.at(value, 1.0);
        let _ = write!(out, "<path class=\"grid\" d=\"M{x:.1} {}V{}\"/>", PLOT[1], PLOT[3]);
        let _ = write!(out, "<text class=\"small\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{value}</text>", PLOT[3] + 16.0);
    }
    for value in decades(scale.y) {
        let (_, y) = scale.at(1.0, value);
        let _ = write!(out, "<path class=\"grid\" d=\"M{} {y:.1}H{}\"/>", PLOT[0], PLOT[2]);
        let _ = write!(out, "<text class=\"small\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{value}</text>", PLOT[0] - 6.0, y + 4.0);
    }
    let (middle, centre) = ((PLOT[0] + PLOT[2]) / 2.0, (PLOT[1] + PLOT[3]) / 2.0);
    let _ = write!(out, "<text class=\"small\" text-anchor=\"middle\" x=\"{middle}\" y=\"{}\">operations a byte</text>", PLOT[3] + 33.0);
    let _ = write!(out, "<text class=\"small\" text-anchor=\"middle\" transform=\"translate(20 {centre}) rotate(-90)\">GOP/s</text>");
}

/// Draws the roofs with their names; what they take up is where no label may lie.
fn roofs(out: &mut String, scale: &Scale, read_gb_s: f64, int8_gop_s: f64) -> Vec<Box> {
    let (start, knee) = (10f64.powf(scale.x[0]), int8_gop_s / read_gb_s);
    // Where the slanted roof enters the plot: at its left or its lower edge.
    let enter = start.max(10f64.powf(scale.y[0]) / read_gb_s);
    let (from, turn) = (scale.at(enter, enter * read_gb_s), scale.at(knee, int8_gop_s));
    let _ = write!(out, "<path class=\"roof\" d=\"M{:.1} {:.1}L{:.1} {:.1}H{}\"/>", from.0, from.1, turn.0, turn.1, PLOT[2]);
    let mut taken = vec![Box { left: turn.0, right: PLOT[2], top: turn.1 - 3.0, bottom: turn.1 + 3.0 }];
    let pieces = 60;
    taken.extend((0..=pieces).map(|i| {
        let part = f64::from(i) / f64::from(pieces);
        Box::around((from.0 + part * (turn.0 - from.0), from.1 + part * (turn.1 - from.1)), 4.0)
    }));
    let (read, int8) = (format!("read {read_gb_s:.1} GB/s"), format!("int8 {int8_gop_s:.0} GOP/s"));
    let half = ((from.0 + turn.0) / 2.0, (from.1 + turn.1) / 2.0);
    let names = [(turn.0 + 8.0, turn.1 - 7.0, &int8), (half.0 - 14.0 - CHAR * read.len() as f64, half.1 - 8.0, &read)];
    for (x, y, name) in names {
        let x = x.max(PLOT[0] + 4.0);
        let _ = write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>");
        taken.push(Box { left: x, right: x + 7.0 * name.len() as f64, top: y - LINE, bottom: y + 4.0 });
    }
    taken
}

fn legend(out: &mut String, series: &[Series]) {
    let (mut x, mut y) = (PLOT[0], PLOT[3] + 54.0);
    for (index, series) in series.iter().enumerate() {
        let width = 30.0 + 7.0 * series.name.chars().count() as f64;
        if x + width > WIDTH && x > PLOT[0] {
            (x, y) = (PLOT[0], y + 17.0);
        }
        let (colour, name) = (COLOURS[index % COLOURS.len()], escape(&series.name));
        let _ = write!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4.5\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{y:.1}\">{name}</text>",
            x + 5.0,
            y - 4.0,
            x + 14.0
        );
        x += width;
    }
}

#[derive(Clone, Copy, Debug)]
struct Box {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Box {
    fn around((x, y): (f64, f64), half: f64) -> Self {
        Self { left: x - half, right: x + half, top: y - half, bottom: y + half }
    }

    fn meets(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }

    fn inside(&self) -> bool {
        self.left >= PLOT[0] && self.right <= PLOT[2] && self.top >= PLOT[1] && self.bottom <= PLOT[3]
    }
}

/// The free place for a label that is nearest to its point: below the roofs by preference, in widening circles.
fn place((x, y): (f64, f64), label: &str, taken: &[Box]) -> Box {
    let width = CHAR * label.chars().count() as f64 + 4.0;
    let at = |dx: f64, dy: f64| {
        let left = if dx < -0.3 {
            x + dx - width
        } else if dx > 0.3 {
            x + dx
        } else {
            x - width / 2.0
        };
        Box { left, right: left + width, top: y + dy - LINE / 2.0, bottom: y + dy + LINE / 2.0 }
    };
    let circles = (0..40).flat_map(|ring| {
        let reach = 7.0 + 6.0 * f64::from(ring);
        // Right, lower right, below, lower left, left, and above last.
        [0.0f64, 45.0, 90.0, 20.0, 70.0, 135.0, 180.0, 110.0, 160.0, 315.0, 225.0, 270.0].map(move |angle| {
            let (sin, cos) = angle.to_radians().sin_cos();
            (reach * cos, (reach + 4.0) * sin)
        })
    });
    let candidates = circles.map(|(dx, dy)| at(dx, dy));
    let free = candidates.into_iter().find(|candidate| candidate.inside() && !taken.iter().any(|other| candidate.meets(other)));
    free.unwrap_or_else(|| at(7.0, 0.0))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five models whose decoding lies close together, as 16, 8 and 4 bits do.
    fn crowd() -> Vec<Series> {
        let series = |(index, name): (usize, &str)| {
            let near = 1.0 + index as f64 * 0.1;
            let decode = [("decode", 1.0), ("decode at 2048", 0.9), ("decode, 8 together", 7.5)];
            let decode = decode.map(|(label, x)| Point { label: label.into(), intensity: near * x, gop_s: 24.0 * near * x });
            let prefill = [128, 512, 2048].map(|n| Point {
                label: format!("prefill {n}"),
                intensity: near * f64::from(n),
                gop_s: 500.0 + 90.0 * index as f64 + f64::from(n) / 50.0,
            });
            Series { name: format!("{name} <{index}>"), points: decode.into_iter().chain(prefill).collect() }
        };
        ["qwen3", "w8a16", "w8a8", "w4a16", "w4a8"].into_iter().enumerate().map(series).collect()
    }

    #[test]
    fn labels_do_not_overlap() {
        let (series, read, int8) = (crowd(), 30.0, 1600.0);
        let scale = Scale::of(&series, read, int8);
        let roofs = roofs(&mut String::new(), &scale, read, int8);
        let mut taken = roofs.clone();
        let points: Vec<&Point> = series.iter().flat_map(|s| &s.points).collect();
        taken.extend(points.iter().map(|p| Box::around(scale.at(p.intensity, p.gop_s), 5.0)));
        for point in points {
            let label = place(scale.at(point.intensity, point.gop_s), &point.label, &taken);
            assert!(label.inside() && !taken.iter().any(|other| label.meets(other)), "{point:?} at {label:?}");
            taken.push(label);
        }
    }

    #[test]
    fn drawings_are_complete_and_escaped() {
        let text = svg("a & b", &crowd(), 30.0, 1600.0);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n") && text.contains("a &amp; b"));
        assert!(text.contains("prefers-color-scheme:dark") && text.contains("w4a8 &lt;4&gt;") && !text.contains("NaN"));
        assert_eq!(text.matches("prefill 2048").count(), 5);
        // No series, no numbers: an empty drawing, not a broken one.
        assert!(!svg("", &[], f64::NAN, 0.0).contains("NaN"));
    }
}
