//! What a calibrated run will take: memory from shapes, time from short trials on this machine.

use super::compares;
use crate::{
    Action, Costs, Error, Hessian, Plan, RowsMut, Samples, SolverChoice, TensorJob,
    cost::{Cost, solving_of, workspace_bytes},
    forecast::sample,
    transform::SAMPLE_ROWS,
};
use octet_kernels::{Engine, Gram, MatmulJob, PackedLinear};
use octet_model::{ArchSpec, BlockGraph};
use octet_tensor::{Dtype, FloatMatrix, Matrix, Tensor, WeightScheme};
use std::time::{Duration, Instant};

/// What a calibrated run will take.
#[derive(Clone, Debug)]
pub struct CalibrationForecast {
    /// Multiply-adds by kind.
    pub cost: Cost,
    /// Bytes of the hidden states of all tokens, those of the original included where a solver compares with it.
    pub hidden_bytes: u64,
    /// Whether they go to disk, because memory would not do.
    pub spilled: bool,
    /// Most bytes held at once, mapped files and the process itself included.
    pub peak_bytes: u64,
    solver: Option<(SolverChoice, WeightScheme, Dtype)>,
}

/// What the process holds before it begins: code, thread stacks, tokenizer, headers.
const PROCESS_BYTES: u64 = 48 << 20;

/// How long each kind of work is tried.
const TRIAL: Duration = Duration::from_millis(40);

/// Inputs, rows and tokens of the trials.
const INPUTS: usize = 512;
const ROWS: usize = 64;

impl CalibrationForecast {
    /// The forecast of `plan` on `samples`, with at most `budget` bytes where hidden states can go to disk for it.
    pub fn new(plan: &Plan, spec: &ArchSpec, samples: &Samples, sequential: bool, budget: u64) -> Self {
        let graph = spec.graph();
        let tokens = samples.tokens().len();
        let both = if compares(plan) { 2 } else { 1 };
        let hidden_bytes = (both * tokens * spec.hidden() * size_of::<f32>()) as u64;
        let beside = PROCESS_BYTES
            + size_of_val(samples.tokens()) as u64
            + passes_bytes(spec, &graph, samples)
            + stage_bytes(plan, &graph, sequential);
        let spilled = beside + hidden_bytes > budget;
        let solver = plan.lines().iter().find_map(|line| match line.action {
            Action::Quantize { scheme, scale_dtype, solver } if solver.needs_hessian() => Some((solver, scheme.weights, scale_dtype)),
            _ => None,
        });
        let cost = Costs::new(plan, &graph, tokens, sequential).sum();
        Self { cost, hidden_bytes, spilled, peak_bytes: beside + if spilled { 0 } else { hidden_bytes }, solver }
    }

    /// Seconds, by trials of a few milliseconds with all threads of `engine`.
    ///
    /// # Errors
    /// Never for the solvers there are.
    pub fn seconds(&self, engine: &Engine) -> Result<f64, Error> {
        let mut seconds = self.cost.forward / forward_rate(engine)?;
        if let Some((solver, scheme, scale_dtype)) = self.solver {
            seconds += self.cost.moments / moments_rate(engine) + self.cost.solving / solving_rate(engine, solver, scheme, scale_dtype)?;
        } else {
            seconds += self.cost.solving / forward_rate(engine)?;
        }
        Ok(seconds)
    }
}

/// Buffers of a pass and keys and values of the windows in it.
fn passes_bytes(spec: &ArchSpec, graph: &BlockGraph, samples: &Samples) -> u64 {
    let rows = super::forward::PASS_ROWS;
    let longest = samples.lengths().max().unwrap_or(0);
    let shortest = samples.lengths().min().unwrap_or(1).max(1);
    let layer = |l: &octet_model::spec::LayerSpec| 2 * l.attention.kv_heads * l.attention.head_dim * size_of::<f32>();
    let token = spec.layers().iter().map(layer).max().unwrap_or(0);
    (graph.scratch_bytes(rows.min(samples.tokens().len())) + token * (longest + rows.max(rows / shortest * longest))) as u64
}

/// The largest block as stored and as it will run, with what solving it takes; or the largest matrix outside the blocks.
fn stage_bytes(plan: &Plan, graph: &BlockGraph, sequential: bool) -> u64 {
    let mut blocks = vec![0u64; graph.blocks.len()];
    let mut outside = 0;
    for line in plan.lines() {
        match line.linear.as_ref().and_then(|site| site.layer) {
            Some(layer) => blocks[layer] += line.stored_bytes + line.bytes,
            None => outside = outside.max(line.stored_bytes),
        }
    }
    let buffers = plan.forecast(1, None).buffer_bytes;
    if plan.has_scalings() {
        blocks.iter_mut().zip(scaling_bytes(graph)).for_each(|(block, bytes)| *block += bytes);
    }
    (blocks.into_iter().max().unwrap_or(0) + workspace_bytes(graph, plan, sequential)).max(outside) + buffers
}

/// What moving factors holds of each block: its weights as floats, once changed and once as they are tried, and sample rows with
/// the outputs they should have.
fn scaling_bytes(graph: &BlockGraph) -> Vec<u64> {
    let of = |nodes: &Vec<octet_model::graph::PlainNode>| {
        let sites = nodes.iter().flat_map(|node| node.linears()).map(|linear| &linear.site);
        sites.map(|site| (4 * (3 * site.rows * site.cols + SAMPLE_ROWS * (2 * site.rows + 2 * site.cols))) as u64).sum()
    };
    graph.blocks.iter().map(of).collect()
}

/// Work per second: `once` does `work` of it.
fn rate(work: f64, mut once: impl FnMut()) -> f64 {
    once();
    let (start, mut rounds) = (Instant::now(), 0);
    while rounds == 0 || start.elapsed() < TRIAL {
        once();
        rounds += 1;
    }
    work * f64::from(rounds) / start.elapsed().as_secs_f64()
}

fn forward_rate(engine: &Engine) -> Result<f64, Error> {
    let bytes: Vec<u8> = sample(INPUTS * INPUTS).iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let tensor = Tensor::new("a trial", Dtype::Bf16, vec![INPUTS, INPUTS], octet_tensor::Bytes::new(bytes))?;
    let weights = PackedLinear::pack(engine, &Matrix::Float(FloatMatrix::dense(tensor)?), None)?;
    let (x, mut out) = (sample(INPUTS * INPUTS), vec![0.0; INPUTS * INPUTS]);
    Ok(rate((INPUTS * INPUTS * INPUTS) as f64, || {
        engine.matmul(&x, INPUTS, &mut [MatmulJob { weights: &weights, bias: None, out: &mut out, accumulate: false }]);
    }))
}

fn moments_rate(engine: &Engine) -> f64 {
    let x = sample(INPUTS * INPUTS);
    let mut gram = Gram::new(INPUTS);
    rate(0.5 * (INPUTS * INPUTS * INPUTS) as f64, || gram.add(engine, &x))
}

fn solving_rate(engine: &Engine, choice: SolverChoice, scheme: WeightScheme, scale_dtype: Dtype) -> Result<f64, Error> {
    let mut gram = Gram::new(INPUTS);
    gram.add(engine, &sample(2 * INPUTS * INPUTS));
    let moments = gram.finish(engine);
    let hessian = choice.hessian().map(|options| Hessian::new(engine, "a trial", &moments, options)).transpose()?;
    let job = TensorJob {
        module: "a trial",
        shape: (ROWS, INPUTS),
        scheme,
        scale_dtype,
        importance: None,
        hessian: hessian.as_ref(),
        table: None,
        engine,
    };
    let (solver, weights) = (choice.solver(), sample(ROWS * INPUTS));
    let ready = solver.prepare(job)?;
    let groups = ROWS * scheme.groups(INPUTS);
    let cost = engine.threads() as f64 * solving_of(choice, ROWS, INPUTS);
    Ok(rate(cost, || {
        engine.run(engine.threads(), &|_| {
            let (mut codes, mut scales, mut zeros) = (vec![0; weights.len()], vec![0.0; groups], vec![0; groups]);
            let zeros = if scheme.is_asymmetric() { &mut zeros[..] } else { &mut [] };
            ready.solve(&weights, RowsMut { codes: &mut codes, scales: &mut scales, zeros });
        });
    }))
}
