//! Named moments at which a test can have the process killed: those that are too short to be met by chance.

#[cfg(all(unix, debug_assertions))]
use std::sync::atomic::Ordering;
#[cfg(debug_assertions)]
use std::sync::{OnceLock, atomic::AtomicUsize};

/// The moment at which the process dies, how often it has to come, and how often it came.
#[cfg(debug_assertions)]
static ARMED: OnceLock<(String, usize, AtomicUsize)> = OnceLock::new();

/// Has the process killed at a moment such as `between renames`, or when it comes the seventh time: `spill:7`. Without debug
/// assertions, which no released binary has, this is nothing.
pub fn kill_at(moment: &str) {
    #[cfg(debug_assertions)]
    {
        let (name, times) = moment.split_once(':').map_or((moment, 1), |(name, times)| (name, times.parse().unwrap_or(1)));
        let _ = ARMED.set((name.into(), times, AtomicUsize::new(0)));
    }
    #[cfg(not(debug_assertions))]
    let _ = moment;
}

/// Kills the process where it is to die at this moment: no destructor runs, nothing is flushed.
#[inline]
pub fn kill_point(moment: &str) {
    #[cfg(all(unix, debug_assertions))]
    if let Some((name, times, passed)) = ARMED.get()
        && name == moment
        && passed.fetch_add(1, Ordering::Relaxed) + 1 == *times
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    #[cfg(not(all(unix, debug_assertions)))]
    let _ = moment;
}
