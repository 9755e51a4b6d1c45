//! From what a user types to a model folder: a path (a folder or a GGUF file), the built-in model, or a name in the local
//! Hugging Face cache.

use crate::builtin;
use anyhow::{Context, Result, bail};
use octet_flow::variants::{self, InUse};
use octet_formats::{
    Folder,
    peft::{self, Adapter},
};
use std::{
    env,
    path::{Path, PathBuf},
};

/// The folder that `model` names.
///
/// A folder of variants stands for the one that is in use. A path wins over the built-in name, the built-in name over the cache. Nothing is downloaded.
pub(crate) fn resolve(model: &str) -> Result<Folder> {
    let path = Path::new(model);
    if variants::is_collection(path) {
        return match variants::in_use(path)? {
            InUse::Variant(found) => Folder::disk(&found).with_context(|| format!("cannot open {}", found.display())),
            InUse::Original(name) if name != model => resolve(&name),
            InUse::Original(name) => bail!("{name} names itself as the original; name a model folder"),
        };
    }
    if path.is_dir() && path.join(peft::CONFIG).is_file() && !path.join("config.json").is_file() {
        return adapter(None, model);
    }
    if path.is_dir() {
        return Folder::disk(path).with_context(|| format!("cannot open the folder {model}"));
    }
    if path.extension().is_some_and(|e| e == "gguf") && path.is_file() {
        return octet_runtime::open_gguf(path).with_context(|| format!("cannot open {model}"));
    }
    if path.is_file() {
        bail!("{model} is a file; give the folder that holds config.json and model.safetensors, or a .gguf file");
    }
    if let Some((base, low)) = model.split_once('+').filter(|(base, low)| !base.is_empty() && Path::new(low).is_dir()) {
        return adapter(Some(base), low);
    }
    if model == builtin::NAME {
        return Ok(builtin::folder());
    }
    if let Some(found) = cached(model) {
        return Folder::disk(&found).with_context(|| format!("cannot open {}", found.display()));
    }
    let looked = cache_roots().iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
    if is_hub_name(model) {
        bail!(
            "{model} is neither a folder nor in the local Hugging Face cache ({looked}); download it first, for instance with `hf download {model}`, or give a folder"
        );
    }
    bail!(
        "there is no folder {model}; give a checkpoint folder, a .gguf file, `pocket` for the built-in model, or org/name from the Hugging Face cache"
    );
}

/// A base with an adapter: `base`, or the one that the adapter itself names.
fn adapter(base: Option<&str>, path: &str) -> Result<Folder> {
    let low = Adapter::open(&Folder::disk(Path::new(path))?).with_context(|| format!("cannot open the adapter {path}"))?;
    let found = match (base, &low.base) {
        (Some(base), _) => resolve(base)?,
        (None, Some(base)) => resolve(base).with_context(|| format!("{path} is an adapter; name it with its base as BASE+{path}"))?,
        (None, None) => bail!("{path} is an adapter that names no base; name both as BASE+{path}"),
    };
    Ok(found.adapted(low))
}

/// A short name for output folders and tables.
pub(crate) fn short_name(model: &str) -> String {
    let trimmed = model.trim_end_matches(['/', '\\']);
    let canonical = Path::new(trimmed).canonicalize().ok();
    let last = canonical.as_deref().unwrap_or(Path::new(trimmed)).file_name();
    if is_hub_name(model) && !Path::new(model).exists() {
        return model.rsplit('/').next().unwrap_or(model).to_string();
    }
    last.map_or_else(|| trimmed.to_string(), |name| name.to_string_lossy().into_owned())
}

fn is_hub_name(model: &str) -> bool {
    let mut parts = model.split('/');
    matches!((parts.next(), parts.next(), parts.next()), (Some(org), Some(name), None) if !org.is_empty() && !name.is_empty() && !org.starts_with(['.', '~']))
}

/// Where the Hugging Face cache may be, as `huggingface_hub` looks: `HF_HUB_CACHE`, `HF_HOME/hub`, `~/.cache/huggingface/hub`.
fn cache_roots() -> Vec<PathBuf> {
    let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(hub) = var("HF_HUB_CACHE") {
        return vec![hub];
    }
    let home = var("HF_HOME").or_else(|| var("XDG_CACHE_HOME").map(|c| c.join("huggingface")));
    let home = home.or_else(|| env::home_dir().map(|h| h.join(".cache/huggingface")));
    home.map(|h| h.join("hub")).into_iter().collect()
}

/// The snapshot of `org/name` that `refs/main` points at, or the only one there is.
fn cached(model: &str) -> Option<PathBuf> {
    if !is_hub_name(model) {
        return None;
    }
    let repo = format!("models--{}", model.replace('/', "--"));
    cache_roots().into_iter().map(|root| root.join(&repo)).find_map(|repo| {
        let snapshots = repo.join("snapshots");
        let main = std::fs::read_to_string(repo.join("refs/main")).ok().map(|hash| snapshots.join(hash.trim()));
        main.filter(|path| path.is_dir()).or_else(|| {
            let mut all = std::fs::read_dir(&snapshots).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
            let first = all.next()?;
            all.next().is_none().then_some(first)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_the_last_part() {
        assert_eq!(short_name("pocket"), "pocket");
        assert_eq!(short_name("./nowhere/model-x/"), "model-x");
        assert_eq!(short_name("Qwen/Qwen3-0.6B"), "Qwen3-0.6B");
    }

    #[test]
    fn what_does_not_exist_says_what_would() {
        let message = resolve("no-such-model").unwrap_err().to_string();
        assert!(message.contains("pocket"), "{message}");
        let message = resolve("some-org/some-model").unwrap_err().to_string();
        assert!(message.contains("hf download some-org/some-model"), "{message}");
        let message = resolve("model.gguf").unwrap_err().to_string();
        assert!(message.contains("model.gguf"), "{message}");
    }

    #[test]
    fn the_built_in_model_is_complete() {
        let names: Vec<String> = resolve("pocket").unwrap().files().unwrap().into_iter().map(|f| f.0).collect();
        assert!(names.iter().any(|n| n == "model.safetensors"), "{names:?}");
    }
}
