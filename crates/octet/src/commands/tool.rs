//! `octet tool` and `octet schema`: what agents call, with JSON in and out.

use super::say_json;
use crate::{
    Ended,
    args::{Global, SchemaArgs, Tool},
    builtin, interrupt, machine, resolve,
};
use anyhow::{Context, Result, bail};
use octet_flow::tools::{self, Tools};
use serde_json::Value;
use std::io::Read;

/// `octet schema`.
pub(crate) fn schema(args: &SchemaArgs) -> Result<Ended> {
    let all = tools::schemas();
    match &args.tool {
        None => say_json(&all.iter().map(tools::Schema::document).collect::<Vec<_>>())?,
        Some(name) => match all.iter().find(|schema| schema.name == name) {
            Some(schema) => say_json(&schema.document())?,
            None => bail!("there is no tool {name}; there are {}", tools::NAMES.join(", ")),
        },
    }
    Ok(Ended::Done)
}

/// `octet tool`.
pub(crate) fn tool(args: &Tool, global: &Global) -> Result<Ended> {
    let mut text = args.request.clone();
    if text == "-" {
        text.clear();
        std::io::stdin().read_to_string(&mut text).context("the request on stdin is not UTF-8 text")?;
    }
    let request: Value = serde_json::from_str(&text).context("the request is not JSON; octet schema says what each tool takes")?;
    let engine = machine::engine(global.threads)?;
    let resolve = |name: &str| resolve::resolve(name).map_err(|error| format!("{error:#}"));
    let texts = [Some(builtin::calibration()), Some(builtin::evaluation())];
    let tools = Tools { engine: &engine, resolve: &resolve, texts, cancel: interrupt::flag() };
    let answer = match tools.call(&args.name, request) {
        Err(error) if error.is_pause() => return Ok(Ended::Interrupted),
        other => other?,
    };
    say_json(&answer)?;
    let refused = answer["accepted"] == Value::Bool(false);
    Ok(if refused { Ended::Refused } else { Ended::Done })
}
