//! Holding an artefact against its receipt.

use super::{PublicKey, RECEIPT_FILE, Receipt, TextSource};
use crate::{
    Result,
    digest::{self, FileDigest},
};
use octet_formats::Folder;
use octet_kernels::Engine;
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrong {
    /// It holds other bytes than the receipt says.
    Changed,
    /// It is not there.
    Missing,
    /// The receipt knows nothing of it.
    Unknown,
    /// The signature is not one of the receipt's key, or not of the key that was asked for.
    Signature,
}

/// One thing that is not as the receipt says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `artefact`, `original`, `text` or `receipt`.
    pub part: String,
    /// The file.
    pub file: String,
    /// What is wrong with it.
    pub wrong: Wrong,
    /// The same in words: expected and found.
    pub note: String,
    /// The tensors in it that hold other values.
    pub tensors: Vec<String>,
}

/// Who signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SignedBy {
    /// Nobody.
    Nobody,
    /// The key that was asked for.
    Expected(String),
    /// This key; whose it is was not asked.
    Somebody(String),
}

/// What came of checking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Everything that is not as the receipt says; nothing else is wrong.
    pub findings: Vec<Finding>,
    /// Files of the artefact that were hashed.
    pub files: usize,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Whether the original was there to be checked.
    pub original: bool,
    /// Texts that were there to be checked.
    pub texts: usize,
    /// Who signed.
    pub signed_by: SignedBy,
}

/// Holds the artefact in `folder` against its `receipt`, and the original and the texts too where they are at hand.
/// With `key` the receipt must be signed by it.
///
/// # Errors
/// If a file cannot be read.
pub fn verify(
    receipt: &Receipt,
    folder: &Path,
    original: Option<&Folder>,
    key: Option<&PublicKey>,
    engine: &Engine,
) -> Result<Verification> {
    let mut findings = vec![];
    let signed_by = signer(receipt, key, &mut findings);
    let found: Vec<FileDigest> = digest::of_tree(folder)?.into_iter().filter(|file| file.name != RECEIPT_FILE).collect();
    compare("artefact", &receipt.files, &found, &mut findings);
    for finding in findings.iter_mut().filter(|finding| finding.wrong == Wrong::Changed && finding.file.ends_with(".safetensors")) {
        finding.tensors = changed_tensors(receipt, folder, engine);
    }
    if let Some(original) = original {
        compare("original", &receipt.model.files, &digest::of_folder(original)?, &mut findings);
    }
    let mut texts = 0;
    for text in receipt.calibration.iter().flat_map(|calibration| &calibration.texts).chain(&receipt.evaluation) {
        texts += usize::from(check_text(text, &mut findings)?);
    }
    let bytes = found.iter().map(|file| file.bytes).sum();
    Ok(Verification { findings, files: found.len(), bytes, original: original.is_some(), texts, signed_by })
}

fn signer(receipt: &Receipt, key: Option<&PublicKey>, findings: &mut Vec<Finding>) -> SignedBy {
    let mut wrong = |note: String| {
        findings.push(Finding { part: "receipt".into(), file: RECEIPT_FILE.into(), wrong: Wrong::Signature, note, tensors: vec![] });
    };
    let Some(signature) = &receipt.signature else {
        if let Some(key) = key {
            wrong(format!("is not signed; a signature of {key} was expected"));
        }
        return SignedBy::Nobody;
    };
    if !signature.holds(&receipt.sha256) {
        wrong("the signature does not fit the receipt: one of the two was changed".into());
    }
    match key {
        Some(key) if signature.public_key == key.to_string() => SignedBy::Expected(key.to_string()),
        Some(key) => {
            wrong(format!("is signed by {}, expected was {key}", signature.public_key));
            SignedBy::Somebody(signature.public_key.clone())
        }
        None => SignedBy::Somebody(signature.public_key.clone()),
    }
}

/// Adds what differs between the files that should be and those that are.
fn compare(part: &str, expected: &[FileDigest], found: &[FileDigest], findings: &mut Vec<Finding>) {
    let there: BTreeMap<&str, &FileDigest> = found.iter().map(|file| (file.name.as_str(), file)).collect();
    let mut add = |file: &str, wrong, note: String| {
        findings.push(Finding { part: part.into(), file: file.into(), wrong, note, tensors: vec![] });
    };
    for file in expected {
        match there.get(file.name.as_str()) {
            None => add(&file.name, Wrong::Missing, format!("is missing; {} bytes were written", file.bytes)),
            Some(other) if other.bytes != file.bytes => {
                add(&file.name, Wrong::Changed, format!("has {} bytes, {} were written", other.bytes, file.bytes));
            }
            Some(other) if other.sha256 != file.sha256 => {
                let short = |sha: &str| sha.chars().take(12).collect::<String>();
                let note = format!("holds other bytes: SHA-256 {}..., expected {}...", short(&other.sha256), short(&file.sha256));
                add(&file.name, Wrong::Changed, note);
            }
            Some(_) => {}
        }
    }
    for file in found.iter().filter(|file| expected.iter().all(|known| known.name != file.name)) {
        add(&file.name, Wrong::Unknown, "was added: the receipt does not know it".into());
    }
}

/// The tensors whose bytes are not those of the receipt; none where the weights cannot be read at all.
fn changed_tensors(receipt: &Receipt, folder: &Path, engine: &Engine) -> Vec<String> {
    let found = Folder::disk(folder).ok().and_then(|folder| digest::tensor_map(&folder, engine).ok());
    let differs = |found: &BTreeMap<String, String>| super::reproduce::differing(&receipt.tensors, found);
    found.as_ref().map(differs).unwrap_or_default()
}

/// Whether the text is still where it was; adds what is wrong with it.
fn check_text(text: &TextSource, findings: &mut Vec<Finding>) -> Result<bool> {
    let Some(path) = text.path.as_deref().filter(|path| path.exists()) else { return Ok(false) };
    if digest::of_file(path)?.1 != text.sha256 {
        let (file, note) = (path.display().to_string(), "holds other text than it did".into());
        findings.push(Finding { part: "text".into(), file, wrong: Wrong::Changed, note, tensors: vec![] });
    }
    Ok(true)
}
