//! Adapters that PEFT and MLX trained, applied to their bases, against the logits those tools computed; and written again.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

use octet_formats::{
    Folder,
    peft::{self, Adapter},
};
use octet_testkit::npy_f32;
use support::{compare, find, logits};

/// Adapter, base, the tool's logits.
const CASES: [(&str, &str, &str); 5] = [
    ("peft/lora-r8", "peft-base/llama", "logits.npy"),
    ("peft/dora-r4", "peft-base/llama", "logits.npy"),
    ("peft/lora-rank-pattern", "peft-base/llama", "logits.npy"),
    ("mlx/lora-on-b4", "mlx/b4-g64-llama", "logits_f32.npy"),
    ("mlx/lora-on-bf16", "peft-base/llama", "logits_f32.npy"),
];

#[test]
fn adapters_add_what_their_tools_add() {
    for (name, base, golden) in CASES {
        let (Some(path), Some(base)) = (find(name), find(base)) else { continue };
        let adapter = Adapter::open(&Folder::disk(&path).unwrap()).unwrap();
        let plain = Folder::disk(&base).unwrap();
        let ids = path.join("input_ids.npy");
        let found = logits(&plain.clone().adapted(adapter.clone()), &ids);
        let (shape, expected) = npy_f32(&path.join(golden));
        let vocab = *shape.last().unwrap();
        let (largest, rms, same) = compare(&found[..expected.len()], &expected, vocab);
        let (_, without, _) = compare(&logits(&plain, &ids)[..expected.len()], &expected, vocab);
        println!(
            "{name:<28} max |Δ| {largest:.1e}, rel. rms {rms:.1e} (without the adapter {without:.1e}), same top {:.1} %",
            100.0 * same
        );
        // The bases are BF16: PEFT ran its in F32, and added to it the same numbers in another order.
        assert!(rms < 5e-5 && without > 1e-2, "{name}: {rms:e} off, {without:e} without it");

        let dir = tempfile::tempdir().unwrap();
        peft::write(dir.path(), &adapter, "base").unwrap();
        let again = Adapter::open(&Folder::disk(dir.path()).unwrap()).unwrap();
        assert_eq!(again.modules, adapter.modules, "{name}");
        assert_eq!(again.whole.keys().collect::<Vec<_>>(), adapter.whole.keys().collect::<Vec<_>>());
    }
}
