//! What a person sees of the ladder: each rung with its figures and its reason.

use super::verdict;
use crate::ui::{self, Tone};
use octet_eval::{Report, report::RungReport, trinity::Trinity};
use octet_flow::machine::Question;

/// Every rung, two lines each: figures, and why.
pub(super) fn rungs(tried: &[RungReport]) -> String {
    let figure = |value: Option<f64>, show: &dyn Fn(f64) -> String| value.map_or_else(|| "-".to_string(), show);
    let header = ["rung", "scheme", "verdict", "ppl", "KL", "size", "speed", "score"];
    let row = |rung: &RungReport| -> Vec<String> {
        vec![
            rung.rung.clone(),
            rung.scheme.clone(),
            rung.outcome.clone(),
            figure(rung.ratio, &|r| format!("{:+.2}%", 100.0 * (r - 1.0))),
            figure(rung.kl, &|kl| format!("{kl:.4}")),
            figure(rung.size_ratio, &|r| format!("{r:.2}")),
            figure(rung.decode_speedup, &|s| format!("{s:.1}x")),
            figure(rung.score, &|s| format!("{s:.1}")),
        ]
    };
    let measured: Vec<&RungReport> = tried.iter().filter(|rung| rung.ratio.is_some()).collect();
    let rows: Vec<Vec<String>> = measured.iter().map(|rung| row(rung)).collect();
    let mut lines = vec![ui::table(&header, &rows), String::new()];
    for rung in tried {
        let scheme = if rung.scheme.is_empty() { String::new() } else { format!(" ({})", rung.scheme) };
        lines.push(paragraph(&format!("{}{scheme} {}: {}", rung.rung, rung.outcome, rung.note), 2));
    }
    lines.join("\n")
}

/// The score's pillars, a line each.
pub(super) fn score(trinity: &Trinity) -> String {
    let pillars: Vec<String> = trinity.pillars.iter().map(|p| format!("{} {:.1}/{:.0}", p.name, p.points, p.most)).collect();
    let partial = if trinity.partial { " (partial)" } else { "" };
    let head = format!("  score       {:.1} of 100{partial}", trinity.score);
    format!("{head}\n{}", paragraph(&pillars.join(", "), 14))
}

/// What a person is asked about `model`, behind all figures that bear on it.
pub(super) fn question(model: &str, question: &Question, report: &Report) -> String {
    let figures = verdict::figures(model, report, &ui::paint("PASSED", Tone::Open));
    let mut lines = vec![format!("{figures}\n  ASK: {}", question.question)];
    lines.extend(question.reasons.iter().map(|reason| paragraph(&format!("- {reason}"), 4)));
    lines.join("\n")
}

/// `text` in lines that fit, each behind `indent` blanks; what runs on is two further in.
pub(super) fn paragraph(text: &str, indent: usize) -> String {
    let (mut lines, mut line) = (vec![], " ".repeat(indent));
    for word in text.split_whitespace() {
        if line.chars().count() + word.chars().count() + 1 > ui::WIDTH && !line.trim().is_empty() {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent + 2)));
        }
        if !line.trim().is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_fits_a_terminal() {
        let rung = RungReport {
            rung: "more calibration".into(),
            scheme: "w4a16-g32-asym".into(),
            outcome: "undecided".into(),
            note: "the perplexity is undecided, ".repeat(9),
            ratio: Some(1.1234),
            kl: Some(0.123_456),
            size_ratio: Some(0.271),
            decode_speedup: Some(12.345),
            score: Some(88.8),
            ..RungReport::default()
        };
        let text = rungs(&[rung.clone(), RungReport { ratio: None, ..rung }]);
        assert!(text.lines().all(|line| line.chars().count() <= ui::WIDTH), "{text}");
        assert_eq!(text.lines().filter(|line| line.contains("+12.34%")).count(), 1, "{text}");
    }
}
