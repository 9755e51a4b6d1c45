//! What this process may use: cores (affinity and cgroup quota respected), and the instruction set asked for.

use anyhow::{Context, Result, bail};
use octet_kernels::{Engine, Isa};
use std::{collections::BTreeSet, env, fs, num::NonZeroUsize};

/// More threads than any machine this runs on; a larger number is a typing error.
const MOST_THREADS: usize = 1024;

/// An engine with the threads asked for (or the physical cores this process may use) and the best instruction set
/// (or the one `OCTET_ISA` names).
pub(crate) fn engine(threads: Option<usize>) -> Result<Engine> {
    let threads = match threads {
        Some(n) if n > MOST_THREADS => {
            bail!("--threads {n} is more than the {MOST_THREADS} this build allows; leave it out to use every physical core")
        }
        Some(n) => {
            NonZeroUsize::new(n).context("--threads 0 computes nothing; give 1 or more, or leave it out to use every physical core")?
        }
        None => default_threads(),
    };
    let isa = isa()?;
    tracing::info!("{threads} threads, {isa} kernels");
    Engine::new(isa, threads).context("cannot start the engine")
}

/// The instruction set `OCTET_ISA` names, or the best there is.
pub(crate) fn isa() -> Result<Isa> {
    let Some(wanted) = env::var("OCTET_ISA").ok().filter(|v| !v.is_empty()) else { return Ok(Isa::best()) };
    let there: Vec<String> = Isa::available().iter().map(Isa::to_string).collect();
    let known = wanted.parse::<Isa>().ok().filter(|isa| Isa::available().contains(isa));
    known.with_context(|| {
        format!("OCTET_ISA={wanted} is not an instruction set of this machine; unset it or choose one of {}", there.join(", "))
    })
}

/// Physical cores among the CPUs this process may run on, no more than its cgroup's CPU quota.
pub(crate) fn default_threads() -> NonZeroUsize {
    // `available_parallelism` honours affinity masks and cgroup quotas; it counts logical CPUs.
    let logical = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    physical_cores().map_or(logical, |cores| cores.min(logical))
}

/// Distinct (package, core) pairs among the CPUs this process may run on, on Linux.
fn physical_cores() -> Option<NonZeroUsize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let core = |cpu: usize| {
        let read = |name: &str| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}")).ok();
        Some((read("physical_package_id")?, read("core_id")?))
    };
    let cores: Option<BTreeSet<_>> = cpu_list(allowed)?.into_iter().map(core).collect();
    NonZeroUsize::new(cores?.len())
}

/// The numbers of a list such as `0-3,8`.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
    Some(ranges?.into_iter().flatten().take(1 << 16).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(cpu_list("\t0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!((cpu_list("0"), cpu_list("")), (Some(vec![0]), None));
    }

    #[test]
    fn impossible_thread_counts_are_refused() {
        assert!(engine(Some(0)).err().unwrap().to_string().contains("--threads 0"));
        assert!(engine(Some(1_000_000)).is_err());
        assert_eq!(engine(Some(3)).unwrap().threads(), 3);
        assert!(default_threads().get() >= 1);
    }
}
