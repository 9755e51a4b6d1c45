//! SHA-256 of files and tensors, a little at a time, so that hashing takes no memory to speak of.

use crate::{Error, Result, artefact::companions, write::hex};
use octet_formats::{Checkpoint, Folder};
use octet_kernels::Engine;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::Path,
    sync::{Mutex, PoisonError},
};

/// Bytes of weights that are mapped at once while tensors are hashed.
const MAPPED_BYTES: usize = 64 << 20;

/// Bytes of a file read at once.
const READ_BYTES: usize = 1 << 20;

/// One file of a folder and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Its name, or its path below the folder with `/` between the parts.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, lower-case hexadecimal.
    pub sha256: String,
}

/// SHA-256 of `bytes`, lower-case hexadecimal.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of tokens as 32-bit little-endian numbers.
pub(crate) fn of_window(tokens: &[u32]) -> String {
    let mut sha = Sha256::new();
    tokens.iter().for_each(|token| sha.update(token.to_le_bytes()));
    hex(&sha.finalize())
}

/// Length and SHA-256 of a file.
///
/// # Errors
/// If it cannot be read.
pub fn of_file(path: &Path) -> Result<(u64, String)> {
    let (mut sha, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; READ_BYTES]);
    let mut file = File::open(path).map_err(Error::read(path))?;
    loop {
        let read = file.read(&mut buffer).map_err(Error::read(path))?;
        if read == 0 {
            return Ok((bytes, hex(&sha.finalize())));
        }
        sha.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// Every file of a model folder, on disk or in memory, sorted by name.
///
/// # Errors
/// If one cannot be read.
pub(crate) fn of_folder(folder: &Folder) -> Result<Vec<FileDigest>> {
    let mut all = vec![];
    for (name, bytes) in folder.files()? {
        let (bytes, sha256) = match folder.path() {
            Some(path) => of_file(&path.join(&name))?,
            None => (bytes, folder.read(&name)?.map_or_else(String::new, |content| of_bytes(&content))),
        };
        all.push(FileDigest { name, bytes, sha256 });
    }
    Ok(all)
}

/// Every file below `root`, in folders too, sorted by path.
///
/// # Errors
/// If one cannot be read.
pub(crate) fn of_tree(root: &Path) -> Result<Vec<FileDigest>> {
    let mut names = vec![];
    gather(root, "", &mut names)?;
    names.sort();
    let digest = |name: String| {
        let (bytes, sha256) = of_file(&root.join(&name))?;
        Ok(FileDigest { name, bytes, sha256 })
    };
    names.into_iter().map(digest).collect()
}

/// Paths of all files below `root`, relative to it.
fn gather(root: &Path, below: &str, found: &mut Vec<String>) -> Result<()> {
    let here = root.join(below);
    for entry in std::fs::read_dir(&here).map_err(Error::read(&here))? {
        let entry = entry.map_err(Error::read(&here))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.path().is_dir() { gather(root, &name, found)? } else { found.push(name) }
    }
    Ok(())
}

/// One SHA-256 for all files below `root`, their names included.
///
/// # Errors
/// If one cannot be read.
pub fn tree(root: &Path) -> Result<String> {
    Ok(of_list(&of_tree(root)?))
}

/// One SHA-256 for all files of a model folder.
///
/// # Errors
/// If one cannot be read.
pub fn folder(folder: &Folder) -> Result<String> {
    Ok(of_list(&of_folder(folder)?))
}

fn of_list(files: &[FileDigest]) -> String {
    let lines: String = files.iter().map(|file| format!("{} {}\n", file.sha256, file.name)).collect();
    of_bytes(lines.as_bytes())
}

/// SHA-256 of every tensor of a checkpoint, in the order they are stored.
///
/// # Errors
/// If one cannot be read.
pub(crate) fn of_tensors(folder: &Folder, checkpoint: &Checkpoint, engine: &Engine) -> Result<Vec<(String, [u8; 32])>> {
    let entries = checkpoint.entries();
    let digests: Vec<Mutex<Option<[u8; 32]>>> = entries.iter().map(|_| Mutex::default()).collect();
    let mut first = 0;
    while first < entries.len() {
        let (mut last, mut bytes) = (first, 0);
        while last < entries.len() && (last == first || bytes < MAPPED_BYTES) {
            bytes += entries[last].bytes;
            last += 1;
        }
        // Opened anew, so that what was mapped for a part is given back.
        let part = Checkpoint::open(folder)?;
        engine.run(last - first, &|i| {
            let tensor = part.entries().get(first + i).and_then(|entry| entry.tensor().ok());
            let digest = tensor.map(|tensor| Sha256::digest(&**tensor.bytes()).into());
            *digests[first + i].lock().unwrap_or_else(PoisonError::into_inner) = digest;
        });
        first = last;
    }
    let named = entries.iter().zip(digests).map(|(entry, digest)| {
        let digest = digest.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((entry.name.clone(), digest.ok_or_else(|| octet_tensor::Error::Missing { name: entry.name.clone() })?))
    });
    named.collect()
}

/// One SHA-256 over the names and contents of all tensors and the config.
///
/// # Errors
/// If a tensor cannot be read.
pub(crate) fn of_weights(folder: &Folder, checkpoint: &Checkpoint, engine: &Engine) -> Result<String> {
    let mut sha = Sha256::new();
    sha.update(checkpoint.config().to_string());
    for (name, digest) in of_tensors(folder, checkpoint, engine)? {
        sha.update(&name);
        sha.update(digest);
    }
    Ok(hex(&sha.finalize()))
}

/// One SHA-256 over the names and contents of tokenizer, template and generation files.
///
/// # Errors
/// If one cannot be read.
pub(crate) fn of_companions(folder: &Folder) -> Result<String> {
    let mut sha = Sha256::new();
    for (name, bytes) in companions(folder)? {
        sha.update(name);
        sha.update(Sha256::digest(&*bytes));
    }
    Ok(hex(&sha.finalize()))
}

/// [`of_tensors`] by name, in hexadecimal.
///
/// # Errors
/// If the folder is no checkpoint or a tensor cannot be read.
pub(crate) fn tensor_map(folder: &Folder, engine: &Engine) -> Result<BTreeMap<String, String>> {
    let checkpoint = Checkpoint::open(folder)?;
    Ok(of_tensors(folder, &checkpoint, engine)?.into_iter().map(|(name, digest)| (name, hex(&digest))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        // FIPS 180-4, the example of one block.
        assert_eq!(of_bytes(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let root = std::env::temp_dir().join(format!("octet-digest-{}", std::process::id()));
        std::fs::create_dir_all(root.join("inner")).unwrap();
        std::fs::write(root.join("a"), b"abc").unwrap();
        std::fs::write(root.join("inner/b"), vec![7; READ_BYTES + 1]).unwrap();
        let tree = of_tree(&root).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(tree.iter().map(|file| (file.name.as_str(), file.bytes)).collect::<Vec<_>>(), [("a", 3), ("inner/b", (1 << 20) + 1)]);
        assert_eq!((&tree[0].sha256, &tree[1].sha256), (&of_bytes(b"abc"), &of_bytes(&vec![7; READ_BYTES + 1])));
    }
}
