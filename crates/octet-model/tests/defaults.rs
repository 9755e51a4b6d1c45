//! What absent keys mean: the facts of each family that no fixture's config leaves open.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use octet_model::{
    ArchSpec,
    rope::RopeScaling,
    spec::{Mlp, Position},
};
use octet_testkit::{TINY_GEMMA3, TINY_GPT2, TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE};
use serde_json::{Value, json};

/// `config` with these keys set (null takes a key out).
fn with(config: &str, changes: Value) -> ArchSpec {
    let mut config: Value = serde_json::from_str(config).unwrap();
    let map = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            map.remove(key)
        } else {
            map.insert(key.clone(), value.clone())
        };
    }
    ArchSpec::from_config(&config).unwrap()
}

fn windows(spec: &ArchSpec) -> Vec<Option<usize>> {
    spec.layers().iter().map(|layer| layer.attention.window).collect()
}

#[test]
fn mistral_slides_at_4096_unless_told_otherwise() {
    let mistral = json!({"model_type": "mistral"});
    assert_eq!(windows(&with(TINY_LLAMA, mistral.clone())), [Some(4096); 2]);
    let null: Value = serde_json::from_str(&TINY_LLAMA.replace("\"llama\"", "\"mistral\", \"sliding_window\": null")).unwrap();
    assert_eq!(windows(&ArchSpec::from_config(&null).unwrap()), [None; 2]);
}

#[test]
fn qwen_windows_need_their_switch_and_start_late() {
    let window = json!({"sliding_window": 16, "max_window_layers": 1});
    assert_eq!(windows(&with(TINY_QWEN3, window)), [None; 2]);
    let on = json!({"sliding_window": 16, "max_window_layers": 1, "use_sliding_window": true});
    assert_eq!(windows(&with(TINY_QWEN3, on.clone())), [None, Some(16)]);
    assert_eq!(windows(&with(TINY_QWEN3_MOE, on)), [Some(16); 2], "the MoE class has no max_window_layers");
    let late = json!({"sliding_window": 16, "use_sliding_window": true});
    assert_eq!(windows(&with(TINY_QWEN3, late)), [None; 2], "28 layers come first");
}

#[test]
fn gemma_layers_alternate_and_have_two_ropes() {
    let gemma3 = with(TINY_GEMMA3, json!({"sliding_window_pattern": null, "num_hidden_layers": 7}));
    let full: Vec<usize> = (0..7).filter(|&i| gemma3.layers()[i].attention.window.is_none()).collect();
    assert_eq!(full, [5], "every sixth");
    assert_eq!(gemma3.layers()[4].attention.position, Position::Rope(1));
    assert_eq!((gemma3.ropes()[0].base, gemma3.ropes()[1].base), (1e6, 1e4));
    let gemma2 = with(
        TINY_GEMMA3,
        json!({"model_type": "gemma2", "sliding_window_pattern": null, "rope_local_base_freq": null,
        "final_logit_softcapping": null, "sliding_window": null}),
    );
    assert_eq!(windows(&gemma2), [Some(4096), None, Some(4096)]);
    assert_eq!((gemma2.layers()[0].attention.soft_cap, gemma2.head().soft_cap), (Some(50.0), Some(30.0)));
    assert!(gemma2.head().tied);
}

#[test]
fn smollm3_has_every_fourth_layer_without_positions() {
    let spec = with(TINY_LLAMA, json!({"model_type": "smollm3", "num_hidden_layers": 8, "rope_theta": null}));
    let without: Vec<usize> = (0..8).filter(|&i| spec.layers()[i].attention.position == Position::None).collect();
    assert_eq!(without, [3, 7]);
    assert_eq!(spec.ropes()[0].base, 2e6);
}

#[test]
fn gpt2_is_four_times_wider_inside_and_mixtures_may_be_sparse() {
    let gpt2 = with(TINY_GPT2, json!({}));
    assert!(matches!(gpt2.layers()[0].mlp, Mlp::Plain { intermediate: 128, bias: true, .. }));
    let moe = with(TINY_QWEN3_MOE, json!({"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}));
    let sparse: Vec<usize> = (0..4).filter(|&i| matches!(moe.layers()[i].mlp, Mlp::Experts { .. })).collect();
    assert_eq!(sparse, [1]);
}

#[test]
fn a_rope_says_the_same_in_every_spelling() {
    let llama3 = |original: &str| json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, original: 32, "rope_theta": 5e5});
    let inside = with(TINY_LLAMA, json!({"rope_theta": null, "rope_parameters": llama3("original_max_position_embeddings")}));
    let mut outside = llama3("original_max_position_embeddings");
    let rope = outside.as_object_mut().unwrap();
    let original = rope.remove("original_max_position_embeddings").unwrap();
    rope.remove("rope_theta");
    let changes = json!({"rope_theta": 5e5, "rope_scaling": outside, "original_max_position_embeddings": original});
    assert_eq!(with(TINY_LLAMA, changes), inside);
    assert!(matches!(inside.ropes()[0].scaling, RopeScaling::Llama3 { original: 32.0, .. }));
}

#[test]
fn only_phi3_reads_yarn_as_longrope() {
    let rope = json!({"type": "yarn", "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [2.0, 2.0, 2.0, 2.0]});
    let phi3 = with(TINY_LLAMA, json!({"model_type": "phi3", "rope_scaling": rope}));
    assert!(matches!(&phi3.ropes()[0].scaling, RopeScaling::LongRope { original: 4096, .. }));
    let llama = with(TINY_LLAMA, json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}));
    assert!(matches!(llama.ropes()[0].scaling, RopeScaling::Yarn { original: 128.0, truncate: true, .. }));
}
