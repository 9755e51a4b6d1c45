//! Output folders: nothing unfinished looks finished, nothing of the user's is lost.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use octet_formats::staging::{Staging, available_bytes};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn begin(target: &Path, force: bool) -> Result<Staging, String> {
    Staging::begin(target, force, &[]).map_err(|e| e.to_string())
}

fn refused(target: &Path, force: bool, inputs: &[&Path], expected: &str) {
    let message = Staging::begin(target, force, inputs).map(drop).unwrap_err().to_string();
    assert!(message.contains(expected), "{message}\n  lacks {expected}");
}

fn old_model(dir: &Path) -> PathBuf {
    let target = dir.join("out");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("model.safetensors"), "old").unwrap();
    target
}

#[test]
fn a_commit_leaves_the_output_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let staging = begin(&target, false).unwrap();
    fs::create_dir(staging.path().join("sub")).unwrap();
    fs::write(staging.path().join("sub/a"), "a").unwrap();
    assert_eq!(names(dir.path()), [".out.octet-work"]);
    assert_eq!(staging.commit().unwrap(), target.canonicalize().unwrap());
    assert_eq!((names(dir.path()), names(&target)), (vec!["out".to_string()], vec!["sub".to_string()]));
}

#[test]
fn an_error_leaves_nothing_and_keep_leaves_the_hidden_folder() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let staging = begin(&target, false).unwrap();
    fs::write(staging.path().join("a"), "a").unwrap();
    drop(staging);
    assert!(names(dir.path()).is_empty());
    let mut staging = begin(&target, false).unwrap();
    fs::write(staging.path().join("a"), "a").unwrap();
    staging.retain(true);
    drop(staging);
    assert_eq!(names(dir.path()), [".out.octet-work"]);
    let staging = begin(&target, false).unwrap();
    assert!(names(&staging.path()).is_empty(), "a left-over starts empty");
}

#[test]
fn a_second_run_is_told_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let first = begin(&target, false).unwrap();
    assert!(begin(&target, false).unwrap_err().contains("another run is writing it"));
    assert!(begin(&dir.path().join("other"), false).is_ok());
    first.commit().unwrap();
    assert!(begin(&target, false).unwrap_err().contains("exists already"));
}

#[test]
fn an_existing_target_needs_force_and_must_look_like_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let target = old_model(dir.path());
    refused(&target, false, &[], "--force");
    let staging = begin(&target, true).unwrap();
    fs::write(staging.path().join("new"), "new").unwrap();
    assert_eq!(names(&target), ["model.safetensors"], "untouched until the end");
    staging.commit().unwrap();
    assert_eq!((names(dir.path()), names(&target)), (vec!["out".to_string()], vec!["new".to_string()]));
    refused(&target, true, &[], "does not look like a model folder");
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    refused(&file, true, &[], "something else than a folder");
    assert_eq!(names(dir.path()), ["file", "out"]);
}

#[test]
fn a_run_killed_while_replacing_gives_the_old_folder_back() {
    let dir = tempfile::tempdir().unwrap();
    let target = old_model(dir.path());
    let mut staging = begin(&target, true).unwrap();
    // What a kill between the two renames leaves.
    fs::rename(&target, dir.path().join(".out.octet-work/old")).unwrap();
    staging.retain(true);
    drop(staging);
    refused(&target, false, &[], "exists already");
    assert_eq!(names(&target), ["model.safetensors"]);
}

#[test]
fn an_old_folder_that_could_not_be_put_back_is_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let target = old_model(dir.path());
    let staging = begin(&target, true).unwrap();
    fs::rename(&target, dir.path().join(".out.octet-work/old")).unwrap();
    drop(staging);
    assert_eq!(names(&dir.path().join(".out.octet-work")), ["old"]);
    drop(begin(&target, true).unwrap());
    assert_eq!((names(dir.path()), names(&target)), (vec!["out".to_string()], vec!["model.safetensors".to_string()]));
}

#[test]
fn a_failing_rename_puts_the_old_folder_back() {
    let dir = tempfile::tempdir().unwrap();
    let target = old_model(dir.path());
    let staging = begin(&target, true).unwrap();
    fs::remove_dir(staging.path()).unwrap();
    assert!(staging.commit().is_err());
    assert_eq!((names(dir.path()), names(&target)), (vec!["out".to_string()], vec!["model.safetensors".to_string()]));
}

#[test]
fn inputs_are_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let input = old_model(dir.path());
    refused(&input, true, &[&input], "it is the input");
    refused(&input.join("q"), false, &[&input], "inside the input");
    refused(&input.join("../out/q"), false, &[&input], "inside the input");
    let outer = dir.path().join("outer");
    fs::create_dir_all(outer.join("model")).unwrap();
    refused(&outer, true, &[&outer.join("model")], "lies inside it");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&input, dir.path().join("link")).unwrap();
        refused(&dir.path().join("link/q"), false, &[&input], "inside the input");
        refused(&dir.path().join("link"), true, &[&input], "it is the input");
        refused(&dir.path().join("q"), false, &[&dir.path().join("link"), dir.path()], "inside the input");
        fs::remove_file(dir.path().join("link")).unwrap();
    }
    assert_eq!((names(dir.path()), names(&input)), (vec!["out".to_string(), "outer".into()], vec!["model.safetensors".to_string()]));
    assert!(Staging::begin(&dir.path().join("out-q"), false, &[&input]).is_ok(), "a sibling is fine");
}

#[test]
fn impossible_targets_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    refused(&dir.path().join("no/out"), false, &[], "create it first");
    refused(Path::new("/"), true, &[], "no name");
    refused(&dir.path().join(".."), true, &[], "no name");
    fs::write(dir.path().join("file"), "x").unwrap();
    refused(&dir.path().join("file/out"), false, &[], "is not a folder");
    assert_eq!(names(dir.path()), ["file"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    // /proc refuses new folders even to root.
    let message = begin(Path::new("/proc/out"), false).unwrap_err();
    assert!(message.contains("/proc/out") || message.contains("/proc/.out"), "{message}");
}

#[cfg(unix)]
#[test]
fn free_space_is_told_even_for_what_does_not_exist_yet() {
    let dir = tempfile::tempdir().unwrap();
    assert!(available_bytes(dir.path()).unwrap() > 0);
    assert!(available_bytes(&dir.path().join("a/b/c")).is_some());
}
