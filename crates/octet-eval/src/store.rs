//! A folder of results that are costly to compute anew, each under the digest of everything it depends on.
//!
//! A file is believed only if its key and the digest of its contents are right: anything else is as if it were not there.
//! The folder is bounded; what was not used for longest goes first.

use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// First bytes of a file, with the version of its layout.
const MAGIC: &[u8; 8] = b"octetrf1";

/// Most bytes that a store holds unless asked otherwise.
pub const USUAL_BYTES: u64 = 2_000_000_000;

/// Ending of the files.
const ENDING: &str = "reference";

/// A bounded folder of stored results.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    most_bytes: u64,
}

/// What a stored result depends on, in a fixed order.
#[derive(Clone, Debug, Default)]
pub struct Key(String);

impl Key {
    /// The key of a `kind` of result made by this version.
    pub fn new(kind: &str) -> Self {
        Self::default().with("kind", kind).with("octet", env!("CARGO_PKG_VERSION"))
    }

    /// Adds something it depends on.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        // Lengths keep two values apart however they are cut.
        let value = value.to_string();
        self.0.push_str(&format!("{name} {} {value}\n", value.len()));
        self
    }

    /// Adds token ids it depends on, by their digest.
    #[must_use]
    pub fn with_ids<'a>(self, name: &str, lists: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut sha = Sha256::new();
        for ids in lists {
            sha.update((ids.len() as u64).to_le_bytes());
            ids.iter().for_each(|id| sha.update(id.to_le_bytes()));
        }
        self.with(name, hex(&sha.finalize()))
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl Store {
    /// The store in `dir` (made when something is first stored), of at most `most_bytes` bytes.
    pub fn new(dir: impl Into<PathBuf>, most_bytes: u64) -> Self {
        Self { dir: dir.into(), most_bytes }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is stored under `key`; `None` if nothing is, or the file is damaged or not what its name says.
    pub fn load(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.path(key);
        let bytes = fs::read(&path).ok()?;
        let payload = open(&bytes, key)?.to_vec();
        // What is used stays longest; a folder that cannot be written to is fine.
        if let Ok(file) = fs::File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(payload)
    }

    /// Whether there is a file for `key`; whether it is whole shows when it is loaded.
    pub fn holds(&self, key: &Key) -> bool {
        self.path(key).is_file()
    }

    /// Stores `payload` under `key` and makes room for it.
    ///
    /// # Errors
    /// If it cannot be written. Whoever has the payload can go on without.
    pub fn save(&self, key: &Key, payload: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let path = self.path(key);
        let mut bytes = Vec::with_capacity(payload.len() + 80);
        bytes.extend(MAGIC);
        bytes.extend(key.digest());
        bytes.extend(payload);
        bytes.extend(Sha256::digest(&bytes));
        // Under another name first, so that no reader sees a part.
        let passing = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = fs::write(&passing, &bytes).and_then(|()| fs::rename(&passing, &path));
        if written.is_err() {
            let _ = fs::remove_file(&passing);
        }
        written?;
        self.trim(&path)
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{}.{ENDING}", hex(&key.digest()[..16])))
    }

    /// Removes what was not used for longest until the rest fits; `newest` stays.
    fn trim(&self, newest: &Path) -> io::Result<()> {
        let mut files = vec![];
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == ENDING) {
                // Another process may have removed it meanwhile.
                let Ok(meta) = path.metadata() else { continue };
                files.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), path));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files.iter().filter(|(_, _, path)| path != newest) {
            if total <= self.most_bytes {
                break;
            }
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(())
    }
}

/// The payload of a file if it is whole and belongs to `key`.
fn open<'a>(bytes: &'a [u8], key: &Key) -> Option<&'a [u8]> {
    let (body, digest) = bytes.split_last_chunk::<32>()?;
    let rest = body.strip_prefix(MAGIC)?;
    let (named, payload) = rest.split_first_chunk::<32>()?;
    (*named == key.digest() && Sha256::digest(body)[..] == digest[..]).then_some(payload)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("octet-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn what_was_stored_comes_back_and_nothing_else_does() {
        let dir = temporary("damage");
        let (store, key) = (Store::new(&dir, 10_000), Key::new("logits").with("model", "abc").with_ids("windows", [&[1u32, 2][..], &[3]]));
        assert_eq!(store.load(&key), None);
        store.save(&key, b"figures").unwrap();
        assert_eq!(store.load(&key).as_deref(), Some(&b"figures"[..]));
        let other = Key::new("logits").with("model", "abc").with_ids("windows", [&[1u32][..], &[2, 3]]);
        assert_eq!(store.load(&other), None);
        let path = store.path(&key);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert_eq!(open(&bad, &key), None, "byte {at}");
            assert_eq!(open(&good[..at], &key), None, "cut at {at}");
        }
        // A file that bears another key's name.
        fs::copy(&path, store.path(&other)).unwrap();
        assert_eq!(store.load(&other), None);
        store.save(&other, b"new").unwrap();
        assert_eq!(store.load(&other).as_deref(), Some(&b"new"[..]));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_folder_is_bounded_and_what_is_used_stays() {
        let dir = temporary("bound");
        let store = Store::new(&dir, 3 * 1100);
        let key = |i: usize| Key::new("logits").with("number", i);
        let aged = |i: usize, seconds: u64| {
            let time = SystemTime::now() - std::time::Duration::from_secs(seconds);
            fs::File::options().append(true).open(store.path(&key(i))).unwrap().set_modified(time).unwrap();
        };
        for i in 0..3 {
            store.save(&key(i), &[7; 1000]).unwrap();
            aged(i, 100 - i as u64);
        }
        assert!(store.load(&key(0)).is_some());
        store.save(&key(3), &[7; 1000]).unwrap();
        let there: Vec<bool> = (0..4).map(|i| store.load(&key(i)).is_some()).collect();
        assert_eq!(there, [true, false, true, true]);
        // One that is larger than the bound is kept alone.
        store.save(&key(9), &[7; 9000]).unwrap();
        assert!(store.load(&key(9)).is_some() && fs::read_dir(&dir).unwrap().count() == 1);
        fs::remove_dir_all(&dir).unwrap();
    }
}
