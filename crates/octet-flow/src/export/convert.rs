//! What becomes of every matrix on its way into another format, decided before anything is written.

use super::{ExportRun, Source, source::cannot};
use crate::{Error, Progress, Result};
use octet_formats::write::Given;
use octet_model::{LinearSite, Role};
use octet_quant::{TensorJob, decoded, round_anew};
use octet_tensor::{Activations, Dtype, FloatMatrix, Granularity, Matrix, QMatrix, Scheme, Tensor, WeightSource};
use std::{collections::BTreeSet, num::NonZeroUsize, sync::atomic::Ordering};

/// Rows that are read and written at a time: about this many weights.
const RUN_WEIGHTS: usize = 1 << 18;

/// A model on its way into another format.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub source: &'a Source,
    /// Whether what the format cannot hold is rounded anew.
    pub requantize: bool,
}

/// What a format can hold, as far as the plan needs to know.
pub(super) struct Holds<'a> {
    /// Its name.
    pub format: &'a str,
    /// Whether it stores the matrix as it is, or why not.
    pub fits: &'a dyn Fn(&Given) -> std::result::Result<(), String>,
    /// Whether embedding and head may be codes.
    pub tables: bool,
    /// Whether linears that a checkpoint stores inputs first (GPT-2) can be codes.
    pub inputs_first: bool,
    /// Whether inputs may belong to groups in an order of their own.
    pub ordered: bool,
    /// Whether matrices may differ in width and group.
    pub mixes: bool,
    /// Whether it has codes at all.
    pub codes: bool,
    /// Whether a model in floats is held as it is.
    pub floats: bool,
    /// Whether what it does not hold may be rounded anew.
    pub anew: bool,
    /// Whether whoever reads it is told that activations are rounded, or rounds them anyway.
    pub rounds: &'a dyn Fn(Scheme) -> bool,
    /// Whether it rounds the inputs of every matrix in a way of its own.
    pub rounds_all: bool,
    /// What a linear is solved to where it must be.
    pub usual: Scheme,
}

/// What becomes of a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    /// Codes and scales go over as they are.
    Carry(Scheme, Dtype),
    /// Rounded to nearest anew.
    Solve(Scheme, Dtype),
    /// Floats of this type made of codes.
    Decode(Dtype),
    /// Floats, byte for byte.
    Copy,
}

/// A matrix with what becomes of it.
pub(super) struct Planned {
    pub site: LinearSite,
    pub action: Action,
    /// Whether inputs belong to groups in an order of their own.
    pub ordered: bool,
}

impl Planned {
    /// The scheme its codes are in afterwards, and the type of their scales.
    pub(super) fn codes(&self) -> Option<(Scheme, Dtype)> {
        match self.action {
            Action::Carry(scheme, dtype) | Action::Solve(scheme, dtype) => Some((scheme, dtype)),
            Action::Decode(_) | Action::Copy => None,
        }
    }
}

/// The plan of an export.
pub(super) struct Conversion {
    pub matrices: Vec<Planned>,
    /// Every other tensor, by name.
    pub others: Vec<String>,
    /// What is converted, for the user.
    pub notes: Vec<String>,
}

impl Conversion {
    /// Plans the export of `job` into a format.
    ///
    /// # Errors
    /// If the format cannot hold a matrix as it is and `--requantize` was not given.
    pub(super) fn plan(job: Job<'_>, holds: &Holds<'_>) -> Result<Self> {
        let sites = job.source.spec.linear_sites();
        let matrices = sites.iter().map(|site| planned(job, holds, site)).collect::<Result<Vec<_>>>()?;
        let mut plan = Self { others: others(job, &sites), notes: notes(job, holds, &matrices)?, matrices };
        if !holds.mixes {
            plan.refuse_mixtures(job, holds)?;
        }
        if !holds.floats && plan.matrices.iter().all(|planned| planned.codes().is_none()) {
            let what = "holds quantized models, and this one has no matrix it could hold".into();
            return Err(cannot_hold(holds, what, "choose another format"));
        }
        Ok(plan)
    }

    /// One width and group for all: the usual one where they differ and may be solved anew.
    fn refuse_mixtures(&mut self, job: Job<'_>, holds: &Holds<'_>) -> Result<()> {
        let kinds: BTreeSet<String> = self.matrices.iter().filter_map(Planned::codes).map(|(s, _)| s.weights.to_string()).collect();
        if kinds.len() < 2 {
            return Ok(());
        }
        let kinds: Vec<String> = kinds.into_iter().collect();
        let what = format!("has one width and group for all linears, this model has {}", kinds.join(", "));
        if !job.requantize {
            return Err(cannot_hold(holds, what, otherwise(holds)));
        }
        let usual = holds.usual;
        for planned in &mut self.matrices {
            if let Some((scheme, dtype)) = planned.codes()
                && scheme.weights != usual.weights
            {
                planned.action = Action::Solve(usual, sixteen(dtype));
            }
        }
        self.notes.push(format!("{what}: all others are solved anew as {}", usual.weights));
        Ok(())
    }
}

/// What to do about a matrix that is not held as it is.
fn otherwise(holds: &Holds<'_>) -> &'static str {
    match holds.anew {
        true => "choose another format, or let those linears be rounded anew with --requantize",
        false => "choose another format, or quantize the original in a scheme that it holds",
    }
}

fn cannot_hold(holds: &Holds<'_>, what: String, remedy: &str) -> Error {
    cannot(holds.format, format!("{} {what}; {remedy}", holds.format))
}

fn sixteen(dtype: Dtype) -> Dtype {
    if dtype == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F16 }
}

/// Whether a linear is one that formats quantize: in a block, and no router.
fn is_inner(site: &LinearSite) -> bool {
    site.layer.is_some() && site.role != Role::Router
}

fn planned(job: Job<'_>, holds: &Holds<'_>, site: &LinearSite) -> Result<Planned> {
    let missing = || octet_tensor::Error::Missing { name: site.module.clone() };
    if let Some(stored) = job.source.checkpoint.in_order(&site.module)?.filter(|_| holds.ordered && is_inner(site) && !site.transposed) {
        let (scheme, scale_dtype) = (stored.scheme(), stored.read_rows(0..1)?.scale_dtype());
        let given = Given { rows: site.rows, cols: site.cols, scheme, scale_dtype, ordered: true };
        if (holds.fits)(&given).is_ok() {
            return Ok(Planned { site: site.clone(), action: Action::Carry(scheme, scale_dtype), ordered: true });
        }
    }
    let matrix = job.source.checkpoint.matrix(&site.module)?.ok_or_else(missing)?;
    let action = match &matrix {
        Matrix::Quant(matrix) => {
            let first = matrix.read_rows(0..1)?;
            // Codes alone would be another matrix.
            if first.beside().is_some() || matrix.beside()?.is_some() {
                let what = format!("has no place for {}, some of whose inputs are floats", site.module);
                return Err(cannot_hold(holds, what, "give the original, or quantize it in another scheme"));
            }
            quantized(job, holds, site, matrix.scheme(), first.scale_dtype())?
        }
        Matrix::Float(float) => floats(job, holds, site, float)?,
    };
    Ok(Planned { site: site.clone(), action, ordered: false })
}

fn quantized(job: Job<'_>, holds: &Holds<'_>, site: &LinearSite, scheme: Scheme, scale_dtype: Dtype) -> Result<Action> {
    let name = &site.module;
    if !holds.codes {
        let remedy = "let codes be decoded to 16 bits with --requantize";
        let what = format!("has plain floats, and {name} is in codes");
        return if job.requantize { Ok(Action::Decode(sixteen(scale_dtype))) } else { Err(cannot_hold(holds, what, remedy)) };
    }
    if !is_inner(site) && !holds.tables {
        let what = format!("keeps everything but the linears of the blocks in floats, and {name} is in {} bits", scheme.weights.bits.get());
        let remedy = "quantize with --portable, which leaves it in 16 bits, or let it be decoded to 16 bits with --requantize";
        return if job.requantize { Ok(Action::Decode(sixteen(scale_dtype))) } else { Err(cannot_hold(holds, what, remedy)) };
    }
    if site.transposed && !holds.inputs_first {
        let what = format!("has no place for {name}, which this architecture stores inputs first");
        return Err(cannot_hold(holds, what, "choose compressed-tensors, npz or gguf"));
    }
    let given = Given { rows: site.rows, cols: site.cols, scheme, scale_dtype, ordered: false };
    match (holds.fits)(&given) {
        Ok(()) => Ok(Action::Carry(scheme, scale_dtype)),
        Err(why) if job.requantize => solvable(holds, site, scale_dtype)
            .map(|scheme| Action::Solve(scheme, sixteen(scale_dtype)))
            .ok_or_else(|| cannot_hold(holds, format!("cannot store {name}: it {why}"), "choose another format")),
        Err(why) => Err(cannot_hold(holds, format!("cannot store {name} as it is: it {why}"), otherwise(holds))),
    }
}

fn floats(job: Job<'_>, holds: &Holds<'_>, site: &LinearSite, float: &FloatMatrix) -> Result<Action> {
    let name = &site.module;
    let decoded = job.source.checkpoint.decoded();
    let stored = decoded.get(name).cloned();
    let weight = format!("{name}.weight");
    let wide = |entry: &octet_formats::Entry| entry.name == weight && matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    let keep = match &stored {
        // Plain floats stay what they are, and with an adapter of the type they were.
        None if float.dense_bytes().is_some() || site.transposed => Action::Copy,
        Some(_) if job.source.input.adapter().is_some() && job.source.checkpoint.entries().iter().any(wide) => Action::Copy,
        _ => Action::Decode(Dtype::F16),
    };
    if !holds.codes {
        return Ok(keep);
    }
    let anything_quantized = job.source.checkpoint.quantization().is_some() || !decoded.is_empty();
    if !is_inner(site) || (holds.floats && !job.requantize) || (anything_quantized && stored.is_none() && keep == Action::Copy) {
        return Ok(keep);
    }
    let dtype = if float.dtype() == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F16 };
    if !job.requantize {
        let (what, remedy) = match stored {
            Some(form) => (format!("cannot take {name} over from {form}, which octet reads as floats"), otherwise(holds)),
            None => (
                "holds codes, and this model is in floats".into(),
                "quantize it first (octet quantize), or give --requantize to round it to nearest",
            ),
        };
        return Err(cannot_hold(holds, what, remedy));
    }
    let fits = !site.transposed || holds.inputs_first;
    Ok(solvable(holds, site, dtype).filter(|_| fits).map_or(keep, |scheme| Action::Solve(scheme, dtype)))
}

/// The format's usual scheme for a matrix, with a smaller group where its inputs ask for one.
fn solvable(holds: &Holds<'_>, site: &LinearSite, dtype: Dtype) -> Option<Scheme> {
    let sizes = [128, 64, 32].into_iter().filter_map(NonZeroUsize::new).map(Granularity::Group);
    let candidates = std::iter::once(holds.usual.weights.granularity).chain(sizes);
    candidates.map(|granularity| Scheme { weights: octet_tensor::WeightScheme { granularity, ..holds.usual.weights }, ..holds.usual }).find(
        |&scheme| (holds.fits)(&Given { rows: site.rows, cols: site.cols, scheme, scale_dtype: sixteen(dtype), ordered: false }).is_ok(),
    )
}

/// What is not carried over as it is, in a sentence a kind.
fn notes(job: Job<'_>, holds: &Holds<'_>, matrices: &[Planned]) -> Result<Vec<String>> {
    let count = |test: &dyn Fn(&Action) -> bool| matrices.iter().filter(|planned| test(&planned.action)).count();
    let solved = count(&|action| matches!(action, Action::Solve(..)));
    let decoded = count(&|action| matches!(action, Action::Decode(_)));
    let rounding = count(&|a| matches!(a, Action::Carry(s, _) if s.activations != Activations::Exact && !(holds.rounds)(*s)));
    let mut notes = vec![];
    if solved > 0 {
        notes.push(format!("{solved} matrices are rounded to nearest anew ({})", holds.usual.weights));
    }
    if decoded > 0 {
        notes.push(format!("{decoded} matrices are decoded from codes to 16-bit floats"));
    }
    if rounding > 0 {
        notes.push(format!("activations stay floats there; the model rounds those of {rounding} matrices to 8 bits"));
    }
    if !holds.rounds_all {
        notes.extend(job.source.rounded_inputs()?);
    }
    Ok(notes)
}

/// Tensors that belong to no matrix: norms, biases, positions and what else a checkpoint carries.
fn others(job: Job<'_>, sites: &[LinearSite]) -> Vec<String> {
    let modules: BTreeSet<&str> = sites.iter().map(|site| site.module.as_str()).collect();
    let tied = !sites.iter().any(|site| site.role == Role::Head);
    let of_matrix = |name: &str| {
        let mut ends = name.match_indices('.').map(|(at, _)| (&name[..at], &name[at + 1..]));
        ends.any(|(module, what)| modules.contains(module) && what != "bias") || (tied && name.starts_with("lm_head."))
    };
    job.source.checkpoint.names().into_iter().filter(|name| !of_matrix(name)).collect()
}

/// The group of each input, where they have an order of their own.
pub(super) fn order(job: Job<'_>, planned: &Planned) -> Result<Option<Vec<u32>>> {
    let stored = job.source.checkpoint.in_order(&planned.site.module)?.filter(|_| planned.ordered);
    Ok(stored.map(|stored| stored.read_rows(0..1)).transpose()?.and_then(|first| Some(first.order()?.to_vec())))
}

/// Hands out the codes of a matrix, carried over or solved, in runs of rows.
pub(super) fn codes(job: Job<'_>, planned: &Planned, run: &ExportRun<'_>, take: &mut dyn FnMut(QMatrix) -> Result<()>) -> Result<()> {
    let site = &planned.site;
    let matrix = match job.source.checkpoint.in_order(&site.module)?.filter(|_| planned.ordered) {
        Some(stored) => Matrix::Quant(stored),
        None => {
            let missing = || octet_tensor::Error::Missing { name: site.module.clone() };
            job.source.checkpoint.matrix(&site.module)?.ok_or_else(missing)?
        }
    };
    let step = || if run.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
    match (planned.action, &matrix) {
        (Action::Carry(..), Matrix::Quant(stored)) => {
            let lot = (RUN_WEIGHTS / site.cols.max(1)).max(1).next_multiple_of(32);
            for first in (0..site.rows).step_by(lot) {
                step()?;
                take(stored.read_rows(first..(first + lot).min(site.rows))?)?;
            }
        }
        (Action::Solve(scheme, scale_dtype), _) => {
            let (module, shape) = (site.module.as_str(), (site.rows, site.cols));
            let task = TensorJob {
                module,
                shape,
                scheme: scheme.weights,
                scale_dtype,
                importance: None,
                hessian: None,
                table: None,
                engine: run.engine,
            };
            let floats = outputs_first(job, site, &matrix)?;
            round_anew(&floats, &task, &mut |q| {
                step()?;
                take(q)
            })?;
        }
        _ => return Err(Error::Internal(format!("{} has no codes to write", site.module))),
    }
    release(&matrix);
    Ok(())
}

fn release(matrix: &Matrix) {
    match matrix {
        Matrix::Float(matrix) => matrix.release(),
        Matrix::Quant(matrix) => matrix.release(),
    }
}

/// The matrix as floats `[outputs, inputs]`, also where it is stored the other way.
pub(super) fn outputs_first(job: Job<'_>, site: &LinearSite, matrix: &Matrix) -> Result<FloatMatrix> {
    let floats = decoded(matrix);
    if !site.transposed || floats.dense_bytes().is_none() {
        return Ok(floats);
    }
    let name = format!("{}.weight", site.module);
    let tensor = job.source.checkpoint.tensor(&name)?.ok_or(octet_tensor::Error::Missing { name })?;
    Ok(FloatMatrix::transposed(tensor)?)
}

/// The floats of a matrix that is not written as codes: name and tensor.
pub(super) fn float_tensor(job: Job<'_>, planned: &Planned) -> Result<Tensor> {
    let (site, name) = (&planned.site, format!("{}.weight", planned.site.module));
    let missing = || octet_tensor::Error::Missing { name: name.clone() };
    let Action::Decode(dtype) = planned.action else { return Ok(job.source.checkpoint.tensor(&name)?.ok_or_else(missing)?) };
    let floats = decoded(&job.source.checkpoint.matrix(&site.module)?.ok_or_else(missing)?);
    let mut bytes = Vec::with_capacity(site.rows * site.cols * dtype.size());
    let lot = (RUN_WEIGHTS / site.cols.max(1)).max(1);
    for first in (0..site.rows).step_by(lot) {
        let rows = first..(first + lot).min(site.rows);
        let mut values = vec![0.0; rows.len() * site.cols];
        floats.read_rows(rows, &mut values)?;
        bytes.extend(octet_formats::write::floats(&site.module, &values, dtype)?);
    }
    Ok(Tensor::new(name, dtype, vec![site.rows, site.cols], octet_tensor::Bytes::new(bytes))?)
}

/// The shape in which the floats of a matrix are stored.
pub(super) fn float_spec(job: Job<'_>, planned: &Planned) -> Result<(Dtype, Vec<usize>)> {
    let (site, name) = (&planned.site, format!("{}.weight", planned.site.module));
    if let Action::Decode(dtype) = planned.action {
        return Ok((dtype, vec![site.rows, site.cols]));
    }
    let tensor = job.source.checkpoint.tensor(&name)?.ok_or(octet_tensor::Error::Missing { name })?;
    Ok((tensor.dtype(), tensor.shape().to_vec()))
}

/// Tells `progress` where a plan stands, a matrix at a time.
pub(super) fn told<'p>(plan: &Conversion, progress: Progress<'p>) -> impl FnMut(&Planned) + use<'p> {
    let total: u64 = plan.matrices.iter().map(|p| (p.site.rows * p.site.cols) as u64).sum();
    let mut done = 0;
    move |planned| {
        done += (planned.site.rows * planned.site.cols) as u64;
        progress("exporting", done, total, &planned.site.module);
    }
}
