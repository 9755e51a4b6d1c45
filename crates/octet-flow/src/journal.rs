//! What makes a run resumable: a file in the work folder that says whose work it is and which stages are finished.

use crate::{Error, Result, artefact::Artefact, write::hex};
use octet_formats::{Checkpoint, Folder, kill_point};
use octet_quant::{Journal, Plan, Sink, SinkError, StageRecord};
use octet_tensor::{QMatrix, Tensor, WeightSource};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// The file, beside the folder that is being made.
pub(crate) const JOURNAL: &str = "journal.jsonl";

/// What a run's bytes depend on, each in words: equal identities make equal files.
pub(crate) type Identity = BTreeMap<String, String>;

/// A finished stage.
#[derive(Serialize, Deserialize)]
struct Entry {
    record: StageRecord,
    /// SHA-256 of each stored tensor.
    sha256: BTreeMap<String, String>,
}

/// A journal that was found.
pub(crate) struct Found {
    entries: Vec<Entry>,
    /// Bytes of the file that are sound.
    sound: u64,
}

/// Reads the journal in the work folder `work`; `None` where there is none worth reading.
///
/// # Errors
/// If it belongs to other work: what differs is named.
pub(crate) fn find(work: &Path, out: &Path, identity: &Identity) -> Result<Option<Found>> {
    let Ok(text) = fs::read_to_string(work.join(JOURNAL)) else { return Ok(None) };
    // What follows the last line break was being written when the run was killed.
    let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let Some(first) = lines.next() else { return Ok(None) };
    let Ok(made_for) = serde_json::from_str::<Identity>(first) else { return Ok(None) };
    if made_for != *identity {
        return Err(Error::OtherWork { work: work.to_path_buf(), differs: differences(&made_for, identity) });
    }
    let (mut entries, mut sound) = (vec![], first.len() as u64);
    let Some(stored) = Folder::disk(out).ok().and_then(|folder| Checkpoint::open(&folder).ok()) else { return Ok(None) };
    let mut read: Vec<(Entry, u64)> = lines.map_while(|line| Some((serde_json::from_str(line).ok()?, line.len() as u64))).collect();
    // A later entry may have written tensors of an earlier one again. What does not hold takes everything after it along,
    // and then the earlier one is asked.
    while let Some(bad) = (0..read.len()).find(|&at| {
        let later: BTreeSet<&String> = read[at + 1..].iter().flat_map(|(entry, _)| entry.sha256.keys()).collect();
        !read[at].0.holds(&stored, &later)
    }) {
        let stage = &read[bad].0.record.stage;
        tracing::warn!("{stage}: the stored tensors are not the ones that were written; it is made again");
        read.truncate(bad);
    }
    for (entry, bytes) in read {
        entries.push(entry);
        sound += bytes;
    }
    Ok(Some(Found { entries, sound }))
}

/// Whether there is unfinished work of a calibrated run.
pub(crate) fn exists(work: &Path) -> bool {
    work.join(JOURNAL).exists()
}

impl Entry {
    /// Whether the tensors in `stored` are the ones that were written, but for those that were written again `later`.
    fn holds(&self, stored: &Checkpoint, later: &BTreeSet<&String>) -> bool {
        let known: BTreeMap<&str, _> = stored.entries().iter().map(|entry| (entry.name.as_str(), entry)).collect();
        self.sha256.iter().filter(|(name, _)| !later.contains(name)).all(|(name, digest)| {
            let tensor = known.get(name.as_str()).and_then(|entry| entry.tensor().ok());
            tensor.is_some_and(|tensor| hex(&Sha256::digest(&**tensor.bytes())) == *digest)
        })
    }
}

/// What differs between two identities, in words.
fn differences(before: &Identity, now: &Identity) -> String {
    let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let none = "nothing".to_string();
    let changed = keys.into_iter().filter(|key| before.get(*key) != now.get(*key));
    let told: Vec<String> = changed
        .map(|key| {
            let (was, is) = (before.get(key).unwrap_or(&none), now.get(key).unwrap_or(&none));
            let short = |digest: &str| digest.chars().take(12).collect::<String>();
            if was.len() > 40 { format!("{key} ({}, now {})", short(was), short(is)) } else { format!("{key} ({was}, now {is})") }
        })
        .collect();
    told.join(", ")
}

/// The folder being made, with its journal.
pub(crate) struct DiskJournal {
    out: PathBuf,
    path: PathBuf,
    file: File,
    artefact: Artefact,
    finished: Vec<StageRecord>,
}

impl DiskJournal {
    /// Begins a journal for the new folder `out`, or goes on with the one that was found.
    pub(crate) fn open(
        work: &Path,
        out: &Path,
        identity: &Identity,
        found: Option<Found>,
        artefact: impl FnOnce(Option<&BTreeSet<String>>) -> Result<Artefact>,
    ) -> Result<Self> {
        let path = work.join(JOURNAL);
        let write = Error::write(&path);
        let resumed = found.is_some();
        let (entries, sound) = found.map_or((vec![], 0), |found| (found.entries, found.sound));
        let tensors: BTreeSet<String> = entries.iter().flat_map(|entry| entry.sha256.keys().cloned()).collect();
        let artefact = artefact(resumed.then_some(&tensors))?;
        let begin = || {
            let mut file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.set_len(sound)?;
            std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
            if !resumed {
                file.write_all(line(identity)?.as_bytes())?;
                file.sync_all()?;
                // The names of the new files, too, must outlive a power failure.
                File::open(work).and_then(|folder| folder.sync_all()).or_else(ignore_unsupported)?;
            }
            Ok(file)
        };
        let file = begin().map_err(write)?;
        let finished = entries.into_iter().map(|entry| entry.record).collect();
        Ok(Self { out: out.to_path_buf(), path, file, artefact, finished })
    }

    /// Lets the tensors of these modules, and those of these names, be written again.
    pub(crate) fn reopen(&mut self, plan: &Plan, again: &BTreeSet<String>) -> Result<()> {
        self.artefact = Artefact::reopen(&self.out, plan, again)?;
        Ok(())
    }

    /// Checks that nothing is missing and brings the weights to disk.
    pub(crate) fn finish(self) -> Result<Vec<StageRecord>> {
        self.artefact.finish()?;
        Ok(self.finished)
    }
}

fn ignore_unsupported(error: std::io::Error) -> std::io::Result<()> {
    // Not every system lets a folder be opened.
    if cfg!(unix) { Err(error) } else { Ok(()) }
}

fn line<T: Serialize>(value: &T) -> std::io::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

impl Sink for DiskJournal {
    fn matrix(&mut self, module: &str, first_row: usize, rows: usize, q: &QMatrix) -> std::result::Result<(), SinkError> {
        self.artefact.matrix(module, first_row, rows, q)
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor) -> std::result::Result<(), SinkError> {
        self.artefact.tensor(name, tensor)
    }
}

impl Journal for DiskJournal {
    fn finished(&self) -> &[StageRecord] {
        &self.finished
    }

    fn results(&self) -> std::result::Result<Box<dyn WeightSource>, SinkError> {
        Ok(Box::new(Checkpoint::open(&Folder::disk(&self.out)?)?))
    }

    fn commit(&mut self, record: StageRecord) -> std::result::Result<(), SinkError> {
        let sha256 = self.artefact.sync()?;
        let entry = Entry { record, sha256 };
        let write = |file: &mut File| {
            let line = line(&entry)?;
            let (first, rest) = line.as_bytes().split_at(line.len() / 2);
            file.write_all(first)?;
            kill_point("journal");
            file.write_all(rest).and_then(|()| file.sync_data())
        };
        write(&mut self.file).map_err(Error::write(&self.path))?;
        self.finished.push(entry.record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_with_both_values() {
        let identity = |seed: &str, recipe: &str| -> Identity {
            [("seed", seed), ("recipe", recipe), ("version", "1")].map(|(k, v)| (k.to_string(), v.to_string())).into()
        };
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        assert_eq!(differences(&identity("0", &a), &identity("1", &a)), "seed (0, now 1)");
        assert_eq!(differences(&identity("0", &a), &identity("0", &b)), "recipe (aaaaaaaaaaaa, now bbbbbbbbbbbb)");
    }
}
