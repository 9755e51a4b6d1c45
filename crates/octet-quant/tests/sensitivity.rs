//! Sensitivities of tiny models: what is measured agrees with running the substituted model, what is not follows from it.
// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

use octet_kernels::{Engine, Isa, KvDtype};
use octet_model::{ArchSpec, LoadOptions, Logits, Model, Step};
use octet_quant::{
    EXPERT_TOKENS, Effort, Error, GroupLosses, Inventory, Ledger, Menu, MixedStep, Plan, Recipe, Samples, Sensitivities, SensitivityRun,
    Step as RecipeStep, allocate, fewest_expert_tokens, least_bytes, topped_up,
};
use octet_tensor::{WeightSource, kl_divergence};
use octet_testkit::{MemorySource, Random, TINY_GPT2, TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE};
use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

struct Case {
    spec: ArchSpec,
    source: MemorySource,
    inventory: Inventory,
    samples: Samples,
    ledger: Option<Book>,
}

impl Case {
    fn new(config: &str) -> Self {
        let spec = ArchSpec::from_config(&serde_json::from_str(config).unwrap()).unwrap();
        let stored = |site: octet_model::LinearSite| {
            let shape = if site.transposed { vec![site.cols, site.rows] } else { vec![site.rows, site.cols] };
            (format!("{}.weight", site.module), shape)
        };
        let source = MemorySource::random(spec.linear_sites().into_iter().map(stored).chain(spec.other_tensors()), 7);
        let inventory = Inventory::new(&spec.linear_sites(), &source).unwrap();
        let mut random = Random::new(5);
        let ids: Vec<u32> = (0..400).map(|_| random.below(64) as u32).collect();
        Self { spec, source, inventory, samples: Samples::draw(&ids, 8, 48, 3), ledger: None }
    }

    fn measure(
        &self,
        schemes: &[&str],
        threads: usize,
        progress: &mut dyn FnMut(f64, &str),
        cancel: &AtomicBool,
    ) -> Result<Sensitivities, Error> {
        self.measure_around(None, schemes, threads, progress, cancel)
    }

    fn measure_around(
        &self,
        around: Option<&dyn WeightSource>,
        schemes: &[&str],
        threads: usize,
        progress: &mut dyn FnMut(f64, &str),
        cancel: &AtomicBool,
    ) -> Result<Sensitivities, Error> {
        let engine = Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap();
        let menu = Menu { schemes: schemes.iter().map(|s| s.parse().unwrap()).collect(), portable: false };
        let run = SensitivityRun {
            spec: &self.spec,
            inventory: &self.inventory,
            source: &self.source,
            around,
            samples: &self.samples,
            menu: &menu,
            wanted: &|_| true,
            effort: Effort::Usual,
            engine: &engine,
            cancel,
            ledger: self.ledger.as_ref().map(|ledger| ledger as &dyn Ledger),
        };
        run.measure(progress)
    }

    fn all(&self, schemes: &[&str]) -> Sensitivities {
        self.measure(schemes, 2, &mut |_, _| {}, &AtomicBool::new(false)).unwrap()
    }
}

const SCHEMES: [&str; 4] = ["w2a16-g32", "w3a16-g32", "w4a16-g32", "w8a16"];

#[test]
fn every_group_is_measured_and_fewer_bits_lose_more() {
    for config in [TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE, TINY_GPT2] {
        let case = Case::new(config);
        let mut shares = vec![];
        let found = case.measure(&SCHEMES, 2, &mut |share, _| shares.push(share), &AtomicBool::new(false)).unwrap();
        assert!(shares.is_sorted() && shares.iter().all(|share| (0.0..=1.0).contains(share)));
        let in_groups: usize = found.groups.iter().map(|group| group.group.modules.len()).sum();
        let routers = case.inventory.sites.iter().filter(|site| site.linear.role == octet_model::Role::Router).count();
        assert_eq!(in_groups, case.inventory.sites.len() - routers);
        for group in &found.groups {
            let losses: Vec<f64> = group.options.iter().map(|option| option.loss).collect();
            assert!(losses.iter().all(|loss| loss.is_finite()) && losses.last() == Some(&0.0), "{group:?}");
            assert!(losses[0] > losses[2], "{}: {losses:?}", group.group.name);
            // Rows of 24 weights take as many words at 3 bits as at 4.
            assert!(group.options.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes), "{group:?}");
        }
    }
}

#[test]
fn fused_linears_are_one_group() {
    let found = Case::new(TINY_LLAMA).all(&["w4a16-g32"]);
    let names: Vec<&str> = found.groups.iter().map(|group| group.group.name.as_str()).collect();
    assert!(names.contains(&"layer 0 q, k, v") && names.contains(&"layer 1 gate, up") && names.contains(&"embedding"), "{names:?}");
}

#[test]
fn the_loss_of_a_group_is_the_divergence_of_the_model_with_it_substituted() {
    let case = Case::new(TINY_LLAMA);
    let found = case.all(&["w3a16-g32"]);
    let group = found.groups.iter().find(|group| group.group.name == "layer 0 gate, up").unwrap();
    // The same substitution in weights: decoded codes in the place of the floats.
    let mut changed = case.source.renamed(str::to_string);
    let engine = Engine::new(Isa::best(), NonZeroUsize::new(1).unwrap()).unwrap();
    let step = RecipeStep::Mixed(MixedStep {
        targets: vec!["gate & layers:0".parse().unwrap(), "up & layers:0".parse().unwrap()],
        schemes: vec![],
        ..MixedStep::usual()
    });
    let recipe = Recipe { steps: vec![step], portable: false };
    let settled = recipe.settled(&case.inventory, &[(&group.group, "w3a16-g32".parse().ok())]).unwrap();
    let plan = Plan::new(&settled, &case.inventory, false).unwrap();
    assert_eq!(plan.quantized().count(), 2);
    for module in &group.group.modules {
        let matrix = case.source.matrix(module).unwrap().unwrap();
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let mut values = vec![0.0; rows * cols];
        matrix.read_rows_f32(0..rows, &mut values).unwrap();
        // Scales of another search leave about the same error: rounding to the nearest of a plain grid.
        for group in values.chunks_mut(32) {
            let scale = group.iter().fold(0f32, |m, v| m.max(v.abs())) / 4.0;
            group.iter_mut().for_each(|v| *v = if scale > 0.0 { (*v / scale).round().clamp(-4.0, 3.0) * scale } else { 0.0 });
        }
        changed.insert(&format!("{module}.weight"), vec![rows, cols], &values);
    }
    let options = LoadOptions { activations: None, kv: KvDtype::F32, context: None };
    let logits = |source: &MemorySource| {
        let model = Model::load(&engine, case.spec.clone(), source, options, &mut |_, _| {}).unwrap();
        let mut all = vec![];
        let mut start = 0;
        for length in case.samples.lengths() {
            let (mut sequence, mut out) = (model.new_sequence(), vec![]);
            let tokens = &case.samples.tokens()[start..start + length];
            model.forward(&mut [Step { sequence: &mut sequence, tokens, logits: Logits::All }], &mut out, None).unwrap();
            all.extend(out);
            start += length;
        }
        all
    };
    let (p, q) = (logits(&case.source), logits(&changed));
    let vocab = case.spec.vocab_size();
    let divergences: Vec<f64> = p.chunks(vocab).zip(q.chunks(vocab)).map(|(p, q)| kl_divergence(p, q).kl).collect();
    let plain = divergences.iter().sum::<f64>() / divergences.len() as f64;
    let searched = group.options[0].loss;
    assert!(group.options[0].measured && searched > 0.2 * plain && searched < 1.2 * plain, "{searched} against {plain}");
}

#[test]
fn threads_change_nothing_and_a_stop_is_one() {
    let case = Case::new(TINY_QWEN3);
    let stop = AtomicBool::new(false);
    let one = case.measure(&SCHEMES, 1, &mut |_, _| {}, &stop).unwrap();
    assert_eq!(one, case.all(&SCHEMES));
    let stopped = case.measure(&SCHEMES, 1, &mut |_, _| stop.store(true, Ordering::Relaxed), &stop);
    assert!(matches!(stopped, Err(Error::Interrupted { .. })));
}

#[test]
fn around_a_model_groups_lose_what_they_add_to_its_loss() {
    let case = Case::new(TINY_LLAMA);
    let around = |source: &MemorySource| case.measure_around(Some(source), &SCHEMES, 2, &mut |_, _| {}, &AtomicBool::new(false)).unwrap();
    let plain = case.all(&SCHEMES);
    let losses = |found: &Sensitivities| found.groups.iter().flat_map(|g| g.options.iter().map(|o| o.loss)).collect::<Vec<_>>();
    // Around the original it is the same.
    for (a, b) in losses(&plain).into_iter().zip(losses(&around(&case.source))) {
        assert!((a - b).abs() <= 1e-9 + 1e-6 * a, "{a} {b}");
    }
    // Around a model whose last norm lets nothing through, no group of a block can lose more.
    let mut mute = case.source.renamed(str::to_string);
    mute.insert("model.norm.weight", vec![case.spec.hidden()], &vec![0.0; case.spec.hidden()]);
    let found = around(&mute);
    let mut inside = found.groups.iter().filter(|group| group.group.layer.is_some()).flat_map(|group| &group.options);
    assert!(inside.all(|option| option.loss < 1e-9), "{found:?}");
}

#[test]
fn an_allocation_becomes_a_recipe_and_a_plan_of_its_size() {
    for config in [TINY_LLAMA, TINY_QWEN3_MOE, TINY_GPT2] {
        let case = Case::new(config);
        let found = case.all(&SCHEMES);
        let recipe = Recipe::mixed(false);
        assert!(Plan::new(&recipe, &case.inventory, false).is_err(), "unsettled");
        let alternatives = found.alternatives(|_| 1.0);
        let least = least_bytes(&alternatives);
        let chosen = allocate(&alternatives, least * 3 / 2).unwrap();
        let choices: Vec<_> = found.groups.iter().zip(&chosen).map(|(group, &at)| (&group.group, group.options[at].scheme)).collect();
        let settled = recipe.settled(&case.inventory, &choices).unwrap();
        assert_eq!(Recipe::from_toml(&settled.to_string()).unwrap(), settled);
        let plan = Plan::new(&settled, &case.inventory, true).unwrap();
        let in_groups = |line: &&octet_quant::Line| found.groups.iter().any(|group| group.group.modules.contains(&line.name));
        let planned: u64 = plan.lines().iter().filter(in_groups).map(|line| line.bytes).sum();
        let expected: u64 = found.groups.iter().zip(&chosen).map(|(group, &at)| group.options[at].bytes).sum();
        assert_eq!(planned, expected);
        assert!(planned <= least * 3 / 2);
    }
}

#[test]
fn what_others_load_has_no_zero_points() {
    let (own, portable) = (Menu::usual(false), Menu::usual(true));
    assert_eq!((own.schemes.len(), portable.schemes.len()), (Menu::USUAL.len(), Menu::USUAL.len()));
    assert!(own.schemes.iter().any(|scheme| scheme.weights.is_asymmetric()));
    assert!(portable.schemes.iter().all(|scheme| !scheme.weights.is_asymmetric()));
}

/// Losses of groups, by name.
#[derive(Default)]
struct Book {
    kept: Mutex<BTreeMap<String, GroupLosses>>,
    looked_up: AtomicUsize,
}

impl Ledger for Book {
    fn known(&self, name: &str) -> Option<GroupLosses> {
        let known = self.kept.lock().unwrap().get(name).cloned();
        self.looked_up.fetch_add(usize::from(known.is_some()), Ordering::Relaxed);
        known
    }

    fn keep(&self, losses: &GroupLosses) {
        self.kept.lock().unwrap().insert(losses.group.name.clone(), losses.clone());
    }
}

#[test]
fn a_measurement_that_was_stopped_goes_on_where_it_was() {
    let expected = Case::new(TINY_LLAMA).all(&SCHEMES);
    let case = Case { ledger: Some(Book::default()), ..Case::new(TINY_LLAMA) };
    let cancel = AtomicBool::new(false);
    let stopped = case.measure(&SCHEMES, 2, &mut |share, _| cancel.store(share > 0.5, Ordering::Relaxed), &cancel);
    assert!(matches!(stopped, Err(Error::Interrupted { .. })));
    let book = case.ledger.as_ref().unwrap();
    let kept = book.kept.lock().unwrap().len();
    assert!(kept > 0 && kept < expected.groups.len(), "{kept}");
    assert_eq!(case.all(&SCHEMES), expected);
    assert_eq!(book.looked_up.load(Ordering::Relaxed), kept);
    // Losses under other schemes are not taken for these.
    assert_eq!(case.all(&SCHEMES[1..]), Case::new(TINY_LLAMA).all(&SCHEMES[1..]));
}

#[test]
fn tokens_of_experts_are_counted_and_more_are_drawn_for_them() {
    let engine = Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap();
    let case = Case::new(TINY_QWEN3_MOE);
    let fewest = |samples: &Samples| fewest_expert_tokens(&engine, &case.spec, &case.source, samples).unwrap();
    let ids: Vec<u32> = (0..8000).map(|i| (i * i + 3 * i) % 64).collect();
    let draw = |times: usize| Samples::draw(&ids, 2 * times, 16, 0);
    let (few, more) = (fewest(&draw(1)).unwrap(), fewest(&draw(64)).unwrap());
    assert!(few < more && few < EXPERT_TOKENS, "{few} {more}");
    let topped = topped_up(&engine, &case.spec, &case.source, 8, &draw).unwrap();
    assert!(topped.len() > draw(1).len());
    let dense = Case::new(TINY_LLAMA);
    assert_eq!(fewest_expert_tokens(&engine, &dense.spec, &dense.source, &draw(1)).unwrap(), None);
}
