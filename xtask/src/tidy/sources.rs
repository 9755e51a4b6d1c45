//! Rules about the text of Rust files.

use super::lexer::{code_only, lines_with, without_tests};
use crate::repo::Repo;
use anyhow::Result;

/// Longest Rust file, in lines.
const MAX_LINES: usize = 600;

/// Paths that hold tests, benches or tools: rules about library code pass them by.
const TEST_PLACES: [&str; 5] = ["/tests/", "/tests.rs", "/benches/", "/examples/", "crates/octet-testkit/"];

/// Something that must not occur.
struct Absence {
    /// What is broken when it occurs, and the remedy.
    rule: &'static str,
    /// Words or paths, matched whole.
    needles: &'static [&'static str],
    /// Path prefixes the rule covers.
    within: &'static [&'static str],
    /// Path prefixes exempt from it, and how often a needle may occur in a file there.
    except: &'static [(&'static str, usize)],
    /// Whether tests are covered as well.
    tests: bool,
}

const ABSENCES: [Absence; 4] = [
    Absence {
        rule: "unsafe code lives in octet-kernels and in the one memory map of octet-formats; move it there or find a safe way",
        needles: &["unsafe"],
        within: &[""],
        // What counts allocations is an allocator.
        except: &[
            ("crates/octet-kernels/", usize::MAX),
            ("crates/octet-formats/src/map.rs", 2),
            ("crates/octet-model/tests/allocations.rs", 7),
            ("fuzz/src/memory.rs", 9),
        ],
        tests: true,
    },
    Absence {
        rule: "octet-tensor does no I/O and starts no threads; do it in the caller",
        needles: &["std::fs", "std::io", "std::net", "std::thread", "std::process", "std::env"],
        within: &["crates/octet-tensor/src/"],
        except: &[],
        tests: false,
    },
    Absence {
        rule: "kernels, models and quantization do no I/O: they are given bytes, a source of weights, a sink",
        needles: &["std::fs", "std::net", "std::process", "std::env"],
        within: &["crates/octet-kernels/src/", "crates/octet-model/src/", "crates/octet-quant/src/", "crates/octet-tune/src/"],
        except: &[],
        tests: false,
    },
    Absence {
        rule: "only the binary prints, exits and reads its environment; return the text or take a parameter",
        needles: &["io::stdout", "io::stderr", "process::exit", "process::abort", "env::var", "env::var_os", "env::args", "env::vars"],
        within: &["crates/"],
        except: &[("crates/octet/", usize::MAX)],
        tests: false,
    },
];

/// Lints that guard an invariant of absence, and the crates that may switch them off.
const GUARDS: [(&str, &[&str]); 7] = [
    ("clippy::print_stdout", &["crates/octet/", "xtask/"]),
    ("clippy::print_stderr", &["crates/octet/", "xtask/"]),
    ("clippy::exit", &["crates/octet/"]),
    ("clippy::undocumented_unsafe_blocks", &[]),
    ("clippy::missing_safety_doc", &[]),
    ("clippy::todo", &[]),
    ("clippy::unimplemented", &[]),
];

/// No Rust file is longer than [`MAX_LINES`].
pub(crate) fn file_size(repo: &Repo) -> Result<Vec<String>> {
    let sources = repo.rust_sources()?;
    let long = sources.iter().map(|(file, text)| (file, text.lines().count())).filter(|(_, lines)| *lines > MAX_LINES);
    Ok(long.map(|(file, lines)| format!("{file} has {lines} lines, the limit is {MAX_LINES}; split it by subject")).collect())
}

/// One line about all Rust files.
pub(crate) fn summary(repo: &Repo) -> Result<String> {
    let sources = repo.rust_sources()?;
    let mut sizes: Vec<(usize, &str)> = sources.iter().map(|(file, text)| (text.lines().count(), *file)).collect();
    sizes.sort_unstable();
    let total: usize = sizes.iter().map(|(lines, _)| lines).sum();
    let median = sizes.get(sizes.len() / 2).map_or(0, |(lines, _)| *lines);
    let (longest, file) = sizes.last().copied().unwrap_or_default();
    Ok(format!("{} Rust files, {total} lines, median {median}, longest {longest} ({file})", sizes.len()))
}

/// Nothing of [`ABSENCES`] occurs.
pub(crate) fn absence(repo: &Repo) -> Result<Vec<String>> {
    Ok(repo.rust_sources()?.iter().flat_map(|(file, text)| absences_in(file, text)).collect())
}

/// No crate switches off a lint of [`GUARDS`] that it must keep.
pub(crate) fn lint_exemptions(repo: &Repo) -> Result<Vec<String>> {
    Ok(repo.rust_sources()?.iter().flat_map(|(file, text)| exemptions_in(file, text)).collect())
}

fn absences_in(file: &str, text: &str) -> Vec<String> {
    let code = code_only(text);
    let library = without_tests(&code);
    let mut findings = Vec::new();
    for rule in &ABSENCES {
        if !starts_with_any(file, rule.within) || (!rule.tests && is_test_place(file)) {
            continue;
        }
        let allowed = rule.except.iter().find(|(prefix, _)| file.starts_with(prefix)).map_or(0, |(_, times)| *times);
        for needle in rule.needles {
            for line in lines_with(if rule.tests { &code } else { &library }, needle).into_iter().skip(allowed) {
                findings.push(format!("{file}:{line} has `{needle}`: {}", rule.rule));
            }
        }
    }
    findings
}

fn exemptions_in(file: &str, text: &str) -> Vec<String> {
    let code = without_tests(&code_only(text));
    let mut findings = Vec::new();
    for (lint, holders) in GUARDS {
        if starts_with_any(file, holders) || is_test_place(file) {
            continue;
        }
        for line in lines_with(&code, lint) {
            findings.push(format!("{file}:{line} names {lint}, which this crate must keep; remove the exemption"));
        }
    }
    findings
}

fn starts_with_any(file: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| file.starts_with(prefix))
}

fn is_test_place(file: &str) -> bool {
    TEST_PLACES.iter().any(|place| file.contains(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_violations_are_found() {
        for (file, code, found) in [
            ("crates/octet-model/src/lib.rs", "unsafe { f() }", 1),
            ("crates/octet-kernels/src/lib.rs", "unsafe { f() }", 0),
            ("crates/octet-formats/src/map.rs", "unsafe { f() } unsafe { g() }", 0),
            ("crates/octet-formats/src/map.rs", "unsafe { f() } unsafe { g() } unsafe { h() }", 1),
            ("crates/octet-formats/src/folder.rs", "unsafe { f() }", 1),
            ("crates/octet-formats/src/lib.rs", "unsafe { f() }", 1),
            ("crates/octet-tensor/src/a.rs", "use std::{fmt, thread};", 1),
            ("crates/octet-tensor/src/a.rs", "#[cfg(test)]\nmod tests { use std::{fmt, thread}; }", 0),
            ("crates/octet-tensor/tests/a.rs", "use std::fs;", 0),
            ("crates/octet-quant/src/a.rs", "std::fs::read(path)", 1),
            ("crates/octet-flow/src/a.rs", "std::env::var(\"A\"); // io::stdout", 1),
            ("crates/octet/src/a.rs", "std::env::var(\"A\")", 0),
        ] {
            assert_eq!(absences_in(file, code).len(), found, "{file}: {code}: {:?}", absences_in(file, code));
        }
    }

    #[test]
    fn planted_exemptions_are_found() {
        let allow = "#[allow(clippy::print_stdout)]\nfn f() {}";
        assert_eq!(exemptions_in("crates/octet-eval/src/a.rs", allow).len(), 1);
        assert_eq!(exemptions_in("crates/octet/src/a.rs", allow).len(), 0);
        assert_eq!(exemptions_in("crates/octet-eval/tests/a.rs", allow).len(), 0);
    }
}
