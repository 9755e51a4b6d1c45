//! Ctrl-C: the first asks the command to stop where nothing is lost, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// The flag that long work looks at between steps.
pub(crate) fn flag() -> &'static AtomicBool {
    &ASKED
}

/// Whether Ctrl-C was pressed.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Installs the handler.
#[allow(clippy::exit, reason = "the second Ctrl-C must end the process wherever it is")]
pub(crate) fn install() {
    let result = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        crate::ui::note("\nstopping at the next safe point; press Ctrl-C again to end at once");
    });
    if let Err(error) = result {
        tracing::warn!("Ctrl-C will end the process at once: {error}");
    }
}
