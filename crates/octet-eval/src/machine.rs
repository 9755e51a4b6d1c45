//! What this machine is, and what the process uses of it.

use octet_kernels::Engine;
use serde::{Deserialize, Serialize};

/// The machine a report was made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The CPU's name, where the system tells it.
    pub cpu: String,
    /// Logical CPUs the process may use.
    pub cores: usize,
    /// Threads of the engine.
    pub threads: usize,
    /// Instruction set of the engine's kernels.
    pub isa: String,
    /// Operating system and architecture.
    pub os: String,
    /// Version of octet.
    pub version: String,
}

impl Machine {
    /// This machine with `engine`.
    pub fn of(engine: &Engine) -> Self {
        Self {
            cpu: cpu_name().unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: engine.threads(),
            isa: engine.isa().to_string(),
            os: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let names = ["model name", "Model", "Hardware"];
    names.iter().find_map(|name| field(&text, name)).map(str::to_string)
}

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
        std::fs::read_to_string("/proc/self/status").map_or(Self::default(), |status| Self::parse(&status))
    }

    fn parse(status: &str) -> Self {
        Self { peak_rss: kilobytes(status, "VmHWM"), anonymous_rss: kilobytes(status, "RssAnon") }
    }
}

/// Bytes the system says could be had without swapping.
pub(crate) fn available_memory() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// The value of a `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
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
        }
    }
}
