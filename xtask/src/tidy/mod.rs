//! The house rules, each as a function from the repository to sentences that name what breaks it.

mod crates;
mod documents;
mod lexer;
pub(crate) mod sources;

use crate::repo::Repo;
use anyhow::Result;

/// A rule: the findings are empty when it is kept.
pub(crate) type Check = fn(&Repo) -> Result<Vec<String>>;

/// All rules with their names.
pub(crate) const CHECKS: [(&str, Check); 10] = [
    ("file size", sources::file_size),
    ("absence", sources::absence),
    ("lint exemptions", sources::lint_exemptions),
    ("dependency direction", crates::direction),
    ("dependency owners", crates::owners),
    ("workspace lints", crates::workspace_lints),
    ("no C compiler, budget", crates::default_tree),
    ("large files", documents::large_files),
    ("foreign paths", documents::foreign_paths),
    ("links", documents::links),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rule on the real tree; findings of all rules are shown at once.
    #[test]
    fn the_tree_is_tidy() {
        let repo = Repo::open().unwrap();
        let mut findings = Vec::new();
        for (name, check) in CHECKS {
            findings.extend(check(&repo).unwrap().into_iter().map(|finding| format!("{name}: {finding}")));
        }
        assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
    }

    /// A repository that lists nothing would pass every rule.
    #[test]
    fn the_repository_is_seen() {
        let repo = Repo::open().unwrap();
        for file in ["Cargo.toml", "xtask/src/tidy/mod.rs", "crates/octet-tensor/src/lib.rs"] {
            assert!(repo.files.iter().any(|found| found == file), "{file} is not among the {} files", repo.files.len());
        }
        assert!(repo.default_tree("octet").unwrap().len() > 10);
        assert!(repo.resolved().unwrap().len() >= repo.members().unwrap().len());
    }
}
