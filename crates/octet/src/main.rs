//! One binary: compress a language model, judge it, run it.
//!
//! Only this crate prints, exits, reads the environment or installs a logger; what it says comes from the libraries.

mod args;
mod budget;
mod builtin;
mod commands;
mod interrupt;
mod machine;
mod resolve;
mod ui;

use args::Cli;
use clap::Parser;
use std::process::ExitCode;

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Done, or accepted.
    Done,
    /// A gate refused, or the text was too little to decide.
    Refused,
    /// Ctrl-C.
    Interrupted,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Done => Self::SUCCESS,
            Ended::Refused => Self::from(3),
            Ended::Interrupted => Self::from(130),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(cli.global.verbose);
    interrupt::install();
    say_panics();
    // Tests of resuming name the moment at which the process dies; released binaries have no such moments.
    #[cfg(debug_assertions)]
    if let Ok(moment) = std::env::var("OCTET_KILL_AT") {
        octet_formats::kill_at(&moment);
    }
    let json = cli.global.json;
    match commands::dispatch(cli) {
        Ok(ended) => ended.into(),
        Err(error) => {
            let message = sentence(&error);
            if json {
                ui::say(&serde_json::json!({ "error": message }).to_string());
            }
            ui::note(&format!("error: {message}"));
            if is_wrong_usage(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Leaves panics that become errors to those errors' sentences.
fn say_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !octet_runtime::is_guarded() {
            usual(panic);
        }
    }));
}

/// Arguments that each parse and together make no sense.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Whether the command line is at fault, as with what clap refuses.
fn is_wrong_usage(error: &anyhow::Error) -> bool {
    error.is::<Usage>() || error.is::<octet_tensor::SchemeError>()
}

/// An error and its causes as one sentence, each cause said once.
fn sentence(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.is_empty() {
            said = cause;
        } else if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    // A sentence of a library brings its remedy; a bare system error gets one here.
    let system = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).next();
    if let (Some(system), false) = (system, said.contains(';')) {
        said.push_str(remedy(system.kind()));
    }
    said
}

/// What to do about an error of the system.
fn remedy(kind: std::io::ErrorKind) -> &'static str {
    use std::io::ErrorKind as Kind;
    match kind {
        Kind::NotFound | Kind::NotADirectory => "; check the path",
        Kind::IsADirectory => "; give a file",
        Kind::PermissionDenied => "; check its permissions",
        Kind::StorageFull | Kind::QuotaExceeded => "; free some space or write elsewhere",
        Kind::FileTooLarge => "; the file system or a limit (ulimit -f) allows no larger file, so write elsewhere",
        Kind::ReadOnlyFilesystem => "; write elsewhere",
        _ => "",
    }
}

fn start_logging(verbose: u8) {
    use tracing_subscriber::filter::LevelFilter;
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false).without_time().init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("the disk is full").context("cannot write x: the disk is full").context("cannot finish");
        assert_eq!(sentence(&error), "cannot finish: cannot write x: the disk is full");
    }

    #[test]
    fn system_errors_get_a_remedy() {
        let error = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::NotFound)).context("cannot read x");
        assert!(sentence(&error).ends_with("; check the path"), "{}", sentence(&error));
        let error = error.context("cannot start; try y");
        assert!(!sentence(&error).contains("check the path"));
    }

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
