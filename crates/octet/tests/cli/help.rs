//! What `--help` says: names and flags are meant to stay stable, so a change of theirs shows here.

use crate::sandbox::Sandbox;

fn help(args: &str) -> String {
    Sandbox::empty().octet(args).done().stdout
}

#[test]
fn the_commands() {
    insta::assert_snapshot!(help("--help"), @"");
}

#[test]
fn the_flags_of_quantize() {
    insta::assert_snapshot!(help("quantize --help"), @"");
}

#[test]
fn every_command_has_help_and_a_version() {
    for command in ["quantize", "run", "eval", "bench", "inspect", "logits", "doctor", "completions"] {
        let text = help(&format!("{command} --help"));
        assert!(text.contains("Usage: octet") && text.contains("--json") && text.contains("--threads"), "{command}: {text}");
    }
    assert!(help("--version").starts_with("octet 0."));
}
