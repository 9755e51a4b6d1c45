//! Measurements kept on disk: what was measured once on a model, text and machine is not measured again.

use super::MixedJob;
use crate::{Result, digest};
use octet_eval::store::Key;
use octet_quant::{GroupLosses, Ledger, Menu};
use serde::{Serialize, de::DeserializeOwned};

/// Raised whenever the same key stands for other measurements.
const VERSION: u32 = 2;

impl MixedJob<'_> {
    /// Everything that losses depend on.
    pub(super) fn sensitivity_key(&self, menu: &Menu, modules: &[String]) -> Result<Key> {
        let schemes: Vec<String> = menu.schemes.iter().map(ToString::to_string).collect();
        let key = self.key("sensitivity")?.with("schemes", schemes.join(" ")).with("portable", menu.portable);
        Ok(key.with("modules", modules.join(" ")).with("effort", format!("{:?}", self.effort)))
    }

    /// The key of something measured on the model and the calibration text.
    pub(super) fn key(&self, kind: &str) -> Result<Key> {
        let weights = digest::of_weights(&self.prepared.input, &self.prepared.checkpoint, self.engine)?;
        let key = Key::new(kind).with("version", VERSION).with("weights", weights);
        Ok(key.with("calibration", self.calibration.digest()).with("instruction set", self.engine.isa()))
    }

    /// What is kept under `key`; nothing where it cannot be read.
    pub(super) fn cached<T: DeserializeOwned>(&self, key: &Key) -> Option<T> {
        serde_json::from_slice(&self.store?.load(key)?).ok()
    }

    /// Keeps `value`; a store that cannot be written is none.
    pub(super) fn keep<T: Serialize>(&self, key: &Key, value: &T) {
        let Some(store) = self.store else { return };
        let saved = serde_json::to_vec(value).map_err(std::io::Error::from).and_then(|bytes| store.save(key, &bytes));
        if let Err(error) = saved {
            tracing::warn!("{} cannot be written: {error}", store.dir().display());
        }
    }
}

/// Losses of groups on disk, each under the key of the measurement and its name.
pub(super) struct Kept<'a> {
    pub(super) job: &'a MixedJob<'a>,
    pub(super) key: &'a Key,
}

impl Ledger for Kept<'_> {
    fn known(&self, name: &str) -> Option<GroupLosses> {
        self.job.cached(&self.key.clone().with("group", name))
    }

    fn keep(&self, losses: &GroupLosses) {
        self.job.keep(&self.key.clone().with("group", &losses.group.name), losses);
    }
}
