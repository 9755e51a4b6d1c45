//! What `octet bench` prints for people: a table a model, at most eighty columns wide.

use super::bench::Figures;
use crate::ui;
use octet_eval::bench::Pace;
use std::{path::Path, time::Duration};

/// Prints all figures.
pub(crate) fn show(all: &[Figures]) {
    for figures in all {
        ui::say(&text(figures));
    }
    if let Some(first) = all.first() {
        ui::say(&footer(first, all.len() > 1));
    }
}

/// The last part of a model's path, as its name in tables and drawings.
pub(crate) fn short(model: &str) -> String {
    let name = Path::new(model).file_name().map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| model.to_string())
}

/// Decoding in words, such as `decode at 2048 x8`.
pub(crate) fn decode_name(context: usize, batch: usize) -> String {
    let at = if context == 0 { String::new() } else { format!(" at {context}") };
    let together = if batch == 1 { String::new() } else { format!(" x{batch}") };
    format!("decode{at}{together}")
}

fn text(f: &Figures) -> String {
    let ms = |ms: f64| ui::duration(Duration::from_secs_f64(ms / 1e3));
    let memory = f.peak_rss_mb.map_or("not told here".into(), |mb| format!("{mb:.0} MB"));
    let name = short(&f.model);
    let head = format!("{name}  {}, {:.0} MB of weights a step", f.scheme, f.weight_mb);
    let start = format!("  loaded in {}, first token after {}, peak memory {memory}", ms(f.load_ms), ms(f.first_token_ms));
    let m = &f.measured;
    let prefill = m.prefill.iter().map(|p| row(format!("  prefill {}", p.tokens), &p.pace, format!("{:.0} GOP/s", p.gop_s)));
    let decode = m.decode.iter().map(|d| row(format!("  {}", decode_name(d.context, d.batch)), &d.pace, format!("{:.1} GB/s", d.gb_s)));
    let rows: Vec<Vec<String>> = prefill.chain(decode).collect();
    let ratios = m.prefill.iter().map(|p| &p.pace).chain(m.decode.iter().map(|d| &d.pace)).any(|pace| pace.ratio.is_some());
    let mut header = vec!["  phase", "tok/s", "spread", "rate", "of limit", "CPU ms"];
    if ratios {
        header.push("vs first");
    }
    let limits = format!("  limits: read {:.1} GB/s, int8 {:.0} GOP/s", m.limits.read_gb_s, m.limits.int8_gop_s);
    let mut tile_limit = String::new();
    if let Some(tiles) = m.limits.int8_tile_gop_s {
        let of_it: Vec<String> =
            m.prefill.iter().filter_map(|p| Some(format!("prefill {} {:.0} %", p.tokens, 100.0 * p.tile_share?))).collect();
        let of_it = if of_it.is_empty() { String::new() } else { format!(" ({})", of_it.join(", ")) };
        tile_limit = format!("\n          of AMX tiles {tiles:.0} GOP/s{of_it}");
    }
    format!("{head}\n{start}\n{}\n{limits}, f32 {:.0} GFLOP/s{tile_limit}\n", ui::table(&header, &rows), m.limits.f32_gflop_s)
}

fn row(name: String, pace: &Pace, rate: String) -> Vec<String> {
    let [low, high] = pace.tok_s_quartiles;
    let mut row = vec![
        name,
        format!("{:.1}", pace.tok_s),
        format!("{:.1} %", 100.0 * (high - low) / pace.tok_s),
        rate,
        format!("{:.0} %", 100.0 * pace.share),
        pace.cpu_ms_per_token.map_or("-".into(), |ms| format!("{ms:.2}")),
    ];
    row.extend(pace.ratio.map(|ratio| format!("{:.2}x", ratio.estimate)));
    row
}

fn footer(first: &Figures, several: bool) -> String {
    let joules = |pace: &Pace| pace.joules_per_token.map(|joules| format!("{joules:.3} J"));
    let m = &first.measured;
    let prefill = m.prefill.last().and_then(|p| joules(&p.pace));
    let decode = m.decode.first().and_then(|d| joules(&d.pace));
    let energy = match (prefill, decode) {
        (None, None) => "not available (no RAPL counters that can be read)".to_string(),
        (prefill, decode) => {
            let say = |name: &str, joules: Option<String>| joules.map(|joules| format!("{joules} a token of {name}"));
            [say("prefill", prefill), say("decoding", decode)].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
    };
    let mut lines = vec![
        format!("{} threads, {}; medians; spread between quartiles; CPU ms a token", first.threads, first.isa),
        "of limit: prefill against int8 arithmetic, decoding against a streaming read".to_string(),
    ];
    if first.measured.decode.iter().any(|d| d.batch > 1) {
        lines.push("xN: N sequences decode together, their tokens added up".into());
    }
    if several {
        lines.push("vs first: paired ratios of speed; --json has their intervals".into());
    }
    lines.push(format!("energy: {energy}"));
    lines.join("\n")
}
