//! Recipes from TOML, by hand: so that an unknown key is answered with the keys there are.

use super::{
    AwqSettings, DistillStep, GptqSettings, MixedStep, Recipe, RotateStep, RotationKind, SmoothSettings, SolverChoice, Step, Target,
    TransformChoice,
};
use crate::{ActOrder, Error, Where};
use octet_tensor::{Activations, Scheme, Symmetry};
use toml::{Table, Value};

/// Wider searches than this only cost time (see the solver's tests).
const MOST_CANDIDATES: i64 = 256;

/// More steps of learning than any text has use for.
const MOST_STEPS: i64 = 1_000_000;
const MOST_OWN: i64 = 1_000_000_000;

/// More passes of refinement than this find nothing.
const MOST_REFINEMENTS: i64 = 100;

pub(super) fn recipe(text: &str) -> Result<Recipe, Error> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = 1 + error.span().map_or(0, |span| text.bytes().take(span.start).filter(|&byte| byte == b'\n').count());
        Error::Recipe(format!("it is not TOML: line {line}: {}", error.message().replace('\n', ", ")))
    })?;
    let portable = match table.remove("portable") {
        None => false,
        Some(Value::Boolean(portable)) => portable,
        Some(other) => return fail(format!("portable must be true or false, not {other}")),
    };
    let steps = match table.remove("step") {
        Some(Value::Array(steps)) if !steps.is_empty() => steps,
        None => {
            return fail("it has no [[step]]; the shortest is: [[step]] action = \"quantize\" targets = [\"linears\"] scheme = \"w8a16\"");
        }
        Some(_) => return fail("step must be a list of tables; write each step under its own [[step]]"),
    };
    no_more(&table, "the recipe", "portable and step")?;
    let steps: Vec<Step> =
        steps.into_iter().enumerate().map(|(i, value)| step(&format!("step {}", i + 1), value)).collect::<Result<_, _>>()?;
    if steps.iter().filter(|step| matches!(step, Step::Mixed(_))).count() > 1 {
        return fail("it has two mixed steps, but one budget is shared by all; name all targets in one of them");
    }
    if steps.iter().filter(|step| matches!(step, Step::Distill(_))).count() > 1 {
        return fail("it has two distill steps, but all of the model learns in one; leave one out");
    }
    for place in Where::ALL {
        if steps.iter().filter(|step| matches!(step, Step::Rotate(rotate) if rotate.place == place)).count() > 1 {
            return fail(format!("it has two steps that rotate {place}; leave one out"));
        }
    }
    Ok(Recipe { steps, portable })
}

fn step(place: &str, value: Value) -> Result<Step, Error> {
    let Value::Table(mut table) = value else { return fail(format!("{place} is not a table; write it under [[step]]")) };
    match string(&mut table, place, "action")?.as_deref() {
        Some("quantize") => {
            let targets = targets(&mut table, place)?;
            let scheme = string(&mut table, place, "scheme")?;
            let Some(scheme) = scheme else { return fail(format!("{place} has no scheme; add one such as scheme = \"w4a16-g128\"")) };
            let scheme: Scheme = scheme.parse().map_err(|error| Error::Recipe(format!("{place}: {error}")))?;
            let (solver, keys) = solver(&mut table, place)?;
            no_more(&table, &format!("{place} (quantize)"), keys)?;
            if solver.orders_groups() && scheme.activations != Activations::Exact {
                return fail(format!(
                    "{place} asks for act_order = \"desc\" under integer activations, which no kernel runs; use \"static\", or a16"
                ));
            }
            if solver.orders_groups() && scheme.weights.symmetry == Symmetry::Lattice {
                return fail(format!(
                    "{place} asks for act_order = \"desc\", and a lattice has points of eight inputs as they lie; use \"static\""
                ));
            }
            Ok(Step::Quantize { targets, scheme, solver })
        }
        Some("keep") => {
            let targets = targets(&mut table, place)?;
            no_more(&table, &format!("{place} (keep)"), "action and targets")?;
            Ok(Step::Keep { targets })
        }
        Some("awq") => {
            let (targets, settings) = (targets(&mut table, place)?, awq(&mut table, place)?);
            no_more(&table, &format!("{place} (awq)"), "action, targets, grid, duo and clip")?;
            Ok(Step::Transform { targets, choice: TransformChoice::Awq(settings) })
        }
        Some("smooth") => {
            let (targets, alpha) = (targets(&mut table, place)?, alpha(&mut table, place)?);
            no_more(&table, &format!("{place} (smooth)"), "action, targets and alpha")?;
            Ok(Step::Transform { targets, choice: TransformChoice::Smooth(SmoothSettings { alpha }) })
        }
        Some("mixed") => mixed(table, place),
        Some("distill") => distill(table, place),
        Some("rotate") => rotate(table, place),
        Some(other) => fail(format!(
            "{place} has the action {other:?}; there are \"quantize\", \"keep\", \"mixed\", \"awq\", \"smooth\", \"rotate\" and \"distill\""
        )),
        None => fail(format!("{place} has no action; add action = \"quantize\", \"keep\" or \"mixed\"")),
    }
}

/// A step that chooses schemes by measurement.
fn mixed(mut table: Table, place: &str) -> Result<Step, Error> {
    let targets = targets(&mut table, place)?;
    let read = |text: String| text.parse::<Scheme>().map_err(|error| Error::Recipe(format!("{place}: {error}")));
    let schemes = match table.remove("schemes") {
        None => vec![],
        Some(Value::Array(texts)) if !texts.is_empty() => {
            let text = |value: Value| match value {
                Value::String(text) => read(text),
                other => fail(format!("{place}: a scheme must be a string, not {other}")),
            };
            texts.into_iter().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return fail(format!("{place}: schemes must be a list such as [\"w4a16-g64\", \"w8a16\"], not {other}")),
    };
    let bits_per_weight = match table.remove("bits_per_weight") {
        None => None,
        Some(Value::Float(bits)) if bits > 0.0 && bits <= 16.0 => Some(bits),
        Some(Value::Integer(bits @ 1..=16)) => Some(bits as f64),
        Some(other) => return fail(format!("{place}: bits_per_weight must be a number above 0 and up to 16, not {other}")),
    };
    let whole = flag(&mut table, place, "whole", false)?;
    if whole && schemes.is_empty() {
        return fail(format!(
            "{place}: whole = true tries each of some schemes for everything; name them, such as schemes = [\"w8a8-c1\", \"w8a8-o6\"]"
        ));
    }
    let solver = if table.contains_key("solver") {
        let (solver, keys) = solver(&mut table, place)?;
        no_more(&table, &format!("{place} (mixed)"), &keys.replace("scheme", "schemes, whole, bits_per_weight"))?;
        solver
    } else {
        no_more(&table, &format!("{place} (mixed)"), "action, targets, schemes, whole, bits_per_weight, solver and its keys")?;
        SolverChoice::Gptq(GptqSettings::USUAL)
    };
    Ok(Step::Mixed(MixedStep { targets, schemes, bits_per_weight, solver, whole }))
}

/// A step that turns values.
fn rotate(mut table: Table, place: &str) -> Result<Step, Error> {
    let Some(name) = string(&mut table, place, "where")? else {
        return fail(format!("{place} does not say what to rotate; add where = \"heads\", \"residual\" or \"inputs\""));
    };
    let Some(which) = Where::ALL.into_iter().find(|which| which.name() == name) else {
        return fail(format!("{place} rotates {name:?}; there are \"heads\", \"residual\" and \"inputs\""));
    };
    let kind = match string(&mut table, place, "kind")? {
        None if which == Where::Inputs => RotationKind::Hadamard,
        None => RotationKind::Search,
        Some(name) => match RotationKind::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => kind,
            None => return fail(format!("{place} has the kind {name:?}; there are \"hadamard\", \"learned\" and \"search\"")),
        },
    };
    if which == Where::Inputs && kind != RotationKind::Hadamard {
        return fail(format!("{place}: inputs are turned by Hadamard matrices, which take no space; use kind = \"hadamard\""));
    }
    let gate = flag(&mut table, place, "gate", true)?;
    no_more(&table, &format!("{place} (rotate)"), "action, where, kind and gate")?;
    Ok(Step::Rotate(RotateStep { place: which, kind, gate }))
}

/// A step that learns.
fn distill(mut table: Table, place: &str) -> Result<Step, Error> {
    let mut settings = DistillStep::USUAL;
    let DistillStep { block_steps, steps, batch_tokens, .. } = &mut settings;
    let counts = [("block_steps", block_steps, 0, MOST_STEPS), ("steps", steps, 0, MOST_STEPS), ("batch_tokens", batch_tokens, 1, 1 << 20)];
    for (key, setting, least, most) in counts {
        *setting = match table.remove(key) {
            None => *setting,
            Some(Value::Integer(count)) if (least..=most).contains(&count) => count as usize,
            Some(other) => return fail(format!("{place}: {key} must be a number from {least} to {most}, not {other}")),
        };
    }
    if settings.steps == 0 && settings.block_steps == 0 {
        return fail(format!("{place} learns in no step; give it steps, block_steps or both"));
    }
    settings.own_text = match table.remove("own_text") {
        None => settings.own_text,
        Some(Value::Integer(tokens)) if (0..=MOST_OWN).contains(&tokens) => tokens as usize,
        Some(other) => return fail(format!("{place}: own_text must be a number of tokens from 0 to {MOST_OWN}, not {other}")),
    };
    let DistillStep { scales, codes, settle, norms, .. } = &mut settings;
    for (key, setting) in [("scales", scales), ("codes", codes), ("settle", settle), ("norms", norms)] {
        *setting = match table.remove(key) {
            None => *setting,
            Some(Value::Float(rate)) if (0.0..=1.0).contains(&rate) => rate,
            Some(Value::Integer(rate @ 0..=1)) => rate as f64,
            Some(other) => return fail(format!("{place}: {key} must be a rate from 0.0 to 1.0, not {other}")),
        };
    }
    no_more(&table, &format!("{place} (distill)"), "action, block_steps, steps, batch_tokens, scales, codes, settle, norms and own_text")?;
    Ok(Step::Distill(settings))
}

/// The solver of a step and the keys that may stand beside it.
fn solver(table: &mut Table, place: &str) -> Result<(SolverChoice, &'static str), Error> {
    let name = string(table, place, "solver")?;
    let candidates = match table.remove("candidates") {
        None => None,
        Some(Value::Integer(n @ 1..=MOST_CANDIDATES)) => Some(n as usize),
        Some(other) => return fail(format!("{place}: candidates must be a number from 1 to {MOST_CANDIDATES}, not {other}")),
    };
    match name.as_deref() {
        None | Some("rtn") => Ok((SolverChoice::Rtn { candidates }, "action, targets, scheme, solver and candidates")),
        Some("gptq") => {
            let settings = gptq(table, place, candidates)?;
            Ok((SolverChoice::Gptq(settings), "action, targets, scheme, solver, act_order, damping, asymmetric, refine and candidates"))
        }
        Some(other) => fail(format!("{place} has the solver {other:?}; there are \"rtn\" and \"gptq\"")),
    }
}

fn gptq(table: &mut Table, place: &str, candidates: Option<usize>) -> Result<GptqSettings, Error> {
    let mut settings = GptqSettings { candidates, ..GptqSettings::USUAL };
    if let Some(name) = string(table, place, "act_order")? {
        let Some(order) = ActOrder::ALL.into_iter().find(|order| order.name() == name) else {
            return fail(format!("{place} has the act_order {name:?}; there are \"static\", \"desc\" and \"none\""));
        };
        settings.act_order = order;
    }
    settings.damping = match table.remove("damping") {
        None => settings.damping,
        Some(Value::Float(share)) if share > 0.0 && share <= 1.0 => share,
        Some(other) => return fail(format!("{place}: damping must be a share above 0.0 and up to 1.0, not {other}")),
    };
    settings.asymmetric = flag(table, place, "asymmetric", settings.asymmetric)?;
    settings.refine = match table.remove("refine") {
        None => settings.refine,
        Some(Value::Integer(passes @ 0..=MOST_REFINEMENTS)) => passes as usize,
        Some(other) => return fail(format!("{place}: refine must be a number of passes from 0 to {MOST_REFINEMENTS}, not {other}")),
    };
    Ok(settings)
}

fn awq(table: &mut Table, place: &str) -> Result<AwqSettings, Error> {
    let mut settings = AwqSettings::USUAL;
    settings.grid = match table.remove("grid") {
        None => settings.grid,
        Some(Value::Integer(points @ 1..=MOST_CANDIDATES)) => points as usize,
        Some(other) => return fail(format!("{place}: grid must be a number of ratios from 1 to {MOST_CANDIDATES}, not {other}")),
    };
    for (key, setting) in [("duo", &mut settings.duo), ("clip", &mut settings.clip)] {
        *setting = flag(table, place, key, *setting)?;
    }
    Ok(settings)
}

fn flag(table: &mut Table, place: &str, key: &str, usual: bool) -> Result<bool, Error> {
    match table.remove(key) {
        None => Ok(usual),
        Some(Value::Boolean(on)) => Ok(on),
        Some(other) => fail(format!("{place}: {key} must be true or false, not {other}")),
    }
}

/// A strength of smoothing; `None` where it is to be searched.
fn alpha(table: &mut Table, place: &str) -> Result<Option<f64>, Error> {
    match table.remove("alpha") {
        None => Ok(SmoothSettings::USUAL.alpha),
        Some(Value::String(text)) if text == "search" => Ok(None),
        Some(Value::Float(alpha)) if (0.0..=1.0).contains(&alpha) => Ok(Some(alpha)),
        Some(Value::Integer(alpha @ 0..=1)) => Ok(Some(alpha as f64)),
        Some(other) => fail(format!("{place}: alpha must be a number from 0.0 to 1.0 or \"search\", not {other}")),
    }
}

fn targets(table: &mut Table, place: &str) -> Result<Vec<Target>, Error> {
    let texts = match table.remove("targets") {
        Some(Value::Array(texts)) if !texts.is_empty() => texts,
        _ => return fail(format!("{place} has no targets; add a list such as targets = [\"linears\"]")),
    };
    let target = |value: Value| match value {
        Value::String(text) => text.parse::<Target>().map_err(|why| Error::Recipe(format!("{place}: {why}"))),
        other => fail(format!("{place}: a target must be a string, not {other}")),
    };
    texts.into_iter().map(target).collect()
}

fn string(table: &mut Table, place: &str, key: &str) -> Result<Option<String>, Error> {
    match table.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => fail(format!("{place}: {key} must be a string, not {other}")),
    }
}

fn no_more(table: &Table, place: &str, known: &str) -> Result<(), Error> {
    match table.keys().next() {
        Some(key) => fail(format!("{place} has the unknown key {key:?}; the keys are {known}")),
        None => Ok(()),
    }
}

fn fail<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Recipe(what.into()))
}

/// `text` as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    Value::String(text.into()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Flags;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        recipe(text).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_place_and_the_remedy() {
        let step = |rest: &str| error(&format!("[[step]]\n{rest}"));
        insta::assert_snapshot!(error("steps = 1"), @r#"the recipe makes no sense: it has no [[step]]; the shortest is: [[step]] action = "quantize" targets = ["linears"] scheme = "w8a16""#);
        insta::assert_snapshot!(step("action = 'quantise'"), @r#"the recipe makes no sense: step 1 has the action "quantise"; there are "quantize", "keep", "mixed", "awq", "smooth", "rotate" and "distill""#);
        insta::assert_snapshot!(step("action='keep'\ntargets=['head']\nscheme='w8a16'"), @r#"the recipe makes no sense: step 1 (keep) has the unknown key "scheme"; the keys are action and targets"#);
        insta::assert_snapshot!(step("action='quantize'\ntargets=['head']\nsheme='w8a16'"), @r#"the recipe makes no sense: step 1 has no scheme; add one such as scheme = "w4a16-g128""#);
        insta::assert_snapshot!(step("action='quantize'\ntargets=['head']\nscheme='w8a16'\nsmooth=0.5"), @r#"the recipe makes no sense: step 1 (quantize) has the unknown key "smooth"; the keys are action, targets, scheme, solver and candidates"#);
        insta::assert_snapshot!(step("action='quantize'\ntargets=['head']\nscheme='w9a16'"), @r#"the recipe makes no sense: step 1: there is no scheme "w9a16": "9" is not a width of 2 to 8 bits; write it like w8a16, w8a8, w4a16-g128-sym or w4a8-g64-asym (bits 2-8, group 32, 64, 128 or 256, with 4 bits also 16)"#);
        insta::assert_snapshot!(step("action='quantize'\ntargets=['heads']\nscheme='w8a16'"), @r#"the recipe makes no sense: step 1: there is no target "heads"; name linears, embedding, head, a role (q, k, v, qkv, o, gate, up, gate_up, down, expert_gate, expert_up, expert_down, experts, router), layers:0-3, a module path with * or ?, or re: and a regular expression; join several with &"#);
        insta::assert_snapshot!(step("action='quantize'\ntargets=['head']\nscheme='w8a16'\nsolver='magic'"), @r#"the recipe makes no sense: step 1 has the solver "magic"; there are "rtn" and "gptq""#);
        insta::assert_snapshot!(step("action='quantize'\ntargets=['head']\nscheme='w8a16'\nsolver='gptq'\nact_order='up'"), @r#"the recipe makes no sense: step 1 has the act_order "up"; there are "static", "desc" and "none""#);
        insta::assert_snapshot!(step("action='quantize'\ntargets=['head']\nscheme='w4a8'\nsolver='gptq'\nact_order='desc'"), @r#"the recipe makes no sense: step 1 asks for act_order = "desc" under integer activations, which no kernel runs; use "static", or a16"#);
        insta::assert_snapshot!(step("action='quantize'\ntargets=['head']\nscheme='w8a16'\nsolver='gptq'\ndamping=0.0"), @"the recipe makes no sense: step 1: damping must be a share above 0.0 and up to 1.0, not 0.0");
        insta::assert_snapshot!(step("action='quantize'\ntargets=['head']\nscheme='w8a16'\nrefine=1"), @r#"the recipe makes no sense: step 1 (quantize) has the unknown key "refine"; the keys are action, targets, scheme, solver and candidates"#);
        insta::assert_snapshot!(step("action='quantize'\ntargets=['head']\nscheme='w8a16'\ncandidates=0"), @"the recipe makes no sense: step 1: candidates must be a number from 1 to 256, not 0");
        assert!(error("step = [").contains("it is not TOML"));
    }

    #[test]
    fn flags_and_their_toml_say_the_same() {
        let gptq = GptqSettings { act_order: ActOrder::Off, damping: 0.1, asymmetric: false, refine: 0, candidates: Some(32) };
        let solvers = [SolverChoice::Rtn { candidates: Some(8) }, SolverChoice::Gptq(gptq), SolverChoice::Gptq(GptqSettings::USUAL)];
        let cases = [("w8a8", false, true), ("w4a16-g32-asym", true, false), ("w4a16", false, false)];
        for ((scheme, portable, tied), solver) in cases.into_iter().zip(solvers) {
            let flags = Flags { scheme: scheme.parse().unwrap(), embedding: None, head: None, portable, solver, transform: None };
            let made = Recipe::from_flags(&flags, tied).unwrap();
            assert_eq!(recipe(&made.to_string()).unwrap(), made);
            let mut taught = made;
            taught.steps.push(Step::Distill(DistillStep { block_steps: 3, steps: 7, codes: 0.0, own_text: 5000, ..DistillStep::USUAL }));
            assert_eq!(recipe(&taught.to_string()).unwrap(), taught);
        }
    }

    #[test]
    fn schemes_tried_whole_have_to_be_named() {
        let step = |rest: &str| format!("[[step]]\naction='mixed'\ntargets=['linears']\nsolver='rtn'\n{rest}");
        let made = recipe(&step("schemes=['w8a8-c1', 'w8a8-o6']\nwhole=true")).unwrap();
        assert!(made.mixed_step().unwrap().whole);
        assert_eq!(recipe(&made.to_string()).unwrap(), made);
        let scheme = made.mixed_step().unwrap().schemes[0];
        let Step::Quantize { scheme: provisional, .. } = made.provisional().steps[0] else { panic!("{made}") };
        assert_eq!(provisional, scheme, "what is forecast is one of them");
        insta::assert_snapshot!(error(&step("whole=true")), @r#"the recipe makes no sense: step 1: whole = true tries each of some schemes for everything; name them, such as schemes = ["w8a8-c1", "w8a8-o6"]"#);
        insta::assert_snapshot!(error(&step("whole=1")), @"the recipe makes no sense: step 1: whole must be true or false, not 1");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}", steps in prop::collection::vec("(action|targets|scheme|solver|candidates|x) ?= ?(\"quantize\"|\"keep\"|\"w4a16\"|\"rtn\"|\\[\"[a-z:&*.\\-0-9\\[(]{0,12}\"\\]|[0-9]{1,3})", 0..6)) {
            let _ = recipe(&text);
            let _ = recipe(&format!("[[step]]\n{}", steps.join("\n")));
        }

        #[test]
        fn what_is_read_is_written_back_the_same(targets in prop::collection::vec("[a-z:&*.?\\-0-9 ]{1,12}|linears|layers:[0-9]-[0-9]|re:[a-z.\"'\\\\]{0,9}", 1..4)) {
            let targets = targets.iter().map(|t| quoted(t)).collect::<Vec<_>>().join(",");
            if let Ok(read) = recipe(&format!("[[step]]\naction='keep'\ntargets=[{targets}]")) {
                prop_assert_eq!(recipe(&read.to_string()).unwrap(), read);
            }
        }
    }
}
