//! Arguments about what happens after a verdict.

use clap::Args;
use std::path::PathBuf;

/// What `octet quantize` does after a verdict.
#[derive(Debug, Clone, Args)]
pub(crate) struct LadderArgs {
    /// Stop at the first refusal instead of trying better solvers, smaller groups, more bits, more calibration
    #[arg(long)]
    pub(crate) no_ladder: bool,
    /// Begin no further attempt after this many minutes
    #[arg(long, value_name = "M", value_parser = minutes)]
    pub(crate) max_minutes: Option<f64>,
    /// Try INT8 weight-only, INT8 dynamic, other groups, then mixed, until one is accepted with this Trinity Score
    #[arg(long, value_name = "SCORE", value_parser = points, conflicts_with_all = ["scheme", "preset", "bits", "recipe", "no_judge"])]
    pub(crate) target_score: Option<f64>,
    /// Other checkpoints of the same training run, to be quantized and compared with this one
    #[arg(long, value_name = "MODEL", num_args = 1.., conflicts_with = "no_judge")]
    pub(crate) checkpoint: Vec<String>,
    /// Least Trinity Score to take what passed without a question [default: 90, or --target-score if that is less]
    #[arg(long, value_name = "SCORE", value_parser = points, conflicts_with = "no_judge")]
    pub(crate) auto_score: Option<f64>,
    /// Most risk to take what passed without a question [default: 10]
    #[arg(long, value_name = "RISK", value_parser = points, conflicts_with = "no_judge")]
    pub(crate) auto_risk: Option<f64>,
    /// Take whatever every gate passed: answers yes before it is asked
    #[arg(short, long, conflicts_with = "no")]
    pub(crate) yes: bool,
    /// Answer no: what waits for an answer is thrown away
    #[arg(long, conflicts_with = "no_judge")]
    pub(crate) no: bool,
    /// Draw the states the run went through: .svg, or Mermaid text (.mmd)
    #[arg(long, value_name = "FILE", conflicts_with = "no_judge")]
    pub(crate) graph: Option<PathBuf>,
}

/// A number of points from 0 to 100.
fn points(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|n| (0.0..=100.0).contains(n)).ok_or_else(|| format!("{text:?} is no number from 0 to 100"))
}

/// A time above zero.
fn minutes(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|n: &f64| *n > 0.0 && n.is_finite()).ok_or_else(|| format!("{text:?} is no number of minutes above zero"))
}

/// `octet score`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet score ./model-w8a16                          every input of the score, with its formula and points
  octet score ./variants/*/validation_report.json    ranked")]
pub(crate) struct Score {
    /// Reports, or folders that hold one
    #[arg(required = true)]
    pub(crate) reports: Vec<PathBuf>,
}

/// `octet rollback`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet rollback ./variants                          back to the variant before, or to the original; deletes nothing
  octet run ./variants \"Hello\"                     runs what is in use")]
pub(crate) struct Rollback {
    /// A folder of variants, as `octet quantize MODEL DIR --scheme A,B` makes it
    pub(crate) dir: PathBuf,
}

/// `octet report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet report ./model-w8a16                         writes ./report.html from the folder's validation_report.json
  octet report ./model-w4a16.refused.json why.html")]
pub(crate) struct ReportArgs {
    /// A report, or a folder that holds one
    pub(crate) report: PathBuf,
    /// The page to write
    #[arg(default_value = "report.html")]
    pub(crate) out: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub(crate) force: bool,
}

/// `octet schema`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet schema                                       all tools, JSON Schema of what they take and give
  octet schema quantize_model")]
pub(crate) struct SchemaArgs {
    /// One tool
    pub(crate) tool: Option<String>,
}

/// `octet tool`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet tool quantize_model '{\"checkpoint_path\":\"pocket\",\"output_path\":\"out\",\"quant_type\":\"int8\"}'
  octet tool validate_quantization - < request.json")]
pub(crate) struct Tool {
    /// quantize_model, validate_quantization or compare_outputs
    pub(crate) name: String,
    /// The request as JSON; `-` reads it from stdin
    #[arg(default_value = "-")]
    pub(crate) request: String,
}
