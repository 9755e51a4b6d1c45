use super::*;
use proptest::prelude::*;

/// A good 8-bit model where memory is the bound.
const GOOD_INT8: Inputs = Inputs {
    ppl_ratio: Some(1.0005),
    kl: Some(0.0008),
    top1: Some(0.985),
    size_ratio: Some(0.53),
    resident_ratio: Some(0.53),
    decode_speedup: Some(1.8),
    prefill_speedup: Some(1.1),
    health_excess: Some(0.001),
    load_ms: Some(400.0),
    excess_spread: Some(0.02),
    memory_share: Some(0.1),
    integrity: Some(1.0),
    provenance: Some(1.0),
};

const ORIGINAL: Inputs = Inputs {
    ppl_ratio: Some(1.0),
    kl: Some(0.0),
    top1: Some(1.0),
    size_ratio: Some(1.0),
    resident_ratio: Some(1.0),
    decode_speedup: Some(1.0),
    prefill_speedup: Some(1.0),
    health_excess: Some(0.0),
    load_ms: Some(400.0),
    excess_spread: Some(0.0),
    memory_share: Some(0.2),
    integrity: Some(1.0),
    provenance: Some(1.0),
};

fn score(inputs: &Inputs) -> f64 {
    Trinity::of(inputs).score
}

/// Every input with whether more of it is better.
type Slot = fn(&mut Inputs) -> &mut Option<f64>;
const SLOTS: [(&str, Slot, bool); 13] = [
    ("perplexity", |i| &mut i.ppl_ratio, false),
    ("kl", |i| &mut i.kl, false),
    ("top1", |i| &mut i.top1, true),
    ("size", |i| &mut i.size_ratio, false),
    ("resident", |i| &mut i.resident_ratio, false),
    ("decode", |i| &mut i.decode_speedup, true),
    ("prefill", |i| &mut i.prefill_speedup, true),
    ("health", |i| &mut i.health_excess, false),
    ("load", |i| &mut i.load_ms, false),
    ("spread", |i| &mut i.excess_spread, false),
    ("memory", |i| &mut i.memory_share, false),
    ("integrity", |i| &mut i.integrity, true),
    ("provenance", |i| &mut i.provenance, true),
];

fn any_inputs() -> impl Strategy<Value = Inputs> {
    proptest::collection::vec(0.0..1.0f64, 13).prop_map(|u| Inputs {
        ppl_ratio: Some(0.95 + 0.3 * u[0]),
        kl: Some(0.3 * u[1] * u[1]),
        top1: Some(0.7 + 0.3 * u[2]),
        size_ratio: Some(0.1 + 1.2 * u[3]),
        resident_ratio: Some(0.1 + 1.2 * u[4]),
        decode_speedup: Some(0.3 + 3.0 * u[5]),
        prefill_speedup: Some(0.3 + 3.0 * u[6]),
        health_excess: Some(0.1 * u[7] * u[7]),
        load_ms: Some(10f64.powf(5.0 * u[8])),
        excess_spread: Some(1.5 * u[9]),
        memory_share: Some(1.5 * u[10]),
        integrity: Some(u[11]),
        provenance: Some(u[12]),
    })
}

proptest! {
    #[test]
    fn worse_never_scores_more(inputs in any_inputs(), which in 0usize..13, factor in 1.0..3.0f64) {
        let (name, slot, more_is_better) = SLOTS[which];
        let mut worse = inputs;
        let value = slot(&mut worse);
        *value = value.map(|v| if more_is_better { v / factor } else { v * factor });
        prop_assert!(score(&worse) <= score(&inputs) + 1e-12, "{name}");
        *slot(&mut worse) = None;
        prop_assert!(score(&worse) <= score(&inputs) + 1e-12, "{name}: not measuring pays");
        prop_assert!(Trinity::of(&worse).partial);
    }

    #[test]
    fn scores_stay_between_0_and_100(inputs in any_inputs()) {
        prop_assert!((0.0..=100.0).contains(&score(&inputs)));
    }
}

#[test]
fn the_points_are_a_hundred_and_every_pillar_has_its_weight() {
    let weights: Vec<f64> = Trinity::of(&ORIGINAL).pillars.iter().map(|pillar| pillar.most).collect();
    assert_eq!(weights, [35.0, 35.0, 20.0, 8.0, 2.0]);
}

#[test]
fn nothing_measured_scores_nothing_so_there_is_no_bonus() {
    let nothing = Trinity::of(&Inputs::default());
    assert_eq!((nothing.score, nothing.partial, nothing.not_measured.len()), (0.0, true, 13));
    let worst = Inputs {
        ppl_ratio: Some(9.0),
        kl: Some(f64::INFINITY),
        top1: Some(0.0),
        size_ratio: Some(2.0),
        resident_ratio: Some(2.0),
        decode_speedup: Some(0.1),
        prefill_speedup: Some(0.0),
        health_excess: Some(f64::INFINITY),
        load_ms: Some(1e9),
        excess_spread: Some(9.0),
        memory_share: Some(9.0),
        integrity: Some(0.0),
        provenance: Some(0.0),
    };
    assert_eq!(score(&worst), 0.0);
}

#[test]
fn the_original_scores_all_but_goodness_and_an_equal_variant_the_same() {
    assert!((score(&ORIGINAL) - 65.0).abs() < 1e-9, "{}", score(&ORIGINAL));
    let equal = ORIGINAL;
    assert_eq!(score(&equal), score(&ORIGINAL));
}

#[test]
fn every_input_changes_the_score() {
    // Away from saturation.
    let middling = Inputs {
        ppl_ratio: Some(1.01),
        kl: Some(0.02),
        top1: Some(0.92),
        decode_speedup: Some(1.3),
        prefill_speedup: Some(1.3),
        health_excess: Some(0.01),
        load_ms: Some(5000.0),
        excess_spread: Some(0.4),
        memory_share: Some(0.7),
        integrity: Some(0.9),
        provenance: Some(0.5),
        ..GOOD_INT8
    };
    for (name, slot, _) in SLOTS {
        let mut other = middling;
        let value = slot(&mut other);
        *value = value.map(|v| v * 1.001);
        assert_ne!(score(&other), score(&middling), "{name}");
    }
}

#[test]
fn only_a_good_int8_reaches_95() {
    assert!(score(&GOOD_INT8) >= 95.0, "{}", score(&GOOD_INT8));
    let dynamic = Inputs { ppl_ratio: Some(1.0019), kl: Some(0.00174), top1: Some(0.97), prefill_speedup: Some(1.9), ..GOOD_INT8 };
    assert!(score(&dynamic) >= 95.0, "{}", score(&dynamic));
    let not_good = [
        ("worse text", Inputs { ppl_ratio: Some(1.01), kl: Some(0.01), top1: Some(0.94), ..GOOD_INT8 }),
        ("hardly faster", Inputs { decode_speedup: Some(1.3), ..GOOD_INT8 }),
        ("hardly smaller", Inputs { size_ratio: Some(0.8), resident_ratio: Some(0.8), ..GOOD_INT8 }),
        ("loops", Inputs { health_excess: Some(0.01), ..GOOD_INT8 }),
        ("slow to load and uneven", Inputs { load_ms: Some(20_000.0), excess_spread: Some(0.8), ..GOOD_INT8 }),
        ("text not measured", Inputs { health_excess: None, ..GOOD_INT8 }),
        (
            "4 bits of a small model",
            Inputs {
                ppl_ratio: Some(1.0155),
                kl: Some(0.0166),
                top1: Some(0.916),
                size_ratio: Some(0.353),
                resident_ratio: Some(0.35),
                decode_speedup: Some(2.9),
                prefill_speedup: Some(1.2),
                ..GOOD_INT8
            },
        ),
    ];
    for (name, inputs) in not_good {
        assert!(score(&inputs) < 95.0, "{name}: {}", score(&inputs));
    }
}

#[test]
fn broken_numbers_are_worth_nothing() {
    for curve in TERMS.map(|term| term.curve) {
        assert_eq!(curve.worth(f64::NAN), 0.0);
        for value in [-1.0, 0.0, 1e-12, 0.3, 1.0, 7.0, f64::INFINITY] {
            assert!((0.0..=1.0).contains(&curve.worth(value)), "{curve:?} of {value}");
        }
    }
}

#[test]
fn only_what_chance_does_not_explain_counts_as_degenerate() {
    use crate::health::{Health, HealthFigure};
    let health = |p: f64, quant: f64| Health {
        prompts: 16,
        tokens: 256,
        figures: (0..10).map(|i| HealthFigure { mode: "greedy".into(), name: i.to_string(), base: 0.3, quant, p }).collect(),
        alpha: 1e-4,
        non_finite: false,
    };
    let excess = |p, quant| inputs::excess(&health(p, quant)).unwrap();
    assert_eq!((excess(0.5, 0.5), excess(0.025, 0.5), excess(1e-6, 0.2)), (0.0, 0.0, 0.0));
    assert!((excess(0.0, 0.5) - 0.2).abs() < 1e-12);
    assert!(excess(1e-3, 0.5) > excess(1e-2, 0.5) && excess(1e-2, 0.5) > 0.0);
    assert_eq!(inputs::excess(&Health { non_finite: true, ..health(1.0, 0.3) }), Some(f64::INFINITY));
    assert_eq!(inputs::excess(&Health { prompts: 0, ..health(1.0, 0.3) }), None);
}

#[test]
fn every_measurement_of_a_report_that_counts_changes_the_score() {
    use crate::{
        Measures, Report,
        fidelity::KlFigures,
        health::{Health, HealthFigure},
        integrity::Check,
        machine::Machine,
        report::{Ease, Memory, Perplexity},
        size::Size,
        speed::{CacheCheck, PhaseSpeed, Speed},
        stats::Interval,
    };
    let phase = |estimate: f64| PhaseSpeed {
        base_tok_s: 100.0,
        quant_tok_s: 100.0 * estimate,
        ratio: Some(Interval { estimate, low: estimate, high: estimate, blocks: 8 }),
        base_spread: Some(0.1),
        quant_spread: Some(0.5),
    };
    let measures = Measures {
        ppl: Some(Perplexity { base: 10.0, base_ci95: None, quant: Some(10.1), quant_ci95: None, ratio: Some(1.01), ratio_ci95: None }),
        kl: Some(KlFigures { mean: 0.02, median: 0.01, p99: 0.1, max: 1.0 }),
        top1: Some(0.92),
        size: Some(Size {
            quantized_weights: 1,
            bits_per_weight: 8.1,
            nominal_bits: 8.0,
            folder_bytes: 530,
            base_bytes: 1000,
            ratio: 0.53,
            forecast_bytes: None,
        }),
        speed: Some(Speed {
            decode: phase(1.3),
            prefill: phase(1.2),
            prompt: 256,
            threads: 1,
            isa: "scalar".into(),
            cache: CacheCheck { bytes: 0, read_gb_s: None, large_bytes: 0, large_read_gb_s: None, served_from_cache: false },
        }),
        memory: Some(Memory { quant_weights: Some(600), ..Memory::default() }),
        ease: Some(Ease { load_ms: Some(5000.0), free_bytes: Some(800), provenance: Some(0.5), ..Ease::default() }),
        health: Some(Health {
            prompts: 32,
            tokens: 256,
            figures: vec![HealthFigure { mode: "greedy".into(), name: "repetition".into(), base: 0.3, quant: 0.31, p: 1e-3 }],
            alpha: 1e-4,
            non_finite: false,
        }),
        integrity: [true, false].map(|pass| Check { name: "c".into(), pass, note: String::new() }).into(),
        ..Measures::default()
    };
    let machine = Machine { cpu: "c".into(), cores: 1, threads: 1, isa: "scalar".into(), os: "o".into(), version: "v".into() };
    let scored = |change: &dyn Fn(&mut Measures)| {
        let mut measures = measures.clone();
        change(&mut measures);
        Trinity::of(&Inputs::of(&Report::new("w8a16".into(), vec![], false, measures, machine.clone(), vec![])))
    };
    let plain = scored(&|_| ());
    assert!(!plain.partial, "{:?}", plain.not_measured);
    type Change = (&'static str, Box<dyn Fn(&mut Measures)>);
    let changes: [Change; 14] = [
        ("perplexity", Box::new(|m| m.ppl.as_mut().unwrap().ratio = Some(1.02))),
        ("divergence", Box::new(|m| m.kl.as_mut().unwrap().mean = 0.03)),
        ("agreement", Box::new(|m| m.top1 = Some(0.91))),
        ("size", Box::new(|m| m.size.as_mut().unwrap().ratio = 0.54)),
        ("resident weights", Box::new(|m| m.memory.as_mut().unwrap().quant_weights = Some(610))),
        ("decoding", Box::new(|m| m.speed.as_mut().unwrap().decode.ratio.as_mut().unwrap().estimate = 1.29)),
        ("prompts", Box::new(|m| m.speed.as_mut().unwrap().prefill.ratio.as_mut().unwrap().estimate = 1.19)),
        ("spread", Box::new(|m| m.speed.as_mut().unwrap().decode.quant_spread = Some(0.51))),
        ("the original's spread", Box::new(|m| m.speed.as_mut().unwrap().decode.base_spread = Some(0.09))),
        ("texts", Box::new(|m| m.health.as_mut().unwrap().figures[0].quant = 0.32)),
        ("chance", Box::new(|m| m.health.as_mut().unwrap().figures[0].p = 1e-2)),
        ("loading", Box::new(|m| m.ease.as_mut().unwrap().load_ms = Some(5100.0))),
        ("files", Box::new(|m| m.integrity[1].pass = true)),
        ("provenance", Box::new(|m| m.ease.as_mut().unwrap().provenance = Some(0.75))),
    ];
    for (name, change) in changes {
        assert_ne!(scored(&*change).score, plain.score, "{name}");
    }
}
