//! `decision_log.jsonl`: every state a run was in, on what it rested and what was decided, a line each.

use super::{Kind, Rung};
use crate::{Error, Result};
use octet_eval::Report;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// The file of a finished run, in the folder it made.
pub const LOG_FILE: &str = "decision_log.jsonl";

/// One state of a run and what was decided there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted from 1.
    pub step: usize,
    /// The state.
    pub state: Kind,
    /// The rung it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rung: Option<Rung>,
    /// The candidate it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// SHA-256 of what the state rested on, by name.
    pub inputs: BTreeMap<String, String>,
    /// What was measured.
    pub figures: Value,
    /// What was decided.
    pub decision: Decision,
    /// Why.
    pub reason: String,
    /// The verdict in full, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<Report>>,
}

/// What can be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Go on to the next state.
    Go,
    /// Take the candidate.
    Accept,
    /// Try the next rung.
    Climb,
    /// Pass a rung over.
    Skip,
    /// A person must say.
    Ask,
    /// Keep the original.
    Keep,
}

/// What a run's decisions depend on: equal identities may go on with each other's work.
pub type Identity = BTreeMap<String, String>;

/// The log of a run that is going on.
pub struct DecisionLog {
    path: PathBuf,
    entries: Vec<Entry>,
    /// Entries of an earlier run that was stopped.
    earlier: Vec<Entry>,
}

impl DecisionLog {
    /// Begins a log at `path`, or goes on with the one that is there if it is of the same `identity`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn open(path: &Path, identity: &Identity, restart: bool) -> Result<Self> {
        let earlier = if restart { vec![] } else { read(path, identity).unwrap_or_default() };
        let log = Self { path: path.to_path_buf(), entries: vec![], earlier };
        let first = serde_json::to_string(identity).map_err(|e| Error::Internal(e.to_string()))?;
        fs::write(path, first + "\n").map_err(Error::write(path))?;
        Ok(log)
    }

    /// Adds an entry, and brings it to disk.
    pub(super) fn add(&mut self, mut entry: Entry) -> Result<&Entry> {
        entry.step = self.entries.len() + 1;
        let line = serde_json::to_string(&entry).map_err(|e| Error::Internal(e.to_string()))? + "\n";
        let write = || {
            let mut file = File::options().append(true).open(&self.path)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        write().map_err(Error::write(&self.path))?;
        self.entries.push(entry);
        self.entries.last().ok_or_else(|| Error::Internal("an entry was lost".into()))
    }

    /// What an earlier, stopped run decided in `state` about this candidate.
    pub(super) fn earlier(&self, state: Kind, rung: Rung, candidate: &str) -> Option<&Entry> {
        let same = |entry: &&Entry| entry.state == state && entry.rung == Some(rung) && entry.candidate.as_deref() == Some(candidate);
        self.earlier.iter().rfind(same)
    }

    /// The entries so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The transcript: one line an entry.
    ///
    /// # Errors
    /// Never for entries made here.
    pub fn text(&self) -> Result<String> {
        let lines: serde_json::Result<Vec<String>> = self.entries.iter().map(serde_json::to_string).collect();
        Ok(lines.map_err(|e| Error::Internal(e.to_string()))?.join("\n") + "\n")
    }

    /// Removes the file of the running log: its text is elsewhere, or there is nothing to go on with.
    pub(super) fn remove(&self) {
        // What stays behind is begun anew by the next run.
        let _ = fs::remove_file(&self.path);
    }
}

/// The entries at `path`; `None` where they are of other work or not readable.
fn read(path: &Path, identity: &Identity) -> Option<Vec<Entry>> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let found: Identity = serde_json::from_str(lines.next()?).ok()?;
    // A line that was being written when the run was killed ends what can be read.
    (found == *identity).then(|| lines.map_while(|line| serde_json::from_str(line).ok()).collect())
}

/// Reads a finished transcript.
///
/// # Errors
/// If it cannot be read or a line is no entry.
pub fn read_log(path: &Path) -> Result<Vec<Entry>> {
    let text = fs::read_to_string(path).map_err(Error::read(path))?;
    let wrong = |e: serde_json::Error| Error::Receipt { path: path.to_path_buf(), what: format!("is no decision log ({e})") };
    text.lines().map(|line| serde_json::from_str(line).map_err(wrong)).collect()
}
