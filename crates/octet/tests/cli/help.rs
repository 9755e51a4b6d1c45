//! What `-h` says: names and flags are meant to stay stable, so a change of theirs shows here.

use crate::sandbox::Sandbox;

fn help(args: &str) -> String {
    Sandbox::empty().octet(args).done().stdout
}

#[test]
fn the_commands() {
    insta::assert_snapshot!(help("-h"), @r###"
Compress a language model, judge it against the original on this machine, and run it.

Takes a checkpoint folder, gives back a smaller, faster one that is proven good, or an honest refusal.

Usage: octet [OPTIONS] <COMMAND>

Commands:
  quantize     Compress a model, re-open what was written, judge it against the original
  run          Generate text (interactive without a prompt)
  eval         Perplexity with its interval; against a base also KL divergence, agreement and the paired ratio
  bench        Prefill and decode speed, load time, memory, and their share of this machine's limits
  inspect      Architecture, tensors, bits per weight, size and memory forecast of a checkpoint
  logits       Raw logits for given token ids, to hold octet against another implementation
  doctor       What this CPU can do, which kernels run, measured limits
  completions  Print a completion script for a shell
  help         Print this message or the help of the given subcommand(s)

Options:
      --threads <N>
          Threads to compute with [default: the physical cores this process may use]

      --json
          Print one JSON document on stdout; progress goes to stderr

  -v, --verbose...
          Say more (-v: steps, -vv: details) on stderr

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

Examples:
  octet quantize pocket                      compress and judge the built-in model
  octet quantize ./Qwen3-0.6B --scheme w4a16-g32
  octet run ./Qwen3-0.6B-w8a16 "The capital of France is"
  octet eval ./Qwen3-0.6B-w8a16 --base ./Qwen3-0.6B

Exit codes: 0 done or accepted, 1 error, 2 wrong usage, 3 refused or undecided, 130 interrupted.
"###);
}

#[test]
fn the_flags_of_quantize() {
    insta::assert_snapshot!(help("quantize -h"), @"");
}

#[test]
fn every_command_has_help_and_a_version() {
    for command in ["quantize", "run", "eval", "bench", "inspect", "logits", "doctor", "completions"] {
        let text = help(&format!("{command} --help"));
        assert!(text.contains("Usage: octet") && text.contains("--json") && text.contains("--threads"), "{command}: {text}");
    }
    assert!(help("--version").starts_with("octet 0."));
}
