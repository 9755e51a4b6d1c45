//! What is fuzzed (`fuzz/`), here for a moment and on stable: every kept input, those that once failed among them, and changes of it.
#![allow(clippy::unwrap_used, unsafe_code, reason = "a test fails by panicking; an allocator is unsafe by its nature")]

#[path = "../../../fuzz/src/memory.rs"]
mod memory;
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use octet_testkit::Random;
use std::{collections::BTreeMap, path::PathBuf};

/// Changes tried of an input; of large ones fewer.
const CHANGES: usize = 150;

/// Inputs of a target by name.
fn inputs(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/fuzz").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    files
        .map(|file| file.unwrap())
        .map(|file| (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).unwrap()))
        .collect()
}

/// Runs a target and holds it to its memory; a failure names the input.
fn run(target: &targets::Target, name: &str, input: &[u8]) {
    let held = std::panic::catch_unwind(|| memory::most(|| (target.run)(input)));
    let text = || String::from_utf8_lossy(input).chars().take(400).collect::<String>();
    let most = held.unwrap_or_else(|_| panic!("{} panics on a change of {name}: {}", target.name, text()));
    let allowed = targets::FACTOR * input.len() + target.room;
    assert!(most <= allowed, "{} held {most} bytes for {} of {name}: {}", target.name, input.len(), text());
}

/// Numbers that lie.
const EDGES: [u64; 6] = [0, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX];

/// The input with one thing changed.
fn changed(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = input.to_vec();
    if out.is_empty() {
        return out;
    }
    let (at, from) = (random.below(out.len()), random.below(out.len()));
    match random.below(6) {
        0 => out[at] ^= 1 << random.below(8),
        1 => out[at] = random.below(256) as u8,
        2 => out.truncate(at),
        3 => {
            let bytes = EDGES[random.below(EDGES.len())].to_le_bytes();
            out.iter_mut().skip(at).zip(bytes).for_each(|(byte, edge)| *byte = edge);
        }
        4 => drop(out.drain(at..(at + 1 + random.below(8)).min(input.len()))),
        _ => {
            let part = input[from..(from + 1 + random.below(16)).min(input.len())].to_vec();
            out.splice(at..at, part);
        }
    }
    out
}

#[test]
fn kept_inputs_and_changes_of_them_are_read_or_refused() {
    for target in &targets::ALL {
        let (inputs, mut random) = (inputs(target.name), Random::new(8));
        assert!(!inputs.is_empty(), "{} has nothing to begin with", target.name);
        for (name, input) in &inputs {
            run(target, name, input);
            let changes = CHANGES * 4096 / input.len().max(4096);
            (0..changes).for_each(|_| run(target, name, &changed(input, &mut random)));
        }
    }
}
