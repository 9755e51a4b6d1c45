//! `--memory-budget`: refusing before anything is loaded, with the forecast, or shortening the context where that is allowed.

use crate::ui;
use anyhow::{Result, bail};
use octet_kernels::KvDtype;
use octet_runtime::MemoryNeeds;
use std::{fmt, str::FromStr};

/// A number of bytes as people write it: 6GB, 1.5 GiB, 512MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

const UNITS: [(&str, f64); 8] = [
    ("TIB", 1024f64 * 1024.0 * 1024.0 * 1024.0),
    ("GIB", 1024f64 * 1024.0 * 1024.0),
    ("MIB", 1024f64 * 1024.0),
    ("KIB", 1024f64),
    ("TB", 1e12),
    ("GB", 1e9),
    ("MB", 1e6),
    ("KB", 1e3),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size of memory; write it like 6GB, 1.5GiB or 512MiB");
        let upper = text.trim().to_ascii_uppercase();
        let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((upper.strip_suffix(name)?, *unit))).ok_or_else(wrong)?;
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let bytes = number * unit;
        if !(1.0..=u64::MAX as f64).contains(&bytes) {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ui::bytes(self.0))
    }
}

/// What is asked of one model.
pub(crate) struct Asked<'a> {
    /// The model as the user names it.
    pub(crate) model: &'a str,
    /// What it needs.
    pub(crate) needs: &'a MemoryNeeds,
    /// The context asked for; `None`: the model's own.
    pub(crate) context: Option<usize>,
    /// Type of keys and values.
    pub(crate) kv: KvDtype,
    /// What other models take at the same time.
    pub(crate) beside: u64,
}

impl Asked<'_> {
    /// Refuses what does not fit into `budget`; with `shrink` gives the longest context that does.
    pub(crate) fn within(&self, budget: Option<Size>, shrink: bool) -> Result<Option<usize>> {
        let Some(Size(budget)) = budget else { return Ok(self.context) };
        let longest = self.needs.longest();
        if self.context.is_some_and(|context| context > longest) {
            // Loading says what is wrong with it.
            return Ok(self.context);
        }
        let forecast = self.needs.at(self.context.unwrap_or(longest), self.kv);
        let total = forecast.total() + self.beside;
        if total <= budget {
            return Ok(self.context);
        }
        let fitting = budget.checked_sub(self.beside).and_then(|left| self.needs.longest_within(left, self.kv));
        if let (Some(context), true) = (fitting, shrink) {
            ui::note(&format!("context shortened to {context} tokens to stay within {}", Size(budget)));
            return Ok(Some(context));
        }
        let remedy = match fitting {
            Some(context) => format!("give --context {context} or less, or --shrink-context to `run`"),
            None => "its weights alone leave no room for a context, so quantize it to fewer bits or give a larger budget".into(),
        };
        let beside = if self.beside > 0 { format!(" beside {} for the other model", Size(self.beside)) } else { String::new() };
        bail!("{} needs {forecast}{beside}, more than the --memory-budget of {}; {remedy}", self.model, Size(budget));
    }
}

/// Refuses a context that was asked for and whose keys and values this machine cannot hold.
pub(crate) fn fits_machine(asked: &Asked<'_>, available: Option<u64>) -> Result<()> {
    let (Some(context), Some(available)) = (asked.context, available) else { return Ok(()) };
    let forecast = asked.needs.at(context.min(asked.needs.longest()), asked.kv);
    if forecast.unmapped() <= available {
        return Ok(());
    }
    let remedy = match asked.needs.longest_within(available + forecast.mapped, asked.kv) {
        Some(context) => format!("give --context {context} or less"),
        None => "free some memory or quantize it to fewer bits".into(),
    };
    bail!("{} needs {forecast}, more than the {} this machine has free; {remedy}", asked.model, Size(available));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;

    #[test]
    fn sizes_read_as_people_write_them() {
        let bytes = |text: &str| text.parse::<Size>().map(|size| size.0);
        assert_eq!(bytes("6GB"), Ok(6_000_000_000));
        assert_eq!(bytes("1.5 gib"), Ok(1_610_612_736));
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("4kb"), Ok(4000));
        for wrong in ["", "6", "GB", "-1GB", "0MB", "NaNGB", "infGB", "1e30TB", "6 Gb/s", "six GB", "6GBB"] {
            assert!(bytes(wrong).unwrap_err().contains("512MiB"), "{wrong}");
        }
    }

    fn asked(needs: &MemoryNeeds, context: Option<usize>) -> Asked<'_> {
        Asked { model: "pocket", needs, context, kv: KvDtype::F16, beside: 0 }
    }

    #[test]
    fn budgets_refuse_shorten_or_pass() {
        let needs = MemoryNeeds::of(&builtin::folder(), None, 1).unwrap();
        let (short, long) = (needs.at(256, KvDtype::F16).total(), needs.at(needs.longest(), KvDtype::F16).total());
        let size = Size((short + long) / 2);
        let budget = Some(size);
        assert_eq!(asked(&needs, None).within(Some(Size(long)), false).unwrap(), None);
        assert_eq!(asked(&needs, Some(256)).within(budget, false).unwrap(), Some(256));
        let refusal = asked(&needs, None).within(budget, false).unwrap_err().to_string();
        assert!(refusal.contains("--memory-budget") && refusal.contains("--context "), "{refusal}");
        let context = asked(&needs, None).within(budget, true).unwrap().unwrap();
        assert!((256..needs.longest()).contains(&context) && needs.at(context, KvDtype::F16).total() <= size.0);
        let refusal = asked(&needs, None).within(Some(Size(1_000_000)), true).unwrap_err().to_string();
        assert!(refusal.contains("fewer bits"), "{refusal}");
        let beside = Asked { beside: long, ..asked(&needs, None) };
        assert!(beside.within(Some(Size(long)), false).unwrap_err().to_string().contains("the other model"));
    }

    #[test]
    fn a_context_longer_than_memory_is_refused() {
        let needs = MemoryNeeds::of(&builtin::folder(), None, 1).unwrap();
        let some = needs.at(512, KvDtype::F16).unmapped();
        fits_machine(&asked(&needs, Some(512)), Some(some)).unwrap();
        fits_machine(&asked(&needs, None), Some(1)).unwrap();
        let refusal = fits_machine(&asked(&needs, Some(512)), Some(some - 1)).unwrap_err().to_string();
        assert!(refusal.contains("has free; give --context"), "{refusal}");
    }
}
