//! Moving factors changes no function: every family of the fixtures, random factors wherever the graph lets them move.
#![allow(clippy::unwrap_used)]

use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, Isa};
use octet_model::{ArchSpec, KvDtype, LoadOptions, Logits, Model, Place, Step};
use octet_quant::{BlockWeights, move_factors};
use octet_tensor::{Dtype, WeightSource};
use octet_testkit::{Random, arch_fixtures, npy_i64, relative_error};
use std::{collections::BTreeSet, num::NonZeroUsize, path::Path};

fn engine() -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap()
}

fn spec(path: &Path, source: &dyn WeightSource) -> ArchSpec {
    let mut spec = ArchSpec::from_config(&serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap()).unwrap();
    spec.settle(source).unwrap();
    spec
}

fn logits(spec: &ArchSpec, source: &dyn WeightSource, ids: &[u32]) -> Vec<f32> {
    let options = LoadOptions { activations: None, kv: KvDtype::F32, context: None };
    let model = Model::load(&engine(), spec.clone(), source, options, &mut |_, _| ()).unwrap();
    let (mut sequence, mut out) = (model.new_sequence(), vec![]);
    model.forward(&mut [Step { sequence: &mut sequence, tokens: ids, logits: Logits::All }], &mut out, None).unwrap();
    out
}

fn places(spec: &ArchSpec) -> impl Iterator<Item = Place> {
    (0..spec.layers().len()).map(Place::Layer).chain([Place::Head])
}

#[test]
fn every_family_computes_the_same_under_random_factors() {
    let mut families = BTreeSet::new();
    for (name, path) in arch_fixtures() {
        let checkpoint = Checkpoint::open(&Folder::disk(&path).unwrap()).unwrap();
        let (spec, mut random) = (spec(&path, &checkpoint), Random::new(name.len() as u64));
        let (graph, ids) = (spec.graph(), npy_i64(&path.join("input_ids.npy")).1);
        let ids: Vec<u32> = ids.iter().take(24).map(|&id| id as u32).collect();
        let before = logits(&spec, &checkpoint, &ids);
        // Powers of two are exact nearly everywhere. Others change how sums round, and biases where they are stored in 16 bits.
        let wide = checkpoint.entries().iter().all(|entry| entry.dtype == Dtype::F32);
        for (exact, tolerance) in [(true, 1e-5), (false, if wide { 1e-4 } else { 3e-3 })] {
            let (mut weights, mut moved) = (BlockWeights::new(&checkpoint), 0);
            for fold in places(&spec).flat_map(|place| graph.folds(place).folds) {
                let mut factor = || if exact { 2f32.powi(random.below(9) as i32 - 4) } else { random.normal().exp() };
                let factors: Vec<f32> = (0..fold.channels).map(|_| factor()).collect();
                let found = move_factors(&fold, &factors, &|_| Dtype::F32, &mut weights).unwrap();
                moved += found.iter().filter(|factor| factor.ln().abs() > 0.1).count();
            }
            let error = relative_error(&logits(&spec, &weights, &ids), &before);
            println!("{name:<24}{:<12}{moved:>8} channels{error:>12.1e}", spec.family());
            assert!(moved > 100, "{name}: only {moved} channels moved");
            assert!(error < tolerance, "{name}: logits are {error:e} off");
        }
        families.insert(spec.family());
    }
    assert!(families.len() >= 8, "{families:?}");
}

#[test]
fn every_family_says_where_factors_move_and_why_not_elsewhere() {
    let mut said = String::new();
    for (name, path) in arch_fixtures() {
        let checkpoint = Checkpoint::open(&Folder::disk(&path).unwrap()).unwrap();
        let spec = spec(&path, &checkpoint);
        let graph = spec.graph();
        for place in [Place::Layer(0), Place::Head] {
            let folds = graph.folds(place);
            // Every linear of the place is either reached or refused.
            let inputs: BTreeSet<_> = graph.phases(place).into_iter().flat_map(|phase| phase.inputs).collect();
            let reached: BTreeSet<_> =
                folds.folds.iter().flat_map(|fold| fold.inputs.clone()).chain(folds.refused.iter().map(|r| r.0)).collect();
            assert_eq!(inputs, reached, "{name}");
            if ["gpt2", "phi3", "gemma2", "qwen3-moe", "qwen3-tied"].contains(&name.as_str()) {
                said += &format!(
                    "{name} {place}: {}",
                    folds.folds.iter().map(|f| format!("{}({})", f.inputs[0], f.readers.len())).collect::<Vec<_>>().join(", ")
                );
                folds.refused.iter().for_each(|(input, why)| said += &format!("; not {input}: {why}"));
                said += "\n";
            }
        }
    }
    insta::assert_snapshot!(said, @r"
    gemma2 layer 0: layer 0 attention input(3), layer 0 attention output(1), layer 0 mlp input(2), layer 0 mlp activations(1)
    gemma2 the head: ; not head input: its matrix is the embedding as well
    gpt2 layer 0: layer 0 attention input(1), layer 0 attention output(1), layer 0 mlp input(1); not layer 0 mlp activations: its values pass through an activation that does not keep factors
    gpt2 the head: ; not head input: its matrix is the embedding as well
    phi3 layer 0: layer 0 attention input(1), layer 0 attention output(1), layer 0 mlp input(1), layer 0 mlp activations(1)
    phi3 the head: head input(1)
    qwen3-moe layer 0: layer 0 attention input(3), layer 0 attention output(1), layer 0 mlp input(9), layer 0 expert 0 activations(1), layer 0 expert 1 activations(1), layer 0 expert 2 activations(1), layer 0 expert 3 activations(1)
    qwen3-moe the head: head input(1)
    qwen3-tied layer 0: layer 0 attention input(3), layer 0 attention output(1), layer 0 mlp input(2), layer 0 mlp activations(1)
    qwen3-tied the head: ; not head input: its matrix is the embedding as well
    ");
}
