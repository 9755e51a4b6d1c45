//! Doing again what a receipt says.

use super::Receipt;
use crate::{Calibration, Error, Prepared, Progress, QuantizeSettings, Result, digest};
use octet_formats::Folder;
use octet_kernels::Engine;
use octet_quant::{Event, Recipe};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};

/// What a second run gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reproduction {
    /// Tensors compared.
    pub tensors: usize,
    /// Files compared: all that carry no times.
    pub files: usize,
    /// Tensors that hold other bytes, are missing or were added.
    pub different_tensors: Vec<String>,
    /// Files that do.
    pub different_files: Vec<String>,
    /// What is not as it was when the receipt was written, and could be why.
    pub circumstances: Vec<String>,
}

impl Reproduction {
    /// Whether every byte is the same.
    pub fn is_identical(&self) -> bool {
        self.different_tensors.is_empty() && self.different_files.is_empty()
    }
}

/// Quantizes `input` again as `receipt` says, in the new folder `work`, and compares; `work` is removed afterwards.
/// `calibration` is what the receipt's texts give, if it names any.
///
/// # Errors
/// If the original or the calibration text is not the one of the receipt (what differs is named), if the receipt's recipe
/// gives another plan with this version, or as quantizing does.
pub fn reproduce(
    receipt: &Receipt,
    input: &Folder,
    calibration: Option<&Calibration>,
    engine: &Engine,
    work: &Path,
    cancel: &AtomicBool,
    progress: Progress<'_>,
) -> Result<Reproduction> {
    check_inputs(receipt, input, calibration)?;
    let recipe = Recipe::from_toml(&receipt.plan.recipe)?;
    let prepared = Prepared::new(input, |_| {
        Ok(QuantizeSettings { recipe, label: receipt.plan.label.clone(), strict: receipt.plan.strict, seed: receipt.seed })
    })?;
    if prepared.plan_digest() != receipt.plan.sha256 {
        let what = format!("octet {} plans this recipe otherwise than octet {}", env!("CARGO_PKG_VERSION"), receipt.octet_version);
        return Err(Error::NotReproducible(format!("{what}; use the version that wrote the receipt")));
    }
    let staged = match calibration {
        None => prepared.write(work, false, true, engine, cancel, progress)?,
        Some(calibration) => {
            let mut event = |event: &Event<'_>| progress("quantizing", event.done, event.total, event.tensor.unwrap_or_default());
            let again = Calibration { restart: true, ..calibration.clone() };
            prepared.write_calibrated(work, false, &again, engine, cancel, &mut event)?
        }
    };
    let out = staged.path();
    let tensors = digest::tensor_map(&Folder::disk(&out)?, engine)?;
    let found: BTreeMap<String, String> = digest::of_tree(&out)?.into_iter().map(|file| (file.name, file.sha256)).collect();
    staged.discard();
    let expected: BTreeMap<String, String> = receipt.timeless().map(|file| (file.name.clone(), file.sha256.clone())).collect();
    Ok(Reproduction {
        tensors: tensors.len(),
        files: expected.len(),
        different_tensors: differing(&receipt.tensors, &tensors),
        different_files: differing(&expected, &found),
        circumstances: circumstances(receipt, engine),
    })
}

/// Names whose digests differ, or that only one of the two has.
pub(super) fn differing(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    names.into_iter().filter(|name| expected.get(*name) != found.get(*name)).cloned().collect()
}

fn check_inputs(receipt: &Receipt, input: &Folder, calibration: Option<&Calibration>) -> Result<()> {
    let known: BTreeMap<String, String> = receipt.model.files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect();
    let found: BTreeMap<String, String> = digest::of_folder(input)?.into_iter().map(|file| (file.name, file.sha256)).collect();
    if let Some(name) = differing(&known, &found).first() {
        let what = match (known.contains_key(name), found.contains_key(name)) {
            (true, true) => "holds other bytes",
            (true, false) => "is missing",
            _ => "was added",
        };
        let message = format!("the original is not the one of the receipt: {name} {what}; give the right one with --original");
        return Err(Error::NotReproducible(message));
    }
    let (was, is) = (receipt.calibration.as_ref().map(|c| &c.sha256), calibration.map(Calibration::digest));
    if was != is.as_ref() {
        let message = "the calibration text does not give the windows of the receipt; restore the file that it names";
        return Err(Error::NotReproducible(message.into()));
    }
    Ok(())
}

fn circumstances(receipt: &Receipt, engine: &Engine) -> Vec<String> {
    let pairs = [
        ("version", receipt.octet_version.clone(), env!("CARGO_PKG_VERSION").to_string()),
        ("instruction set", receipt.machine.isa.clone(), engine.isa().to_string()),
    ];
    pairs.into_iter().filter(|(_, was, is)| was != is).map(|(what, was, is)| format!("{what} was {was}, is {is}")).collect()
}
