//! House-keeping of the octet workspace: `cargo xtask tidy` holds the house rules, `cargo xtask synth` writes checkpoints with
//! random weights in the shapes of real models, `cargo xtask outliers` plants activation outliers in one, `cargo xtask arm` runs the kernels' suites on an emulated ARM, `cargo xtask
//! bench-peers` holds octet against llama.cpp.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool: printing is its output")]

mod arm;
mod outliers;
mod peers;
mod repo;
mod synth;
mod tidy;

use anyhow::{Result, bail};
use repo::Repo;
use std::{path::Path, process::ExitCode};

const USAGE: &str = "Usage:
  cargo xtask tidy              check the house rules (the same checks run in `cargo test -p xtask`)
  cargo xtask arm               run the kernels' suites on an emulated AArch64 CPU; says so where the tools for it are not installed
  cargo xtask synth             list the shapes that synth knows
  cargo xtask synth NAME DIR    write a checkpoint with random weights (fixed seed) and a working tokenizer into the new folder DIR
  cargo xtask outliers MODEL DIR  write the checkpoint folder MODEL with planted activation outliers (same function) into the new folder DIR
  cargo xtask bench-peers [NAME...] [--rounds N] [--threads N] [--wrap CMD] [--dir DIR] [--out DIR] [--prepare-only]
                                octet and llama.cpp alternately on these shapes; what is made goes to DIR (target/peers),
                                the record to --out (benches/record/DATE-peers); CMD is put in front of measured commands";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<ExitCode> {
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => run_tidy(),
        ["arm"] => arm::run().map(|()| ExitCode::SUCCESS),
        ["synth"] => {
            println!("{}", synth::list());
            Ok(ExitCode::SUCCESS)
        }
        ["synth", name, dir] => {
            println!("{}", synth::write(name, Path::new(dir))?);
            Ok(ExitCode::SUCCESS)
        }
        ["outliers", model, dir] => {
            println!("{}", outliers::write(Path::new(model), Path::new(dir))?);
            Ok(ExitCode::SUCCESS)
        }
        ["bench-peers", ref rest @ ..] => {
            peers::run(rest)?;
            Ok(ExitCode::SUCCESS)
        }
        [] | ["help" | "-h" | "--help", ..] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("no such task: `{}`\n{USAGE}", args.join(" ")),
    }
}

fn run_tidy() -> Result<ExitCode> {
    let repo = Repo::open()?;
    let mut broken = 0;
    for (name, check) in tidy::CHECKS {
        let findings = check(&repo)?;
        println!("{:<24} {}", name, if findings.is_empty() { "ok" } else { "BROKEN" });
        for finding in &findings {
            println!("  {finding}");
        }
        broken += findings.len();
    }
    println!("{}", tidy::sources::summary(&repo)?);
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
