//! What the flags of `octet quantize` ask for: schemes, a preset, or a recipe.

use super::start::{self, First};
use crate::{
    Usage,
    args::{Effort, Method, Preset, Quantize},
    ui,
};
use anyhow::{Context, Result};
use octet_formats::Folder;
use octet_model::{ArchSpec, Role};
use octet_quant::{
    AwqSettings, DistillStep, Flags, GptqSettings, MixedStep, Precision, Recipe, RotateStep, RotationKind, SmoothSettings, SolverChoice,
    Step, TransformChoice, Where,
};
use octet_tensor::{Activations, Limit, Scheme, Share};

/// Scale candidates that make a search quick.
const QUICK_CANDIDATES: usize = 8;

/// The best 4 bits measured on small models: for octet alone, and for other readers.
const W4: &str = "w4ta16-g32";
const W4_PORTABLE: &str = "w4a16-g32";

/// A search makes about so many models, each of which learns.
const SEARCHED: usize = 4;

/// 8 bits that cost less than 0.1 % of perplexity on every model measured: of the linears, and of embedding and head, whose rows
/// are long and unlike; and 8 bits whose groups other readers do not ask about.
const W8: &str = "w8a16-g128";
const W8_OUTSIDE: &str = "w8a16-g32";
const W8_PORTABLE: &str = "w8a16";

/// The schemes of attention and MLP where they differ.
const ATTENTION: &str = "w8a16";
const MLP: &str = "w4a16-g32";

/// One variant that was asked for.
pub(super) enum Asked {
    /// One scheme for all linears, with its name.
    Scheme(String, Flags),
    /// LLM.int8: its forms under this name, each tried whole.
    Outliers(String, Flags),
    /// One scheme for all linears, whose inputs are turned by eights where the measured loss falls.
    Turned(String, Flags),
    /// 8 bits for attention, 4 for the MLPs.
    AttentionMlp,
    /// A recipe, with its name.
    Recipe(String, Recipe),
    /// One of the others, which then learns from the original in so many steps, or as many as its size suggests.
    Distilled(Box<Asked>, Option<usize>),
}

impl Asked {
    /// Its name, for folders and reports.
    pub(super) fn label(&self) -> String {
        match self {
            Self::AttentionMlp => "attention8-mlp4".into(),
            Self::Scheme(name, _) | Self::Outliers(name, _) | Self::Turned(name, _) | Self::Recipe(name, _) => name.clone(),
            Self::Distilled(asked, _) => format!("{}-distilled", asked.label()),
        }
    }

    /// The recipe it amounts to, for a model.
    pub(super) fn recipe(&self, spec: &ArchSpec, portable: bool) -> octet_flow::Result<Recipe> {
        match self {
            Self::Recipe(_, recipe) => Ok(recipe.clone()),
            Self::Distilled(asked, steps) => {
                let mut recipe = asked.recipe(spec, portable)?;
                let searched = recipe.mixed_step().is_some_and(|step| step.bits_per_weight.is_none() && !step.whole);
                let usual = DistillStep::of_size(start::weights_of(spec), if searched { SEARCHED } else { 1 });
                recipe.steps.push(Step::Distill(steps.map_or(usual, DistillStep::of_steps)));
                Ok(recipe)
            }
            Self::Scheme(_, flags) => Ok(Recipe::from_flags(flags, spec.head().tied)?),
            Self::Outliers(_, flags) => Ok(outliers(flags, spec.head().tied)?),
            Self::Turned(_, flags) => {
                let mut recipe = Recipe::from_flags(flags, spec.head().tied)?;
                recipe.steps.insert(0, Step::Rotate(RotateStep { place: Where::Inputs, kind: RotationKind::Hadamard, gate: true }));
                Ok(recipe)
            }
            Self::AttentionMlp => {
                let read = |text: &str| text.parse::<Scheme>().map_err(|error| octet_flow::Error::Internal(error.to_string()));
                let (attention, scheme) = (read(ATTENTION)?, read(MLP)?);
                let outside = (!portable).then_some(Precision::Quantize(attention));
                let flags = Flags { scheme, embedding: outside, head: outside, portable, solver: gptq(), transform: None };
                let mut recipe = Recipe::from_flags(&flags, spec.head().tied)?;
                let sites = spec.linear_sites();
                let roles = [(Role::Q, "q"), (Role::K, "k"), (Role::V, "v"), (Role::Qkv, "qkv"), (Role::O, "o")];
                let there = roles.into_iter().filter(|(role, _)| sites.iter().any(|site| site.role == *role));
                let targets = there.filter_map(|(_, name)| name.parse().ok()).collect();
                recipe.steps.push(Step::Quantize { targets, scheme: attention, solver: rounding(None) });
                Ok(recipe)
            }
        }
    }
}

/// The forms of LLM.int8 for all linears, of which the one is taken that diverges least: inputs beyond a limit, which is best where
/// large values are in no columns of their own, and fixed columns.
fn outliers(flags: &Flags, tied: bool) -> Result<Recipe, octet_quant::Error> {
    let mut recipe = Recipe::from_flags(flags, tied)?;
    let forms = [Activations::Int8Beside(Share::USUAL), Activations::Int8Below(Limit::USUAL), Activations::Int8Below(Limit::LOW)];
    for step in &mut recipe.steps {
        if let Step::Quantize { targets, scheme, solver } = step
            && targets.iter().any(|target| target.as_str() == "linears")
        {
            let schemes = forms.map(|activations| Scheme { activations, ..*scheme }).into();
            *step = Step::Mixed(MixedStep { targets: targets.clone(), schemes, bits_per_weight: None, solver: *solver, whole: true });
        }
    }
    Ok(recipe)
}

fn rounding(candidates: Option<usize>) -> SolverChoice {
    SolverChoice::Rtn { candidates }
}

fn gptq() -> SolverChoice {
    SolverChoice::Gptq(GptqSettings::USUAL)
}

/// The flags of a scheme, as a recipe takes them.
pub(super) fn flags(args: &Quantize, scheme: Scheme, method: Method) -> Flags {
    let solver = if method == Method::Gptq { gptq() } else { rounding(args.fast.then_some(QUICK_CANDIDATES)) };
    let transform = match method {
        Method::Awq => Some(TransformChoice::Awq(AwqSettings::USUAL)),
        Method::Smoothquant => Some(TransformChoice::Smooth(args.smooth_alpha.map_or(SmoothSettings::USUAL, |alpha| alpha.0))),
        Method::Rtn | Method::Gptq | Method::LlmInt8 => None,
    };
    Flags { scheme, embedding: None, head: None, portable: args.portable, solver, transform }
}

/// One scheme by a method.
fn plain(args: &Quantize, text: &str, method: Method) -> Result<Asked> {
    let scheme: Scheme = text.trim().parse()?;
    if method != Method::LlmInt8 {
        return Ok(Asked::Scheme(scheme.short(), flags(args, scheme, method)));
    }
    let aside = with_outliers_aside(args, scheme)?;
    let (measurable, flags) = (!args.fast && !args.no_calibration, flags(args, aside, method));
    Ok(if aside != scheme && measurable { Asked::Outliers("llm-int8".into(), flags) } else { Asked::Scheme(aside.short(), flags) })
}

/// The scheme with large inputs multiplied as floats: the columns that calibration saw largest, whatever their size; without
/// calibration what exceeds the limit that large models have.
fn with_outliers_aside(args: &Quantize, scheme: Scheme) -> Result<Scheme> {
    let beside =
        if args.fast || args.no_calibration { Activations::Int8Below(Limit::USUAL) } else { Activations::Int8Beside(Share::USUAL) };
    match scheme.activations {
        Activations::Int8PerToken => Ok(Scheme { activations: beside, ..scheme }),
        Activations::Int8Below(_) | Activations::Int8Beside(_) => Ok(scheme),
        _ => usage(format!("--method llm-int8 is for inputs of 8 bits with one scale a token; {scheme} has others, use w8a8")),
    }
}

/// What the flags ask for.
pub(super) fn asked(args: &Quantize, input: &Folder) -> Result<Vec<Asked>> {
    let asked = undistilled(args, input)?;
    let best = (args.effort == Some(Effort::Best)).then_some(None);
    let Some(steps) = args.distill.or(best) else { return Ok(asked) };
    Ok(asked.into_iter().map(|asked| Asked::Distilled(Box::new(asked), steps)).collect())
}

/// What the flags beside `--distill` and `--effort best` ask for.
fn undistilled(args: &Quantize, input: &Folder) -> Result<Vec<Asked>> {
    if let Some(path) = &args.recipe {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the recipe {}", path.display()))?;
        let recipe = Recipe::from_toml(&text).with_context(|| path.display().to_string())?;
        let name = path.file_stem().map_or_else(|| "recipe".into(), |s| s.to_string_lossy().into_owned());
        let recipe = Recipe { portable: recipe.portable || args.portable, ..recipe };
        return if recipe.mixed_step().is_some() { mixed(args, &name, &recipe) } else { settled(args, name, recipe) };
    }
    let names: Vec<String> = match args.bits {
        Some(bits) => vec![args.group_size.map_or_else(|| format!("w{bits}a16"), |size| format!("w{bits}a16-g{size}"))],
        None => args.scheme.clone(),
    };
    if names.is_empty() {
        return preset(args, input);
    }
    let method = args.method.unwrap_or(Method::Rtn);
    let schemes = names.iter().map(|name| plain(args, name, method)).collect::<Result<Vec<_>>>()?;
    distinct(schemes, "--scheme names the same scheme twice; leave one out")
}

fn distinct(asked: Vec<Asked>, otherwise: &str) -> Result<Vec<Asked>> {
    let mut labels: Vec<String> = asked.iter().map(Asked::label).collect();
    labels.sort();
    labels.dedup();
    if labels.len() < asked.len() { usage(otherwise) } else { Ok(asked) }
}

fn usage<T>(what: impl Into<String>) -> Result<T> {
    Err(Usage(what.into()).into())
}

fn settled(args: &Quantize, name: String, recipe: Recipe) -> Result<Vec<Asked>> {
    if !args.bits_per_weight.is_empty() {
        return usage(
            "--bits-per-weight is the budget of a mixed step, and the recipe has none; add one with action = \"mixed\", or leave the flag out",
        );
    }
    Ok(vec![Asked::Recipe(name, recipe)])
}

/// The method of a preset.
fn method_of(preset: Preset) -> Method {
    match preset {
        Preset::Mixed | Preset::W4 | Preset::Attention8Mlp4 => Method::Gptq,
        Preset::SmoothW8a8 => Method::Smoothquant,
        Preset::W8 | Preset::W8a8 | Preset::TurnedW8a8 | Preset::Fast => Method::Rtn,
    }
}

/// A preset, the usual scheme of a method, or where neither is named what the model's size suggests.
fn preset(args: &Quantize, input: &Folder) -> Result<Vec<Asked>> {
    let budget = !args.bits_per_weight.is_empty();
    let fast = args.effort == Some(Effort::Fast);
    let unmeasured = args.fast || args.no_calibration;
    let preset = match (args.preset, args.method) {
        (Some(preset), _) => preset,
        (None, Some(Method::Rtn | Method::Gptq)) if budget => Preset::Mixed,
        (None, Some(method)) => return Ok(vec![plain(args, usual(method), method)?]),
        (None, None) if budget => Preset::Mixed,
        (None, None) => {
            let judged = !args.no_judge || args.judge.max_size.is_some();
            let start = start::of(start::weights(input).unwrap_or(0));
            match start.judged {
                _ if unmeasured || !judged => return Ok(vec![plain(args, start::UNJUDGED, Method::Rtn)?]),
                First::Search => Preset::Mixed,
                First::Scheme(scheme) => {
                    let method = if fast { Method::Rtn } else { Method::Gptq };
                    let how = if fast { "rounding" } else { "GPTQ" };
                    ui::note(&format!("no scheme was named: starting with {scheme} by {how}, since this model is {}", start.size));
                    return Ok(vec![plain(args, scheme, method)?]);
                }
            }
        }
    };
    if budget && preset != Preset::Mixed {
        return usage("--bits-per-weight is a budget for mixed precision, and this preset has one width for all; leave one of them out");
    }
    if args.effort.is_some() && !matches!(preset, Preset::Mixed | Preset::W4) {
        return usage("--effort is for the presets mixed and w4, the others cannot be done better or faster; leave one of them out");
    }
    let rounds_too = |method| preset == Preset::Mixed && method == Method::Rtn;
    if args.preset.is_some() && args.method.is_some_and(|method| method != method_of(preset) && !rounds_too(method)) {
        return usage(
            "--preset says itself what chooses the codes, and --method says otherwise; leave one of them out, or name the scheme: --scheme w4a16-g32 --method gptq",
        );
    }
    let method = if fast { Method::Rtn } else { method_of(preset) };
    let one = |text: &str| Ok(vec![plain(args, text, method)?]);
    match preset {
        Preset::Mixed if unmeasured => usage(
            "mixed precision is decided by measuring on calibration text; leave --no-calibration and --fast out, or take --preset fast",
        ),
        Preset::Mixed if args.no_judge && !budget && args.judge.max_size.is_none() => usage(
            "the preset mixed searches for the smallest model that passes, by judging; leave --no-judge out, or say how large: --bits-per-weight 4.5",
        ),
        Preset::Mixed => mixed(args, "mixed", &Recipe::mixed(args.portable)),
        Preset::W8 if args.portable => one(W8_PORTABLE),
        Preset::W8 => match plain(args, W8, Method::Rtn)? {
            Asked::Scheme(name, flags) => {
                let outside = Some(Precision::Quantize(W8_OUTSIDE.parse()?));
                Ok(vec![Asked::Scheme(name, Flags { embedding: outside, head: outside, ..flags })])
            }
            other => Ok(vec![other]),
        },
        Preset::W8a8 => one("w8a8"),
        Preset::SmoothW8a8 => match plain(args, "w8a8", Method::Smoothquant)? {
            Asked::Scheme(name, flags) => Ok(vec![Asked::Scheme(format!("smooth-{name}"), flags)]),
            other => Ok(vec![other]),
        },
        Preset::TurnedW8a8 if args.portable => usage(
            "only octet turns inputs at run time, which a portable result cannot have; leave --portable out, or take --preset smooth-w8a8",
        ),
        Preset::TurnedW8a8 => match plain(args, "w8a8", Method::Rtn)? {
            Asked::Scheme(name, flags) => Ok(vec![Asked::Turned(format!("turned-{name}"), flags)]),
            other => Ok(vec![other]),
        },
        Preset::W4 => one(if args.portable { W4_PORTABLE } else { W4 }),
        Preset::Fast => match plain(args, "w8a16", Method::Rtn)? {
            Asked::Scheme(name, flags) => Ok(vec![Asked::Scheme(name, Flags { solver: rounding(Some(QUICK_CANDIDATES)), ..flags })]),
            other => Ok(vec![other]),
        },
        Preset::Attention8Mlp4 => Ok(vec![Asked::AttentionMlp]),
    }
}

/// The scheme of a method where none is asked for.
fn usual(method: Method) -> &'static str {
    match method {
        Method::Smoothquant | Method::LlmInt8 => "w8a8",
        Method::Awq => "w4a16",
        Method::Rtn | Method::Gptq => "w8a16",
    }
}

/// A variant for every budget; one whose budget is searched where none is given.
fn mixed(args: &Quantize, name: &str, recipe: &Recipe) -> Result<Vec<Asked>> {
    let with = |bits: Option<f64>| {
        let mut recipe = recipe.clone();
        for step in &mut recipe.steps {
            if let Step::Mixed(step) = step {
                step.bits_per_weight = bits.or(step.bits_per_weight);
                if args.method == Some(Method::Rtn) || args.effort == Some(Effort::Fast) {
                    step.solver = rounding(None);
                }
            }
        }
        recipe
    };
    if args.bits_per_weight.is_empty() {
        return Ok(vec![Asked::Recipe(name.into(), with(None))]);
    }
    if let Some(bits) = args.bits_per_weight.iter().find(|bits| !(**bits > 0.0 && **bits <= 16.0)) {
        return usage(format!("--bits-per-weight {bits} is no number of bits; give one above 0 and up to 16, such as 4.5"));
    }
    let variants = args.bits_per_weight.iter().map(|&bits| Asked::Recipe(format!("{name}-{bits}"), with(Some(bits)))).collect();
    distinct(variants, "--bits-per-weight names the same number twice; leave one out")
}
