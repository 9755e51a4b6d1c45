//! The state machine drawn: as Mermaid text and as one self-contained SVG, with the path a run took.

use super::{Entry, Kind, TRANSITIONS};
use std::{collections::BTreeMap, fmt::Write};

/// How often a run went from one state to another.
fn path(entries: &[Entry]) -> BTreeMap<(Kind, Kind), usize> {
    let mut taken = BTreeMap::new();
    // Rungs that were passed over are decisions within a review.
    let states: Vec<Kind> = entries.iter().filter(|entry| entry.decision != super::Decision::Skip).map(|entry| entry.state).collect();
    for pair in states.windows(2) {
        *taken.entry((pair[0], pair[1])).or_default() += 1;
    }
    taken
}

/// The machine as a Mermaid state diagram; transitions that `entries` took are counted.
pub fn mermaid(entries: &[Entry]) -> String {
    let taken = path(entries);
    let mut out = "stateDiagram-v2\n    [*] --> evaluate\n".to_string();
    for (from, to, when) in TRANSITIONS {
        let count = taken.get(&(*from, *to)).map_or(String::new(), |n| format!(" ({n} times)"));
        let _ = writeln!(out, "    {} --> {}: {when}{count}", from.name(), to.name());
    }
    out + "    done --> [*]\n"
}

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#222}.when{font-size:11px;fill:#555}.ground{fill:#fff}\
.node{fill:#f3f5f8;stroke:#667}.edge{stroke:#99a;fill:none;stroke-width:1.5}.taken{stroke:#0072b2;stroke-width:3}.tip{fill:#667}\
@media(prefers-color-scheme:dark){text{fill:#eee}.when{fill:#bbb}.ground{fill:#161616}.node{fill:#262a30;stroke:#99a}.edge{stroke:#667}.taken{stroke:#56b4e9}.tip{fill:#99a}}";

/// Width and height of a node, and where nodes stand: left to right, with `done` and `ask` below the review.
const NODE: (f64, f64) = (120.0, 44.0);

fn place(kind: Kind) -> (f64, f64) {
    match kind {
        Kind::Evaluate => (90.0, 110.0),
        Kind::Quantize => (290.0, 110.0),
        Kind::Validate => (490.0, 110.0),
        Kind::Review => (690.0, 110.0),
        Kind::Ask => (490.0, 240.0),
        Kind::Done => (690.0, 240.0),
    }
}

/// The machine as an SVG; the path that `entries` took stands out.
pub fn svg(entries: &[Entry]) -> String {
    let taken = path(entries);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 780 300\" role=\"img\"><title>States and transitions of a run</title>\
         <style>{STYLE}</style><rect class=\"ground\" width=\"780\" height=\"300\"/>\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" markerUnits=\"userSpaceOnUse\" orient=\"auto\">\
         <path class=\"tip\" d=\"M0 0L8 4L0 8z\"/></marker></defs>"
    );
    for (from, to, when) in TRANSITIONS {
        let count = taken.get(&(*from, *to));
        let class = if count.is_some() { "edge taken" } else { "edge" };
        let (d, (x, y)) = edge(place(*from), place(*to));
        let label = count.filter(|n| **n > 1).map_or_else(|| (*when).to_string(), |n| format!("{when} ({n})"));
        let _ = write!(
            out,
            "<path class=\"{class}\" marker-end=\"url(#tip)\" d=\"{d}\"/><text class=\"when\" text-anchor=\"middle\" x=\"{x:.0}\" y=\"{y:.0}\">{label}</text>"
        );
    }
    for kind in Kind::ALL {
        let (x, y) = place(kind);
        let visits = entries.iter().filter(|entry| entry.state == kind && entry.decision != super::Decision::Skip).count();
        let name = if visits > 1 { format!("{} ×{visits}", kind.name()) } else { kind.name().into() };
        let (left, top) = (x - NODE.0 / 2.0, y - NODE.1 / 2.0);
        let _ = write!(
            out,
            "<rect class=\"node\" x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" rx=\"8\"/><text text-anchor=\"middle\" x=\"{x}\" y=\"{}\">{name}</text>",
            NODE.0,
            NODE.1,
            y + 4.0
        );
    }
    out + "</svg>\n"
}

/// The line between two nodes and where its label stands.
fn edge((x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> (String, (f64, f64)) {
    let (w, h) = (NODE.0 / 2.0, NODE.1 / 2.0);
    if (y1 - y2).abs() < 1.0 && x2 > x1 {
        return (format!("M{} {y1}L{} {y2}", x1 + w, x2 - w), ((x1 + x2) / 2.0, y1 - 8.0));
    }
    if (y1 - y2).abs() < 1.0 {
        // Back to an earlier state, over the top.
        let top = y1 - h - 46.0;
        return (format!("M{x1} {}C{x1} {top} {x2} {top} {x2} {}", y1 - h, y2 - h), ((x1 + x2) / 2.0, top + 2.0));
    }
    if (x1 - x2).abs() < 1.0 {
        return (format!("M{x1} {}L{x2} {}", y1 + h, y2 - h), (x1 + 24.0, (y1 + y2) / 2.0 + 4.0));
    }
    (format!("M{} {}L{} {}", x1 - w / 2.0, y1 + h, x2 + w / 2.0, y2 - h), ((x1 + x2) / 2.0 - 26.0, (y1 + y2) / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_transition_is_drawn() {
        let (text, drawn) = (mermaid(&[]), svg(&[]));
        for kind in Kind::ALL {
            assert!(text.contains(kind.name()) && drawn.contains(&format!(">{}</text>", kind.name())), "{kind:?}");
        }
        assert_eq!(drawn.matches("class=\"edge\"").count(), TRANSITIONS.len());
        assert_eq!(text.lines().count(), TRANSITIONS.len() + 3);
    }
}
