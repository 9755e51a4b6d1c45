//! Gates: pure functions from measured figures to a decision.

use crate::{
    along::Along,
    fidelity::KlFigures,
    health::Health,
    integrity::Check,
    paired::{Decision, decide},
    size::Size,
    speed::Speed,
    stats::Interval,
    tasks::TaskFigures,
};
use serde::{Deserialize, Serialize};

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The figure is on the right side of its threshold.
    Passed,
    /// It is not.
    Failed,
    /// There is too little data to tell.
    Undecided,
    /// The question makes no sense for this pair of models.
    NotApplicable,
}

/// One gate of the verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Its name, such as `quality` or `size.linears`.
    pub name: String,
    /// The measured figure.
    pub value: Option<f64>,
    /// Its 95 % interval, where it has one.
    pub ci95: Option<[f64; 2]>,
    /// What it is held against.
    pub threshold: Option<f64>,
    /// `true` passed, `false` failed or undecided, `null` not applicable.
    pub pass: Option<bool>,
    /// The same in full.
    pub outcome: Outcome,
    /// Whether the verdict depends on it.
    pub blocking: bool,
    /// What a person should know about it.
    pub note: String,
}

/// Thresholds of the gates; every one of them can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Upper end of the interval of the perplexity ratio must be below this.
    pub ppl_ratio: f64,
    /// Mean KL divergence in nats; `None` for the default of the number of bits.
    pub kl: Option<f64>,
    /// Same-top-1 share; `None` for the default of the number of bits.
    pub top1: Option<f64>,
    /// Whether the fidelity gates block.
    pub strict: bool,
    /// Decoding must not be proven slower than this many times the original.
    pub speed: f64,
    /// The same where the original is served from cache.
    pub speed_from_cache: f64,
    /// Bits a weight that scales, zero points and padding may add.
    pub extra_bits: f64,
    /// Share by which the folder may differ from the plan's forecast.
    pub forecast: f64,
    /// Most bytes the folder may have.
    pub max_bytes: Option<u64>,
    /// Upper end of the interval of the drop in task accuracy must be below this share.
    pub task_drop: f64,
    /// Whether judging quality may stop where half of the text decides (see [`crate::looks`]).
    pub early_stop: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            ppl_ratio: 1.02,
            kl: None,
            top1: None,
            strict: false,
            speed: 1.5,
            speed_from_cache: 1.0,
            extra_bits: 0.75,
            forecast: 0.01,
            max_bytes: None,
            task_drop: 0.02,
            early_stop: true,
        }
    }
}

impl Gate {
    /// A gate from its parts.
    pub fn new(name: &str, value: f64, threshold: f64, outcome: Outcome, note: impl Into<String>) -> Self {
        let pass = match outcome {
            Outcome::Passed => Some(true),
            Outcome::Failed | Outcome::Undecided => Some(false),
            Outcome::NotApplicable => None,
        };
        let (value, threshold) = (Some(value), Some(threshold));
        Self { name: name.into(), value, ci95: None, threshold, pass, outcome, blocking: true, note: note.into() }
    }

    /// A gate that has nothing to say about this pair of models.
    pub fn not_applicable(name: &str, why: impl Into<String>) -> Self {
        Self { value: None, threshold: None, ..Self::new(name, 0.0, 0.0, Outcome::NotApplicable, why) }
    }

    fn with_interval(self, interval: Option<Interval>) -> Self {
        Self { ci95: interval.map(|i| i.ci95()), ..self }
    }
}

fn passed_if(fine: bool) -> Outcome {
    if fine { Outcome::Passed } else { Outcome::Failed }
}

/// Quality: the paired perplexity ratio. `ln_ratio` was made from `tokens` predicted tokens in windows of `context`;
/// `non_finite` of them broke the quantized model.
pub fn quality(ln_ratio: Option<Interval>, point: f64, non_finite: usize, tokens: usize, context: usize, limits: &Thresholds) -> Gate {
    let name = "quality";
    if non_finite > 0 || !point.is_finite() {
        let note = format!("the model gave numbers that are not finite ({non_finite} of {tokens} tokens)");
        return Gate::new(name, f64::INFINITY, limits.ppl_ratio, Outcome::Failed, note);
    }
    let ratio = ln_ratio.map(|i| i.map(f64::exp));
    let (outcome, mut note) = match decide(ratio, limits.ppl_ratio, tokens, context) {
        Decision::Below => (Outcome::Passed, format!("{tokens} tokens")),
        Decision::Above => (Outcome::Failed, format!("{tokens} tokens; the whole interval is beyond the threshold")),
        Decision::Undecided { more_tokens: Some(more) } => {
            (Outcome::Undecided, format!("undecided: needs about {more} more tokens of evaluation text"))
        }
        Decision::Undecided { more_tokens: None } => {
            (Outcome::Undecided, "undecided: too close to the threshold for any reasonable amount of text".into())
        }
    };
    if let Some(i) = ratio.filter(Interval::is_approximate) {
        note.push_str(&format!("; the interval rests on {} blocks of text and is approximate", i.blocks));
    }
    Gate::new(name, point.exp(), limits.ppl_ratio, outcome, note).with_interval(ratio)
}

/// Quality along the context: no tenth of the window may be proven worse than the rest of it by more than the quality
/// gate allows of the whole.
pub fn position(along: &Along, limits: &Thresholds) -> Gate {
    let name = "quality.position";
    let Some(worst) = along.worst else {
        let why = format!("{} windows of {} tokens are too few to compare parts of the context", along.windows, along.context);
        return Gate::not_applicable(name, why);
    };
    let (first, last) = along.positions(worst.tenth);
    let ratio = |tenth: usize| along.tenths.get(tenth - 1).map_or(f64::NAN, |t| 100.0 * (t.ppl_ratio - 1.0));
    // Worse than a rest that became better than the original is no damage.
    let damaged = |ratio: f64| ratio.is_nan() || ratio >= limits.ppl_ratio;
    let failed = worst.excess.low >= limits.ppl_ratio && along.tenths.get(worst.tenth - 1).is_none_or(|tenth| damaged(tenth.ppl_ratio));
    let note = if failed {
        format!(
            "it breaks along the context: perplexity {:+.1} % at positions {first} to {last} of {}, {:+.1} % in the first tenth",
            ratio(worst.tenth),
            along.context,
            ratio(1)
        )
    } else {
        format!("{} windows of {} tokens; positions {first} to {last} against the rest", along.windows, along.context)
    };
    Gate::new(name, worst.excess.estimate, limits.ppl_ratio, passed_if(!failed), note).with_interval(Some(worst.excess))
}

/// The quality gate of one of several evaluation texts.
pub fn quality_of_text(short: &str, gate: Gate) -> Gate {
    Gate { name: format!("quality.{short}"), ..gate }
}

/// Default limits of mean KL divergence (nats) and same-top-1 share for weights of `bits` bits, for models with a large
/// vocabulary.
pub fn fidelity_limits(bits: f64) -> (f64, f64) {
    match bits {
        b if b > 6.5 => (0.005, 0.97),
        b if b > 4.5 => (0.015, 0.94),
        _ => (0.03, 0.91),
    }
}

/// Fidelity: mean KL divergence and same-top-1 against the original; they block only under `strict`.
pub fn fidelity(kl: &KlFigures, top1: f64, bits: f64, limits: &Thresholds) -> [Gate; 2] {
    let defaults = fidelity_limits(bits);
    let (kl_limit, top1_limit) = (limits.kl.unwrap_or(defaults.0), limits.top1.unwrap_or(defaults.1));
    let note = if limits.strict { "strict" } else { "reported; blocks only under --strict" };
    let gate = |name, value: f64, limit, fine| Gate { blocking: limits.strict, ..Gate::new(name, value, limit, passed_if(fine), note) };
    [gate("fidelity.kl", kl.mean, kl_limit, kl.mean <= kl_limit), gate("fidelity.top1", top1, top1_limit, top1 >= top1_limit)]
}

/// Task accuracy: the paired drop in the share of questions answered rightly.
pub fn tasks(figures: &TaskFigures, interval: Option<Interval>, limits: &Thresholds) -> Gate {
    let counts = format!(
        "{} questions; the original answers {:.1} %, the quantized model {:.1} %",
        figures.questions,
        100.0 * figures.base,
        100.0 * figures.quant
    );
    let (outcome, note) = match decide(interval, limits.task_drop, figures.questions, 1) {
        Decision::Below => (Outcome::Passed, counts),
        Decision::Above => (Outcome::Failed, format!("{counts}; the whole interval is beyond the threshold")),
        Decision::Undecided { more_tokens: Some(more) } => {
            (Outcome::Undecided, format!("undecided: needs about {more} more questions ({counts})"))
        }
        Decision::Undecided { more_tokens: None } => {
            (Outcome::Undecided, format!("undecided: too close to the threshold for any reasonable number of questions ({counts})"))
        }
    };
    Gate::new("tasks", figures.drop, limits.task_drop, outcome, note).with_interval(interval)
}

/// Speed of decoding: refused only where it is proven to be slower than the threshold.
pub fn speed(speed: &Speed, limits: &Thresholds) -> Gate {
    let cache = &speed.cache;
    let threshold = if cache.served_from_cache { limits.speed_from_cache } else { limits.speed };
    let mut note = match (cache.served_from_cache, cache.read_gb_s, cache.large_read_gb_s) {
        (true, Some(read), Some(large)) => format!(
            "the original's {:.0} MB are read from cache ({read:.0} GB/s against {large:.0} GB/s from memory), so reading fewer bytes cannot show: {threshold:.1}x applies",
            cache.bytes as f64 / 1e6
        ),
        (_, Some(read), Some(large)) => format!("the original is read from memory ({read:.0} GB/s; a large buffer {large:.0} GB/s)"),
        _ => "whether the original is read from cache was not measured (it or the free memory is too large or too small)".into(),
    };
    note.push_str(&format!("; prefill {}", speed.prefill.ratio.map_or("not measured".into(), |r| format!("{:.2}x", r.estimate))));
    match speed.decode.ratio {
        None => Gate { value: None, ..Gate::new("speed", 0.0, threshold, Outcome::Undecided, "undecided: too few repetitions") },
        Some(r) => Gate::new("speed", r.estimate, threshold, passed_if(r.high >= threshold), note).with_interval(Some(r)),
    }
}

/// Size: bits a weight of the quantized linears, the whole folder against the forecast, and the most it may have.
pub fn size(size: &Size, limits: &Thresholds) -> Vec<Gate> {
    let most = size.nominal_bits + limits.extra_bits;
    let ratio = format!("whole folder {:.1} MB, {:.3} of 16-bit", size.folder_bytes as f64 / 1e6, size.ratio);
    let mut gates = vec![if size.quantized_weights == 0 {
        Gate::new("size.linears", size.bits_per_weight, most, Outcome::Failed, "no linear is quantized")
    } else {
        Gate::new("size.linears", size.bits_per_weight, most, passed_if(size.bits_per_weight <= most), ratio)
    }];
    if let Some(forecast) = size.forecast_bytes {
        let off = (size.folder_bytes as f64 / forecast.max(1) as f64 - 1.0).abs();
        let note = format!("{} bytes, {forecast} were forecast", size.folder_bytes);
        gates.push(Gate::new("size.forecast", off, limits.forecast, passed_if(off <= limits.forecast), note));
    }
    if let Some(most) = limits.max_bytes {
        let fine = size.folder_bytes <= most;
        gates.push(Gate::new("size.max", size.folder_bytes as f64, most as f64, passed_if(fine), "bytes of the whole folder"));
    }
    gates
}

/// Memory: the weights of the quantized model must not take more of it than the original's in 16 bits.
pub fn memory(base: u64, quant: u64) -> Gate {
    let ratio = quant as f64 / base.max(1) as f64;
    let note = format!("{:.1} MB of weights resident, the original in 16 bits {:.1} MB", quant as f64 / 1e6, base as f64 / 1e6);
    Gate::new("memory", ratio, 1.0, passed_if(ratio <= 1.0), note)
}

/// Health: no figure of the long generations worse than the original's by more than chance.
pub fn health(health: &Health) -> Gate {
    let name = "health";
    let smallest = health.figures.iter().map(|f| f.p).fold(1.0, f64::min);
    if health.non_finite {
        return Gate::new(name, 0.0, health.alpha, Outcome::Failed, "generating gave numbers that are not finite");
    }
    if health.prompts == 0 {
        return Gate::new(
            name,
            smallest,
            health.alpha,
            Outcome::Undecided,
            "undecided: the evaluation text is too short for a single prompt",
        );
    }
    let worse = health.worse();
    let list = |f: &&crate::health::HealthFigure| format!("{} {} {:.3} (original {:.3}, p = {:.1e})", f.mode, f.name, f.quant, f.base, f.p);
    let note = if worse.is_empty() {
        format!(
            "{} prompts, greedy and sampled, up to {} tokens; smallest p-value of {} tests",
            health.prompts,
            health.tokens,
            health.figures.len()
        )
    } else {
        format!("worse than the original: {}", worse.iter().map(list).collect::<Vec<_>>().join("; "))
    };
    Gate::new(name, smallest, health.alpha, passed_if(worse.is_empty()), note)
}

/// Integrity: every check of the written files holds.
pub fn integrity(checks: &[Check]) -> Gate {
    let failed: Vec<String> = checks.iter().filter(|c| !c.pass).map(|c| format!("{}: {}", c.name, c.note)).collect();
    let outcome = if checks.is_empty() { Outcome::Undecided } else { passed_if(failed.is_empty()) };
    let names = || checks.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
    let note = match (checks.is_empty(), failed.is_empty()) {
        (true, _) => "undecided: nothing was checked".to_string(),
        (_, true) => names(),
        _ => failed.join("; "),
    };
    Gate::new("integrity", failed.len() as f64, 0.0, outcome, note)
}

/// The verdict on a quantized model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every blocking gate passed.
    Accepted,
    /// Accepted, but with another scheme than the one asked for.
    FellBack,
    /// A blocking gate failed.
    Refused,
    /// No blocking gate failed, but one could not be decided.
    Undecided,
}

impl Status {
    /// The verdict that follows from the gates; `fell_back` says that the scheme is not the one asked for.
    pub fn of(gates: &[Gate], fell_back: bool) -> Self {
        let any = |outcome| gates.iter().any(|g| g.blocking && g.outcome == outcome);
        match () {
            () if any(Outcome::Failed) => Self::Refused,
            () if any(Outcome::Undecided) => Self::Undecided,
            () if fell_back => Self::FellBack,
            () => Self::Accepted,
        }
    }
}
