//! Rules about files of any kind: size, paths of somebody's machine, links that lead somewhere.

use crate::repo::Repo;
use anyhow::{Context, Result};
use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

/// Largest file in the repository, in bytes.
const MAX_BYTES: u64 = 9_000_000;

/// Files that may be larger.
const LARGE_ALLOWED: [&str; 1] = ["models/pocket/model.safetensors"];

/// Home folders of people: a path that starts so was copied from a machine.
const HOMES: [&str; 3] = ["/home/", "/Users/", "/root/"];

/// Extensions of files that people write; data files may well talk about paths.
const WRITTEN: [&str; 6] = ["rs", "md", "toml", "py", "sh", "yml"];

/// No file is larger than [`MAX_BYTES`].
pub(crate) fn large_files(repo: &Repo) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in repo.files.iter().filter(|file| !LARGE_ALLOWED.contains(&file.as_str())) {
        let bytes = fs::metadata(repo.root.join(file)).with_context(|| format!("cannot read {file}"))?.len();
        if bytes > MAX_BYTES {
            findings.push(format!("{file} has {bytes} bytes, the limit is {MAX_BYTES}; make it smaller or generate it"));
        }
    }
    Ok(findings)
}

/// No text names a folder of the machine it was written on.
pub(crate) fn foreign_paths(repo: &Repo) -> Result<Vec<String>> {
    let places = machine_places(&repo.root);
    let mut findings = Vec::new();
    for file in &repo.files {
        let Some(text) = repo.text(file)? else { continue };
        let written = Path::new(file).extension().is_none_or(|extension| WRITTEN.iter().any(|known| extension == *known));
        for place in places.iter().map(String::as_str).chain(HOMES.into_iter().filter(|_| written)) {
            findings.extend(
                lines_with_path(&text, place)
                    .map(|line| format!("{file}:{line} names a path under {place}; write it relative to the repository")),
            );
        }
    }
    Ok(findings)
}

/// Links and quoted paths in Markdown lead to something that exists.
pub(crate) fn links(repo: &Repo) -> Result<Vec<String>> {
    let tops: BTreeSet<&str> = repo.files.iter().filter_map(|file| file.split_once('/')).map(|(top, _)| top).collect();
    let mut findings = Vec::new();
    for file in repo.files.iter().filter(|file| file.ends_with(".md")) {
        let text = repo.text(file)?.with_context(|| format!("{file} is not UTF-8"))?;
        let folder = Path::new(file).parent().unwrap_or(Path::new(""));
        let targets = link_targets(&text).into_iter().map(|(line, target)| (line, normal(&folder.join(&target)), target));
        let quoted = quoted_paths(&text, &tops).into_iter().map(|(line, target)| (line, PathBuf::from(&target), target));
        for (line, path, target) in targets.chain(quoted) {
            if !repo.root.join(path).exists() {
                findings.push(format!("{file}:{line} points to `{target}`, which does not exist; mend the link or add the file"));
            }
        }
    }
    Ok(findings)
}

/// The checkout, and the folder it lies in unless that is nobody's own.
fn machine_places(root: &Path) -> Vec<String> {
    let shared = [Path::new("/"), Path::new("/usr"), Path::new("/opt"), &std::env::temp_dir()];
    let mut places = vec![format!("{}/", root.display())];
    places.extend(root.parent().filter(|parent| !shared.contains(parent)).map(|parent| format!("{}/", parent.display())));
    places
}

/// Lines where `place` starts a path to something (and is not the middle of a longer path or of an address).
fn lines_with_path(text: &str, place: &str) -> impl Iterator<Item = usize> {
    let starts_path = move |line: &str| {
        line.match_indices(place).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + place.len()..].chars().next();
            before.is_none_or(|c| !c.is_alphanumeric() && !"/.:-_~}*".contains(c)) && after.is_some_and(char::is_alphanumeric)
        })
    };
    text.lines().enumerate().filter(move |(_, line)| starts_path(line)).map(|(line, _)| line + 1)
}

/// `[text](target)` outside code fences, without addresses and anchors.
fn link_targets(text: &str) -> Vec<(usize, String)> {
    let mut targets = Vec::new();
    for (number, line) in prose_lines(text) {
        for (at, opening) in line.match_indices("](") {
            let target = line[at + opening.len()..].split([')', ' ', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains(':') {
                targets.push((number, target.to_owned()));
            }
        }
    }
    targets
}

/// Paths in backticks that begin with one of the repository's folders.
fn quoted_paths(text: &str, tops: &BTreeSet<&str>) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    for (number, line) in prose_lines(text) {
        for span in line.split('`').skip(1).step_by(2) {
            let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if plain && span.split_once('/').is_some_and(|(top, _)| tops.contains(top)) {
                paths.push((number, span.to_owned()));
            }
        }
    }
    paths
}

fn prose_lines(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((at + 1, line));
        }
    }
    lines
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_machines_are_found() {
        let home = HOMES[0];
        let text = format!("see {home}ann/x\nhttps://example.org{home}ann\n\"{home}bob\"\n$ROOT{home}c\n./{home}");
        assert_eq!(lines_with_path(&text, home).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(machine_places(Path::new("/srv/ann/octet")), ["/srv/ann/octet/", "/srv/ann/"]);
        assert_eq!(machine_places(&std::env::temp_dir().join("octet")).len(), 1);
    }

    #[test]
    fn links_are_read() {
        let text = "a [b](docs/c.md#d) [e](https://f) [g](#h)\n```\n[i](j)\n```\n`crates/x.rs` `crates/<name>` `other/y`\n[k](../l)";
        assert_eq!(link_targets(text), [(1, "docs/c.md".to_owned()), (6, "../l".to_owned())]);
        assert_eq!(quoted_paths(text, &BTreeSet::from(["crates"])), [(5, "crates/x.rs".to_owned())]);
        assert_eq!(normal(Path::new("docs/../a/./b")), Path::new("a/b"));
    }
}
