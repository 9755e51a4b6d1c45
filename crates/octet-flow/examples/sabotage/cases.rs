//! The graded sabotages and the clean variants.

use crate::files::Files;
use octet_runtime::Rng;
use std::error::Error;

/// What is done to a good 8-bit model.
type Damage = Box<dyn Fn(&mut Files) -> Result<usize, Box<dyn Error>>>;

/// One sabotage.
pub(crate) struct Sabotage {
    pub(crate) name: &'static str,
    /// The gate that should say so first of all; `open` where the folder must not open.
    pub(crate) gate: &'static str,
    pub(crate) damage: Damage,
    /// Whether the tokenizer and template may be saved anew, as by somebody else.
    pub(crate) elsewhere: bool,
    /// Most positions that both models say they have, where it is not the built-in model's own number.
    pub(crate) positions: Option<u64>,
}

/// Positions over which the built-in model is as good late as early; further on it has little quality to lose.
pub(crate) const EVEN: u64 = 512;
/// Tokens of a window that shows it.
pub(crate) const WINDOW: usize = 448;

fn sabotage(name: &'static str, gate: &'static str, damage: impl Fn(&mut Files) -> Result<usize, Box<dyn Error>> + 'static) -> Sabotage {
    Sabotage { name, gate, damage: Box::new(damage), elsewhere: false, positions: None }
}

/// A normal number (Box and Muller 1958).
fn normal(rng: &mut Rng) -> f32 {
    ((-2.0 * (1.0 - rng.unit()).ln()).sqrt() * (std::f64::consts::TAU * rng.unit()).cos()) as f32
}

/// Multiplies every scale by 1 + `spread` × a normal number.
fn noisy_scales(files: &mut Files, spread: f32) -> Result<usize, Box<dyn Error>> {
    let mut rng = Rng::new(7);
    files.scale(|name| name.ends_with("_proj.weight_scale"), || 1.0 + spread * normal(&mut rng))
}

fn norm(files: &mut Files, factor: f32) -> Result<usize, Box<dyn Error>> {
    files.scale(|name| name == "model.norm.weight", || factor)
}

fn config(files: &mut Files, change: impl FnOnce(&mut serde_json::Value)) -> Result<usize, Box<dyn Error>> {
    files.edit_json("config.json", change).map(|()| 1)
}

fn rope(files: &mut Files, theta: f64) -> Result<usize, Box<dyn Error>> {
    config(files, |config| config["rope_parameters"]["rope_theta"] = theta.into())
}

fn window(files: &mut Files, tokens: u64) -> Result<usize, Box<dyn Error>> {
    config(files, |config| {
        config["use_sliding_window"] = true.into();
        config["sliding_window"] = tokens.into();
        config["layer_types"] = vec!["sliding_attention"; 4].into();
    })
}

/// Turns positions of long wavelength fifty times as fast: what is near stays where it is, what is far ends up anywhere.
fn slow_turns(files: &mut Files) -> Result<usize, Box<dyn Error>> {
    config(files, |config| {
        config["rope_parameters"] = serde_json::json!({
            "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 0.02, "low_freq_factor": 0.2, "high_freq_factor": 0.201,
            "original_max_position_embeddings": 2048
        });
    })
}

/// The sabotage that is good at the beginning of a text alone.
pub(crate) const BREAKS_LATE: &str = "slow turns of positions fifty times as fast";

/// The sabotages, weak ones before strong ones of the same kind.
pub(crate) fn sabotages() -> Vec<Sabotage> {
    let projection = |layer: &'static str, part: &'static str| move |name: &str| name.contains(layer) && name.contains(part);
    vec![
        sabotage("head scaled by 1.15", "quality", |f| norm(f, 1.15)),
        sabotage("head scaled by 1.3", "quality", |f| norm(f, 1.3)),
        sabotage("head scaled by 0.8", "quality.hardware", |f| norm(f, 0.8)),
        sabotage("head scaled by 8: sampling as good as greedy", "health", |f| norm(f, 8.0)),
        sabotage("one layer at 2 bits", "quality", move |f| f.coarsen(projection("layers.2.", "_proj"), 2)),
        sabotage("one projection at 2 bits", "quality.commands", move |f| f.coarsen(projection("layers.1.", "down_proj"), 2)),
        sabotage("all layers at 3 bits", "quality", move |f| f.coarsen(projection("layers.", "_proj"), 3)),
        sabotage("all layers at 2 bits", "quality", move |f| f.coarsen(projection("layers.", "_proj"), 2)),
        sabotage("scales off by 5 %", "quality", |f| noisy_scales(f, 0.05)),
        sabotage("scales off by 10 %", "quality", |f| noisy_scales(f, 0.1)),
        sabotage("scales off by 20 %", "quality", |f| noisy_scales(f, 0.2)),
        sabotage("rope base 9,000 instead of 10,000", "quality", |f| rope(f, 9_000.0)),
        sabotage("rope base 3,000 instead of 10,000", "quality", |f| rope(f, 3_000.0)),
        sabotage("attention reaches back 1,024 tokens only", "quality.position", |f| window(f, 1024)),
        sabotage("attention reaches back 448 tokens only", "quality.position", |f| window(f, 448)),
        Sabotage { positions: Some(EVEN), ..sabotage(BREAKS_LATE, "quality.position", slow_turns) },
        sabotage("a scale that is not a number", "open", |f| {
            f.scale(|name| name == "model.layers.1.mlp.down_proj.weight_scale", || f32::NAN)
        }),
        sabotage("one merge of the tokenizer changed", "integrity", merge),
        Sabotage { elsewhere: true, ..sabotage("the same, tokenizer saved anew by another tool", "integrity", merge) },
        sabotage("one byte of the generation config changed", "integrity", |f| {
            f.edit("generation_config.json", |bytes| bytes.push(b'\n'));
            Ok(1)
        }),
        sabotage("weights cut short by a tenth", "open", |f| {
            f.truncate_weights(0.9);
            Ok(1)
        }),
        sabotage("a slow path: eight times the layers", "speed", |f| f.repeat_layers(8).map(|()| 1)),
        sabotage("a forgotten file of 200 kB in the folder", "size.forecast", |f| {
            f.put("events.out", vec![7; 200_000]);
            Ok(1)
        }),
    ]
}

/// Exchanges two merges that common words need.
fn merge(files: &mut Files) -> Result<usize, Box<dyn Error>> {
    files
        .edit_json("tokenizer.json", |tokenizer| {
            if let Some(merges) = tokenizer["model"]["merges"].as_array_mut() {
                let last = merges.len() / 2;
                merges.swap(3, last);
            }
        })
        .map(|()| 1)
}

/// Schemes that are as good as the original on this model.
pub(crate) fn clean() -> Vec<String> {
    let mut all = vec![];
    for symmetry in ["sym", "asym"] {
        for granularity in ["pc", "g32", "g64", "g128", "g256"] {
            all.push(format!("w8a16-{granularity}-{symmetry}"));
        }
        for granularity in ["pc", "g32", "g128"] {
            all.push(format!("w8a8-{granularity}-{symmetry}"));
        }
        for granularity in ["g32", "g64"] {
            all.push(format!("w6a16-{granularity}-{symmetry}"));
        }
    }
    all
}
