//! Rotations: found, written down, and found again to the letter; what cannot be turned is refused.

use crate::sandbox::{Sandbox, prose};

const RECIPE: &str = "[[step]]
action = 'rotate'
where = 'heads'
gate = false
[[step]]
action = 'rotate'
where = 'residual'
kind = 'hadamard'
[[step]]
action = 'quantize'
targets = ['linears']
scheme = 'w4a16-g32'
solver = 'gptq'
";

const RUN: &str = "--no-judge --calibration notes.txt --calibration-samples 16 --calibration-length 64";

#[test]
fn rotations_are_written_down_and_a_receipt_gives_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(20_000, 1));
    sandbox.write("turned.toml", RECIPE);
    let plan = sandbox.octet(&format!("quantize tiny out --recipe turned.toml --dry-run {RUN}")).done().stdout;
    assert!(plan.contains("rotate heads, search, kept whatever it costs") && plan.contains("rotate residual, hadamard\n"), "{plan}");
    let made = sandbox.octet(&format!("quantize tiny out --recipe turned.toml {RUN}")).done();
    assert!(made.stderr.contains("of 4 places, which leaves 0.") && made.stderr.contains("of +1"), "{made:?}");
    let described = sandbox.json("out/quantization_config.json");
    assert_eq!(described["method"], "rotations+gptq");
    let rotations = described["calibration"]["rotations"].as_array().unwrap().clone();
    let places: Vec<_> = rotations.iter().map(|one| one["place"].as_str().unwrap()).collect();
    assert_eq!(places, ["layer 0 heads", "layer 1 heads", "layer 2 heads", "residual stream"]);
    for one in &rotations {
        assert!(one["drift"].as_f64().unwrap() < 1e-12 && (one["determinant"].as_f64().unwrap() - 1.0).abs() < 1e-12, "{one}");
        let heads = one["place"] != "residual stream";
        let tried: Vec<_> = one["tried"].as_array().unwrap().iter().map(|tried| tried[0].as_str().unwrap()).collect();
        assert_eq!(tried, if heads { vec!["hadamard", "learned"] } else { vec!["hadamard"] });
        assert!(!heads || one["kept"] != "none", "no gate: {one}");
    }
    let again = sandbox.octet("reproduce out --threads 1 --json").done().json();
    assert_eq!(again["identical"], true, "{again}");
    sandbox.octet("run out ab -n 2").done();
}

#[test]
fn what_cannot_be_turned_is_refused_in_words() {
    let sandbox = Sandbox::new();
    let refused = |step: &str, words: &[&str]| {
        sandbox.write("wrong.toml", format!("{step}\n[[step]]\naction='quantize'\ntargets=['linears']\nscheme='w4a16'\n"));
        sandbox.refuses("quantize tiny --recipe wrong.toml --no-judge", words);
    };
    refused("[[step]]\naction='rotate'", &["does not say what to rotate", "\"heads\", \"residual\" or \"inputs\""]);
    refused("[[step]]\naction='rotate'\nwhere='keys'", &["rotates \"keys\"; there are \"heads\", \"residual\" and \"inputs\""]);
    refused("[[step]]\naction='rotate'\nwhere='heads'\nkind='random'", &["the kind \"random\"", "\"hadamard\", \"learned\""]);
    refused("[[step]]\naction='rotate'\nwhere='heads'\nangle=3", &["unknown key \"angle\"", "where, kind and gate"]);
    refused(
        "[[step]]\naction='rotate'\nwhere='inputs'\nkind='learned'",
        &["Hadamard matrices, which take no space", "kind = \"hadamard\""],
    );
    refused("portable = true\n[[step]]\naction='rotate'\nwhere='inputs'", &["portable result", "leave out"]);
    let twice = "[[step]]\naction='rotate'\nwhere='heads'\n".repeat(2);
    refused(&twice, &["two steps that rotate heads; leave one out"]);
    sandbox.write(
        "heads.toml",
        "[[step]]\naction='rotate'\nwhere='heads'\n[[step]]\naction='quantize'\ntargets=['linears']\nscheme='w8a16'\n",
    );
    sandbox.refuses("quantize tiny --recipe heads.toml --no-calibration --no-judge", &["rotations", "leave --no-calibration out"]);
    sandbox.write(
        "residual.toml",
        "[[step]]\naction='rotate'\nwhere='residual'\n[[step]]\naction='quantize'\ntargets=['linears']\nscheme='w4a16'\n",
    );
    sandbox.refuses("quantize pocket --recipe residual.toml --no-judge", &["the residual stream cannot be turned", "one matrix"]);
}

#[test]
fn a_preset_turns_inputs_where_that_pays() {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(20_000, 1));
    sandbox.octet(&format!("quantize tiny out --preset turned-w8a8 {RUN}")).done();
    let rotations = sandbox.json("out/quantization_config.json")["calibration"]["rotations"].clone();
    let inputs = rotations.as_array().unwrap();
    assert_eq!(inputs.len(), 12, "four inputs of three blocks: {rotations}");
    assert!(inputs.iter().any(|one| one["kept"] == "hadamard"), "{rotations}");
    sandbox.refuses_as(2, "quantize tiny --preset turned-w8a8 --portable --no-judge", &["only octet turns inputs", "smooth-w8a8"]);
    sandbox.refuses("quantize tiny --preset turned-w8a8 --no-calibration --no-judge", &["rotations", "leave --no-calibration out"]);
}

#[test]
fn inputs_turned_at_run_time_are_said_in_the_config_and_nothing_else_takes_them() {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(20_000, 1));
    sandbox.write("inputs.toml", RECIPE.replace("where = 'residual'", "where = 'inputs'\ngate = false"));
    sandbox.octet(&format!("quantize tiny out --recipe inputs.toml {RUN}")).done();
    let config = sandbox.json("out/config.json");
    let transforms = &config["quantization_config"]["transform_config"]["config_groups"]["inputs"];
    assert_eq!((&transforms["type"], &transforms["head_dim"]), (&"hadamard".into(), &8.into()));
    assert_eq!(transforms["apply"][0]["targets"].as_array().unwrap().len(), 21, "seven linears of three blocks");
    // Four bits of random weights, but the same model: far from what it would be were nothing turned.
    let kl = |folder: &str| sandbox.divergence(&format!("{folder} --base tiny --eval-text notes.txt --eval-tokens 2048"));
    let turned = kl("out");
    // What was turned learns like anything else, from an original that is turned alike.
    let learn = "[[step]]\naction = 'distill'\nsteps = 60\nbatch_tokens = 256\n";
    sandbox.write("learns.toml", format!("{}{learn}", RECIPE.replace("where = 'residual'", "where = 'inputs'\ngate = false")));
    sandbox.octet(&format!("quantize tiny learnt --recipe learns.toml {RUN}")).done();
    let learnt = kl("learnt");
    assert!(learnt < 0.95 * turned, "{learnt} after learning, {turned} before");
    let again = sandbox.octet("reproduce out --threads 1 --json").done().json();
    assert_eq!(again["identical"], true, "{again}");
    sandbox.octet("run out ab -n 2").done();
    for format in ["safetensors", "gguf:q8_0", "onnx", "mlx"] {
        sandbox.refuses(
            &format!("export out --format {format} --out elsewhere"),
            &["turns inputs of linears at run time", "without that step"],
        );
    }
    sandbox.edit_json("out/config.json", |config| config["quantization_config"]["transform_config"] = serde_json::json!({}));
    assert!(kl("out") > 5.0 * turned, "the turn is part of the model: {turned} and {}", kl("out"));
    sandbox.edit_json("out/config.json", |config| {
        config["quantization_config"]["transform_config"] =
            serde_json::json!({"config_groups": {"R1": {"type": "hadamard", "head_dim": 128}}});
    });
    sandbox.refuses("run out ab -n 2", &["transform_config", "does not run"]);
}
