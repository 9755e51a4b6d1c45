//! `octet rollback`: the variant before, or the original, is in use again.

use super::say_json;
use crate::{
    Ended,
    args::{Global, Rollback},
    ui,
};
use anyhow::Result;
use octet_flow::variants::{self, InUse};
use serde_json::json;

/// Runs the command.
pub(crate) fn rollback(args: &Rollback, global: &Global) -> Result<Ended> {
    let back = variants::rollback(&args.dir)?;
    let to = match &back.to {
        InUse::Variant(path) => ui::path(path),
        InUse::Original(name) => name.clone(),
    };
    if global.json {
        say_json(&json!({ "from": back.from, "to": to, "original": matches!(back.to, InUse::Original(_)) }))?;
    } else {
        ui::say(&format!("in use: {to}\nbefore: {} (kept)", ui::path(&back.from)));
    }
    Ok(Ended::Done)
}
