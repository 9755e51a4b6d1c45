//! Named moments at which a test can have the process killed: those that are too short to be met by chance.

/// The variable that names a moment, and how often it has to come: `rename aside`, `spill:7`.
pub const KILL_AT: &str = "OCTET_KILL_AT";

/// Kills the process where [`KILL_AT`] names this moment: no destructor runs, nothing is flushed. Without debug assertions, which no
/// released binary has, this is nothing.
#[inline]
pub fn kill_point(moment: &str) {
    #[cfg(debug_assertions)]
    armed::pass(moment);
    #[cfg(not(debug_assertions))]
    let _ = moment;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// How often the named moment has come.
    static PASSED: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn pass(moment: &str) {
        let Ok(asked) = std::env::var(super::KILL_AT) else { return };
        let (name, times) = asked.split_once(':').map_or((asked.as_str(), 1), |(name, times)| (name, times.parse().unwrap_or(1)));
        if name == moment && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == times {
            #[cfg(unix)]
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::process::abort();
        }
    }
}
