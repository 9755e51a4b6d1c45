//! One file a command: turn arguments into library calls and their results into text or JSON.

mod asked;
mod bench;
mod bench_budget;
mod bench_show;
mod calibration;
mod checkpoints;
mod compare;
mod compare_show;
mod doctor;
mod eval;
mod export;
mod inspect;
mod judging;
mod ladder;
mod logits;
mod mixed;
mod quantize;
mod receipts;
mod rollback;
mod run;
mod score;
mod stages;
mod start;
mod text;
mod tool;
mod verdict;
mod verify;

use crate::{
    Ended,
    args::{Cli, Command},
    ui,
};
use anyhow::Result;
use clap::CommandFactory;

/// Runs the command that was asked for.
pub(crate) fn dispatch(cli: Cli) -> Result<Ended> {
    let global = cli.global;
    match cli.command {
        Command::Quantize(args) => quantize::quantize(&args, &global),
        Command::Run(args) => run::run(&args, &global),
        Command::Eval(args) => eval::eval(&args, &global),
        Command::Export(args) => export::export(&args, &global),
        Command::Bench(args) => bench::bench(&args, &global),
        Command::Inspect(args) => inspect::inspect(&args, &global),
        Command::Logits(args) => logits::logits(&args, &global),
        Command::Compare(args) => compare::compare(&args, &global),
        Command::Verify(args) => verify::verify(&args, &global),
        Command::Reproduce(args) => receipts::reproduce(&args, &global),
        Command::Keygen(args) => receipts::keygen(&args, &global),
        Command::Score(args) => score::score(&args, &global),
        Command::Report(args) => score::report(&args, &global),
        Command::Rollback(args) => rollback::rollback(&args, &global),
        Command::Schema(args) => tool::schema(&args),
        Command::Tool(args) => tool::tool(&args, &global),
        Command::Doctor => doctor::doctor(&global),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "octet", &mut std::io::stdout());
            Ok(Ended::Done)
        }
    }
}

/// A memory forecast for machines, in bytes.
fn memory_document(forecast: &octet_runtime::MemoryForecast) -> serde_json::Value {
    serde_json::json!({
        "total": forecast.total(),
        "weights": forecast.weights,
        "kv": forecast.kv,
        "buffers": forecast.buffers,
        "base": forecast.base,
        "context": forecast.context,
    })
}

/// Prints a document for machines.
fn say_json(value: &impl serde::Serialize) -> Result<()> {
    ui::say(&serde_json::to_string_pretty(value)?);
    Ok(())
}
