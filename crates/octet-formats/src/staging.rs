//! An output folder is built in a hidden folder beside it and renamed at the end: nothing unfinished looks finished.

use crate::{Error, Result, kill_point};
use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The unfinished output: a locked hidden folder `.<name>.octet-work/` beside the target.
///
/// Dropping it without [`Staging::commit`] removes it, unless it was told to [stay](Staging::retain). A killed run leaves the
/// hidden folder, which the next run on the same target clears or resumes (and from which it puts back a target that was
/// being replaced).
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    work: PathBuf,
    lock: Option<File>,
    keep: bool,
}

impl Staging {
    /// Begins an output at `target`; `inputs` are the folders or files the run reads.
    ///
    /// # Errors
    /// If the target is an input, inside or around one; if it exists and `force` is not given, or is something that
    /// `force` does not replace; if its parent is missing or not writable; if another run works on it.
    pub fn begin(target: &Path, force: bool, inputs: &[&Path]) -> Result<Self> {
        let mut staging = Self::open(target, force, inputs)?;
        staging.clear()?;
        Ok(staging)
    }

    /// As [`Staging::begin`] for an output that is one file: it is written into the folder under the target's name, and
    /// [`Staging::commit_file`] puts it in its place.
    ///
    /// # Errors
    /// As [`Staging::begin`]; with `force` a file is replaced, never a folder.
    pub fn begin_file(target: &Path, force: bool, inputs: &[&Path]) -> Result<Self> {
        let (parent, name) = locate(target)?;
        let target = parent.join(&name);
        for input in inputs {
            refuse_overlap(&target, input)?;
        }
        match fs::symlink_metadata(&target) {
            Ok(meta) if !meta.is_file() => return refuse(&target, "there is a folder of that name; choose another output file"),
            Ok(_) if !force => return refuse(&target, "the file exists; choose another name or give --force"),
            _ => {}
        }
        let work = parent.join(format!(".{name}.octet-work"));
        let lock = lock(&target, &work)?;
        let mut staging = Self { target, work, lock: Some(lock), keep: false };
        staging.clear()?;
        Ok(staging)
    }

    /// Gives the one file of the output its name.
    ///
    /// # Errors
    /// If the disk or the rename fails; an old file is then still there.
    pub fn commit_file(self) -> Result<PathBuf> {
        let made = self.path().join(self.target.file_name().unwrap_or_default());
        sync_folder(&self.path())?;
        fs::rename(&made, &self.target).map_err(Error::io("create", &self.target))?;
        if let Some(parent) = self.target.parent() {
            sync_folder(parent)?;
        }
        Ok(self.target.clone())
    }

    /// As [`Staging::begin`], but leaves what a killed run left in the hidden folder, and leaves it there when dropped.
    ///
    /// # Errors
    /// As [`Staging::begin`].
    pub fn open(target: &Path, force: bool, inputs: &[&Path]) -> Result<Self> {
        let (parent, name) = locate(target)?;
        let target = parent.join(&name);
        for input in inputs {
            refuse_overlap(&target, input)?;
        }
        refuse_existing(&target, force)?;
        let work = parent.join(format!(".{name}.octet-work"));
        let lock = lock(&target, &work)?;
        let mut staging = Self { target, work, lock: Some(lock), keep: true };
        staging.put_back(force)?;
        staging.keep = staging.path().exists();
        Ok(staging)
    }

    /// Clears what a killed run left and makes an empty folder to write into, to be removed when this is dropped.
    ///
    /// # Errors
    /// If it cannot be cleared.
    pub fn clear(&mut self) -> Result<()> {
        self.keep = false;
        for left in self.contents().map_err(Error::io("list", &self.work))? {
            let removed = if left.is_dir() { fs::remove_dir_all(&left) } else { fs::remove_file(&left) };
            removed.map_err(Error::io("clear", &left))?;
        }
        fs::create_dir(self.path()).map_err(Error::io("create", &self.path()))
    }

    /// Whether the hidden folder stays when this is dropped.
    pub fn retain(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// The hidden folder, for what accompanies the output while it is made.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// What is in the hidden folder beside its lock.
    fn contents(&self) -> std::io::Result<Vec<PathBuf>> {
        let paths: Vec<PathBuf> = fs::read_dir(&self.work)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        Ok(paths.into_iter().filter(|path| path.file_name().is_some_and(|name| name != "lock")).collect())
    }

    /// The folder to write into.
    pub fn path(&self) -> PathBuf {
        self.work.join("out")
    }

    /// Where the output will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Brings everything to disk and gives the output its name; with `force` the old folder is replaced.
    ///
    /// # Errors
    /// If the disk or the rename fails; the old folder, if any, is then back in its place.
    pub fn commit(mut self) -> Result<PathBuf> {
        let (out, old) = (self.path(), self.work.join("old"));
        sync(&out)?;
        let replaces = fs::symlink_metadata(&self.target).is_ok();
        if replaces {
            kill_point("before renames");
            fs::rename(&self.target, &old).map_err(Error::io("move aside", &self.target))?;
        }
        kill_point("between renames");
        if let Err(e) = fs::rename(&out, &self.target) {
            if replaces {
                fs::rename(&old, &self.target).map_err(Error::io("put back", &self.target))?;
            }
            return Err(Error::io("create", &self.target)(e));
        }
        kill_point("after renames");
        if let Some(parent) = self.target.parent() {
            sync_folder(parent)?;
        }
        self.keep = false;
        Ok(self.target.clone())
    }

    /// Puts back the old target that a killed run was replacing.
    fn put_back(&self, force: bool) -> Result<()> {
        let old = self.work.join("old");
        if old.exists() && fs::symlink_metadata(&self.target).is_err() {
            fs::rename(&old, &self.target).map_err(Error::io("put back", &self.target))?;
            refuse_existing(&self.target, force)?;
        } else if old.exists() {
            fs::remove_dir_all(&old).map_err(Error::io("clear", &old))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A failure leaves a hidden folder that the next run clears, so there is nothing to report.
        if !self.keep {
            let old = self.work.join("old");
            // What was moved aside goes only once something stands in its place.
            let gone = |path: &PathBuf| *path != old || self.target.exists();
            for left in self.contents().into_iter().flatten().filter(gone) {
                let _ = if left.is_dir() { fs::remove_dir_all(&left) } else { fs::remove_file(&left) };
            }
            let _ = fs::remove_file(self.work.join("lock"));
            let _ = fs::remove_dir(&self.work);
        }
        drop(self.lock.take());
    }
}

/// Bytes free for this user on the disk of `path` (or of its nearest existing parent); `None` where the system does not tell.
#[cfg(unix)]
pub fn available_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|part| part.exists()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(existing).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Bytes free for this user on the disk of `path`; `None` where the system does not tell.
#[cfg(not(unix))]
pub fn available_bytes(_path: &Path) -> Option<u64> {
    None
}

fn refuse<T>(target: &Path, what: impl Into<String>) -> Result<T> {
    Err(Error::Target { target: target.display().to_string(), what: what.into() })
}

/// The real parent folder and the name of a target.
fn locate(target: &Path) -> Result<(PathBuf, String)> {
    let Some(name) = target.file_name().and_then(|name| name.to_str()) else {
        return refuse(target, "it has no name of its own; give the name of a new folder");
    };
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match parent.canonicalize() {
        Ok(parent) if parent.is_dir() => Ok((parent, name.into())),
        Ok(_) => refuse(target, format!("{} is not a folder; choose another output folder", parent.display())),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            refuse(target, format!("the folder {} does not exist; create it first", parent.display()))
        }
        Err(e) => Err(Error::io("open", parent)(e)),
    }
}

fn refuse_overlap(target: &Path, input: &Path) -> Result<()> {
    let (Ok(input), target_real) = (input.canonicalize(), target.canonicalize().unwrap_or_else(|_| target.into())) else { return Ok(()) };
    let shown = input.display();
    for target in [target, &target_real] {
        if *target == input {
            return refuse(target, "it is the input, which is never written to; choose another output folder");
        } else if target.starts_with(&input) {
            return refuse(target, format!("it lies inside the input {shown}, which is never written to; choose a folder outside"));
        } else if input.starts_with(target) {
            return refuse(target, format!("the input {shown} lies inside it; choose another output folder"));
        }
    }
    Ok(())
}

fn refuse_existing(target: &Path, force: bool) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(target) else { return Ok(()) };
    if !meta.is_dir() {
        return refuse(target, "there is something else than a folder of that name; choose another output folder");
    }
    if !force {
        return refuse(target, "it exists already; choose another output folder or replace it with --force");
    }
    let files: Vec<String> = fs::read_dir(target)
        .map_err(Error::io("list", target))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let weights = [".safetensors", ".gguf", ".npz"];
    if files.is_empty() || files.iter().any(|file| weights.iter().any(|end| file.ends_with(end))) {
        return Ok(());
    }
    refuse(target, "it exists and does not look like a model folder, so --force does not replace it; remove it yourself")
}

/// Creates the work folder and locks it against a second run.
fn lock(target: &Path, work: &Path) -> Result<File> {
    let path = work.join("lock");
    // A finishing run removes the lock file: what was locked must still be the file of that name.
    for _ in 0..16 {
        match fs::create_dir(work) {
            Err(e) if e.kind() == ErrorKind::PermissionDenied || e.kind() == ErrorKind::ReadOnlyFilesystem => {
                return refuse(target, "its parent folder is not writable; choose another output folder");
            }
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(Error::io("create", work)(e)),
            _ => {}
        }
        let file = match File::options().write(true).create(true).truncate(false).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("lock", &path)(e)),
        };
        match file.try_lock() {
            Ok(()) if is_same(&file, &path) => return Ok(file),
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => break,
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
        }
    }
    refuse(target, format!("another run is writing it (lock {}); wait for it to end or choose another output folder", path.display()))
}

#[cfg(unix)]
fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
    file.metadata().ok().map(id) == fs::metadata(path).ok().map(id)
}

#[cfg(not(unix))]
fn is_same(_file: &File, path: &Path) -> bool {
    path.exists()
}

/// Brings every file below `folder` to disk.
fn sync(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.is_dir() {
            sync(&path)?;
        } else {
            // Opened for writing: some systems flush only such handles.
            let file = File::options().write(true).open(&path).or_else(|_| File::open(&path));
            file.and_then(|file| file.sync_all()).map_err(Error::io("write to disk", &path))?;
        }
    }
    sync_folder(folder)
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(Error::io("write to disk", folder))
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> Result<()> {
    Ok(())
}
