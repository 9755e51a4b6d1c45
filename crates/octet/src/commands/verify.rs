//! `octet verify`: is a folder what it claims to be?

use super::{
    judging, receipts, say_json,
    text::{self, BuiltIn, Given},
    verdict,
};
use crate::{
    Ended,
    args::{Global, Verify},
    interrupt, machine, resolve,
    ui::{self, Progress},
};
use anyhow::{Result, bail};
use octet_eval::gates::Status;
use octet_flow::{Claims, Origin, Original, judge_folder};
use octet_formats::Checkpoint;
use octet_model::ArchSpec;
use octet_runtime::Tokenizer;
use serde_json::json;

/// Fewest tokens a verdict can rest on: eight windows of the smallest size.
const LEAST_TOKENS: usize = 2048;

/// Runs the command.
pub(crate) fn verify(args: &Verify, global: &Global) -> Result<Ended> {
    match (&args.receipt, &args.quant, &args.base) {
        (Some(receipt), _, _) => receipts::verify(receipt, args, global),
        (None, Some(quant), Some(base)) => against(quant, base, args, global),
        _ => bail!("give the quantized model and its original (`octet verify QUANT --base BASE`), or --receipt"),
    }
}

/// The verdict of `quantize` on a folder that anyone may have made.
fn against(quant: &str, base: &str, args: &Verify, global: &Global) -> Result<Ended> {
    let judge = &args.judge;
    text::check(judge)?;
    let engine = machine::engine(global.threads)?;
    let (folder, original) = (resolve::resolve(quant)?, resolve::resolve(base)?);
    let checkpoint = Checkpoint::open(&folder)?;
    let spec = ArchSpec::from_config(Checkpoint::open(&original)?.config())?;
    text::note_context(judge, spec.context());
    let given = Given { files: &judge.eval_text, field: judge.text_field.as_deref(), chat: None };
    let texts = text::texts(given, BuiltIn::Evaluation, &Tokenizer::open(&original)?, spec.vocab_size(), LEAST_TOKENS, judge.eval_tokens)?;
    let settings = judging::settings(judge, args.strict, texts.texts)?;
    let mut original = Original::open(&original, &engine, &settings)?;
    let claims = Claims::of(&folder, &checkpoint, original.parameters())?;
    let scheme = checkpoint
        .quantization()
        .map_or("not quantized".to_string(), |stored| stored.main_scheme().map_or_else(|| stored.format.clone(), |scheme| scheme.short()));
    let mut progress = Progress::new();
    let mut step = |stage: &str, done, total, detail: &str| match stage {
        octet_flow::FORECAST if global.json => {}
        octet_flow::FORECAST => ui::note(&format!("judging: {detail}")),
        _ => progress.update(stage, done, total, detail),
    };
    let judged = judge_folder(&mut original, &folder, &scheme, Origin::Elsewhere, &settings, &engine, interrupt::flag(), &mut step);
    progress.finish();
    if interrupt::asked() {
        return Ok(Ended::Interrupted);
    }
    let report = judged?.report;
    if global.json {
        say_json(&json!({ "model": quant, "base": base, "report": report, "claims": claims }))?;
    } else {
        ui::say(&verdict::judged(&resolve::short_name(quant), &report));
        ui::say(&show(&claims));
    }
    Ok(if matches!(report.status, Status::Accepted | Status::FellBack) { Ended::Done } else { Ended::Refused })
}

/// What the config states and what the files hold.
fn show(claims: &Claims) -> String {
    let list = |set: &std::collections::BTreeSet<i64>| {
        if set.is_empty() { "not stated".into() } else { set.iter().map(i64::to_string).collect::<Vec<_>>().join(", ") }
    };
    let mut lines = vec![format!("  stated      {}; bits {}; group size {}", claims.method, list(&claims.bits), list(&claims.group_sizes))];
    for found in &claims.found {
        lines.push(format!(
            "  found       {} in {} matrices: {:.2} bits a weight, codes need {}",
            found.scheme, found.modules, found.bits_per_weight, found.code_bits
        ));
    }
    lines.push(format!(
        "              {:.1} % of the weights quantized; whole folder {:.2} bits a weight",
        100.0 * claims.quantized_share,
        claims.all_bits
    ));
    if claims.found.is_empty() {
        lines.truncate(1);
    }
    lines.extend(claims.differences.iter().map(|difference| format!("  differs     {}", verdict::wrap_at(difference, 14))));
    lines.join("\n")
}
