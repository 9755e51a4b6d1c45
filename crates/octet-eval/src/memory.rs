//! Memory: what this process holds, and what it may still take.

use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Memory this process holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Most it ever held, mapped files included; `None` where the system does not tell.
    pub peak_rss: Option<u64>,
    /// What it holds now that is not mapped from files.
    pub anonymous_rss: Option<u64>,
}

impl ProcessMemory {
    /// Reads /proc/self/status; elsewhere nothing is known.
    pub fn now() -> Self {
        fs::read_to_string("/proc/self/status").map_or(Self::default(), |status| Self::parse(&status))
    }

    /// Starts the peak anew, so that what was held before does not count; whether the system can do that.
    pub fn reset_peak() -> bool {
        // proc(5): writing 5 to clear_refs resets VmHWM to what is resident now.
        fs::write("/proc/self/clear_refs", "5").is_ok()
    }

    fn parse(status: &str) -> Self {
        Self { peak_rss: kilobytes(status, "VmHWM"), anonymous_rss: kilobytes(status, "RssAnon") }
    }
}

/// Bytes this process holds now, mapped files included; `None` where the system does not tell.
pub fn resident_now() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS")
}

/// Bytes this process could take without swapping: what the system has available, and no more than what its control
/// group (container, systemd slice) leaves; `None` where neither is known.
pub fn available_memory() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kilobytes(&text, "MemAvailable"));
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|groups| group_headroom(&groups, Path::new("/sys/fs/cgroup")));
    system.into_iter().chain(group).min()
}

/// The least headroom among a process's control group and the groups around it (version 2: `memory.max`; version 1:
/// `memory.limit_in_bytes`). Pages of files that could be dropped do not count as taken.
fn group_headroom(groups: &str, root: &Path) -> Option<u64> {
    let line = |prefix: &str| groups.lines().find_map(|line| line.split_once(':').filter(|(_, rest)| rest.starts_with(prefix)));
    let (place, limit, usage) = match (line(":"), line("memory:")) {
        (_, Some((_, rest))) => (
            root.join("memory").join(rest.trim_start_matches("memory:").trim_start_matches('/')),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
        (Some((_, rest)), None) => (root.join(rest.trim_start_matches(':').trim_start_matches('/')), "memory.max", "memory.current"),
        _ => return None,
    };
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let around = place.ancestors().take_while(|dir| dir.starts_with(root));
    around
        .filter_map(|dir| {
            let limit = number(dir.join(limit))?;
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let droppable = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok()).unwrap_or(0);
            Some(limit.saturating_sub(number(dir.join(usage))?.saturating_sub(droppable)))
        })
        .min()
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// The value of a `name : value` line.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read() {
        let memory = ProcessMemory::parse("Name:\tocta\nVmHWM:\t    2048 kB\nRssAnon:\t 12 kB\n");
        assert_eq!((memory.peak_rss, memory.anonymous_rss), (Some(2048 * 1024), Some(12 * 1024)));
        assert_eq!(ProcessMemory::parse("VmHWM: lots"), ProcessMemory::default());
        if cfg!(target_os = "linux") {
            assert!(ProcessMemory::now().peak_rss.is_some_and(|b| b > 1 << 20) && available_memory().is_some());
            assert!(resident_now().is_some_and(|b| b > 1 << 20));
        }
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let root = std::env::temp_dir().join(format!("octet-cgroup-{}", std::process::id()));
        let inner = root.join("box/job");
        fs::create_dir_all(&inner).unwrap();
        let write = |dir: &Path, limit: &str, usage: &str| {
            fs::write(dir.join("memory.max"), limit).unwrap();
            fs::write(dir.join("memory.current"), usage).unwrap();
        };
        write(&inner, "max", "10");
        write(&root.join("box"), "1000\n", "700\n");
        fs::write(root.join("box/memory.stat"), "anon 600\ninactive_file 100\n").unwrap();
        let headroom = group_headroom("0::/box/job\n", &root);
        let nowhere = group_headroom("", &root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!((headroom, nowhere), (Some(400), None));
    }
}
