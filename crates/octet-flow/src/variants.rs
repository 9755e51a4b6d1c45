//! A folder of variants of one model: which of them is in use, and the way back.
//!
//! The file `current` names the variant in use on its first line, what was in use before on the following ones, newest
//! first, and the original on the last. Going back takes a line away; no variant is ever deleted.

use crate::{Error, Result, Summary};
use std::path::{Path, PathBuf};

/// The file that names the variant in use.
pub const POINTER_FILE: &str = "current";

/// What begins the line of the original.
const ORIGINAL: &str = "original ";

/// What is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InUse {
    /// This variant.
    Variant(PathBuf),
    /// The original, by the name it was given.
    Original(String),
}

/// What going back did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The variant that was in use; its folder stays.
    pub from: PathBuf,
    /// What is in use now.
    pub to: InUse,
}

/// Whether `dir` is a folder of variants.
pub fn is_collection(dir: &Path) -> bool {
    dir.is_dir()
        && !dir.join("config.json").exists()
        && (dir.join(POINTER_FILE).is_file() || dir.join(crate::summary::SUMMARY_FILE).is_file())
}

/// What is in use in a folder of variants: what `current` names, or the accepted variant with the best score.
///
/// # Errors
/// If the folder names no accepted variant, or one that is not there.
pub fn in_use(dir: &Path) -> Result<InUse> {
    if let Some(first) = lines(dir)?.first() {
        return at(dir, first);
    }
    let summary = Summary::read(dir)?;
    let best = summary.best().and_then(|variant| variant.path.clone());
    let name = best.as_deref().and_then(|path| Path::new(path).file_name()).map(|name| name.to_string_lossy().into_owned());
    match name {
        Some(name) => at(dir, &name),
        None => Err(collection(dir, "holds no accepted variant; quantize into it first, or name a model folder")),
    }
}

/// Puts the variant called `name` into use; `original` is what going back ends at.
///
/// # Errors
/// If the file cannot be written.
pub fn put_in_use(dir: &Path, name: &str, original: &str) -> Result<()> {
    let mut lines = lines(dir)?;
    if lines.first().is_none_or(|first| first != name) {
        lines.insert(0, name.to_string());
    }
    if !lines.iter().any(|line| line.starts_with(ORIGINAL)) {
        lines.push(format!("{ORIGINAL}{original}"));
    }
    write(dir, &lines)
}

/// Goes back to the variant that was in use before, or to the original. Nothing is deleted.
///
/// # Errors
/// If nothing is in use but the original, or what was in use before is no longer there.
pub fn rollback(dir: &Path) -> Result<RolledBack> {
    let mut lines = lines(dir)?;
    let from = match lines.first() {
        None => {
            return Err(collection(
                dir,
                "has no file current, so there is nothing to go back from; octet quantize with several schemes writes one",
            ));
        }
        Some(first) if first.starts_with(ORIGINAL) => {
            return Err(collection(dir, "is at the original already; there is nothing before it"));
        }
        Some(first) => dir.join(first),
    };
    lines.remove(0);
    // The same variant twice in a row, or one that somebody removed, is no step back.
    let gone = |line: &String| !line.starts_with(ORIGINAL) && (dir.join(line) == from || !dir.join(line).is_dir());
    while lines.first().is_some_and(gone) {
        lines.remove(0);
    }
    let to = match lines.first() {
        Some(line) => at(dir, line)?,
        None => return Err(collection(dir, "does not say which original it came from; name a model folder instead")),
    };
    write(dir, &lines)?;
    Ok(RolledBack { from, to })
}

fn at(dir: &Path, line: &str) -> Result<InUse> {
    if let Some(original) = line.strip_prefix(ORIGINAL) {
        return Ok(InUse::Original(original.to_string()));
    }
    let path = dir.join(line);
    // A name that leads out of the folder was not written here.
    let plain = Path::new(line).components().count() == 1 && !line.starts_with('.');
    if plain && path.is_dir() {
        Ok(InUse::Variant(path))
    } else {
        Err(collection(dir, &format!("says that {line} is in use, which is not there; octet rollback goes back")))
    }
}

fn lines(dir: &Path) -> Result<Vec<String>> {
    let path = dir.join(POINTER_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_string).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(Error::read(&path)(error)),
    }
}

/// Written beside and renamed, so that a reader sees the old or the new file.
fn write(dir: &Path, lines: &[String]) -> Result<()> {
    let (path, new) = (dir.join(POINTER_FILE), dir.join(".current.new"));
    std::fs::write(&new, lines.join("\n") + "\n").and_then(|()| std::fs::rename(&new, &path)).map_err(Error::write(&path))
}

fn collection(dir: &Path, what: &str) -> Error {
    Error::Receipt { path: dir.to_path_buf(), what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_ends_at_the_original_and_deletes_nothing() {
        let dir = std::env::temp_dir().join(format!("octet-variants-{}", std::process::id()));
        for name in ["a", "b", "c"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        for name in ["a", "b", "b", "c"] {
            put_in_use(&dir, name, "./models/the original").unwrap();
        }
        assert!(is_collection(&dir) && !is_collection(&dir.join("a")));
        assert_eq!(in_use(&dir).unwrap(), InUse::Variant(dir.join("c")));
        let back = rollback(&dir).unwrap();
        assert_eq!((back.from, back.to), (dir.join("c"), InUse::Variant(dir.join("b"))));
        std::fs::remove_dir(dir.join("a")).unwrap();
        assert_eq!(rollback(&dir).unwrap().to, InUse::Original("./models/the original".into()));
        assert_eq!(in_use(&dir).unwrap(), InUse::Original("./models/the original".into()));
        assert!(rollback(&dir).unwrap_err().to_string().contains("at the original already"));
        put_in_use(&dir, "c", "x").unwrap();
        assert_eq!(rollback(&dir).unwrap().to, InUse::Original("./models/the original".into()));
        std::fs::write(dir.join(POINTER_FILE), "../elsewhere\n").unwrap();
        let error = in_use(&dir).unwrap_err().to_string();
        assert!(dir.join("b").is_dir() && dir.join("c").is_dir());
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(error.contains("../elsewhere"), "{error}");
    }
}
