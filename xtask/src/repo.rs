//! The workspace as files and as cargo sees it.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Folders whose files count even before git knows them; elsewhere (the root) a new file may be somebody's output.
const SOURCE_FOLDERS: [&str; 10] = ["benches", ".cargo", ".ci", "crates", "docs", "fixtures", "fuzz", "models", "scripts", "xtask"];

/// The checked-out repository: its root and the files that belong to it.
pub(crate) struct Repo {
    /// Absolute path of the workspace root.
    pub(crate) root: PathBuf,
    /// Paths relative to the root, with `/`, sorted.
    pub(crate) files: Vec<String>,
}

impl Repo {
    /// The repository this xtask was built from; without git (a source archive) every file under the root counts.
    pub(crate) fn open() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies at the root of the file system")?.to_path_buf();
        let files = match git_files(&root) {
            Some(files) => files,
            None => walked_files(&root)?,
        };
        let files = files.into_iter().filter(|file| root.join(file).is_file()).collect();
        Ok(Self { root, files })
    }

    /// Text of one of the files, or `None` if it is not UTF-8 text.
    pub(crate) fn text(&self, file: &str) -> Result<Option<String>> {
        let bytes = fs::read(self.root.join(file)).with_context(|| format!("cannot read {file}"))?;
        Ok(String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')))
    }

    /// The Rust files with their text.
    pub(crate) fn rust_sources(&self) -> Result<Vec<(&str, String)>> {
        let rust = self.files.iter().filter(|file| file.ends_with(".rs"));
        rust.map(|file| Ok((file.as_str(), self.text(file)?.with_context(|| format!("{file} is not UTF-8"))?))).collect()
    }

    /// The packages of the workspace with the dependencies they declare.
    pub(crate) fn members(&self) -> Result<Vec<Package>> {
        let metadata: Metadata = serde_json::from_str(&self.cargo(&["metadata", "--format-version", "1", "--no-deps"])?)?;
        Ok(metadata.packages)
    }

    /// Every package that cargo resolves for this machine.
    pub(crate) fn resolved(&self) -> Result<Vec<Package>> {
        let version = self.cargo(&["-vV"])?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("`cargo -vV` names no host")?;
        let metadata: Metadata = serde_json::from_str(&self.cargo(&["metadata", "--format-version", "1", "--filter-platform", host])?)?;
        Ok(metadata.packages)
    }

    /// What a default build of `package` compiles on this machine, build scripts and procedural macros included: `(name, version)`.
    pub(crate) fn default_tree(&self, package: &str) -> Result<BTreeSet<(String, String)>> {
        let tree = self.cargo(&["tree", "--package", package, "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])?;
        let mut packages = BTreeSet::new();
        for line in tree.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(version)) = (words.next(), words.next()) {
                packages.insert((name.to_owned(), version.trim_start_matches('v').to_owned()));
            }
        }
        Ok(packages)
    }

    fn cargo(&self, args: &[&str]) -> Result<String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo).args(args).current_dir(&self.root).output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("`cargo {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// The part of `cargo metadata` that the checks read.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// A package as its manifest declares it.
#[derive(Deserialize)]
pub(crate) struct Package {
    /// Name of the package.
    pub(crate) name: String,
    /// Version, as in `1.2.3`.
    pub(crate) version: String,
    /// Native library it says it links.
    pub(crate) links: Option<String>,
    /// Absolute path of its Cargo.toml.
    pub(crate) manifest_path: PathBuf,
    /// Declared dependencies, all targets.
    pub(crate) dependencies: Vec<Dependency>,
}

/// One declared dependency.
#[derive(Deserialize)]
pub(crate) struct Dependency {
    /// Name of the package depended on.
    pub(crate) name: String,
    /// `None` normal, `dev` or `build`.
    pub(crate) kind: Option<String>,
}

fn git_files(root: &Path) -> Option<BTreeSet<String>> {
    let list = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).arg("ls-files").arg("-z").args(args).output().ok()?;
        let text = output.status.success().then(|| String::from_utf8(output.stdout).ok())??;
        Some(text.split_terminator('\0').map(str::to_owned).collect::<Vec<_>>())
    };
    let mut files: BTreeSet<String> = list(&[])?.into_iter().collect();
    let mut others = vec!["--others", "--exclude-standard", "--"];
    others.extend(SOURCE_FOLDERS);
    files.extend(list(&others)?);
    (!files.is_empty()).then_some(files)
}

fn walked_files(root: &Path) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_dir() {
                if name != "target" && name != ".git" {
                    folders.push(entry.path());
                }
            } else if let Ok(relative) = entry.path().strip_prefix(root) {
                files.insert(relative.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    Ok(files)
}
