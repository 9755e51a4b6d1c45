//! `cargo xtask bench-peers`: octet and llama.cpp in one run, on the same shapes and threads.
//!
//! The work is done by `scripts/peers`; this builds octet, makes the checkpoints and calls them.

use crate::{repo::Repo, synth};
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// Shapes that are compared when none are named.
const SHAPES: [&str; 3] = ["medium-150m", "qwen3-0.6b", "llama-1b"];

/// How to compare.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    shapes: Vec<String>,
    rounds: usize,
    threads: usize,
    /// Where everything that is made goes, to be used again by the next run.
    dir: Option<PathBuf>,
    /// Where the record goes.
    out: Option<PathBuf>,
    /// Command that every measured command is put behind.
    wrap: String,
    prepare_only: bool,
}

impl Options {
    fn parse(args: &[&str]) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut options = Self { shapes: vec![], rounds: 5, threads, dir: None, out: None, wrap: String::new(), prepare_only: false };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg {
                "--rounds" => options.rounds = count(arg, value()?)?,
                "--threads" => options.threads = count(arg, value()?)?,
                "--dir" => options.dir = Some(value()?.into()),
                "--out" => options.out = Some(value()?.into()),
                "--wrap" => options.wrap = (*value()?).to_string(),
                "--prepare-only" => options.prepare_only = true,
                flag if flag.starts_with('-') => bail!("bench-peers has no flag {flag}"),
                shape => options.shapes.push(shape.to_string()),
            }
        }
        if let Some(shape) = options.shapes.iter().find(|shape| !synth::names().any(|name| name == shape.as_str())) {
            bail!("no shape is called `{shape}`; these exist:\n{}", synth::list());
        }
        if options.shapes.is_empty() {
            options.shapes = SHAPES.map(str::to_string).to_vec();
        }
        Ok(options)
    }
}

fn count(flag: &str, value: &str) -> Result<usize> {
    match value.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => bail!("{flag} {value} is not a number from 1 on"),
    }
}

/// Compares as `args` say.
///
/// # Errors
/// If an argument makes no sense, or a tool cannot be made or fails.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let options = Options::parse(args)?;
    let root = Repo::open()?.root;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let dir = options.dir.clone().unwrap_or_else(|| target.join("peers"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    call(Command::new(cargo).current_dir(&root).args(["build", "--release", "--package", "octet"]))?;
    call(Command::new(root.join("scripts/peers/setup.sh")).arg(&dir))?;

    let mut compare = Command::new(dir.join("env/bin/python"));
    compare.arg(root.join("scripts/peers/compare.py"));
    compare.arg("--tools").arg(&dir).arg("--octet").arg(target.join("release/octet")).arg("--work").arg(dir.join("models"));
    let out = options.out.clone().unwrap_or_else(|| root.join(format!("benches/record/{}-peers", today())));
    compare.arg("--out").arg(out).args(["--threads", &options.threads.to_string(), "--rounds", &options.rounds.to_string()]);
    compare.args(["--wrap", &options.wrap, "--commit", &commit(&root)]);
    if options.prepare_only {
        compare.arg("--prepare-only");
    }
    for shape in &options.shapes {
        let model = dir.join("models").join(shape);
        if !model.exists() {
            std::fs::create_dir_all(dir.join("models"))?;
            println!("{}", synth::write(shape, &model)?);
        }
        compare.arg(format!("{shape}={}", model.display()));
    }
    call(&mut compare)
}

fn call(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

fn commit(root: &Path) -> String {
    let output = Command::new("git").current_dir(root).args(["rev-parse", "--short", "HEAD"]).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The date as 2026-11-21, in UTC.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds / 86_400)
}

/// The date so many days after 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
fn date(days: u64) -> String {
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + u64::from(month <= 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_and_refused() {
        let options = Options::parse(&["llama-1b", "--rounds", "3", "--threads", "2", "--wrap", "nice -n -5"]).unwrap();
        assert_eq!((options.shapes, options.rounds, options.threads), (vec!["llama-1b".to_string()], 3, 2));
        assert_eq!(options.wrap, "nice -n -5");
        assert_eq!(Options::parse(&[]).unwrap().shapes, SHAPES);
        for (args, says) in
            [(&["--rounds", "0"][..], "from 1 on"), (&["--rounds"], "needs a value"), (&["--fast"], "--fast"), (&["qwen9"], "qwen3-0.6b")]
        {
            let message = format!("{:#}", Options::parse(args).unwrap_err());
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!([0, 59, 11_016, 20_778].map(date), ["1970-01-01", "1970-03-01", "2000-02-29", "2026-11-21"]);
    }
}
