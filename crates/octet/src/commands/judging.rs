//! What a verdict rests on, from the flags of the commands that give one.

use crate::{args::JudgeArgs, builtin};
use anyhow::{Context, Result};
use octet_eval::{
    EvalText,
    gates::Thresholds,
    store::{Store, USUAL_BYTES},
    tasks::TaskSet,
};
use octet_flow::JudgeSettings;
use std::path::{Path, PathBuf};

/// Thresholds, questions, seed and reference cache that `judge` asks for, on these texts.
pub(super) fn settings(judge: &JudgeArgs, strict: bool, texts: Vec<EvalText>) -> Result<JudgeSettings> {
    let thresholds = Thresholds {
        ppl_ratio: 1.0 + judge.max_ppl_increase / 100.0,
        speed: judge.min_speedup,
        speed_from_cache: judge.min_speedup.min(Thresholds::default().speed_from_cache),
        strict,
        max_bytes: judge.max_size.map(|size| size.0),
        task_drop: judge.max_task_drop / 100.0,
        early_stop: !judge.whole_text,
        ..Thresholds::default()
    };
    Ok(JudgeSettings {
        texts,
        context: judge.context,
        thresholds,
        seed: judge.seed,
        tasks: tasks(judge)?,
        health_prompts: judge.health_prompts,
        store: store(judge),
        command: std::env::args().collect(),
    })
}

/// The questions of `--tasks`: a file, or the built-in ones.
fn tasks(judge: &JudgeArgs) -> Result<Option<TaskSet>> {
    let Some(path) = &judge.tasks else { return Ok(None) };
    let name = path.display().to_string();
    let set = if name == builtin::NAME && !path.exists() {
        TaskSet::parse("built-in questions", builtin::TASKS)
    } else {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the questions {name}"))?;
        TaskSet::parse(&name, &text)
    };
    Ok(Some(set?))
}

/// Where what an original makes of evaluation texts is kept: the folder of `--reference-cache`, nowhere for `off`, else
/// `octet` in the user's cache folder.
pub(super) fn store(judge: &JudgeArgs) -> Option<Store> {
    let asked = judge.reference_cache.as_deref();
    if asked.is_some_and(|asked| asked == Path::new("off")) {
        return None;
    }
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = || var("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache"))).map(|cache| cache.join("octet"));
    asked.map(Path::to_path_buf).or_else(usual).map(|dir| Store::new(dir, USUAL_BYTES))
}
