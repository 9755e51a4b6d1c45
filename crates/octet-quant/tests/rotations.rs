//! Rotations change no function: every family of the fixtures, random rotations wherever the model can have them. And the run that
//! finds them: kept only where the loss falls, the same for any number of threads.
#![allow(clippy::unwrap_used)]

use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, Isa};
use octet_model::{ArchSpec, KvDtype, LoadOptions, Logits, Model, Step};
use octet_quant::{BlockRotation, Inventory, Plan, Recipe, RotationRun, Samples, So8, Turned, Turns, Where};
use octet_tensor::{Dtype, WeightSource};
use octet_testkit::{Random, arch_fixtures, npy_i64, relative_error};
use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

fn engine(threads: usize) -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap()
}

fn open(path: &Path) -> (ArchSpec, Checkpoint) {
    let checkpoint = Checkpoint::open(&Folder::disk(path).unwrap()).unwrap();
    let mut spec = ArchSpec::from_config(checkpoint.config()).unwrap();
    spec.settle(&checkpoint).unwrap();
    (spec, checkpoint)
}

fn logits(spec: &ArchSpec, source: &dyn WeightSource, ids: &[u32]) -> Vec<f32> {
    let options = LoadOptions { activations: None, kv: KvDtype::F32, context: None };
    let model = Model::load(&engine(2), spec.clone(), source, options, &mut |_, _| ()).unwrap();
    let (mut sequence, mut out) = (model.new_sequence(), vec![]);
    model.forward(&mut [Step { sequence: &mut sequence, tokens: ids, logits: Logits::All }], &mut out, None).unwrap();
    out
}

fn random_rotation(random: &mut Random, blocks: usize) -> BlockRotation {
    let block = |random: &mut Random| {
        (0..40).fold(So8::hadamard(random.below(256) as u8), |r, _| {
            let a = random.below(8);
            r.turned((a, (a + 1 + random.below(7)) % 8), f64::from(random.normal()))
        })
    };
    BlockRotation((0..blocks).map(|_| block(random)).collect())
}

#[test]
fn every_family_computes_the_same_when_turned_or_says_why_it_cannot_be() {
    let (mut turned, mut said) = ([const { BTreeSet::new() }; 3], BTreeSet::new());
    for (name, path) in arch_fixtures() {
        let ((spec, checkpoint), mut random) = (open(&path), Random::new(name.len() as u64));
        let ids: Vec<u32> = npy_i64(&path.join("input_ids.npy")).1.iter().take(24).map(|&id| id as u32).collect();
        let before = logits(&spec, &checkpoint, &ids);
        // What stays as it is stored (biases, norms) is rounded to 16 bits where it is stored so.
        let wide = checkpoint.entries().iter().all(|entry| entry.dtype == Dtype::F32);
        for (place, turned) in Where::ALL.into_iter().zip(&mut turned) {
            let mut rotation = |blocks| match place {
                Where::Inputs => BlockRotation::plain_hadamard(blocks),
                _ => random_rotation(&mut random, blocks),
            };
            match Turns::of(&spec.graph(), place, &checkpoint, &mut rotation) {
                Ok(turns) => {
                    let spec = spec.with_turned_inputs(turns.inputs().clone());
                    assert_eq!(spec.turned_inputs().is_empty(), place != Where::Inputs);
                    let source = Turned::new(&checkpoint as &dyn WeightSource, Arc::new(turns));
                    let error = relative_error(&logits(&spec, &source, &ids), &before);
                    println!("{name:<24}{:<10}{error:>10.1e}", place.name());
                    assert!(error < if wide { 2e-5 } else { 3e-3 }, "{name} {place}: logits are {error:e} off");
                    assert!(error > 0.0, "{name} {place}: nothing happened");
                    turned.insert(spec.family());
                }
                Err(error) => drop(said.insert(format!("{}: {error}", spec.family()))),
            }
        }
    }
    assert!(turned[0].len() >= 8, "{turned:?}");
    assert!(turned[1].len() >= 4, "{turned:?}");
    assert!(turned[2].len() >= 8, "{turned:?}");
    let tied = "embedding and head are one matrix, so that the final norm's weights have nowhere to go; give the model a head of its \
                own first, or turn its heads only";
    let said =
        said.into_iter().collect::<Vec<_>>().join("\n").replace("the recipe makes no sense: the residual stream cannot be turned", "no");
    insta::assert_snapshot!(said.replace(tied, "TIED"), @r"
    gemma2: no: norms stand between linears and the stream they add to, and their weights do not turn with it
    gemma3: no: norms stand between linears and the stream they add to, and their weights do not turn with it
    gpt2: no: learned positions are added to it
    llama: no: TIED
    phi3: no: TIED
    qwen2: no: TIED
    qwen3: no: TIED
    smollm3: no: TIED
    ");
}

/// The records, and the turned weights of a linear of the first block.
fn found(path: &Path, recipe: &str, threads: usize) -> (Vec<octet_quant::RotationRecord>, Vec<f32>) {
    let (spec, checkpoint) = open(path);
    let plan = Plan::new(&Recipe::from_toml(recipe).unwrap(), &Inventory::new(&spec.linear_sites(), &checkpoint).unwrap(), true).unwrap();
    plan.check_scalings(&spec.graph()).unwrap();
    let mut random = Random::new(2);
    let ids: Vec<u32> = (0..1200).map(|_| random.below(spec.vocab_size()) as u32).collect();
    let (samples, engine, cancel) = (Samples::draw(&ids, 12, 100, 1), engine(threads), AtomicBool::new(false));
    let run = RotationRun { plan: &plan, spec: &spec, source: &checkpoint, samples: &samples, engine: &engine, cancel: &cancel };
    let (turns, records) = run.find(&mut |_| ()).unwrap();
    let module = spec.linear_sites().into_iter().find(|site| site.layer == Some(0) && site.module.ends_with("o_proj")).unwrap();
    let source = Turned::new(&checkpoint as &dyn WeightSource, Arc::new(turns));
    let octet_tensor::Matrix::Float(matrix) = source.matrix(&module.module).unwrap().unwrap() else { panic!() };
    let mut values = vec![0.0; module.rows * module.cols];
    matrix.read_rows(0..module.rows, &mut values).unwrap();
    (records, values)
}

#[test]
fn rotations_are_kept_where_the_loss_falls_and_do_not_depend_on_threads() {
    let Some((_, path)) = arch_fixtures().into_iter().find(|(name, _)| name == "llama") else { return };
    let quantize = |scheme: &str| format!("[[step]]\naction='quantize'\ntargets=['linears']\nscheme='{scheme}'\n");
    for (place, scheme, gate) in
        [("heads", "w4a16", true), ("heads", "w3a8", false), ("residual", "w3a16-g32", true), ("inputs", "w4a16", true)]
    {
        let recipe = format!("[[step]]\naction='rotate'\nwhere='{place}'\ngate={gate}\n{}", quantize(scheme));
        let places = match place {
            "heads" => 3,
            "residual" => 1,
            _ => 12,
        };
        let (records, one) = found(&path, &recipe, 1);
        let (again, three) = found(&path, &recipe, 3);
        assert_eq!(records, again);
        assert_eq!(one.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), three.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        assert_eq!(records.len(), places);
        for record in records {
            println!("{record}");
            assert_eq!(record.tried.len(), if place == "inputs" { 1 } else { 2 });
            assert!(record.before > 0.0 && record.tried.iter().all(|(_, loss)| *loss > 0.0));
            let least = record.tried.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            let falls = least.1 < record.before;
            assert_eq!(record.kept, if falls || !gate { least.0.as_str() } else { "none" });
            assert!(record.drift < 1e-12 && (record.determinant - 1.0).abs() < 1e-12);
        }
    }
}
