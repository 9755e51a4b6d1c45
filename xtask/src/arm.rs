//! The kernels of AArch64, built and run under emulation on a machine that is not one, and checks of targets whose
//! standard library happens to be installed.
//!
//! Emulation says whether results are right, nothing about speed.

use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
/// Debian's second compiler (package `rustc-web`), whose package of the AArch64 standard library works beside a rustup.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Emulated CPUs: everything, and a core of Armv8.0 without dot products.
const CPUS: [&str; 2] = ["max", "cortex-a72"];
/// Targets that must compile, wherever their standard library is to be had.
const CHECKED: [&str; 3] = ["aarch64-apple-darwin", "x86_64-apple-darwin", "aarch64-linux-android"];

const INSTALL: &str = "on Debian: dpkg --add-architecture arm64; apt-get update; apt-get install rustc-web; \
apt-get install libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user";

/// Runs the suites of the kernels under emulation and checks the other targets; says what was skipped and why.
pub(crate) fn run() -> Result<()> {
    match tools() {
        Ok(rustc) => CPUS.iter().try_for_each(|cpu| emulate(&rustc, cpu))?,
        Err(missing) => println!("skipped: kernels under emulation, because {missing} ({INSTALL})"),
    }
    CHECKED.iter().try_for_each(|target| check(target))
}

/// A compiler with the standard library of [`TARGET`], if the linker and the emulator are there too.
fn tools() -> std::result::Result<PathBuf, String> {
    for tool in [LINKER, EMULATOR] {
        if !works(Command::new(tool).arg("--version")) {
            return Err(format!("{tool} is not installed"));
        }
    }
    let compilers = ["rustc", DEBIAN_RUSTC].map(PathBuf::from);
    compilers
        .into_iter()
        .find(|rustc| has_std(rustc, TARGET))
        .ok_or_else(|| format!("no compiler here has the standard library of {TARGET}"))
}

fn works(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn has_std(rustc: &Path, target: &str) -> bool {
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output();
    let Ok(output) = output else { return false };
    let folder = String::from_utf8_lossy(&output.stdout);
    let Ok(files) = std::fs::read_dir(folder.trim()) else { return false };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A target folder of its own: another compiler's files would make the usual one start over.
fn target_dir() -> Result<PathBuf> {
    let usual = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    std::path::absolute(usual.join("arm")).context("no target folder")
}

fn emulate(rustc: &Path, cpu: &str) -> Result<()> {
    println!("octet-tensor and octet-kernels on {TARGET}, emulated {cpu}");
    let mut command = cargo();
    command
        .args(["test", "--package", "octet-tensor", "--package", "octet-kernels", "--lib", "--tests", "--target", TARGET])
        .env("RUSTC", rustc)
        .env("CARGO_TARGET_DIR", target_dir()?)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
        // Threads of programs that are linked dynamically never start under some versions of the emulator.
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", format!("{EMULATOR} -cpu {cpu}"));
    finish(&mut command, &format!("the suites under emulated {cpu}"))
}

fn check(target: &str) -> Result<()> {
    if !has_std(Path::new("rustc"), target) {
        println!("skipped: check of {target}, because its standard library is not installed (rustup target add {target})");
        return Ok(());
    }
    println!("check of {target}");
    finish(cargo().args(["check", "--workspace", "--target", target]), &format!("the check of {target}"))
}

fn finish(command: &mut Command, what: &str) -> Result<()> {
    if !command.status().with_context(|| format!("cannot start {what}"))?.success() {
        bail!("{what} failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_knows_which_targets_it_has() {
        let host = Command::new("rustc").args(["--print", "host-tuple"]).output().unwrap();
        let host = String::from_utf8(host.stdout).unwrap();
        assert!(has_std(Path::new("rustc"), host.trim()));
        assert!(!has_std(Path::new("rustc"), "no-such-target"));
        assert!(!has_std(Path::new("/no/such/rustc"), TARGET));
    }
}
