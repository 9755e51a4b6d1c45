//! Energy the processor packages used, where the system counts it.
//!
//! Linux tells the counters of Intel's and AMD's running average power limit (RAPL) under `/sys/class/powercap`
//! (Linux kernel documentation, power/powercap). They count the whole package, so other programs' work is in it too.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The counters of all packages.
pub(crate) struct Rapl(Vec<Domain>);

struct Domain {
    counter: PathBuf,
    /// Microjoules after which the counter starts again.
    range: u64,
}

impl Rapl {
    /// The counters of this machine; `None` where there are none or this process may not read them.
    pub(crate) fn open() -> Option<Self> {
        Self::under(Path::new("/sys/class/powercap"))
    }

    fn under(root: &Path) -> Option<Self> {
        let domain = |dir: PathBuf| {
            // Packages only: their parts (cores, memory) are folders of their own beside them.
            fs::read_to_string(dir.join("name")).ok().filter(|name| name.starts_with("package"))?;
            let domain = Domain { counter: dir.join("energy_uj"), range: number(&dir.join("max_energy_range_uj"))? };
            number(&domain.counter)?;
            Some(domain)
        };
        let domains: Vec<Domain> = fs::read_dir(root).ok()?.flatten().filter_map(|entry| domain(entry.path())).collect();
        (!domains.is_empty()).then_some(Self(domains))
    }

    /// The counters now.
    pub(crate) fn read(&self) -> Option<Vec<u64>> {
        self.0.iter().map(|domain| number(&domain.counter)).collect()
    }

    /// Joules since an earlier [`Rapl::read`].
    pub(crate) fn joules_since(&self, before: &[u64]) -> Option<f64> {
        let now = self.read()?;
        let used = now.iter().zip(before).zip(&self.0).map(|((now, before), domain)| match now.checked_sub(*before) {
            Some(used) => used,
            None => domain.range.saturating_sub(*before) + now,
        });
        Some(used.sum::<u64>() as f64 / 1e6)
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_added_and_counters_wrap() {
        let root = std::env::temp_dir().join(format!("octet-rapl-{}", std::process::id()));
        let set = |dir: &str, name: &str, energy: u64| {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("name"), format!("{name}\n")).unwrap();
            fs::write(dir.join("max_energy_range_uj"), "10000000\n").unwrap();
            fs::write(dir.join("energy_uj"), format!("{energy}\n")).unwrap();
        };
        set("intel-rapl:0", "package-0", 9_000_000);
        set("intel-rapl:1", "package-1", 1_000_000);
        set("intel-rapl:0:0", "core", 5);
        let rapl = Rapl::under(&root).unwrap();
        let before = rapl.read().unwrap();
        set("intel-rapl:0", "package-0", 500_000);
        set("intel-rapl:1", "package-1", 3_000_000);
        set("intel-rapl:0:0", "core", 500_000);
        let joules = rapl.joules_since(&before);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(before.len(), 2);
        assert_eq!(joules, Some(1.5 + 2.0));
        assert!(Rapl::under(&root).is_none());
    }
}
