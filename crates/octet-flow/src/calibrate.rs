//! Calibration: what flows into every linear when the original reads some text.

use crate::{Calibrated, Error, Prepared, Progress, Result, write::hex};
use octet_kernels::Engine;
use octet_model::{ForwardError, KvDtype, LoadOptions, Logits, Model, Step};
use octet_quant::ImportanceObserver;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, Ordering};

/// Tokens of a calibration window, at most.
const WINDOW: usize = 512;

impl Prepared {
    /// Runs the original over `ids` (named `texts`) and gathers the importance of every input.
    ///
    /// # Errors
    /// If the model cannot run, or `cancel` is set.
    pub fn calibrate(
        &self,
        texts: Vec<String>,
        ids: &[u32],
        engine: &Engine,
        cancel: &AtomicBool,
        progress: Progress<'_>,
    ) -> Result<Calibrated> {
        let model = Model::load(
            engine,
            self.spec.clone(),
            &self.checkpoint,
            LoadOptions { activations: None, kv: KvDtype::F16, context: None },
            &mut |_, _| {},
        )?;
        let mut observer = ImportanceObserver::default();
        let (mut out, mut done) = (vec![], 0);
        for window in ids.chunks(WINDOW.min(model.context())) {
            let mut sequence = model.new_sequence();
            let mut step = [Step { sequence: &mut sequence, tokens: window, logits: Logits::None }];
            model.forward(&mut step, &mut out, Some(&mut observer)).map_err(|error| self.culprit(error))?;
            done += window.len();
            progress("calibrating", done as u64, ids.len() as u64, "tokens");
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
        }
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Ok(Calibrated { importance: observer.finish(), texts, tokens: ids.len(), digest: hex(&Sha256::digest(&bytes)) })
    }

    /// The damaged tensor that made a forward pass fail, where there is one.
    fn culprit(&self, error: ForwardError) -> Error {
        if !matches!(error, ForwardError::NonFinite { .. }) {
            return error.into();
        }
        let damaged = self.checkpoint.entries().iter().find_map(|entry| {
            let (count, total) = (self.checkpoint.scan_non_finite(&entry.name), entry.shape.iter().product());
            (count > 0).then(|| octet_quant::Error::NonFinite { name: entry.name.clone(), count, total })
        });
        damaged.map_or_else(|| error.into(), Error::from)
    }

    /// Whether statistics can change the plan's result: weights of 8 bits gain nothing from them.
    pub fn wants_calibration(&self) -> bool {
        self.plan.quantized().any(|(_, scheme)| scheme.weights.bits.get() < 8)
    }
}
