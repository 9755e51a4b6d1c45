//! Rules about crates: who may know whom, what a default build may contain.

use crate::repo::{Package, Repo};
use anyhow::Result;
use std::{collections::BTreeSet, fs};

/// The octet crates each crate may depend on (`ARCHITECTURE.md` has the picture).
const EDGES: [(&str, &[&str]); 12] = [
    ("octet-tensor", &[]),
    ("octet-kernels", &["octet-tensor"]),
    ("octet-formats", &["octet-tensor"]),
    ("octet-model", &["octet-tensor", "octet-kernels"]),
    ("octet-runtime", &["octet-tensor", "octet-kernels", "octet-formats", "octet-model"]),
    ("octet-quant", &["octet-tensor", "octet-kernels", "octet-model"]),
    ("octet-tune", &["octet-tensor", "octet-kernels", "octet-model"]),
    ("octet-eval", &["octet-tensor", "octet-kernels", "octet-model", "octet-runtime"]),
    (
        "octet-flow",
        &["octet-tensor", "octet-kernels", "octet-formats", "octet-model", "octet-runtime", "octet-quant", "octet-tune", "octet-eval"],
    ),
    (
        "octet",
        &[
            "octet-tensor",
            "octet-kernels",
            "octet-formats",
            "octet-model",
            "octet-runtime",
            "octet-quant",
            "octet-tune",
            "octet-eval",
            "octet-flow",
        ],
    ),
    ("octet-testkit", &["octet-tensor", "octet-formats"]),
    ("xtask", &["octet-tensor", "octet-formats", "octet-model", "octet-quant", "octet-testkit"]),
];

/// What tests may depend on beside that: everything a small model needs to be loaded and run.
const TEST_EDGES: [&str; 6] = ["octet-testkit", "octet-tensor", "octet-kernels", "octet-formats", "octet-model", "octet-runtime"];

/// Dependencies that only these crates may declare (tests excepted).
const OWNERS: [(&str, &[&str]); 7] = [
    ("anyhow", &["octet", "xtask"]),
    ("clap", &["octet"]),
    ("gemm", &["octet-kernels"]),
    ("memmap2", &["octet-formats", "octet-kernels"]),
    ("minijinja", &["octet-runtime"]),
    ("tokenizers", &["octet-runtime"]),
    ("tracing-subscriber", &["octet"]),
];

/// Crates that compile or look for C code.
const C_TOOLS: [&str; 9] = ["autotools", "bindgen", "cc", "clang-sys", "cmake", "cxx-build", "nasm-rs", "pkg-config", "vcpkg"];

/// Packages that declare `links` or are called `*-sys` and yet contain no C.
const PURE_RUST: [(&str, &str); 3] = [
    ("linux-raw-sys", "declarations of the Linux system-call interface"),
    ("rayon-core", "declares `links` so that only one copy is ever built"),
    ("windows-sys", "declarations of the Windows interface"),
];

/// Most crates a default build of the binary may compile, build scripts and procedural macros included.
const CRATE_BUDGET: usize = 240;

/// Octet crates depend on each other only along [`EDGES`].
pub(crate) fn direction(repo: &Repo) -> Result<Vec<String>> {
    Ok(wrong_edges(&repo.members()?))
}

/// Some dependencies belong to one crate: [`OWNERS`].
pub(crate) fn owners(repo: &Repo) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for package in repo.members()? {
        for dependency in package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev")) {
            if let Some((name, owners)) = OWNERS.iter().find(|(name, _)| dependency.name == *name)
                && !owners.contains(&package.name.as_str())
            {
                findings.push(format!("{} depends on {name}, which only {} may", package.name, owners.join(" and ")));
            }
        }
    }
    Ok(findings)
}

/// Every package takes the lints of the workspace.
pub(crate) fn workspace_lints(repo: &Repo) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for package in repo.members()? {
        if !takes_workspace_lints(&fs::read_to_string(&package.manifest_path)?) {
            findings.push(format!("{} does not take the workspace's lints; add `[lints]` with `workspace = true`", package.name));
        }
    }
    Ok(findings)
}

/// The default build of the binary needs no C compiler and stays within [`CRATE_BUDGET`].
pub(crate) fn default_tree(repo: &Repo) -> Result<Vec<String>> {
    let tree = repo.default_tree("octet")?;
    let mut findings = c_code(&tree, &repo.resolved()?);
    if tree.len() > CRATE_BUDGET {
        findings
            .push(format!("a default build compiles {} crates, the budget is {CRATE_BUDGET}; drop a dependency or a feature", tree.len()));
    }
    Ok(findings)
}

fn wrong_edges(packages: &[Package]) -> Vec<String> {
    let names: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut findings = Vec::new();
    for package in packages {
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == package.name) else {
            findings.push(format!("{} is not in the table of crates; add its row to EDGES and to ARCHITECTURE.md", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| names.contains(dependency.name.as_str())) {
            let name = dependency.name.as_str();
            let for_tests = dependency.kind.as_deref() == Some("dev") && TEST_EDGES.contains(&name);
            if !allowed.contains(&name) && !for_tests {
                findings.push(format!("{} must not know {name}; it may know: {}", package.name, allowed.join(", ")));
            }
        }
    }
    findings
}

fn takes_workspace_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.find(|line| !line.is_empty()).is_some_and(|line| line.replace(' ', "") == "workspace=true")
}

fn c_code(tree: &BTreeSet<(String, String)>, resolved: &[Package]) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, version) in tree {
        let package = resolved.iter().find(|package| package.name == *name && package.version == *version);
        let links = package.and_then(|package| package.links.as_deref());
        let pure = PURE_RUST.iter().any(|(pure, _)| pure == name);
        if C_TOOLS.contains(&name.as_str()) {
            findings.push(format!("{name} {version} is in the default build and compiles C; `cargo tree -p octet -e normal,build -i {name}` shows who wants it"));
        } else if !pure && (links.is_some() || name.ends_with("-sys")) {
            findings.push(format!(
                "{name} {version} links native code ({}); replace it, or add it to PURE_RUST with the reason",
                links.unwrap_or("*-sys")
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Dependency;

    fn package(name: &str, links: Option<&str>, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependencies = dependencies.iter().map(|(name, kind)| Dependency { name: (*name).into(), kind: kind.map(Into::into) });
        Package {
            name: name.into(),
            version: "1.0.0".into(),
            links: links.map(Into::into),
            manifest_path: "Cargo.toml".into(),
            dependencies: dependencies.collect(),
        }
    }

    #[test]
    fn edges_against_the_direction_are_found() {
        let tensor = || package("octet-tensor", None, &[]);
        let formats = || package("octet-formats", None, &[]);
        let wrong = [tensor(), formats(), package("octet-model", None, &[("octet-tensor", None), ("octet-formats", None)])];
        assert_eq!(wrong_edges(&wrong).len(), 1);
        let test_only = [tensor(), formats(), package("octet-model", None, &[("octet-formats", Some("dev")), ("serde", None)])];
        assert_eq!(wrong_edges(&test_only), [""; 0]);
        assert_eq!(wrong_edges(&[package("octet-new", None, &[])]).len(), 1);
    }

    #[test]
    fn native_code_is_found() {
        let tree = ["cc", "zstd-sys", "onig", "serde", "rayon-core"].map(|name| (name.to_owned(), "1.0.0".to_owned()));
        let resolved = [package("onig", Some("onig"), &[]), package("rayon-core", Some("rayon-core"), &[])];
        let findings = c_code(&tree.into_iter().collect(), &resolved);
        assert_eq!(findings.len(), 3, "{findings:?}");
    }

    #[test]
    fn missing_lints_are_found() {
        assert!(takes_workspace_lints("[package]\n[lints]\n\nworkspace = true\n"));
        assert!(!takes_workspace_lints("[package]\nworkspace = true\n"));
        assert!(!takes_workspace_lints("[lints]\nrust.missing_docs = \"allow\"\n"));
    }
}
