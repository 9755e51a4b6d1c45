//! A distillation that is stopped in the middle goes on to the same bytes, with another number of threads.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use octet_flow::{Calibration, DISTILLATION, Error, Prepared, QuantizeSettings};
use octet_formats::Folder;
use octet_kernels::{Engine, Isa};
use octet_quant::{Event, Recipe, Samples};
use octet_testkit::{Random, fixtures};
use std::{
    fs,
    num::NonZeroUsize,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

const RECIPE: &str = "[[step]]\naction = 'quantize'\ntargets = ['linears']\nscheme = 'w4ta16-g32'\nsolver = 'gptq'\n
                      [[step]]\naction = 'distill'\nsteps = 9\nbatch_tokens = 128\ncodes = 0.02\n";

fn engine(threads: usize) -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap()
}

/// Quantizes into `target`, stopping once so many steps of learning are done.
fn run(target: &Path, threads: usize, stop_after: Option<u64>) -> Result<(), Error> {
    let settings = QuantizeSettings { recipe: Recipe::from_toml(RECIPE).unwrap(), label: "learnt".into(), strict: false, seed: 0 };
    let prepared = Prepared::new(&Folder::disk(&fixtures().join("arch/qwen3")).unwrap(), |_| Ok(settings)).unwrap();
    let mut random = Random::new(5);
    let ids: Vec<u32> = (0..2048).map(|_| random.below(300) as u32).collect();
    let calibration = Calibration {
        texts: vec!["noise".into()],
        sources: vec![],
        field: None,
        length: 64,
        samples: Samples::draw(&ids, 16, 64, 0),
        text: Samples::draw(&ids, usize::MAX, 64, 0),
        sequential: true,
        memory_budget: u64::MAX,
        restart: false,
    };
    let cancel = AtomicBool::new(false);
    let mut steps = 0;
    let mut watch = |event: &Event<'_>| {
        let learning = event.what == DISTILLATION;
        steps += usize::from(learning);
        assert!(!learning || stop_after.is_some() || threads == 1 || event.done >= 4, "finished steps are not taken again");
        if learning && Some(event.done) == stop_after {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    prepared.write_calibrated(target, false, &calibration, &engine(threads), &cancel, &mut watch)?.commit()?;
    assert!(steps > 0);
    Ok(())
}

#[test]
fn stopped_in_the_middle_of_learning_it_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, again) = (dir.path().join("whole"), dir.path().join("again"));
    run(&whole, 1, None).unwrap();
    let stopped = run(&again, 1, Some(4)).unwrap_err();
    assert!(stopped.is_pause() && stopped.to_string().contains("after 4 of 9 steps"), "{stopped}");
    assert!(!again.exists());
    run(&again, 2, None).unwrap();
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&whole), names(&again));
    for name in names(&whole) {
        assert!(fs::read(whole.join(&name)).unwrap() == fs::read(again.join(&name)).unwrap(), "{name:?} differs");
    }
    let described: serde_json::Value = serde_json::from_slice(&fs::read(whole.join("quantization_config.json")).unwrap()).unwrap();
    assert_eq!(described["method"], "gptq+distill");
}
