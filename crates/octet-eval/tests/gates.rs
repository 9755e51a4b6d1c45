//! Every gate from figures alone: what passes, what is refused, what stays undecided, and the report around them.
#![allow(clippy::unwrap_used, reason = "tests")]

use octet_eval::{
    Measures, Report,
    degeneration::TextFigures,
    fidelity::KlFigures,
    gates::{self, Gate, Outcome, Status, Thresholds},
    health::{self, HealthOptions, HealthRun},
    integrity::{self, Check},
    machine::Machine,
    report::TextInfo,
    score::Comparison,
    size::Size,
    speed::{CacheCheck, PhaseSpeed, Speed},
    stats::Interval,
};

fn interval(low: f64, estimate: f64, high: f64) -> Option<Interval> {
    Some(Interval { estimate, low, high, blocks: 120 })
}

fn quality(low: f64, estimate: f64, high: f64) -> Gate {
    gates::quality(interval(low, estimate, high), estimate, 0, 100_000, 2048, &Thresholds::default())
}

#[test]
fn quality_passes_refuses_or_asks_for_text() {
    let good = quality(0.001, 0.003, 0.005);
    assert_eq!((good.outcome, good.pass, good.blocking), (Outcome::Passed, Some(true), true));
    assert!((good.value.unwrap() - 0.003f64.exp()).abs() < 1e-12 && good.ci95.unwrap()[1] < good.threshold.unwrap());
    assert_eq!(quality(0.03, 0.04, 0.05).outcome, Outcome::Failed);
    let unsure = quality(0.005, 0.015, 0.025);
    assert_eq!((unsure.outcome, unsure.pass), (Outcome::Undecided, Some(false)));
    assert!(unsure.note.contains("needs about") && unsure.note.contains("more tokens"), "{}", unsure.note);
    let thin = gates::quality(None, 0.001, 0, 3000, 2048, &Thresholds::default());
    assert_eq!(thin.outcome, Outcome::Undecided);
    let broken = gates::quality(None, f64::INFINITY, 3, 3000, 2048, &Thresholds::default());
    assert_eq!(broken.outcome, Outcome::Failed);
    assert!(broken.note.contains("not finite"));
    let few =
        gates::quality(Some(Interval { estimate: 0.0, low: -0.001, high: 0.001, blocks: 20 }), 0.0, 0, 1000, 50, &Thresholds::default());
    assert!(few.note.contains("20 blocks of text and is approximate"));
}

#[test]
fn fidelity_blocks_only_when_strict() {
    let kl = KlFigures { mean: 0.02, median: 0.01, p99: 0.2, max: 3.0 };
    let [kl_gate, top1] = gates::fidelity(&kl, 0.95, 8.0, &Thresholds::default());
    assert_eq!((kl_gate.outcome, kl_gate.blocking, top1.outcome), (Outcome::Failed, false, Outcome::Failed));
    assert_eq!(Status::of(&[kl_gate, top1], false), Status::Accepted);
    let strict = Thresholds { strict: true, ..Thresholds::default() };
    let eight = gates::fidelity(&kl, 0.95, 8.0, &strict);
    assert_eq!(Status::of(&eight, false), Status::Refused);
    let four = gates::fidelity(&kl, 0.95, 4.0, &strict);
    assert_eq!(Status::of(&four, false), Status::Accepted);
    let six = gates::fidelity(&kl, 0.95, 6.0, &strict);
    assert_eq!((six[0].outcome, six[1].outcome), (Outcome::Failed, Outcome::Passed));
    let infinite = KlFigures { mean: f64::INFINITY, ..kl };
    assert_eq!(gates::fidelity(&infinite, 0.95, 4.0, &strict)[0].outcome, Outcome::Failed);
    assert_eq!(gates::fidelity(&KlFigures { mean: f64::NAN, ..kl }, f64::NAN, 4.0, &strict).map(|g| g.outcome), [Outcome::Failed; 2]);
}

fn speed(low: f64, high: f64, served_from_cache: bool) -> Speed {
    let ratio = interval(low, (low + high) / 2.0, high);
    let phase = PhaseSpeed { base_tok_s: 10.0, quant_tok_s: 10.0, ratio, base_spread: None, quant_spread: None };
    let cache =
        CacheCheck { bytes: 8_000_000, read_gb_s: Some(60.0), large_bytes: 1 << 30, large_read_gb_s: Some(12.0), served_from_cache };
    Speed { decode: phase, prefill: phase, prompt: 256, threads: 2, isa: "scalar".into(), cache }
}

#[test]
fn speed_is_refused_only_when_proven_slow() {
    let limits = Thresholds::default();
    assert_eq!(gates::speed(&speed(1.6, 1.9, false), &limits).outcome, Outcome::Passed);
    assert_eq!(gates::speed(&speed(1.3, 1.6, false), &limits).outcome, Outcome::Passed);
    assert_eq!(gates::speed(&speed(1.1, 1.4, false), &limits).outcome, Outcome::Failed);
    let cached = gates::speed(&speed(1.1, 1.4, true), &limits);
    assert_eq!((cached.outcome, cached.threshold), (Outcome::Passed, Some(1.0)));
    assert!(cached.note.contains("read from cache (60 GB/s against 12 GB/s"), "{}", cached.note);
    assert_eq!(gates::speed(&speed(0.7, 0.9, true), &limits).outcome, Outcome::Failed);
    let mut unmeasured = speed(1.0, 1.0, false);
    unmeasured.decode.ratio = None;
    assert_eq!(gates::speed(&unmeasured, &limits).outcome, Outcome::Undecided);
}

fn sizes(bits_per_weight: f64, folder_bytes: u64) -> Size {
    let base_bytes = 8_000_000;
    let ratio = folder_bytes as f64 / base_bytes as f64;
    Size { quantized_weights: 1000, bits_per_weight, nominal_bits: 4.0, folder_bytes, base_bytes, ratio, forecast_bytes: Some(2_500_000) }
}

#[test]
fn size_counts_everything_and_holds_the_forecast() {
    let limits = Thresholds { max_bytes: Some(3_000_000), ..Thresholds::default() };
    let outcomes = |size: &Size| gates::size(size, &limits).iter().map(|g| g.outcome).collect::<Vec<_>>();
    assert_eq!(outcomes(&sizes(4.625, 2_510_000)), [Outcome::Passed; 3]);
    assert_eq!(outcomes(&sizes(4.8, 2_510_000)), [Outcome::Failed, Outcome::Passed, Outcome::Passed]);
    assert_eq!(outcomes(&sizes(4.2, 2_600_000)), [Outcome::Passed, Outcome::Failed, Outcome::Passed]);
    assert_eq!(outcomes(&sizes(4.2, 3_100_000)), [Outcome::Passed, Outcome::Failed, Outcome::Failed]);
    assert_eq!(gates::size(&Size { quantized_weights: 0, ..sizes(4.0, 1) }, &limits)[0].outcome, Outcome::Failed);
}

fn run(repetition: f64, non_finite: bool) -> HealthRun {
    let text = |i: usize| TextFigures { repetition: (repetition + 0.01 * i as f64).min(1.0), ..TextFigures::default() };
    let texts = || (0..16).map(text).collect();
    HealthRun { figures: [texts(), texts()], texts: [vec![], vec![]], non_finite }
}

#[test]
fn health_is_relative_to_the_original() {
    let options = HealthOptions::default();
    let judge = |base: f64, quant: f64| gates::health(&health::compare(&run(base, false), &run(quant, false), &options));
    assert_eq!(judge(0.2, 0.2).outcome, Outcome::Passed);
    assert_eq!(judge(0.6, 0.5).outcome, Outcome::Passed);
    let worse = judge(0.2, 0.6);
    assert_eq!(worse.outcome, Outcome::Failed);
    assert!(worse.note.contains("greedy repetition"), "{}", worse.note);
    let broken = gates::health(&health::compare(&run(0.2, false), &run(0.2, true), &options));
    assert!(broken.outcome == Outcome::Failed && broken.note.contains("not finite"));
    let nothing = HealthRun { figures: [vec![], vec![]], texts: [vec![], vec![]], non_finite: false };
    assert_eq!(gates::health(&health::compare(&nothing, &nothing, &options)).outcome, Outcome::Undecided);
}

#[test]
fn integrity_needs_every_check() {
    let fine = integrity::same_bytes("tokenizer.json", Some(b"x"), Some(b"x"));
    let changed = integrity::same_bytes("chat_template.jinja", Some(b"x"), Some(b"y"));
    assert_eq!(gates::integrity(std::slice::from_ref(&fine)).outcome, Outcome::Passed);
    let gate = gates::integrity(&[fine, changed]);
    assert_eq!((gate.outcome, gate.value), (Outcome::Failed, Some(1.0)));
    assert!(gate.note.contains("chat_template.jinja: differs"), "{}", gate.note);
    assert_eq!(gates::integrity(&[]).outcome, Outcome::Undecided);
}

#[test]
fn the_status_follows_from_blocking_gates() {
    let gate = |outcome| Gate::new("g", 1.0, 1.0, outcome, "");
    let (passed, failed, unsure) = (gate(Outcome::Passed), gate(Outcome::Failed), gate(Outcome::Undecided));
    let skipped = Gate::not_applicable("speed", "the original against itself");
    assert_eq!((skipped.pass, skipped.outcome), (None, Outcome::NotApplicable));
    let status = |gates: &[&Gate]| Status::of(&gates.iter().map(|g| (*g).clone()).collect::<Vec<_>>(), false);
    assert_eq!(status(&[&passed, &skipped]), Status::Accepted);
    assert_eq!(status(&[&passed, &unsure]), Status::Undecided);
    assert_eq!(status(&[&unsure, &failed, &passed]), Status::Refused);
    assert_eq!(Status::of(&[passed], true), Status::FellBack);
}

#[test]
fn the_report_has_the_promised_fields_and_reads_back() {
    let windows = (0..30).map(|i| octet_eval::paired::PairedWindow {
        tokens: 100,
        bytes: 300,
        base_nll: 250.0 + f64::from(i),
        quant_nll: 251.0 + f64::from(i),
    });
    let comparison = Comparison { windows: windows.collect(), kl: vec![0.0, f32::INFINITY, 0.01], same_top: 2, ..Comparison::default() };
    let text = TextInfo { name: "t".into(), tokens: 3000, bytes: 9000, windows: 30, blocks: 30, context: 101, bos: false };
    let (mut measures, paired, point) = Measures::of_pair(text, &comparison, octet_eval::looks::Look::Only, 1);
    assert!((point - 0.01).abs() < 1e-9 && paired.is_some());
    measures.speed = Some(speed(1.6, 1.9, false));
    measures.size = Some(sizes(4.1, 2_500_000));
    measures.health = Some(health::compare(&run(0.2, false), &run(0.2, false), &HealthOptions::default()));
    measures.memory = Some(Default::default());
    measures.integrity = vec![Check::new("reopened", Ok(()))];
    let gate = gates::quality(paired, point, 0, 3000, 101, &Thresholds::default());
    let machine = Machine { cpu: "c".into(), cores: 2, threads: 2, isa: "avx2".into(), os: "linux-x86_64".into(), version: "0".into() };
    let report = Report::new("w4a16-g128-sym".into(), vec![gate], false, measures, machine, vec!["octet".into(), "quantize".into()]);
    let json = report.to_json().unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    for pointer in [
        "/schema_version",
        "/scheme",
        "/machine/cpu",
        "/command/0",
        "/gates/0/name",
        "/gates/0/value",
        "/gates/0/ci95/1",
        "/gates/0/threshold",
        "/gates/0/pass",
        "/gates/0/blocking",
        "/gates/0/note",
        "/measures/ppl/base",
        "/measures/ppl/quant",
        "/measures/ppl/ratio",
        "/measures/kl/mean",
        "/measures/kl/p99",
        "/measures/kl/max",
        "/measures/top1",
        "/measures/bits_per_byte/delta",
        "/measures/size/bits_per_weight",
        "/measures/speed/decode/ratio/estimate",
        "/measures/memory",
        "/measures/health/figures/0/p",
    ] {
        assert!(value.pointer(pointer).is_some(), "{pointer} is missing from {json}");
    }
    assert_eq!(value["status"], "accepted");
    assert!(value.get("trinity").is_none());
    let back: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(back.measures.kl.unwrap().max, f64::INFINITY);
    assert_eq!(back.gates, report.gates);
}
