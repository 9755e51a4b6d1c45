//! What will be done to every tensor: a pure function of recipe and inventory.

mod fit;
mod scaling;
mod show;

pub(crate) use fit::misfit;

use crate::{
    DistillStep, Error, HessianOptions, Inventory, OtherTensor, Recipe, RotateStep, Site, SolverChoice, Step,
    recipe::{is_tied, lookup, role_name},
};
use octet_model::{LinearSite, Role};
use octet_tensor::{Activations, BlockCode, Dtype, Granularity, Scheme, Symmetry};

/// One explicit line a tensor, in the order they are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    lines: Vec<Line>,
    scalings: Vec<scaling::ScalingStep>,
    rotations: Vec<RotateStep>,
    distill: Option<DistillStep>,
    portable: bool,
}

/// What will be done to one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Module path of a weight matrix (without `.weight`), name of any other tensor.
    pub name: String,
    /// The weight matrix, or `None` for other tensors.
    pub linear: Option<LinearSite>,
    /// Its shape; of a weight matrix always outputs, inputs.
    pub shape: Vec<usize>,
    /// The type its elements are stored in.
    pub stored: Dtype,
    /// Bytes it takes where it is stored.
    pub stored_bytes: u64,
    /// What becomes of it.
    pub action: Action,
    /// Bytes it will take.
    pub bytes: u64,
}

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// It is quantized.
    Quantize {
        /// To this.
        scheme: Scheme,
        /// With scales of this type.
        scale_dtype: Dtype,
        /// By this.
        solver: SolverChoice,
    },
    /// It is put in blocks.
    Blocks {
        /// Of this type.
        code: BlockCode,
        /// By this.
        solver: SolverChoice,
    },
    /// It stays a float tensor.
    Keep {
        /// Of this type (FP8 with block scales becomes BF16, everything else stays as it is).
        dtype: Dtype,
        /// Because of this.
        reason: String,
    },
    /// It is left out.
    Drop {
        /// Because of this.
        reason: String,
    },
}

impl Plan {
    /// Decides what becomes of every tensor. With `strict`, a tensor that cannot take what a step asks is an error;
    /// otherwise it is kept, and its line says why.
    ///
    /// # Errors
    /// If a target matches nothing, a step decides nothing, or (`strict`) a tensor cannot take what was asked.
    pub fn new(recipe: &Recipe, inventory: &Inventory, strict: bool) -> Result<Self, Error> {
        let deciding = deciding_steps(recipe, &inventory.sites)?;
        let mut misfits: Vec<(String, String)> = Vec::new();
        let mut lines = Vec::with_capacity(inventory.sites.len() + inventory.others.len());
        for (site, step) in inventory.sites.iter().zip(deciding) {
            let action = match step.map(|step| &recipe.steps[step]) {
                Some(Step::Quantize { scheme, solver, .. }) => match fit::misfit(site, scheme.weights, recipe.portable) {
                    Some(reason) => {
                        misfits.push((site.linear.module.clone(), reason.clone()));
                        keep(site, reason)
                    }
                    None => quantize(site, *scheme, *solver),
                },
                Some(Step::Mixed(_)) => return Err(Error::Recipe("a mixed step has to be settled before it can be planned".into())),
                // Steps that move factors or turn values, and those that learn, decide nothing (deciding_steps).
                Some(Step::Keep { .. } | Step::Transform { .. } | Step::Rotate(_) | Step::Distill(_)) => {
                    keep(site, "as the recipe says".into())
                }
                None if site.linear.role == Role::Router => keep(site, fit::ROUTER.into()),
                None => keep(site, "no step targets it".into()),
            };
            lines.push(site_line(site, action));
        }
        if let (true, Some((name, reason))) = (strict, misfits.first()) {
            return Err(Error::NotAsAsked { count: misfits.len(), name: name.clone(), reason: reason.clone() });
        }
        lines.extend(inventory.others.iter().map(other_line));
        let scalings = scaling::steps(recipe, &inventory.sites);
        let rotation = |step: &Step| if let Step::Rotate(rotate) = step { Some(*rotate) } else { None };
        let mut rotations: Vec<RotateStep> = recipe.steps.iter().filter_map(rotation).collect();
        // What is turned at run time is turned behind what weights have turned.
        rotations.sort_by_key(|step| step.place);
        Ok(Self { lines, scalings, rotations, distill: recipe.distill_step().copied(), portable: recipe.portable })
    }

    /// Decides what becomes of every tensor where weight matrices are put in blocks: `choose` gives the type for each, or `None`
    /// where it stays a float tensor.
    pub fn in_blocks(inventory: &Inventory, choose: &dyn Fn(&LinearSite) -> Option<(BlockCode, SolverChoice)>) -> Self {
        let action = |site: &Site| match choose(&site.linear) {
            Some((code, solver)) => Action::Blocks { code, solver },
            None => keep(site, "as the file's type says".into()),
        };
        let mut lines: Vec<Line> = inventory.sites.iter().map(|site| site_line(site, action(site))).collect();
        lines.extend(inventory.others.iter().map(other_line));
        Self { lines, scalings: vec![], rotations: vec![], distill: None, portable: false }
    }

    /// All lines, weight matrices first.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Whether the result was asked to be loadable by other readers.
    pub fn is_portable(&self) -> bool {
        self.portable
    }

    /// Module paths and schemes of everything that is quantized.
    pub fn quantized(&self) -> impl Iterator<Item = (&Line, Scheme)> {
        self.lines.iter().filter_map(|line| match line.action {
            Action::Quantize { scheme, .. } => Some((line, scheme)),
            _ => None,
        })
    }

    /// Weight matrices that stay as they are (what a reader must not expect to be quantized).
    pub fn kept_modules(&self) -> impl Iterator<Item = &str> {
        let kept = |line: &&Line| line.linear.is_some() && matches!(line.action, Action::Keep { .. });
        self.lines.iter().filter(kept).map(|line| line.name.as_str())
    }

    /// How the quantized model learns from the original, where it does.
    pub fn distill(&self) -> Option<DistillStep> {
        self.distill
    }

    /// What is turned before all else.
    pub fn rotations(&self) -> &[RotateStep] {
        &self.rotations
    }

    /// Names of what moves factors before tensors are solved, each once.
    pub fn transforms(&self) -> Vec<&'static str> {
        scaling::names(self)
    }

    /// The plan as canonical text, one line a tensor: equal texts mean equal plans. Hash it for a receipt.
    pub fn digest(&self) -> String {
        let mut text = format!("octet plan 1\nportable {}\n", self.portable);
        for line in &self.lines {
            let shape: Vec<String> = line.shape.iter().map(usize::to_string).collect();
            text += &format!("{}\t{}\t{}\t{}\t{}\n", line.name, shape.join("x"), line.stored, line.action.canonical(), line.bytes);
        }
        self.rotations.iter().for_each(|step| text += &format!("{step}\n"));
        self.scalings.iter().for_each(|step| text += &step.canonical());
        self.distill.iter().for_each(|step| text += &format!("{step}\n"));
        text
    }
}

impl Action {
    fn canonical(&self) -> String {
        match self {
            Self::Quantize { scheme, scale_dtype, solver } => format!("quantize {scheme} scales {scale_dtype} {solver}"),
            Self::Blocks { code, solver } => format!("blocks {} {solver}", code.name),
            Self::Keep { dtype, reason: _ } => format!("keep {dtype}"),
            Self::Drop { .. } => "drop".into(),
        }
    }
}

impl Action {
    /// What chooses its codes; `None` where it has none.
    pub fn solver(&self) -> Option<SolverChoice> {
        match self {
            Self::Quantize { solver, .. } | Self::Blocks { solver, .. } => Some(*solver),
            Self::Keep { .. } | Self::Drop { .. } => None,
        }
    }

    /// The Hessian that chooses its codes, where one does.
    pub(crate) fn hessian(&self) -> Option<HessianOptions> {
        let options = self.solver()?.hessian()?;
        let eights = matches!(self, Self::Quantize { scheme, .. } if scheme.weights.symmetry == Symmetry::Lattice);
        Some(HessianOptions { eights, ..options })
    }
}

impl Line {
    /// What the tensor is for: a role's name, or `other`.
    pub fn role(&self) -> &'static str {
        self.linear.as_ref().map_or("other", |site| role_name(site.role))
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// For every site the last step that claims it.
pub(crate) fn deciding_steps(recipe: &Recipe, sites: &[Site]) -> Result<Vec<Option<usize>>, Error> {
    let mut deciding = vec![None; sites.len()];
    for (step, targets) in recipe.steps.iter().map(Step::targets).enumerate() {
        for target in targets {
            let mut matched = false;
            for (slot, _) in deciding.iter_mut().zip(sites).filter(|(_, site)| target.matches(&site.linear)) {
                matched = true;
                if !scaling::is_transform(&recipe.steps[step]) {
                    *slot = Some(step);
                }
            }
            if !matched {
                return Err(Error::NothingMatched { step: step + 1, target: target.to_string(), have: available(sites) });
            }
        }
    }
    match (0..recipe.steps.len()).find(|step| !deciding.contains(&Some(*step)) && !scaling::is_transform(&recipe.steps[*step])) {
        Some(step) => Err(Error::Overridden { step: step + 1 }),
        None => Ok(deciding),
    }
}

/// What could have been targeted, in a few words.
fn available(sites: &[Site]) -> String {
    let mut roles: Vec<&str> = Vec::new();
    for site in sites {
        let role = role_name(site.linear.role);
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    let layers = sites.iter().filter_map(|site| site.linear.layer).max().map_or(0, |last| last + 1);
    format!("{layers} layers and the roles {}", roles.join(", "))
}

fn quantize(site: &Site, scheme: Scheme, solver: SolverChoice) -> Action {
    // Looking up a row involves no activations, so a table that is not the head as well has none to quantize.
    let only_looked_up = site.linear.role == Role::Embedding && !is_tied(&site.linear);
    let scheme = if only_looked_up { lookup(scheme) } else { scheme };
    Action::Quantize { scheme, scale_dtype: scale_dtype(site.dtype, scheme.weights.granularity), solver }
}

fn keep(site: &Site, reason: String) -> Action {
    Action::Keep { dtype: kept_dtype(site.dtype), reason }
}

/// Scales have the type of the weights they replace, but no more than 16 bits where every group of a row has one: in 32
/// they would cost a whole bit a weight at group 32, and rounding them to 11 significant bits costs nothing that codes
/// chosen for the rounded scale do not make good.
pub(crate) fn scale_dtype(stored: Dtype, granularity: Granularity) -> Dtype {
    match (stored, granularity) {
        (Dtype::F32 | Dtype::F64, Granularity::PerChannel) => Dtype::F32,
        (Dtype::F16 | Dtype::F32 | Dtype::F64, _) => Dtype::F16,
        _ => Dtype::Bf16,
    }
}

fn kept_dtype(stored: Dtype) -> Dtype {
    if stored == Dtype::F8E4m3 { Dtype::Bf16 } else { stored }
}

/// Bytes that `site` takes under `scheme`, or as it is kept.
pub(crate) fn would_take(site: &Site, scheme: Option<Scheme>) -> u64 {
    let action = scheme.map_or_else(|| keep(site, String::new()), |scheme| quantize(site, scheme, SolverChoice::Rtn { candidates: None }));
    site_line(site, action).bytes
}

fn site_line(site: &Site, action: Action) -> Line {
    let LinearSite { rows, cols, ref module, .. } = site.linear;
    let bytes = match &action {
        Action::Quantize { scheme, scale_dtype, solver } => {
            quantized_bytes(rows, cols, *scheme, *scale_dtype) + if solver.orders_groups() { 4 * cols as u64 } else { 0 }
        }
        Action::Blocks { code, .. } => (rows * cols.div_ceil(code.block) * code.bytes) as u64,
        Action::Keep { dtype, .. } => (rows * cols * dtype.size()) as u64,
        Action::Drop { .. } => 0,
    };
    Line {
        name: module.clone(),
        linear: Some(site.linear.clone()),
        shape: vec![rows, cols],
        stored: site.dtype,
        stored_bytes: site.bytes,
        action,
        bytes,
    }
}

fn other_line(tensor: &OtherTensor) -> Line {
    let stored_bytes = tensor.shape.iter().product::<usize>() as u64 * tensor.dtype.size() as u64;
    let (action, bytes) = match tensor.redundant {
        Some(reason) => (Action::Drop { reason: reason.into() }, 0),
        None => (Action::Keep { dtype: tensor.dtype, reason: "not a weight matrix".into() }, stored_bytes),
    };
    Line { name: tensor.name.clone(), linear: None, shape: tensor.shape.clone(), stored: tensor.dtype, stored_bytes, action, bytes }
}

/// Bytes as compressed-tensors stores them: 8-bit codes under integer activations one a byte, all others as a bit stream
/// along the inputs in whole 32-bit words, with the shape (two 64-bit numbers) beside it; scales; zero points as a bit
/// stream along the outputs; sixteen levels of its own; outlier columns in 16 bits with their numbers.
fn quantized_bytes(rows: usize, cols: usize, scheme: Scheme, scale_dtype: Dtype) -> u64 {
    let weights = scheme.weights;
    let packed = |count: usize| (count * weights.bits.get() as usize).div_ceil(32) * 4;
    let one_byte = weights.bits.get() == 8 && scheme.activations != Activations::Exact && !weights.has_whole_scales();
    let codes = if one_byte { rows * cols } else { rows * packed(cols) + 16 };
    let groups = weights.groups(cols);
    let zeros = if weights.is_asymmetric() { packed(rows) * groups } else { 0 };
    let outliers = match scheme.activations {
        Activations::Int8Beside(share) => share.columns(cols) * (4 + 2 * rows),
        _ => 0,
    };
    let levels = if weights.symmetry == Symmetry::Learnt { 16 } else { 0 };
    (codes + levels + rows * weights.scale_bytes(cols, scale_dtype) + zeros + outliers) as u64
}

#[cfg(test)]
mod tests;
