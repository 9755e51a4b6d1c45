//! A model folder: files on disk, memory-mapped, or files held in memory.

use crate::{Error, Result, gguf, map::map, peft::Adapter};
use octet_tensor::Bytes;
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A model folder, on disk (its files are memory-mapped) or in memory (a model compiled into a program, a GGUF file).
#[derive(Clone, Debug)]
pub struct Folder {
    name: Arc<str>,
    place: Place,
    /// Weights that lie in a GGUF file instead of safetensors.
    bound: Option<Arc<[gguf::Bound]>>,
    /// What is added to the weights as they are read.
    adapter: Option<Arc<Adapter>>,
}

#[derive(Clone, Debug)]
enum Place {
    Disk(Arc<Path>),
    Memory(Arc<BTreeMap<String, Bytes>>),
}

impl Folder {
    /// A folder on disk; nothing is read yet.
    ///
    /// # Errors
    /// If `path` does not exist or is not a folder.
    pub fn disk(path: &Path) -> Result<Self> {
        let refuse = |found| Err(Error::NotAFolder { path: path.display().to_string(), found });
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                Ok(Self { name: name_of(path).into(), place: Place::Disk(path.into()), bound: None, adapter: None })
            }
            Ok(_) => refuse("a file"),
            Err(e) if e.kind() == ErrorKind::NotFound => refuse("not there"),
            Err(e) => Err(Error::io("open", path)(e)),
        }
    }

    /// A folder called `name` made of files in memory.
    pub fn memory(name: &str, files: Vec<(String, Bytes)>) -> Self {
        Self { name: name.into(), place: Place::Memory(Arc::new(files.into_iter().collect())), bound: None, adapter: None }
    }

    /// A folder called `name` of `files` (config.json, tokenizer.json …) whose weights lie in a GGUF file.
    ///
    /// # Errors
    /// If a binding names a tensor that the file does not have, or has in another shape.
    pub fn gguf(name: &str, files: Vec<(String, Bytes)>, file: &gguf::File, bindings: &[gguf::Binding]) -> Result<Self> {
        let bound = bindings.iter().map(|binding| file.bind(binding)).collect::<Result<Vec<_>>>()?;
        Ok(Self { bound: Some(bound.into()), ..Self::memory(name, files) })
    }

    /// The same folder with an adapter applied to its weights.
    pub fn adapted(self, adapter: Adapter) -> Self {
        Self { adapter: Some(Arc::new(adapter)), ..self }
    }

    /// The adapter that is applied to its weights.
    pub fn adapter(&self) -> Option<&Arc<Adapter>> {
        self.adapter.as_ref()
    }

    /// Weights that lie in a GGUF file.
    pub(crate) fn bound(&self) -> Option<&[gguf::Bound]> {
        self.bound.as_deref()
    }

    /// The bytes of `file`, memory-mapped when on disk, or `None` where there is no such file.
    ///
    /// # Errors
    /// If `file` is not a plain file name or cannot be opened or mapped.
    pub fn read(&self, file: &str) -> Result<Option<Bytes>> {
        if !is_plain(file) {
            return Err(Error::NotAPlainName { name: file.into(), folder: self.describe() });
        }
        match &self.place {
            Place::Disk(path) => map(&path.join(file)),
            Place::Memory(files) => Ok(files.get(file).cloned()),
        }
    }

    /// Names and sizes in bytes of the files directly in the folder, sorted by name.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn files(&self) -> Result<Vec<(String, u64)>> {
        let path = match &self.place {
            Place::Memory(files) => return Ok(files.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect()),
            Place::Disk(path) => path,
        };
        let mut files = vec![];
        for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
            let entry = entry.map_err(Error::io("list", path))?;
            // Follows symbolic links: the Hugging Face cache is made of them. A dangling one is no file.
            let Ok(meta) = fs::metadata(entry.path()) else { continue };
            if let (true, Ok(name)) = (meta.is_file(), entry.file_name().into_string()) {
                files.push((name, meta.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    /// Where the folder is on disk, or `None` for one in memory.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Disk(path) => Some(path),
            Place::Memory(_) => None,
        }
    }

    /// The name of the model: the folder's own name, or the repository's name inside a Hugging Face cache.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path, or the name of a folder in memory, for messages.
    pub(crate) fn describe(&self) -> String {
        self.path().map_or_else(|| self.name.to_string(), |path| path.display().to_string())
    }
}

/// Whether `name` names a file of a folder itself: no separators, no drive, not the folder or its parent.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

fn name_of(path: &Path) -> String {
    let full: PathBuf = path.canonicalize().unwrap_or_else(|_| path.into());
    let parts: Vec<&str> = full.iter().filter_map(|part| part.to_str()).collect();
    let repository = match parts[..] {
        [.., repo, "snapshots", _] => repo.strip_prefix("models--").and_then(|repo| repo.rsplit("--").next()),
        _ => None,
    };
    repository.or(parts.last().copied()).unwrap_or("model").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_and_memory_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), b"one").unwrap();
        fs::write(dir.path().join("empty"), b"").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let disk = Folder::disk(dir.path()).unwrap();
        let memory = Folder::memory("m", vec![("a".into(), Bytes::new(&b"one"[..])), ("empty".into(), Bytes::new(&b""[..]))]);
        for folder in [&disk, &memory] {
            assert_eq!(&*folder.read("a").unwrap().unwrap(), b"one");
            assert!(folder.read("empty").unwrap().unwrap().is_empty());
            assert!(folder.read("b").unwrap().is_none());
            assert_eq!(folder.files().unwrap(), [("a".to_string(), 3), ("empty".to_string(), 0)]);
            for outside in ["../a", "sub/a", "/etc/passwd", "..", "", "a\\b", "c:a"] {
                assert!(folder.read(outside).unwrap_err().to_string().contains("plain file name"), "{outside}");
            }
        }
        assert!(disk.read("sub").is_err());
        assert_eq!((memory.name(), memory.path()), ("m", None));
    }

    #[test]
    fn what_is_no_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"x").unwrap();
        assert!(Folder::disk(&file).unwrap_err().to_string().contains("is a file"));
        assert!(Folder::disk(&dir.path().join("none")).unwrap_err().to_string().contains("not there"));
    }

    #[test]
    fn cache_snapshots_are_called_by_their_repository() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("models--org--Small-1B/snapshots/0123abc");
        fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(Folder::disk(&snapshot).unwrap().name(), "Small-1B");
        assert_eq!(Folder::disk(&snapshot.join("..")).unwrap().name(), "snapshots");
    }
}
