//! Checkpoints that other tools made, against the logits those tools computed.
//!
//! Those in `fixtures` are always run; the rest of the table where the reference data lies beside the repository.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

use octet_formats::Folder;
use octet_testkit::npy_f32;
use support::{compare, find, logits};

/// A checkpoint, the logits it is held to, how far it may be from them (root mean square, relative), and which tool made both.
struct Case(&'static str, &'static str, f32, &'static str);

/// Kernels of floats on the same numbers.
const EXACT: f32 = 1e-5;
/// GPTQModel's kernels round somewhere to 16 bits.
const GPTQ: f32 = 5e-3;
/// The tool emulates 8-bit activations in floats: another rounding flips a code here and there.
const W8A8: f32 = 2e-2;
/// The tool excepts from rounding an outlier's whole column in all tokens of a call (LLM.int8), octet the outlier.
const INT8: f32 = 3e-2;
/// The tool computed in bfloat16.
const BF16: f32 = 4e-2;

const CASES: &[Case] = &[
    Case("gptq/b3-g128-sym", "logits.npy", GPTQ, "gptqmodel 7.7"),
    Case("gptq/b4-g128-sym", "logits.npy", GPTQ, "gptqmodel 7.7"),
    Case("gptq/b4-g64-asym-descact", "logits.npy", GPTQ, "gptqmodel 7.7"),
    Case("gptq/b8-g128-sym", "logits.npy", GPTQ, "gptqmodel 7.7"),
    Case("awq/b4-g128-gemm", "logits.npy", GPTQ, "gptqmodel 7.7"),
    Case("compressed-tensors/w4a16-gptq-sym", "logits.npy", EXACT, "llm-compressor 0.14"),
    Case("compressed-tensors/w4a16-gptq-asym", "logits.npy", EXACT, "llm-compressor 0.14"),
    Case("compressed-tensors/w4a16-awq-asym", "logits.npy", EXACT, "llm-compressor 0.14"),
    Case("compressed-tensors/w8a16-rtn-channel", "logits.npy", EXACT, "llm-compressor 0.14"),
    Case("compressed-tensors/w8a8-rtn", "logits.npy", W8A8, "llm-compressor 0.14"),
    Case("compressed-tensors/w8a8-smoothquant", "logits.npy", W8A8, "llm-compressor 0.14"),
    Case("compressed-tensors/fp8-dynamic", "logits.npy", EXACT, "llm-compressor 0.14"),
    Case("compressed-tensors/fp8-block", "logits.npy", EXACT, "llm-compressor 0.14"),
    Case("compressed-tensors/nvfp4a16", "logits.npy", BF16, "llm-compressor 0.14"),
    Case("compressed-tensors/mxfp4a16", "logits.npy", BF16, "llm-compressor 0.14"),
    Case("fp8-block-transformers/qwen3-mult128", "logits.npy", EXACT, "transformers 5.23"),
    Case("fp8-block-transformers/qwen3-formula", "logits_formula.npy", EXACT, "formula"),
    Case("bitsandbytes/int8", "logits.npy", INT8, "bitsandbytes 0.50"),
    Case("bitsandbytes/nf4", "logits.npy", BF16, "bitsandbytes 0.50"),
    Case("mlx/bf16-qwen3", "logits_f32.npy", EXACT, "mlx-lm 0.32"),
    Case("mlx/b4-g32-qwen2-tied", "logits_f32.npy", EXACT, "mlx-lm 0.32"),
    Case("mlx/b4-g64-llama", "logits_f32.npy", EXACT, "mlx-lm 0.32"),
    Case("mlx/b8-g64-qwen3", "logits_f32.npy", EXACT, "mlx-lm 0.32"),
    Case("mlx/mixed_2_6-llama", "logits_f32.npy", EXACT, "mlx-lm 0.32"),
    Case("mlx/mxfp4-llama", "logits_f32.npy", EXACT, "mlx-lm 0.32"),
    Case("torchao/int8wo", "logits.npy", BF16, "torchao 0.18"),
    Case("torchao/intx4-g32", "logits.npy", BF16, "torchao 0.18"),
];

#[test]
fn what_other_tools_quantized_runs_as_they_run_it() {
    println!("{:<42}{:<22}{:>10}{:>12}{:>12}{:>12}", "checkpoint", "made by", "max |Δ|", "rel. rms", "allowed", "same top");
    let mut run = 0;
    for Case(name, golden, allowed, tool) in CASES {
        let Some(path) = find(name) else { continue };
        let found = logits(&Folder::disk(&path).unwrap(), &path.join("input_ids.npy"));
        let (shape, expected) = npy_f32(&path.join(golden));
        run += 1;
        let (largest, rms, same) = compare(&found[..expected.len()], &expected, *shape.last().unwrap());
        println!("{name:<42}{tool:<22}{largest:>10.1e}{rms:>12.1e}{allowed:>12.0e}{:>11.1}%", 100.0 * same);
        assert!(rms <= *allowed, "{name}: {rms:e} off");
    }
    assert!(run > 0);
}
