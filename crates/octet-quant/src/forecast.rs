//! What carrying out a plan will cost, and how fast this machine solves.

use crate::{
    Action, Error, Plan, RowsMut, Rtn, Solver, SolverChoice, TensorJob,
    chunks::{Chunks, buffer_bytes},
};
use octet_kernels::Engine;
use octet_model::Role;
use octet_tensor::{Dtype, Symmetry, WeightScheme};
use std::time::{Duration, Instant};

/// What carrying out a plan will cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Bytes of all tensors as stored.
    pub stored_bytes: u64,
    /// Bytes of all tensors as they will be written, file headers included.
    pub artefact_bytes: u64,
    /// Bits a weight of the blocks' linears will take, scales and zero points included.
    pub linear_bits: f64,
    /// Bits a weight of the whole model will take.
    pub all_bits: f64,
    /// Bytes of buffers held at once while quantizing, beside the process itself and mapped files.
    pub buffer_bytes: u64,
    /// Seconds of solving, where rates were measured; reading and writing come on top.
    pub seconds: Option<f64>,
}

/// Weights a second of every distinct kind of work in a plan.
#[derive(Clone, Debug, Default)]
pub struct SolveRates(Vec<(Work, f64)>);

/// What the rate depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    scheme: WeightScheme,
    scale_dtype: Dtype,
    solver: SolverChoice,
}

/// How long each kind of work is tried.
const TRIAL: Duration = Duration::from_millis(60);

/// Rows and inputs of the sample: some groups of every size, small enough for every cache.
const SAMPLE: (usize, usize) = (8, 2048);

impl SolveRates {
    /// Measures on this machine, with all threads of `engine`, how many weights a second each kind of work of `plan` takes.
    ///
    /// # Errors
    /// Never for the solvers there are; a solver may refuse its statistics.
    pub fn measure(plan: &Plan, engine: &Engine) -> Result<Self, Error> {
        let mut rates: Vec<(Work, f64)> = Vec::new();
        for work in plan.lines().iter().filter_map(|line| work(&line.action)) {
            if !rates.iter().any(|(known, _)| *known == work) {
                rates.push((work, measure(work, engine)?));
            }
        }
        Ok(Self(rates))
    }

    fn of(&self, work: Work) -> Option<f64> {
        self.0.iter().find(|(known, _)| *known == work).map(|(_, rate)| *rate)
    }
}

fn work(action: &Action) -> Option<Work> {
    match *action {
        Action::Quantize { scheme, scale_dtype, solver } => Some(Work { scheme: scheme.weights, scale_dtype, solver }),
        _ => None,
    }
}

fn measure(work: Work, engine: &Engine) -> Result<f64, Error> {
    let (rows, cols) = SAMPLE;
    let weights = sample(rows * cols);
    // Every solver begins with the search for scales.
    let solver = Rtn::with(work.solver.candidates());
    let job = TensorJob {
        module: "the sample",
        shape: SAMPLE,
        scheme: work.scheme,
        scale_dtype: work.scale_dtype,
        importance: None,
        hessian: None,
        table: None,
        engine,
    };
    let ready = solver.prepare(job)?;
    let scales = rows * work.scheme.groups(cols);
    let once = |_| {
        let (mut codes, mut scale, mut zeros) = (vec![0; weights.len()], vec![0.0; scales], vec![0; scales]);
        let zeros = if work.scheme.is_asymmetric() { &mut zeros[..] } else { &mut [] };
        ready.solve(&weights, RowsMut { codes: &mut codes, scales: &mut scale, zeros });
    };
    // Once for caches and clocks, then more and more until the clock says enough.
    engine.run(engine.threads(), &once);
    let mut tasks = engine.threads();
    loop {
        let start = Instant::now();
        engine.run(tasks, &once);
        let spent = start.elapsed();
        if spent >= TRIAL {
            return Ok((tasks * weights.len()) as f64 / spent.as_secs_f64());
        }
        tasks *= 2;
    }
}

/// Numbers spread like weights are (sums of uniform ones), the same every time.
pub(crate) fn sample(count: usize) -> Vec<f32> {
    let mut state = 0x2545_F491u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..count).map(|_| (next() + next() + next() + next()) * 0.02).collect()
}

impl Plan {
    /// What carrying out this plan will cost on `threads` threads.
    pub fn forecast(&self, threads: usize, rates: Option<&SolveRates>) -> Forecast {
        let sum = |f: &dyn Fn(&crate::Line) -> u64| self.lines().iter().map(f).sum::<u64>();
        let in_blocks =
            |line: &crate::Line| line.linear.as_ref().is_some_and(|site| !matches!(site.role, Role::Embedding | Role::Head | Role::Router));
        let bits = |bytes: u64, elements: u64| if elements == 0 { 0.0 } else { 8.0 * bytes as f64 / elements as f64 };
        let written = |line: &crate::Line| !matches!(line.action, Action::Drop { .. });
        let bytes = sum(&|line| line.bytes);
        Forecast {
            stored_bytes: sum(&|line| line.stored_bytes),
            artefact_bytes: bytes + sum(&|line| if written(line) { header_bytes(line) } else { 0 }),
            linear_bits: bits(
                sum(&|line| if in_blocks(line) { line.bytes } else { 0 }),
                sum(&|line| if in_blocks(line) { line.elements() } else { 0 }),
            ),
            all_bits: bits(bytes, sum(&|line| if written(line) { line.elements() } else { 0 })),
            buffer_bytes: self.lines().iter().map(|line| buffers(line, threads)).max().unwrap_or(0),
            seconds: rates.map(|rates| self.seconds(rates)),
        }
    }

    fn seconds(&self, rates: &SolveRates) -> f64 {
        let one = |line: &crate::Line| work(&line.action).and_then(|work| rates.of(work)).map_or(0.0, |rate| line.elements() as f64 / rate);
        self.lines().iter().map(one).sum()
    }
}

/// What a tensor adds to a safetensors header: its name (once for codes, scales, shape, zero points or levels) and a description.
fn header_bytes(line: &crate::Line) -> u64 {
    const DESCRIPTION: usize = 80;
    let tensors = match &line.action {
        Action::Quantize { scheme, .. } if scheme.weights.is_asymmetric() || scheme.weights.symmetry == Symmetry::Learnt => 4,
        Action::Quantize { .. } => 3,
        _ => 1,
    };
    (tensors * (line.name.len() + DESCRIPTION)) as u64
}

fn buffers(line: &crate::Line, threads: usize) -> u64 {
    let bytes = match (&line.action, &line.linear) {
        (Action::Quantize { scheme, .. }, Some(site)) => {
            let chunks = Chunks::new(site.rows, site.cols);
            buffer_bytes(&chunks, scheme.weights, threads)
        }
        // FP8 that is kept is decoded to 16 bits as a whole.
        (Action::Keep { dtype, .. }, Some(_)) if *dtype != line.stored => return line.bytes,
        _ => 0,
    };
    bytes as u64
}
