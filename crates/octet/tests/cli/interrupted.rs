//! Runs that are stopped: by Ctrl-C, by a kill, by a second run on the same output.
#![cfg(unix)]

use crate::sandbox::Sandbox;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::Read,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const QUANTIZE: [&str; 9] = ["quantize", "tiny", "--yes", "--scheme", "w8a16", "--eval-tokens", "20480", "--min-speedup", "0"];
const WORK: &str = ".tiny-w8a16.octet-work";

/// Starts a run and waits until its weights are written and it is being judged.
fn halfway(sandbox: &Sandbox) -> Child {
    let mut octet = Command::new(env!("CARGO_BIN_EXE_octet"));
    octet.args(QUANTIZE).current_dir(sandbox.path("")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = octet.spawn().unwrap();
    let started = Instant::now();
    while !sandbox.path(WORK).join("out/quantization_config.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        assert!(started.elapsed() < Duration::from_secs(60), "it wrote nothing in a minute");
        sleep(Duration::from_millis(5));
    }
    child
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn ctrl_c_leaves_nothing() {
    let sandbox = Sandbox::new();
    let before = sandbox.everything();
    let mut child = halfway(&sandbox);
    send(&child, Signal::INT);
    let code = child.wait().unwrap().code();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("interrupted; run the same command again"), "{said}");
    assert!(!said.contains("error:"), "{said}");
    assert_eq!(sandbox.everything(), before);
}

#[test]
fn a_killed_run_can_be_run_again() {
    let sandbox = Sandbox::new();
    let mut child = halfway(&sandbox);
    child.kill().unwrap();
    child.wait().unwrap();
    // Nothing visible was left; what is hidden is taken over by the next run.
    assert_eq!(sandbox.names(""), [".tiny-w8a16.octet-log.jsonl", WORK, "tiny"]);
    sandbox.octet(&QUANTIZE.join(" ")).done();
    assert_eq!(sandbox.names(""), ["quantization_summary.json", "tiny", "tiny-w8a16"]);
}

#[test]
fn two_runs_do_not_share_an_output() {
    let sandbox = Sandbox::new();
    let mut first = halfway(&sandbox);
    send(&first, Signal::STOP);
    for second in ["quantize tiny --scheme w8a16", "quantize tiny --no-judge --force"] {
        sandbox.refuses(second, &["tiny-w8a16", "another run is writing it", "wait for it to end"]);
    }
    // Another output is no concern of the first run's.
    sandbox.octet("quantize tiny --no-judge --scheme w8a8").done();
    send(&first, Signal::CONT);
    send(&first, Signal::INT);
    assert_eq!(first.wait().unwrap().code(), Some(130));
    assert_eq!(sandbox.names(""), ["tiny", "tiny-w8a8"]);
}

#[test]
fn ctrl_c_ends_a_measurement() {
    let sandbox = Sandbox::empty();
    let mut octet = Command::new(env!("CARGO_BIN_EXE_octet"));
    octet.args(["eval", "pocket", "--threads", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = octet.current_dir(sandbox.path("")).spawn().unwrap();
    // Long enough for the handler to be there, far too short for forty thousand tokens.
    sleep(Duration::from_millis(400));
    send(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}
