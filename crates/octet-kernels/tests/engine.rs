//! Making engines, and running loops on them.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::engine;
use octet_kernels::{Engine, Isa, limits};
use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
};

#[test]
fn an_engine_knows_what_it_runs_on() {
    let engine = engine(Isa::Scalar, 3);
    assert_eq!((engine.isa(), engine.threads()), (Isa::Scalar, 3));
    assert_eq!(engine.clone().threads(), 3);
    let sum = AtomicUsize::new(0);
    engine.run(1000, &|i| {
        sum.fetch_add(i, Ordering::Relaxed);
    });
    assert_eq!(sum.into_inner(), 499_500);
}

#[test]
fn impossible_engines_are_refused_in_a_sentence() {
    let error = Engine::new(Isa::best(), NonZeroUsize::new(10_000).unwrap()).err().unwrap().to_string();
    assert!(error.contains("10000") && error.contains("1024"), "{error}");
    for isa in [Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni, Isa::Amx] {
        let made = Engine::new(isa, NonZeroUsize::MIN);
        assert_eq!(made.is_ok(), Isa::available().contains(&isa));
        if let Err(error) = made {
            assert!(error.to_string().contains(isa.name()) && error.to_string().contains("scalar"));
        }
    }
}

#[test]
fn limits_are_measured() {
    let engine = engine(Isa::best(), 1);
    for value in [limits::streaming_read_gb_s(&engine, 1 << 20), limits::int8_gop_s(&engine), limits::f32_gflop_s(&engine)] {
        assert!(value.is_finite() && value > 0.0);
    }
    let tiles = limits::int8_tile_gop_s(&engine);
    assert_eq!(tiles.is_some(), Isa::best() == Isa::Amx);
    // Vectors do what tiles could do eight times as fast.
    assert!(tiles.is_none_or(|tiles| tiles > limits::int8_gop_s(&engine)));
}
