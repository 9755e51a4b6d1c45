//! Calibrated runs on tiny models in memory: every architecture, order and number of threads, stopped and resumed.
// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

use octet_kernels::{Engine, Isa};
use octet_model::ArchSpec;
use octet_quant::{
    AwqSettings, CalibratedOptions, CalibratedRun, Error, Flags, GptqSettings, HiddenStates, InMemory, Inventory, Journal, Plan, Recipe,
    Samples, Sink, SinkError, SmoothSettings, SolverChoice, StageRecord, Transform, TransformChoice,
};
use octet_tensor::{Matrix, QMatrix, Scheme, StoredQuant, Tensor, WeightSource};
use octet_testkit::{MemorySource, Random, TINY_GEMMA3, TINY_GPT2, TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE};
use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

const ALL: [&str; 5] = [TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE, TINY_GEMMA3, TINY_GPT2];

/// A journal in memory: what was committed outlives a stopped run, what was not does not.
#[derive(Clone, Default)]
struct Notes {
    schemes: BTreeMap<String, Scheme>,
    written: Results,
    durable: Results,
    records: Vec<StageRecord>,
}

#[derive(Clone, Default)]
struct Results {
    parts: BTreeMap<String, Vec<QMatrix>>,
    tensors: BTreeMap<String, Tensor>,
}

impl Results {
    fn whole(&self, module: &str) -> Option<QMatrix> {
        let parts = self.parts.get(module)?;
        let first = &parts[0];
        let (mut codes, mut scales, mut zeros) = (vec![], vec![], vec![]);
        for part in parts {
            codes.extend_from_slice(part.codes());
            scales.extend_from_slice(part.scales());
            zeros.extend_from_slice(part.zeros());
        }
        let rows = codes.len() / first.cols();
        Some(QMatrix::new(rows, first.cols(), first.scheme(), codes, scales, first.scale_dtype(), zeros).unwrap())
    }
}

impl Sink for Notes {
    fn matrix(&mut self, module: &str, first_row: usize, _rows: usize, q: &QMatrix) -> Result<(), SinkError> {
        let parts = self.written.parts.entry(module.into()).or_default();
        if first_row == 0 {
            parts.clear();
        }
        parts.push(q.clone());
        Ok(())
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<(), SinkError> {
        self.written.tensors.insert(name.into(), tensor.clone());
        Ok(())
    }
}

impl Journal for Notes {
    fn finished(&self) -> &[StageRecord] {
        &self.records
    }

    fn results(&self) -> Result<Box<dyn WeightSource>, SinkError> {
        let mut source = MemorySource::default();
        for (name, tensor) in &self.durable.tensors {
            source.insert(name, tensor.shape().to_vec(), &tensor.to_f32()?);
        }
        for module in self.durable.parts.keys() {
            let whole = self.durable.whole(module).ok_or("no parts")?;
            source.insert_matrix(module, Matrix::Quant(StoredQuant::new(module, Arc::new((whole, self.schemes[module])))));
        }
        Ok(Box::new(source))
    }

    fn commit(&mut self, record: StageRecord) -> Result<(), SinkError> {
        self.durable = self.written.clone();
        self.records.push(record);
        Ok(())
    }
}

struct Case {
    spec: ArchSpec,
    source: MemorySource,
    plan: Plan,
    samples: Samples,
    options: CalibratedOptions,
}

const GPTQ: SolverChoice = SolverChoice::Gptq(GptqSettings::USUAL);

impl Case {
    fn new(config: &str, scheme: &str, solver: SolverChoice) -> Self {
        Self::transformed(config, scheme, solver, None)
    }

    fn transformed(config: &str, scheme: &str, solver: SolverChoice, transform: Option<TransformChoice>) -> Self {
        let spec = ArchSpec::from_config(&serde_json::from_str(config).unwrap()).unwrap();
        let stored = |site: octet_model::LinearSite| {
            let shape = if site.transposed { vec![site.cols, site.rows] } else { vec![site.rows, site.cols] };
            (format!("{}.weight", site.module), shape)
        };
        let source = MemorySource::random(spec.linear_sites().into_iter().map(stored).chain(spec.other_tensors()), 7);
        let flags = Flags { scheme: scheme.parse().unwrap(), embedding: None, head: None, portable: false, solver, transform };
        let recipe = Recipe::from_flags(&flags, spec.head().tied).unwrap();
        let plan = Plan::new(&recipe, &Inventory::new(&spec.linear_sites(), &source).unwrap(), false).unwrap();
        let mut random = Random::new(5);
        let ids: Vec<u32> = (0..700).map(|_| random.below(64) as u32).collect();
        let samples = Samples::draw(&ids, 12, 48, 3);
        Self { spec, source, plan, samples, options: CalibratedOptions { sequential: true, strict: false } }
    }

    fn notes(&self) -> Notes {
        Notes { schemes: self.plan.quantized().map(|(line, scheme)| (line.name.clone(), scheme)).collect(), ..Notes::default() }
    }

    fn hidden(&self) -> InMemory {
        InMemory::new(2 * self.samples.tokens().len() * self.spec.hidden())
    }

    /// Runs until event number `stop`.
    fn run(&self, threads: usize, notes: &mut Notes, hidden: &mut dyn HiddenStates, stop: usize) -> Result<Vec<StageRecord>, Error> {
        let engine = Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap();
        let cancel = AtomicBool::new(false);
        let open = || -> Result<Box<dyn WeightSource>, SinkError> { Ok(Box::new(self.source.clone())) };
        let (plan, spec, samples) = (&self.plan, &self.spec, &self.samples);
        let transforms: Vec<Box<dyn Transform>> = plan.scalings().map(|scaling| Box::new(scaling.clone()) as Box<dyn Transform>).collect();
        plan.check_scalings(&spec.graph()).unwrap();
        let run = CalibratedRun {
            plan,
            spec,
            open: &open,
            samples,
            transforms: &transforms,
            options: self.options,
            engine: &engine,
            cancel: &cancel,
        };
        notes.written = notes.durable.clone();
        let (mut events, mut last) = (0, 0);
        run.quantize(notes, hidden, &mut |event| {
            events += 1;
            assert!(event.done >= last && event.done <= event.total, "{} of {} after {last}", event.done, event.total);
            last = event.done;
            cancel.store(events >= stop, Ordering::Relaxed);
        })
    }

    fn whole(&self, threads: usize) -> (Notes, Vec<StageRecord>) {
        let mut notes = self.notes();
        let records = self.run(threads, &mut notes, &mut self.hidden(), usize::MAX).unwrap();
        (notes, records)
    }
}

#[track_caller]
fn assert_same(a: &Notes, b: &Notes, what: &str) {
    assert_eq!(a.records, b.records, "{what}");
    assert_eq!(a.durable.parts, b.durable.parts, "{what}");
    let bytes = |notes: &Notes| notes.durable.tensors.iter().map(|(n, t)| (n.clone(), t.bytes().to_vec())).collect::<Vec<_>>();
    assert_eq!(bytes(a), bytes(b), "{what}");
}

#[test]
fn every_architecture_is_quantized_whole_with_any_number_of_threads() {
    for config in ALL {
        let case = Case::new(config, "w4a16-g32", GPTQ);
        let (one, records) = case.whole(1);
        let (three, _) = case.whole(3);
        assert_same(&one, &three, case.spec.family());
        assert_eq!(records.len(), case.spec.layers().len() + 2);
        let reports: Vec<_> = records.iter().flat_map(|record| &record.tensors).collect();
        assert_eq!(reports.len(), case.plan.lines().len());
        let quantized = reports.iter().filter(|report| report.scheme.is_some()).count();
        assert_eq!((quantized, one.durable.parts.len()), (case.plan.quantized().count(), case.plan.quantized().count()));
        for report in reports.iter().filter(|report| report.solver.as_deref() == Some("gptq")) {
            assert!(report.error.weighted_error <= report.error.nearest_error, "{}", report.name);
        }
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_result() {
    for (config, scheme) in [(TINY_QWEN3, "w4a16-g32"), (TINY_QWEN3_MOE, "w4a8-g32"), (TINY_GPT2, "w3a16-g32-asym")] {
        let case = Case::new(config, scheme, GPTQ);
        let (expected, _) = case.whole(2);
        for stop in [1, 2, 3, 5, 8, 12, 20, 30, 45, 70, 100, 150] {
            let mut notes = case.notes();
            let first = case.run(2, &mut notes, &mut case.hidden(), stop);
            match first {
                Err(Error::Interrupted { done, total }) => assert!(done <= total),
                Err(other) => panic!("{other}"),
                Ok(_) => {}
            }
            // Hidden states of the stopped run are gone.
            case.run(1, &mut notes, &mut case.hidden(), usize::MAX).unwrap();
            assert_same(&expected, &notes, &format!("{scheme} stopped after {stop} events"));
        }
    }
}

#[test]
fn true_sequential_inputs_leave_less_error_than_one_pass() {
    let mut case = Case::new(TINY_LLAMA, "w2a16-g32", GPTQ);
    let (sequential, _) = case.whole(2);
    case.options.sequential = false;
    let (one_pass, records) = case.whole(2);
    assert_ne!(sequential.durable.parts, one_pass.durable.parts);
    // The same inputs are reported either way.
    let inputs = |records: &[StageRecord]| records.iter().map(|record| record.inputs.len()).collect::<Vec<_>>();
    assert_eq!(inputs(&records), inputs(&sequential.records));
    assert_eq!(inputs(&records), [0, 4, 4, 0]);
}

#[test]
fn a_table_that_is_embedding_and_head_keeps_its_own_weights_as_the_target() {
    let mut case = Case::new(TINY_QWEN3, "w3a16-g32", GPTQ);
    assert!(case.spec.head().tied);
    let recipe = "[[step]]\naction='quantize'\ntargets=['linears','embedding','head']\nscheme='w3a16-g32'\nsolver='gptq'\n";
    let inventory = Inventory::new(&case.spec.linear_sites(), &case.source).unwrap();
    case.plan = Plan::new(&Recipe::from_toml(recipe).unwrap(), &inventory, false).unwrap();
    let (_, records) = case.whole(2);
    let moved: Vec<&str> = records.iter().flat_map(|r| &r.tensors).filter(|t| t.shift.is_some()).map(|t| t.name.as_str()).collect();
    assert!(moved.len() > 4 && !moved.contains(&"model.embed_tokens"), "{moved:?}");
}

#[test]
fn rounding_to_nearest_uses_magnitudes_and_eight_bits_need_none() {
    let rtn = SolverChoice::Rtn { candidates: None };
    let (_, records) = Case::new(TINY_LLAMA, "w4a16-g32", rtn).whole(2);
    assert!(records.iter().any(|record| !record.inputs.is_empty()));
    let (_, records) = Case::new(TINY_LLAMA, "w8a16", rtn).whole(2);
    assert!(records.iter().all(|record| record.inputs.is_empty()));
}

/// Hidden states on a disk that is full after so many writes.
struct Full(InMemory, usize);

impl HiddenStates for Full {
    fn read(&mut self, offset: usize, out: &mut [f32]) -> Result<(), SinkError> {
        self.0.read(offset, out)
    }

    fn write(&mut self, offset: usize, values: &[f32]) -> Result<(), SinkError> {
        self.1 = self.1.checked_sub(1).ok_or("no space left")?;
        self.0.write(offset, values)
    }
}

#[test]
fn a_full_disk_stops_the_run_where_it_can_go_on() {
    let case = Case::new(TINY_QWEN3, "w4a16-g32", GPTQ);
    let (expected, _) = case.whole(2);
    for writes in [0, 1, 3, 4] {
        let mut notes = case.notes();
        let error = case.run(2, &mut notes, &mut Full(case.hidden(), writes), usize::MAX).unwrap_err();
        assert!(matches!(error, Error::Spill(_)) && error.to_string().contains("no space left"), "{error}");
        case.run(2, &mut notes, &mut case.hidden(), usize::MAX).unwrap();
        assert_same(&expected, &notes, &format!("{writes} writes"));
    }
}

#[test]
fn activations_that_are_not_finite_name_the_layer() {
    let mut case = Case::new(TINY_QWEN3, "w4a16-g32", GPTQ);
    let name = "model.layers.1.input_layernorm.weight";
    case.source.insert(name, vec![32], &[f32::MAX; 32]);
    let error = case.run(2, &mut case.notes(), &mut case.hidden(), usize::MAX).unwrap_err().to_string();
    assert!(error.contains("layer 1"), "{error}");
}

#[test]
fn experts_that_nothing_reaches_are_named_and_refused_when_strict() {
    let mut case = Case::new(TINY_QWEN3_MOE, "w4a16-g32", GPTQ);
    // All scores are equal, so that the first two of four experts are taken.
    let gate = "model.layers.0.mlp.gate.weight";
    let values = vec![0.0; 4 * 32];
    case.samples = Samples::draw(&[5, 5, 5, 5], 1, 4, 0);
    case.source.insert(gate, vec![4, 32], &values);
    let (_, records) = case.whole(2);
    let unreached: Vec<_> = records[1].inputs.iter().filter(|input| input.expert && input.tokens == 0).map(|i| i.input.as_str()).collect();
    assert_eq!(
        unreached,
        ["layer 0 expert 2 input", "layer 0 expert 3 input", "layer 0 expert 2 activations", "layer 0 expert 3 activations"]
    );
    let remark = records[1].tensors.iter().find(|t| t.name.contains("experts.3.up_proj")).unwrap().remark.clone().unwrap();
    assert!(remark.contains("no calibration token reached it"), "{remark}");
    case.options.strict = true;
    let error = case.run(2, &mut case.notes(), &mut case.hidden(), usize::MAX).unwrap_err().to_string();
    assert!(error.contains("no calibration token reached model.layers.0.mlp.experts.2"), "{error}");
}

const AWQ: TransformChoice = TransformChoice::Awq(AwqSettings { grid: 4, ..AwqSettings::USUAL });
const SMOOTH: TransformChoice = TransformChoice::Smooth(SmoothSettings::USUAL);

#[test]
fn transformed_runs_are_the_same_with_any_number_of_threads_and_after_a_stop() {
    let rtn = SolverChoice::Rtn { candidates: None };
    for (config, scheme, solver, transform) in [
        (TINY_LLAMA, "w8a8", rtn, SMOOTH),
        (TINY_GEMMA3, "w4a16-g32", rtn, AWQ),
        (TINY_QWEN3_MOE, "w4a8-g32", GPTQ, AWQ),
        (TINY_GPT2, "w8a8", GPTQ, SMOOTH),
    ] {
        let case = Case::transformed(config, scheme, solver, Some(transform));
        let (expected, records) = case.whole(1);
        assert!(records.iter().any(|record| !record.remarks.is_empty()), "{}: nothing was moved", case.spec.family());
        let (untouched, _) = Case::new(config, scheme, solver).whole(1);
        assert_ne!(expected.durable.parts, untouched.durable.parts, "{}", case.spec.family());
        let (three, _) = case.whole(3);
        assert_same(&expected, &three, case.spec.family());
        for stop in [3, 31, 80] {
            let mut notes = case.notes();
            let _stopped = case.run(2, &mut notes, &mut case.hidden(), stop);
            case.run(2, &mut notes, &mut case.hidden(), usize::MAX).unwrap();
            assert_same(&expected, &notes, &format!("{scheme} stopped after {stop} events"));
        }
    }
}

#[test]
fn steps_that_contradict_say_so() {
    let refused = |config: &str, recipe: &str| {
        let case = Case::new(config, "w8a8", SolverChoice::Rtn { candidates: None });
        let inventory = Inventory::new(&case.spec.linear_sites(), &case.source).unwrap();
        let plan = Plan::new(&Recipe::from_toml(recipe).unwrap(), &inventory, false);
        plan.and_then(|plan| plan.check_scalings(&case.spec.graph())).unwrap_err().to_string()
    };
    let quantize = |scheme: &str| format!("[[step]]\naction='quantize'\ntargets=['linears']\nscheme='{scheme}'\n");
    let step = |action: &str, target: &str| format!("[[step]]\naction='{action}'\ntargets=['{target}']\n");
    let w8a8 = quantize("w8a8");
    let both = format!("{}{}{w8a8}", step("smooth", "k"), step("awq", "q"));
    for (config, recipe, says) in [
        (TINY_LLAMA, both, "step 2 of the recipe makes no sense: awq and step 1 would both scale the layer 0 attention input"),
        (TINY_LLAMA, format!("{}{}", step("smooth", "linears"), quantize("w8a16")), "activations stay exact"),
        (TINY_LLAMA, format!("{}{w8a8}", step("awq", "head")), "targets linears that no step quantizes"),
        (TINY_LLAMA, format!("{}{w8a8}", step("awq", "router")), "matches nothing in this model"),
        (
            TINY_GPT2,
            format!("{}{w8a8}", step("smooth", "down")),
            "such as the layer 0 mlp activations: its values pass through an activation",
        ),
    ] {
        let said = refused(config, &recipe);
        assert!(said.contains(says), "{said}");
    }
}
