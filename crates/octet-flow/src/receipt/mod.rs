//! `receipt.json`: what went in, what was done, what came out, each by its SHA-256; enough to do it again.
//!
//! The document seals itself: its last digest is over everything else in it, and a reader accepts only the exact bytes that
//! octet writes for its values. So any changed byte is found, in the files as in the receipt. Against somebody who
//! writes a new receipt only a [signature](Keys) helps.

mod check;
mod keys;
mod reproduce;

pub use check::{Finding, SignedBy, Verification, Wrong, verify};
pub use keys::{Keys, PublicKey, SecretKey};
pub use reproduce::{Reproduction, reproduce};

use crate::{
    Calibration, Error, Prepared, Result, Staged,
    artefact::{self, write_json},
    digest::{self, FileDigest},
};
use octet_eval::machine::Machine;
use octet_formats::Folder;
use octet_kernels::Engine;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Version of the document's layout.
pub const SCHEMA_VERSION: u32 = 1;

/// The file a receipt is written to.
pub const RECEIPT_FILE: &str = "receipt.json";

/// Files of an artefact that carry measured times, that are made for one instruction set, or that say how the recipe was come by,
/// with which a reproduction begins: they may differ between two runs that are otherwise the same.
const TIMED: [&str; 7] = [
    "validation_report.json",
    "report.html",
    "decision_log.jsonl",
    "README.md",
    crate::mixed::FILE,
    octet_formats::packed::FILE,
    RECEIPT_FILE,
];

/// What went in, what was done, what came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// See [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Version of octet that made the artefact.
    pub octet_version: String,
    /// The command line.
    pub command: Vec<String>,
    /// The machine, its instruction set and threads.
    pub machine: Machine,
    /// Seed of everything drawn at random.
    pub seed: u64,
    /// The original.
    pub model: ModelRecord,
    /// What was done to its tensors.
    pub plan: PlanRecord,
    /// The text that statistics were measured on; `None` where none were.
    pub calibration: Option<CalibrationRecord>,
    /// The texts it was judged on; none where it was not judged.
    pub evaluation: Vec<TextSource>,
    /// Every file of the artefact but the receipt.
    pub files: Vec<FileDigest>,
    /// SHA-256 of every stored tensor's bytes.
    pub tensors: BTreeMap<String, String>,
    /// SHA-256 of this document with this field empty and no signature.
    pub sha256: String,
    /// Who vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<SignatureRecord>,
}

/// The original.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// Its name.
    pub name: String,
    /// Where it was; `None` for the built-in model.
    pub path: Option<PathBuf>,
    /// Every file of it.
    pub files: Vec<FileDigest>,
}

/// What was done to the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRecord {
    /// Name of the scheme, preset or recipe.
    pub label: String,
    /// The recipe in full (TOML): giving it again gives the same plan.
    pub recipe: String,
    /// Whether tensors that cannot take what is asked were errors.
    pub strict: bool,
    /// SHA-256 of the plan, one line a tensor.
    pub sha256: String,
}

/// What statistics were measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecord {
    /// The texts.
    pub texts: Vec<TextSource>,
    /// The field of JSON lines that was read, where one was named.
    pub field: Option<String>,
    /// Tokens of a window.
    pub length: usize,
    /// Tokens in all.
    pub tokens: usize,
    /// SHA-256 over lengths and tokens of all windows.
    pub sha256: String,
    /// The first 16 digits of the SHA-256 of every window's tokens (32-bit, little-endian).
    pub windows: Vec<String>,
    /// Whether linears saw what already quantized linears of the same block leave.
    pub true_sequential: bool,
}

/// A text that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSource {
    /// What it is called.
    pub name: String,
    /// The file; `None` for a built-in text.
    pub path: Option<PathBuf>,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// Who vouches for a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignatureRecord {
    /// `ed25519` (RFC 8032) over the 64 characters of the receipt's `sha256`.
    pub algorithm: String,
    /// The public key, hexadecimal.
    pub public_key: String,
    /// The signature, hexadecimal.
    pub signature: String,
}

impl TextSource {
    /// A text file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn file(path: &Path) -> Result<Self> {
        let full = path.canonicalize().map_err(Error::read(path))?;
        Ok(Self { name: path.display().to_string(), sha256: digest::of_file(&full)?.1, path: Some(full) })
    }

    /// A text that the program carries.
    pub fn built_in(name: &str, text: &str) -> Self {
        Self { name: name.into(), path: None, sha256: digest::of_bytes(text.as_bytes()) }
    }
}

/// What a receipt says beside what the artefact itself tells.
#[derive(Clone, Copy, Debug)]
pub struct ReceiptFacts<'a> {
    /// The command line.
    pub command: &'a [String],
    /// What was calibrated on, if anything.
    pub calibration: Option<&'a Calibration>,
    /// What it was judged on, if it was.
    pub evaluation: &'a [TextSource],
    /// Signs the receipt.
    pub key: Option<&'a SecretKey>,
}

impl Receipt {
    /// Reads a receipt; only the exact bytes that octet writes are accepted.
    ///
    /// # Errors
    /// If the file cannot be read, is no receipt, or was changed in any byte.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::read(path))?;
        let damaged = |what: String| Error::Receipt { path: path.to_path_buf(), what };
        let receipt: Self = serde_json::from_str(&text).map_err(|e| damaged(format!("is not a receipt of octet ({e})")))?;
        if receipt.schema_version != SCHEMA_VERSION {
            return Err(damaged(format!("has layout {}, this version reads {SCHEMA_VERSION}", receipt.schema_version)));
        }
        if receipt.sha256 != receipt.digest()? {
            return Err(damaged("was changed: its own digest does not fit what it says".into()));
        }
        if receipt.text()? != text {
            return Err(damaged("was changed: it is not written as octet writes it".into()));
        }
        Ok(receipt)
    }

    /// The document.
    fn text(&self) -> Result<String> {
        artefact::pretty(&serde_json::to_value(self).map_err(|e| Error::Internal(e.to_string()))?)
    }

    /// SHA-256 of the document with an empty digest and no signature.
    fn digest(&self) -> Result<String> {
        let bare = Self { sha256: String::new(), signature: None, ..self.clone() };
        Ok(digest::of_bytes(bare.text()?.as_bytes()))
    }

    /// The files that carry no times: the same run writes the same bytes of them.
    pub fn timeless(&self) -> impl Iterator<Item = &FileDigest> {
        self.files.iter().filter(|file| !TIMED.contains(&file.name.as_str()))
    }
}

impl Staged {
    /// Writes the receipt of this finished artefact into it. Nothing else may be added afterwards.
    ///
    /// # Errors
    /// If a file cannot be read, or the receipt cannot be written.
    pub fn add_receipt(&self, prepared: &Prepared, facts: ReceiptFacts<'_>, engine: &Engine) -> Result<Receipt> {
        let input = prepared.input();
        let path = input.path().map(|path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf()));
        let settings = prepared.settings();
        let out = self.path();
        let mut receipt = Receipt {
            schema_version: SCHEMA_VERSION,
            octet_version: env!("CARGO_PKG_VERSION").into(),
            command: facts.command.to_vec(),
            machine: Machine::of(engine),
            seed: settings.seed,
            model: ModelRecord { name: input.name().into(), path, files: digest::of_folder(input)? },
            plan: PlanRecord {
                label: settings.label.clone(),
                recipe: settings.recipe.to_string(),
                strict: settings.strict,
                sha256: prepared.plan_digest(),
            },
            calibration: facts.calibration.map(Calibration::record),
            evaluation: facts.evaluation.to_vec(),
            files: digest::of_tree(&out)?.into_iter().filter(|file| file.name != RECEIPT_FILE).collect(),
            tensors: digest::tensor_map(&Folder::disk(&out)?, engine)?,
            sha256: String::new(),
            signature: None,
        };
        receipt.sha256 = receipt.digest()?;
        receipt.signature = facts.key.map(|key| key.sign(&receipt.sha256));
        let value = serde_json::to_value(&receipt).map_err(|e| Error::Internal(e.to_string()))?;
        write_json(&out.join(RECEIPT_FILE), &value)?;
        Ok(receipt)
    }
}
