//! Calibrated runs that are killed at any moment, and go on to the same bytes.
#![cfg(unix)]

use crate::sandbox::{Sandbox, prose};
use octet_testkit::Random;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Hidden states go to disk: there is no room for them in a kilobyte.
const RUN: &str = "quantize tiny out --scheme w4a16-g32 --method gptq --no-judge --calibration notes.txt \
                   --calibration-samples 16 --calibration-length 64 --memory-budget 1kB";
const WORK: &str = ".out.octet-work";

/// The same with factors that move through norms and rows of other linears.
const TRANSFORMED: &str = "quantize tiny out --scheme w4a16-g32 --method awq --no-judge --calibration notes.txt \
                           --calibration-samples 16 --calibration-length 64 --memory-budget 1kB";

/// One whose model then learns: its weights are written twice.
const DISTILLED: &str = "quantize tiny out --recipe learn.toml --no-judge --calibration notes.txt \
                         --calibration-samples 16 --calibration-length 64";
const LEARN: &str = "[[step]]\naction='quantize'\ntargets=['linears']\nscheme='w4ta16-g32'\nsolver='gptq'\n\
                     [[step]]\naction='distill'\nsteps=20\nbatch_tokens=64\ncodes=0.01\n";

/// Kills with each number of threads.
const KILLS: usize = 25;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(20_000, 1));
    sandbox.write("learn.toml", LEARN);
    sandbox
}

fn command(sandbox: &Sandbox, args: &str, threads: usize) -> Command {
    let mut octet = Command::new(env!("CARGO_BIN_EXE_octet"));
    octet.args(args.split_whitespace()).args(["--threads", &threads.to_string()]);
    octet.current_dir(sandbox.path("")).stdout(Stdio::null()).stderr(Stdio::null());
    octet
}

/// Every file of a folder but the report, which holds times.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    // A receipt says which command with how many threads it was.
    entries.map(read).filter(|(name, _)| name != "receipt.json").collect()
}

#[test]
fn killed_at_any_moment_a_run_goes_on_to_the_same_bytes() {
    killed_at_any_moment(RUN, KILLS);
}

#[test]
fn killed_at_any_moment_transforms_go_on_to_the_same_bytes() {
    killed_at_any_moment(TRANSFORMED, 5);
}

#[test]
fn killed_at_any_moment_a_distillation_goes_on_to_the_same_bytes() {
    killed_at_any_moment(DISTILLED, 2);
}

fn killed_at_any_moment(run: &str, enough: usize) {
    let sandbox = sandbox();
    let started = Instant::now();
    sandbox.octet(run).done();
    let whole = started.elapsed();
    let expected = files(&sandbox.path("out"));
    let mut random = Random::new(11);
    let mut spills = 0;
    for threads in [1, 2] {
        let mut kills = 0;
        // The folder is replaced, so that renames happen at the end of every run.
        while kills < enough {
            let mut child = command(&sandbox, &format!("{run} --force"), threads).spawn().unwrap();
            sleep(whole.mul_f64(f64::from(random.uniform().abs())));
            let ended = child.try_wait().unwrap();
            spills += usize::from(sandbox.path(WORK).join("hidden.f32").exists());
            child.kill().unwrap();
            child.wait().unwrap();
            kills += usize::from(ended.is_none());
            // Whatever has the name is complete.
            if sandbox.path("out").exists() {
                assert_eq!(files(&sandbox.path("out")), expected, "after {kills} kills of {threads} threads");
            }
        }
        assert!(command(&sandbox, &format!("{run} --force"), threads).status().unwrap().success());
        assert_eq!(files(&sandbox.path("out")), expected, "{threads} threads");
        assert!(!sandbox.path(WORK).exists(), "nothing is left of finished work");
    }
    assert!(spills > 0 || !run.contains("--memory-budget"), "no run was killed while hidden states were on disk");
}

/// Moments that chance would not meet: around the renames that replace a folder, in the middle of a write of hidden states or of a
/// line of the journal.
#[test]
fn killed_at_named_moments_a_run_goes_on_to_the_same_bytes() {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: moments have no names in a build without debug assertions");
        return;
    }
    let moments = [
        (RUN, &["before renames", "between renames", "after renames", "spill", "spill:5", "journal", "journal:3"][..]),
        (DISTILLED, &["journal:3", "between renames"]),
    ];
    for (run, moments) in moments {
        let sandbox = sandbox();
        sandbox.octet(run).done();
        let expected = files(&sandbox.path("out"));
        for (threads, moment) in moments.iter().enumerate().map(|(at, moment)| (1 + at % 2, moment)) {
            let replace = format!("{run} --force");
            let ended = command(&sandbox, &replace, threads).env("OCTET_KILL_AT", moment).status().unwrap();
            assert_eq!(ended.signal(), Some(9), "{moment}: {ended:?}");
            // Whatever has the name is complete.
            if sandbox.path("out").exists() {
                assert_eq!(files(&sandbox.path("out")), expected, "{moment}");
            }
            assert!(command(&sandbox, &replace, 3 - threads).status().unwrap().success(), "{moment}");
            assert_eq!(files(&sandbox.path("out")), expected, "{moment}");
            assert!(!sandbox.path(WORK).exists(), "{moment}: nothing is left of finished work");
        }
    }
}

/// Kills a run as soon as so many stages are finished.
fn killed_after(sandbox: &Sandbox, args: &str, stages: usize) {
    let mut child = command(sandbox, args, 2).spawn().unwrap();
    let journal = sandbox.path(WORK).join("journal.jsonl");
    let started = Instant::now();
    while fs::read_to_string(&journal).map_or(0, |text| text.lines().count()) <= stages {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        assert!(started.elapsed() < Duration::from_secs(60), "it finished no stage in a minute");
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn unfinished_work_is_resumed_by_the_same_command_only() {
    let sandbox = sandbox();
    killed_after(&sandbox, RUN, 1);
    let changed = [
        (RUN.replace("g32", "g64"), "recipe ("),
        (format!("{RUN} --seed 1"), "seed (0, now 1)"),
        (RUN.replace("samples 16", "samples 17"), "calibration tokens (1024, now 1088)"),
        (format!("{RUN} --one-pass"), "order of inputs (true-sequential, now one pass a block)"),
        (format!("{} --calibration other.txt", RUN.replace("--calibration notes.txt", "")), "calibration text ("),
        ("quantize tiny out --scheme w4a16-g32 --no-judge --no-calibration".into(), "calibration ("),
    ];
    sandbox.write("other.txt", prose(20_000, 2));
    for (args, says) in changed {
        sandbox.refuses(&args, &["unfinished work that differs in", says, "--restart"]);
    }
    let config = sandbox.path("tiny/config.json");
    let original = fs::read(&config).unwrap();
    sandbox.edit_json("tiny/config.json", |config| config["rms_norm_eps"] = 1e-5.into());
    sandbox.refuses(RUN, &["unfinished work that differs in model ("]);
    sandbox.octet(&format!("{RUN} --restart")).done();
    let with_other_model = files(&sandbox.path("out"));
    fs::write(&config, original).unwrap();
    sandbox.octet(&format!("{RUN} --force")).done();
    assert_ne!(files(&sandbox.path("out")), with_other_model);
}

#[test]
fn results_that_changed_on_disk_are_made_again() {
    let sandbox = sandbox();
    sandbox.octet(RUN).done();
    let expected = files(&sandbox.path("out"));
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    killed_after(&sandbox, RUN, 3);
    let weights = sandbox.path(WORK).join("out/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].iter_mut().for_each(|byte| *byte ^= 0x11);
    fs::write(&weights, bytes).unwrap();
    // A line that was being written.
    let journal = sandbox.path(WORK).join("journal.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, format!("{text}{}", &text.lines().last().unwrap()[..20])).unwrap();
    sandbox.octet(RUN).done();
    assert_eq!(files(&sandbox.path("out")), expected);
}

#[test]
fn a_kill_between_the_renames_loses_neither_folder() {
    let sandbox = sandbox();
    sandbox.octet(RUN).done();
    let expected = files(&sandbox.path("out"));
    let again = format!("{RUN} --force");
    killed_after(&sandbox, &again, 2);
    fs::rename(sandbox.path("out"), sandbox.path(WORK).join("old")).unwrap();
    let refused = sandbox.octet(RUN);
    assert!(refused.code == Some(1) && refused.stderr.contains("exists already"), "{refused:?}");
    assert_eq!(files(&sandbox.path("out")), expected, "the old folder is back");
    sandbox.octet(&again).done();
    assert_eq!(files(&sandbox.path("out")), expected);
    assert!(!sandbox.path(WORK).exists());
}

#[test]
fn ctrl_c_keeps_finished_blocks_and_says_how_to_go_on() {
    let sandbox = sandbox();
    let mut octet = command(&sandbox, RUN, 2);
    let child = octet.stderr(Stdio::piped()).spawn().unwrap();
    let journal = sandbox.path(WORK).join("journal.jsonl");
    while fs::read_to_string(&journal).map_or(0, |text| text.lines().count()) < 2 {
        sleep(Duration::from_millis(1));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(0) {
        return; // It was faster than the signal.
    }
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("blocks; run the same command again to go on from there"), "{said}");
    assert!(sandbox.path(WORK).exists() && !sandbox.path("out").exists());
    sandbox.octet(RUN).done();
}

/// A limit on the size of files stands in for a disk that is full once hidden states are written to it.
#[test]
fn a_disk_that_fills_up_with_hidden_states_stops_a_run_that_goes_on() {
    let sandbox = sandbox();
    let run = RUN.replace("samples 16", "samples 64");
    sandbox.octet(&run).done();
    let expected = files(&sandbox.path("out"));
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    // Those of 4096 tokens take 1 MB, everything else is smaller.
    let script = format!("trap '' XFSZ; ulimit -f 512; exec \"$0\" {run}");
    let mut bash = assert_cmd::Command::new("bash");
    let ended = crate::sandbox::ended(bash.current_dir(sandbox.path("")).args(["-c", &script, env!("CARGO_BIN_EXE_octet")]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("hidden.f32") && ended.stderr.contains("run the same command again to go on"), "{ended:?}");
    assert!(!sandbox.path("out").exists());
    sandbox.octet(&run).done();
    assert_eq!(files(&sandbox.path("out")), expected);
}
