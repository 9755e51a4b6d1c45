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
    names.iter().find_map(|name| crate::memory::field(&text, name)).map(str::to_string)
}
