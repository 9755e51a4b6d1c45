//! Calibration of `octet quantize`: which text, how much of it, what is said while it runs and afterwards.

use super::text::{self, BuiltIn, Given};
use crate::{
    args::{Effort, Quantize},
    ui::{self, Progress},
};
use anyhow::{Context, Result};
use octet_eval::{
    EvalText,
    memory::{ProcessMemory, available_memory},
    overlap::{self, Overlap},
};
use octet_flow::{Calibration, Prepared};
use octet_formats::Folder;
use octet_kernels::Engine;
use octet_quant::{Event, Samples, TensorReport};
use octet_runtime::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{LineWriter, Write},
    path::Path,
    time::Instant,
};

/// Windows of a calibration and tokens of each, where nothing else is asked for.
const SAMPLES: usize = 64;
const LENGTH: usize = 512;

/// Of a small model more windows are drawn, where there is text: so many weights times tokens cost next to nothing.
const CHEAP: u64 = 50_000_000_000;
const MOST_SAMPLES: usize = 192;

/// The same for most effort: what more windows cost is nothing beside learning from them.
const CHEAP_AT_BEST: u64 = 12 * CHEAP;
const MOST_AT_BEST: usize = 256;

/// Fewest tokens that magnitudes of inputs, and Hessians, are gathered from.
const LEAST_FOR_MAGNITUDES: usize = 4096;
const LEAST_FOR_HESSIANS: usize = 16_384;

/// A Hessian should see this many tokens for every input of the widest linear.
const TOKENS_PER_INPUT: usize = 4;

/// Reads the calibration text and draws from it, so many `times` the usual number of windows; `None` where it could change
/// nothing. With an engine, more windows are drawn where a mixture has experts that hardly any token reaches.
pub(super) fn read(
    args: &Quantize,
    input: &Folder,
    prepared: &[Prepared],
    times: usize,
    engine: Option<&Engine>,
) -> Result<Option<Calibration>> {
    let Some(first) = prepared.first() else { return Ok(None) };
    let hessians = prepared.iter().any(Prepared::needs_hessians);
    let needed = prepared.iter().any(Prepared::needs_calibration);
    let asked = !args.calibration.is_empty() || needed || (!args.no_judge && prepared.iter().any(Prepared::wants_calibration));
    let flows = |prepared: &Prepared| prepared.turns_or_scales() || prepared.chooses_outliers() || prepared.plan().distill().is_some();
    if (args.no_calibration || args.fast) && prepared.iter().any(flows) {
        let flag = if args.fast { "--fast" } else { "--no-calibration" };
        anyhow::bail!(
            "awq, smoothquant, rotations, fixed outlier columns and distillation go by what flows through the model, so they need calibration; leave {flag} out"
        );
    }
    if args.no_calibration || args.fast || !asked {
        return Ok(None);
    }
    let tokenizer = Tokenizer::open(input)?;
    let chat = ChatTemplate::open(input)?;
    let vocab = first.spec().vocab_size();
    let (samples, length) = (args.calibration_samples.unwrap_or(SAMPLES), args.calibration_length.unwrap_or(LENGTH));
    let length = length.min(first.spec().context());
    let widest = prepared.iter().map(Prepared::widest_input).max().unwrap_or(0);
    let rule = if hessians { LEAST_FOR_HESSIANS.max(TOKENS_PER_INPUT * widest) } else { LEAST_FOR_MAGNITUDES };
    // Whoever says how much wants no more.
    let said = args.calibration_samples.is_some() || args.calibration_length.is_some();
    let least = if hessians { widest } else { 1 };
    if said && samples * length < least {
        anyhow::bail!(
            "{samples} calibration windows of {length} tokens are {} tokens, {} too few: a Hessian of {widest} inputs needs one for each; give --calibration-samples {} or more, or leave the number out",
            samples * length,
            least - samples * length,
            least.div_ceil(length)
        );
    }
    let needed = if said { rule.min(samples * length) } else { rule };
    let weights: u64 = first.plan().lines().iter().map(octet_quant::Line::elements).sum();
    let (cheap, most) = if args.effort == Some(Effort::Best) { (CHEAP_AT_BEST, MOST_AT_BEST) } else { (CHEAP, MOST_SAMPLES) };
    let cheap = ((cheap / weights.max(1)) as usize / length.max(1)).min(most);
    let samples = if said { samples } else { samples.max(needed.div_ceil(length)).max(cheap) };
    let given = Given { files: &args.calibration, field: args.judge.text_field.as_deref(), chat: chat.as_ref() };
    let tokens = text::tokens(given, BuiltIn::Calibration, &tokenizer, vocab, needed, usize::MAX)?;
    let draw = |more: usize| Samples::draw(&tokens.ids, samples * times * more, length, args.judge.seed);
    let drawn = match engine {
        Some(engine) if !said => first.reach_experts(engine, &draw)?,
        _ => draw(1),
    };
    let usual = draw(1).len();
    if drawn.len() > usual {
        ui::note(&format!("{} calibration windows instead of {usual}, because some expert saw hardly a token of those", drawn.len()));
    }
    let asked = args.memory_budget.as_deref().map(bytes).transpose()?;
    let memory_budget = asked.or_else(|| available_memory().map(|free| free / 2)).unwrap_or(u64::MAX);
    Ok(Some(Calibration {
        texts: tokens.names,
        sources: tokens.sources,
        field: args.judge.text_field.clone().filter(|_| !args.calibration.is_empty()),
        length,
        samples: drawn,
        text: Samples::draw(&tokens.ids, usize::MAX, length, args.judge.seed),
        sequential: !args.one_pass,
        memory_budget,
        restart: args.restart,
    }))
}

/// Refuses evaluation texts that tokens of the calibration text `seen` by it are in.
pub(super) fn check_disjoint(calibration: &Calibration, seen: &[u32], texts: &[EvalText], tokenizer: &Tokenizer) -> Result<()> {
    for text in texts {
        let window = overlap::window(tokenizer, &text.ids)?;
        Overlap::between(seen, &text.ids, window).check(&calibration.texts.join(", "), &text.name)?;
    }
    Ok(())
}

/// How many times as much calibration text there is as would be used; else why there is none.
pub(super) fn times(args: &Quantize, input: &Folder, prepared: &Prepared) -> std::result::Result<usize, String> {
    if args.no_calibration || args.fast {
        return Err("this run measures no activations".into());
    }
    let few = prepared.plan().quantized().any(|(_, scheme)| scheme.weights.bits.get() < 8);
    if !few {
        return Err("8 bits do not depend on calibration".into());
    }
    let (once, all) =
        (read(args, input, std::slice::from_ref(prepared), 1, None), read(args, input, std::slice::from_ref(prepared), 1 << 16, None));
    match (once, all) {
        (Ok(Some(once)), Ok(Some(all))) => Ok(all.samples.tokens().len() / once.samples.tokens().len().max(1)),
        (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
        _ => Err("this run measures no activations".into()),
    }
}

/// A number of bytes such as `1500000000`, `1500 MB` or `1.5GB`.
fn bytes(text: &str) -> Result<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = lower.split_at(lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len()));
    let factor = match unit {
        "" | "b" => Some(1.0),
        "kb" | "k" => Some(1e3),
        "mb" | "m" => Some(1e6),
        "gb" | "g" => Some(1e9),
        "mib" => Some(1024.0 * 1024.0),
        "gib" => Some(1024.0 * 1024.0 * 1024.0),
        _ => None,
    };
    let value = number.trim().parse::<f64>().ok().filter(|v| *v > 0.0 && v.is_finite());
    let (Some(value), Some(factor)) = (value, factor) else {
        anyhow::bail!("--memory-budget {text:?} is no size; write it like 1500MB or 1.5GB");
    };
    Ok((value * factor) as u64)
}

/// Where a calibrated run says what it does: the progress line, and a file for machines.
pub(super) struct Reporter {
    log: Option<LineWriter<File>>,
    started: Instant,
    layers: usize,
    loss: String,
}

impl Reporter {
    /// One that writes a line of JSON an event to `log` as well.
    pub(super) fn new(log: Option<&Path>, layers: usize) -> Result<Self> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map(LineWriter::new).with_context(|| format!("cannot write the log {}; check the path", path.display()))
        };
        // What ran before, such as the verdict on another scheme, is not this run's memory; where it cannot be forgotten the
        // figure is an upper bound.
        ProcessMemory::reset_peak();
        Ok(Self { log: log.map(open).transpose()?, started: Instant::now(), layers, loss: String::new() })
    }

    /// Says on `progress` where the run stands.
    pub(super) fn event(&mut self, progress: &mut Progress, event: &Event<'_>) {
        if let Some(report) = event.report.filter(|report| report.scheme.is_some()) {
            let error = &report.error;
            self.loss = format!("  loss {:.2e} -> {:.2e}", error.nearest_relative(), error.weighted_relative());
        }
        if event.what == octet_flow::OWN_TEXT {
            return progress.update("writing text", event.done, event.total, "the original");
        }
        if event.what == octet_flow::DISTILLATION {
            return progress.update("distilling", event.done, event.total, event.tensor.unwrap_or_default());
        }
        let memory = ProcessMemory::now();
        let rss = memory.peak_rss.map_or(String::new(), |bytes| format!("  peak {}", ui::bytes(bytes)));
        let short = event.tensor.map(|name| name.rsplit('.').take(2).collect::<Vec<_>>());
        let short = short.map_or(String::new(), |parts| format!(" {}", parts.into_iter().rev().collect::<Vec<_>>().join(".")));
        let place = match event.place {
            octet_model::Place::Layer(layer) => format!("layer {}/{}", layer + 1, self.layers),
            other => other.to_string(),
        };
        let detail = format!("{place} {}{short}{}{rss}", event.what, self.loss);
        progress.update("quantizing", event.done, event.total, &detail);
        if let (Some(log), Some(report)) = (&mut self.log, event.report) {
            let line = line(event, report, self.started, memory);
            // A log that cannot be written must not cost the run.
            let _ = writeln!(log, "{line}");
        }
    }
}

fn line(event: &Event<'_>, report: &TensorReport, started: Instant, memory: ProcessMemory) -> Value {
    let share = event.done as f64 / event.total.max(1) as f64;
    let seconds = started.elapsed().as_secs_f64();
    json!({
        "stage": event.place.to_string(),
        "tensor": report.name,
        "scheme": report.scheme.map(|scheme| scheme.to_string()),
        "solver": report.solver,
        "relative_error": report.scheme.map(|_| report.error.relative()),
        "loss_nearest": report.scheme.map(|_| report.error.nearest_relative()),
        "loss": report.scheme.map(|_| report.error.weighted_relative()),
        "remark": report.remark,
        "seconds": seconds,
        "eta_seconds": (share > 0.0).then(|| seconds * (1.0 - share) / share),
        "peak_rss_bytes": memory.peak_rss,
        "done": share,
    })
}

/// What a person should know of a finished calibration, in one or two lines.
pub(super) fn conclusion(calibration: &Value, started: Instant) -> Vec<String> {
    let coverage = &calibration["coverage"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let (seen, vocabulary) = (number(&coverage["distinct_tokens"]), number(&coverage["vocabulary"]).max(1));
    let peak = ProcessMemory::now().peak_rss.map_or(String::new(), |bytes| format!(", {} at most", ui::bytes(bytes)));
    let mut lines = vec![format!(
        "calibrated on {} tokens in {}{peak}: {:.0} % of the vocabulary seen, {} of {} inputs never active",
        number(&calibration["tokens"]),
        ui::duration(started.elapsed()),
        100.0 * seen as f64 / vocabulary as f64,
        number(&coverage["dead_inputs"]),
        number(&coverage["inputs"]),
    )];
    let names = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_string)).collect()
    };
    let some = |what: &str, all: &[String]| {
        let more = if all.len() > 3 { format!(" and {} more", all.len() - 3) } else { String::new() };
        format!("{what}: {}{more}", all.iter().take(3).cloned().collect::<Vec<_>>().join("; "))
    };
    for (what, all) in [("never reached", names(&coverage["experts_never_reached"])), ("note", names(&calibration["remarks"]))] {
        if !all.is_empty() {
            lines.push(some(what, &all));
        }
    }
    lines.extend(calibration["rotations"].as_array().filter(|places| !places.is_empty()).map(|places| rotations(places)));
    lines
}

/// Where values are turned, what that leaves of the errors there, and how near the matrices are to rotations.
fn rotations(places: &[Value]) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let after = |place: &Value| {
        let tried = place["tried"].as_array().into_iter().flatten().find(|tried| tried[0] == place["kept"]);
        tried.map_or(number(&place["before"]), |tried| number(&tried[1]))
    };
    let kept = places.iter().filter(|place| place["kept"] != "none").count();
    let sum = |of: &dyn Fn(&Value) -> f64| places.iter().map(of).sum::<f64>();
    let left = sum(&after) / sum(&|place| number(&place["before"]));
    let most = |of: &dyn Fn(&Value) -> f64| places.iter().map(of).fold(0.0, f64::max);
    format!(
        "rotations kept at {kept} of {} places, which leaves {left:.2} of the error there; |R'R - I| at most {:.1e}, determinants within {:.1e} of +1",
        places.len(),
        most(&|place| number(&place["drift"])),
        most(&|place| (number(&place["determinant"]) - 1.0).abs()),
    )
}

/// Lines of a dry run about the calibration.
pub(super) fn forecast(calibration: &Calibration, prepared: &Prepared, engine: &Engine) -> Result<(String, Value)> {
    let forecast = prepared.forecast_calibration(calibration);
    let seconds = forecast.seconds(engine)?;
    let (count, tokens) = (calibration.samples.len(), calibration.samples.tokens().len());
    let kept = if forecast.spilled { "on disk" } else { "in memory" };
    let mut text = format!(
        "calibrate {count} windows, {tokens} tokens of {}\nat most   {} with one block at a time; hidden states ({}) {kept}\ntime      {} by this machine's measured rates\n",
        calibration.texts.join(", "),
        ui::bytes(forecast.peak_bytes),
        ui::bytes(forecast.hidden_bytes),
        ui::duration(std::time::Duration::from_secs_f64(seconds)),
    );
    let learning = prepared.forecast_distillation(calibration, engine)?;
    if let Some((bytes, seconds)) = learning {
        let time = ui::duration(std::time::Duration::from_secs_f64(seconds));
        text += &format!("distil    at most {}, about {time} more\n", ui::bytes(bytes));
    }
    let document = json!({
        "distillation": learning.map(|(bytes, seconds)| json!({ "peak_bytes": bytes, "seconds": seconds })),
        "texts": calibration.texts, "samples": count, "tokens": tokens, "peak_bytes": forecast.peak_bytes,
        "hidden_bytes": forecast.hidden_bytes, "spilled": forecast.spilled, "seconds": seconds,
    });
    Ok((text, document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_the_usual_units() {
        assert_eq!(bytes("1500").unwrap(), 1500);
        assert_eq!(bytes("1.5GB").unwrap(), 1_500_000_000);
        assert_eq!(bytes(" 2 MiB ").unwrap(), 2 << 20);
        for wrong in ["", "much", "-3MB", "3 parsecs", "0"] {
            assert!(bytes(wrong).unwrap_err().to_string().contains("--memory-budget"), "{wrong}");
        }
    }
}
