//! The plots of a report, as inline SVG that takes its colours from the page.

use super::{
    chart::{Axis, Chart, WIDTH},
    words::{change, escape, figure, tick},
};
use crate::{
    Report,
    report::{RungReport, TensorFigures},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// One variant among others.
#[derive(Clone, Debug, PartialEq)]
pub struct VariantPoint {
    /// Its name.
    pub name: String,
    /// Whether it was accepted.
    pub accepted: bool,
    /// Bytes over those of the original in 16 bits.
    pub size_ratio: f64,
    /// Perplexity over that of the original.
    pub ppl_ratio: f64,
    /// Decoding speed over that of the original in 16 bits.
    pub decode_speedup: Option<f64>,
}

impl VariantPoint {
    /// A rung that was measured.
    pub fn of_rung(rung: &RungReport) -> Option<Self> {
        Some(Self {
            name: rung.scheme.clone(),
            accepted: rung.outcome == "accepted",
            size_ratio: rung.size_ratio?,
            ppl_ratio: rung.ratio?,
            decode_speedup: rung.decode_speedup,
        })
    }
}

/// Size, quality and speed of all variants: across bytes, up perplexity, area speed.
pub(super) fn variants(points: &[VariantPoint]) -> Option<String> {
    let mut finite: Vec<&VariantPoint> = points.iter().filter(|p| p.ppl_ratio.is_finite() && p.size_ratio.is_finite()).collect();
    if finite.is_empty() {
        return None;
    }
    let sizes: Vec<f64> = finite.iter().map(|p| 100.0 * p.size_ratio).chain([0.0, 100.0]).collect();
    let losses: Vec<f64> = finite.iter().map(|p| 100.0 * (p.ppl_ratio - 1.0)).chain([0.0]).collect();
    let shown = |at: f64| if at > 0.0 { format!("+{}", tick(at)) } else { tick(at) };
    let mut chart = Chart::new(
        "Size, quality and speed of all variants",
        Axis::linear(&sizes, true),
        Axis::linear(&losses, false),
        ["size, % of the original in 16 bits", "perplexity, %"],
        &shown,
    );
    let radius = |speed: Option<f64>| 5.0 * speed.unwrap_or(1.0).clamp(0.25, 9.0).sqrt();
    let origin = chart.at(100.0, 0.0);
    chart.dot(origin, radius(Some(1.0)), "c", "original", "the original in 16 bits");
    let mut labels = vec![Label::of(origin, "original")];
    // From the bottom up, so that labels which would lie on others can give way upwards.
    finite.sort_by(|a, b| a.ppl_ratio.total_cmp(&b.ppl_ratio));
    for point in finite {
        let place = chart.at(100.0 * point.size_ratio, 100.0 * (point.ppl_ratio - 1.0));
        let speed = point.decode_speedup.map_or(String::new(), |s| format!(", decodes {s:.2} times as fast"));
        let told = format!("{}: {:.0} % of the size, perplexity {}{speed}", point.name, 100.0 * point.size_ratio, change(point.ppl_ratio));
        let label = if point.accepted { point.name.clone() } else { format!("{} (not accepted)", point.name) };
        let mut room = Label::of(place, &label);
        while labels.iter().any(|other| other.meets(&room)) {
            room.y -= LABEL_HEIGHT;
        }
        let class = if point.accepted { "a" } else { "r" };
        chart.dot_labelled(place, radius(point.decode_speedup), class, &label, &told, room.y - place.1);
        labels.push(room);
    }
    Some(chart.finish())
}

/// Height of a label, and about the width of a letter of it.
const LABEL_HEIGHT: f64 = 13.0;
const LETTER: f64 = 6.6;

/// The room that the label of a dot takes.
struct Label {
    from: f64,
    to: f64,
    y: f64,
}

impl Label {
    fn of((x, y): (f64, f64), text: &str) -> Self {
        let width = 12.0 + LETTER * text.chars().count() as f64;
        let (from, to) = if Chart::is_near_the_edge(x) { (x - width, x) } else { (x, x + width) };
        Self { from, to, y }
    }

    fn meets(&self, other: &Self) -> bool {
        self.from < other.to && other.from < self.to && (self.y - other.y).abs() < LABEL_HEIGHT - 0.5
    }
}

/// Divergence along the context.
pub(super) fn along(tenths: &[(f64, f64)], context: usize) -> Option<String> {
    if tenths.len() < 2 {
        return None;
    }
    let position = |i: usize| (i as f64 + 0.5) * context as f64 / tenths.len() as f64;
    let kl: Vec<f64> = tenths.iter().map(|t| t.0).collect();
    let mut chart = Chart::new(
        "KL divergence along the context",
        Axis::linear(&[0.0, context as f64 / 1.12], true),
        Axis::linear(&kl, true),
        ["position in the window, tokens", "mean KL, nats"],
        &tick,
    );
    let points: Vec<(f64, f64)> = kl.iter().enumerate().map(|(i, &kl)| (position(i), kl)).collect();
    chart.line(&points, "sa");
    for (i, &(x, y)) in points.iter().enumerate() {
        let told = format!("tenth {}: KL {}, perplexity {}", i + 1, figure(y), change(tenths[i].1));
        let place = chart.at(x, y);
        chart.dot(place, 3.5, "a", "", &told);
    }
    Some(chart.finish())
}

/// How divergence is spread over tokens; `bins` as `measures.kl_histogram` holds them.
pub(super) fn histogram(bins: &Value) -> Option<String> {
    let bins: Vec<(f64, f64, f64)> =
        bins.as_array()?.iter().filter_map(|bin| Some((bin["from"].as_f64()?, bin["to"].as_f64()?, bin["tokens"].as_f64()?))).collect();
    let all: f64 = bins.iter().map(|bin| bin.2).sum();
    if bins.len() < 2 || all == 0.0 {
        return None;
    }
    let lowest = bins[0].1 / (bins[1].1 / bins[1].0);
    let shares: Vec<f64> = bins.iter().map(|bin| 100.0 * bin.2 / all).collect();
    let edges: Vec<f64> = bins.iter().map(|bin| bin.1).chain([lowest]).collect();
    let mut chart = Chart::new(
        "How many tokens diverge how far",
        Axis::decades(&edges),
        Axis::linear(&shares, true),
        ["KL divergence of a token, nats", "tokens, %"],
        &tick,
    );
    for (bin, share) in bins.iter().zip(&shares) {
        let (from, top) = chart.at(bin.0.max(lowest), *share);
        let (to, bottom) = chart.at(bin.1, 0.0);
        let _ = write!(
            chart.out,
            "<rect class=\"a o\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{share:.1} % between {} and {}</title></rect>",
            (to - from - 1.0).max(1.0),
            (bottom - top).max(0.0),
            figure(bin.0),
            figure(bin.1)
        );
    }
    Some(chart.finish())
}

/// Where a tensor belongs: its kind, and its layer if it has one.
fn place(name: &str) -> (String, Option<usize>) {
    let parts: Vec<&str> = name.split('.').collect();
    let layer = parts.iter().position(|part| part.parse::<usize>().is_ok());
    // Of several numbers (experts) the first is the layer; the others are summed up.
    let number = layer.and_then(|at| parts[at].parse().ok());
    let kind = parts.iter().rev().find(|part| part.parse::<usize>().is_err() && **part != "weight");
    (kind.map_or_else(|| name.to_string(), |kind| (*kind).to_string()), number)
}

/// What a grid shows of a tensor.
struct Shade<'a> {
    title: &'a str,
    value: fn(&TensorFigures) -> f64,
    /// It in words.
    shown: fn(f64) -> String,
    /// How dark a value is, from 0 to 1, among values between the last two.
    depth: fn(f64, f64, f64) -> f64,
}

/// A grid of kinds by layers, each cell as dark as its value is large.
fn grid(tensors: &[TensorFigures], shade: &Shade<'_>) -> Option<String> {
    let Shade { title, value, shown, depth } = *shade;
    let mut cells: BTreeMap<(String, usize), (f64, usize)> = BTreeMap::new();
    let mut kinds: Vec<String> = vec![];
    for tensor in tensors {
        let (kind, layer) = place(&tensor.name);
        if let Some(layer) = layer {
            if !kinds.contains(&kind) {
                kinds.push(kind.clone());
            }
            let cell = cells.entry((kind, layer)).or_default();
            *cell = (cell.0 + value(tensor), cell.1 + 1);
        }
    }
    let layers: BTreeSet<usize> = cells.keys().map(|(_, layer)| *layer).collect();
    if kinds.is_empty() || layers.is_empty() {
        return None;
    }
    let means: BTreeMap<&(String, usize), f64> = cells.iter().map(|(key, (sum, n))| (key, sum / *n as f64)).collect();
    let positive = || means.values().copied().filter(|v| v.is_finite() && *v > 0.0);
    let (low, high) = (positive().fold(f64::INFINITY, f64::min), positive().fold(0.0, f64::max));
    let (left, row) = (96.0, 24.0);
    let column = (WIDTH - left - 6.0) / layers.len() as f64;
    let height = 26.0 + row * kinds.len() as f64 + 8.0;
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>", escape(title));
    let every = layers.len().div_ceil(12);
    for (i, layer) in layers.iter().enumerate().filter(|(i, _)| i % every == 0) {
        let x = left + (i as f64 + 0.5) * column;
        let _ = write!(out, "<text class=\"s\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"14\">{layer}</text>");
    }
    for (r, kind) in kinds.iter().enumerate() {
        let y = 22.0 + r as f64 * row;
        let _ = write!(out, "<text class=\"s\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>", left - 6.0, y + 15.0, escape(kind));
        for (i, layer) in layers.iter().enumerate() {
            let Some(&mean) = means.get(&(kind.clone(), *layer)) else { continue };
            let depth = depth(mean, low, high);
            let x = left + i as f64 * column;
            let _ = write!(
                out,
                "<rect class=\"w\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{0:.1}\" height=\"{1:.1}\"/>\
                 <rect class=\"a\" fill-opacity=\"{2:.2}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{0:.1}\" height=\"{1:.1}\"><title>{3}</title></rect>",
                (column - 1.5).max(1.0),
                row - 2.0,
                0.08 + 0.87 * depth.clamp(0.0, 1.0),
                escape(&format!("layer {layer} {kind}: {}", shown(mean))),
            );
            if column >= 34.0 {
                let class = if depth > 0.55 { "class=\"s\" style=\"fill:var(--ground)\"" } else { "class=\"s\"" };
                let (x, y) = (x + column / 2.0, y + 15.0);
                let _ = write!(out, "<text {class} text-anchor=\"middle\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(&shown(mean)));
            }
        }
    }
    Some(out + "</svg>")
}

/// Relative error of the weights by layer and kind; values within a factor of ten look alike.
pub(super) fn errors(tensors: &[TensorFigures]) -> Option<String> {
    let depth = |mean: f64, low: f64, high: f64| if mean > 0.0 { (mean / low).ln() / (high / low).ln().max(10f64.ln()) } else { 0.0 };
    // From 1e-6 at 8 bits to 0.3 at 2: one digit and its power say it in a narrow cell.
    let shown = |error: f64| if error > 0.0 { format!("{error:.0e}") } else { "0".into() };
    grid(tensors, &Shade { title: "Error by layer and kind of tensor", value: |t| t.error, shown, depth })
}

/// Bits a weight by layer and kind, from 2 (light) to 8 (dark).
pub(super) fn bits(tensors: &[TensorFigures]) -> Option<String> {
    let depth = |mean: f64, _: f64, _: f64| (mean - 2.0) / 6.5;
    grid(tensors, &Shade { title: "Bits by layer and kind of tensor", value: |t| t.bits_per_weight, shown: |v| format!("{v:.2}"), depth })
}

/// Decode and prefill of both models against what the machine can do; `None` where its limits were not measured.
pub(super) fn roofline(report: &Report) -> Option<String> {
    let m = &report.measures;
    let (speed, size, ease) = (m.speed.as_ref()?, m.size.as_ref()?, m.ease?);
    let (read, arithmetic) = (ease.read_gb_s?, ease.int8_gop_s?);
    let operations = size.base_bytes as f64; // two for each of base_bytes / 2 weights
    let bytes = [size.base_bytes as f64, m.memory?.quant_weights? as f64];
    let prompt = speed.prompt as f64;
    let point = |name: &str, tok_s: f64, bytes: f64, batch: f64| (name.to_string(), operations * batch / bytes, operations * tok_s / 1e9);
    let points = [
        (point("original, a token", speed.decode.base_tok_s, bytes[0], 1.0), "c"),
        (point("a token", speed.decode.quant_tok_s, bytes[1], 1.0), "a"),
        (point("original, a prompt", speed.prefill.base_tok_s, bytes[0], prompt), "c"),
        (point("a prompt", speed.prefill.quant_tok_s, bytes[1], prompt), "a"),
    ];
    let intensities: Vec<f64> = points.iter().map(|(p, _)| p.1).chain([0.3, 3000.0]).collect();
    let rates: Vec<f64> = points.iter().map(|(p, _)| p.2).chain([arithmetic, read * 0.5]).collect();
    let mut chart = Chart::new(
        "Roofline: operations a second over operations a byte",
        Axis::decades(&intensities),
        Axis::decades(&rates),
        ["operations for each byte of weights", "billion operations a second"],
        &tick,
    );
    let ridge = arithmetic / read;
    let low = 10f64.powf(intensities.iter().copied().fold(f64::INFINITY, f64::min).log10().floor());
    let high = 10f64.powf(intensities.iter().copied().fold(0.0, f64::max).log10().ceil());
    chart.line(&[(low, low * read), (ridge, arithmetic), (high, arithmetic)], "sb");
    // Of a pair the label of the higher point stands above it, that of the lower below, so that they never meet.
    let above: Vec<bool> = points.iter().enumerate().map(|(i, ((_, _, rate), _))| *rate > points[i ^ 1].0.2).collect();
    for (((name, intensity, rate), class), above) in points.into_iter().zip(above) {
        let place = chart.at(intensity, rate);
        let told = format!("{name}: {} operations a byte, {} billion a second", figure(intensity), figure(rate));
        chart.dot_labelled(place, 5.0, class, &name, &told, if above { -9.0 } else { 9.0 });
    }
    Some(chart.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_find_their_place() {
        assert_eq!(place("model.layers.3.mlp.down_proj"), ("down_proj".into(), Some(3)));
        assert_eq!(place("model.layers.3.mlp.experts.7.up_proj.weight"), ("up_proj".into(), Some(3)));
        assert_eq!(place("model.embed_tokens"), ("embed_tokens".into(), None));
        assert_eq!(place("h.0.attn.c_attn"), ("c_attn".into(), Some(0)));
    }

    #[test]
    fn labels_give_way_to_each_other() {
        let point =
            |name: &str, ppl_ratio| VariantPoint { name: name.into(), accepted: true, size_ratio: 0.3, ppl_ratio, decode_speedup: None };
        let drawn = variants(&[point("alpha", 1.0021), point("beta", 1.002), point("gamma", 1.05), point("delta", 1.0022)]).unwrap();
        let height = |name: &str| -> f64 {
            let end = drawn.find(&format!(">{name}</text>")).unwrap();
            drawn[drawn[..end].rfind("y=\"").unwrap() + 3..end].trim_end_matches('"').parse().unwrap()
        };
        let mut heights = ["alpha", "beta", "gamma", "delta", "original"].map(height);
        heights[..4].sort_by(f64::total_cmp);
        assert!(heights[..4].windows(2).all(|pair| pair[1] - pair[0] > LABEL_HEIGHT - 1.0), "{heights:?}");
    }

    #[test]
    fn nothing_to_show_is_left_out() {
        assert_eq!((variants(&[]), along(&[], 512), histogram(&Value::Null)), (None, None, None));
        assert_eq!((errors(&[]), bits(&[])), (None, None));
    }
}
