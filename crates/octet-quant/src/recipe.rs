//! What the user asks for: ordered steps over groups of tensors.

mod distill;
mod mixed;
mod parse;
mod rotate;
mod solver;
mod target;
mod transform;

pub use distill::DistillStep;
pub use mixed::MixedStep;
pub use rotate::{RotateStep, RotationKind};
pub use solver::{GptqSettings, SolverChoice};
pub use target::Target;
pub(crate) use target::{is_tied, role_name};
pub(crate) use transform::ALPHAS;
pub use transform::{AwqSettings, SmoothSettings, TransformChoice};

use crate::Error;
use octet_tensor::{Activations, Scheme, WeightScheme};
use std::fmt;

/// Ordered steps; where two claim one tensor the later one decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The steps, first to last.
    pub steps: Vec<Step>,
    /// Whether the result must be loadable unchanged by other readers of compressed-tensors (only Linear modules are
    /// quantized, groups divide the inputs, the embedding stays as it is).
    pub portable: bool,
}

/// One step of a [`Recipe`].
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Represent tensors in fewer bits.
    Quantize {
        /// Which tensors.
        targets: Vec<Target>,
        /// How they are represented.
        scheme: Scheme,
        /// What chooses the codes.
        solver: SolverChoice,
    },
    /// Move factors between the inputs and the weights of linears before they are solved.
    Transform {
        /// The linears whose inputs are scaled.
        targets: Vec<Target>,
        /// How.
        choice: TransformChoice,
    },
    /// Turn values before tensors are solved.
    Rotate(RotateStep),
    /// Leave tensors as they are.
    Keep {
        /// Which tensors.
        targets: Vec<Target>,
    },
    /// Give each group of tensors the width that pays.
    Mixed(MixedStep),
    /// Let the quantized model learn from the original, after all else.
    Distill(DistillStep),
}

impl Step {
    /// The tensors the step is about.
    pub fn targets(&self) -> &[Target] {
        match self {
            Self::Quantize { targets, .. }
            | Self::Keep { targets }
            | Self::Transform { targets, .. }
            | Self::Mixed(MixedStep { targets, .. }) => targets,
            // What is quantized learns, whatever it is; where values turn follows from the model.
            Self::Distill(_) | Self::Rotate(_) => &[],
        }
    }
}

/// What happens to the embedding or the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// It stays as it is.
    Keep,
    /// It is quantized.
    Quantize(Scheme),
}

/// The flags that say the same as a short recipe.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// The scheme of the linears.
    pub scheme: Scheme,
    /// The embedding; `None`: 8 bits per channel, or as it is when `portable`.
    pub embedding: Option<Precision>,
    /// The head; `None`: 8 bits per channel with the activations of `scheme`, or as it is when `portable`.
    pub head: Option<Precision>,
    /// As [`Recipe::portable`].
    pub portable: bool,
    /// What chooses the codes of the linears; embedding and head are rounded to nearest.
    pub solver: SolverChoice,
    /// What moves factors before that.
    pub transform: Option<TransformChoice>,
}

impl Recipe {
    /// The step that lets the quantized model learn, where there is one.
    pub fn distill_step(&self) -> Option<&DistillStep> {
        self.steps.iter().find_map(|step| match step {
            Step::Distill(distill) => Some(distill),
            _ => None,
        })
    }

    /// Reads a recipe: an optional `portable = true`, then tables `[[step]]` with `action = "quantize"` (keys `targets`,
    /// `scheme`, optional `solver` and `candidates`) or `action = "keep"` (key `targets`). See [`Target`] for targets.
    ///
    /// # Errors
    /// If it is not TOML, a key is unknown or missing, or a value makes no sense; the error names it and what is allowed.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        parse::recipe(text)
    }

    /// The recipe of some flags, for a model whose embedding is also its head (`tied`) or not.
    ///
    /// # Errors
    /// If a tied model is asked for an embedding and a head that differ.
    pub fn from_flags(flags: &Flags, tied: bool) -> Result<Self, Error> {
        let Flags { scheme, portable, solver, .. } = *flags;
        let rounded = SolverChoice::Rtn { candidates: solver.candidates() };
        let usual = if portable {
            Precision::Keep
        } else {
            Precision::Quantize(Scheme { weights: WeightScheme::W8, activations: scheme.activations })
        };
        let (embedding, head) = match (flags.embedding, flags.head) {
            (Some(embedding), Some(head)) if tied && weights(embedding) != weights(head) => {
                let what = "this model's embedding and head are one tensor, so they cannot differ; give both the same scheme";
                return Err(Error::Recipe(what.into()));
            }
            // The head's scheme also says how its activations are multiplied; a lookup has none.
            (embedding, head) if tied => [head.or(embedding).unwrap_or(usual); 2].into(),
            (embedding, head) => (embedding.unwrap_or(usual), head.unwrap_or(usual)),
        };
        let step = |names: &[&str], precision: Precision, solver: SolverChoice| {
            let targets = names.iter().map(|name| Target::named(name)).collect();
            match precision {
                Precision::Keep => Step::Keep { targets },
                Precision::Quantize(scheme) => Step::Quantize { targets, scheme, solver },
            }
        };
        let transform = flags.transform.map(|choice| {
            // A head of its own is smoothed like any linear with integer inputs.
            let integer =
                |precision| matches!(precision, Precision::Quantize(Scheme { activations, .. }) if activations != Activations::Exact);
            let with_head = matches!(choice, TransformChoice::Smooth(_)) && !tied && integer(head);
            let names: &[&str] = if with_head { &["linears", "head"] } else { &["linears"] };
            Step::Transform { targets: names.iter().map(|name| Target::named(name)).collect(), choice }
        });
        let mut steps: Vec<Step> = transform.into_iter().collect();
        steps.push(step(&["linears"], Precision::Quantize(scheme), solver));
        if embedding == head {
            steps.push(step(&["embedding", "head"], head, rounded));
        } else {
            steps.extend([step(&["embedding"], embedding, rounded), step(&["head"], head, rounded)]);
        }
        Ok(Self { steps, portable })
    }
}

fn weights(precision: Precision) -> Option<WeightScheme> {
    match precision {
        Precision::Keep => None,
        Precision::Quantize(Scheme { weights, activations: _ }) => Some(weights),
    }
}

/// Writes the recipe as the TOML that [`Recipe::from_toml`] reads back to the same recipe.
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.portable {
            f.write_str("portable = true\n")?;
        }
        for step in &self.steps {
            let targets: Vec<String> = step.targets().iter().map(|target| parse::quoted(target.as_str())).collect();
            let action = match step {
                Step::Quantize { .. } => "quantize",
                Step::Transform { choice, .. } => choice.action(),
                Step::Keep { .. } => "keep",
                Step::Mixed(_) => "mixed",
                Step::Distill(_) => "distill",
                Step::Rotate(_) => "rotate",
            };
            write!(f, "\n[[step]]\naction = \"{action}\"\n")?;
            if !targets.is_empty() {
                writeln!(f, "targets = [{}]", targets.join(", "))?;
            }
            match step {
                Step::Transform { choice: TransformChoice::Awq(AwqSettings { grid, duo, clip }), .. } => {
                    write!(f, "grid = {grid}\nduo = {duo}\nclip = {clip}\n")?;
                }
                Step::Transform { choice: TransformChoice::Smooth(SmoothSettings { alpha }), .. } => {
                    let text = alpha.map_or_else(|| "\"search\"".into(), |alpha| format!("{alpha:?}"));
                    writeln!(f, "alpha = {text}")?;
                }
                Step::Quantize { scheme, solver, .. } => {
                    writeln!(f, "scheme = \"{scheme}\"")?;
                    write_solver(*solver, f)?;
                }
                Step::Mixed(mixed) => {
                    mixed.write_keys(f)?;
                    write_solver(mixed.solver, f)?;
                }
                Step::Distill(DistillStep { block_steps, steps, batch_tokens, scales, codes, settle, norms, own_text }) => {
                    if *block_steps > 0 {
                        writeln!(f, "block_steps = {block_steps}")?;
                    }
                    write!(f, "steps = {steps}\nbatch_tokens = {batch_tokens}\n")?;
                    write!(f, "scales = {scales:?}\ncodes = {codes:?}\nsettle = {settle:?}\nnorms = {norms:?}\nown_text = {own_text}\n")?;
                }
                Step::Rotate(RotateStep { place, kind, gate }) => {
                    write!(f, "where = \"{}\"\nkind = \"{}\"\ngate = {gate}\n", place.name(), kind.name())?;
                }
                Step::Keep { .. } => {}
            }
        }
        Ok(())
    }
}

fn write_solver(solver: SolverChoice, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "solver = \"{}\"", solver.name())?;
    if let SolverChoice::Gptq(GptqSettings { act_order, damping, asymmetric, refine, .. }) = solver {
        write!(f, "act_order = \"{}\"\ndamping = {damping:?}\nasymmetric = {asymmetric}\nrefine = {refine}\n", act_order.name())?;
    }
    solver.candidates().map_or(Ok(()), |candidates| writeln!(f, "candidates = {candidates}"))
}

/// A scheme for a table that is only looked up, whatever the activations elsewhere.
pub(crate) fn lookup(scheme: Scheme) -> Scheme {
    Scheme { activations: Activations::Exact, ..scheme }
}
