//! Mixed precision: the default of `quantize`, budgets, what is kept and what is refused.

use crate::sandbox::Sandbox;
use std::fs;

/// A vote on few tokens: what counts here is that it all hangs together.
const QUICK: &str = "--eval-tokens 10240 --min-speedup 0 --calibration-samples 16 --max-ppl-increase 5 --yes";

#[test]
fn without_flags_the_smallest_that_passes() {
    let sandbox = Sandbox::empty();
    let cache = sandbox.path("cache");
    let command = |args: &str| {
        let mut command = sandbox.command();
        crate::sandbox::ended(command.env("XDG_CACHE_HOME", &cache).args(crate::sandbox::words(args)))
    };
    let first = command(&format!("quantize pocket {QUICK}")).done();
    assert!(first.stderr.contains("sensitivity of 17 groups") && first.stderr.contains("passes"), "{first:?}");
    let report = sandbox.json("pocket-mixed/validation_report.json");
    assert_eq!((report["status"].as_str(), report["scheme"].as_str()), (Some("accepted"), Some("mixed")));
    let decided = sandbox.json("pocket-mixed/mixed_precision.json");
    let bits = decided["bits_per_weight"].as_f64().unwrap();
    assert!((2.0..5.0).contains(&bits), "{bits}");
    let schemes: Vec<&str> = decided["groups"].as_array().unwrap().iter().filter_map(|group| group["scheme"].as_str()).collect();
    assert!(schemes.iter().any(|scheme| *scheme != schemes[0]), "{schemes:?}");

    // Nothing is measured twice, and the recipe that was settled on gives the same bytes.
    let written = fs::read(sandbox.path("pocket-mixed/model.safetensors")).unwrap();
    let again = command(&format!("quantize pocket {QUICK} --force")).done();
    assert!(again.stderr.contains("known from an earlier run"), "{again:?}");
    assert_eq!(fs::read(sandbox.path("pocket-mixed/model.safetensors")).unwrap(), written);
    sandbox.write("settled.toml", decided["recipe"].as_str().unwrap());
    command(&format!("quantize pocket same --recipe settled.toml --no-judge {QUICK}")).done();
    assert_eq!(fs::read(sandbox.path("same/model.safetensors")).unwrap(), written);

    // Other text is another measurement.
    let other = command(&format!("quantize pocket other --bits-per-weight 4 --no-judge {QUICK} --seed 1")).done();
    assert!(!other.stderr.contains("known from an earlier run"), "{other:?}");
}

#[test]
fn budgets() {
    let sandbox = Sandbox::new();
    let small = "--no-judge --calibration-samples 8 --calibration-length 64";
    sandbox.octet(&format!("quantize tiny out --bits-per-weight 4,6 {small}")).done();
    let bits = |name: &str| sandbox.json(&format!("out/{name}/mixed_precision.json"))["bits_per_weight"].as_f64().unwrap();
    assert!(bits("tiny-mixed-4") <= 4.0 && bits("tiny-mixed-6") <= 6.0 && bits("tiny-mixed-6") > 4.5);
    // What was taken diverges least of all that were measured, one scheme for everything among them.
    let candidates = sandbox.json("out/tiny-mixed-6/mixed_precision.json")["candidates"].as_array().unwrap().clone();
    let kl = |candidate: &serde_json::Value| candidate["kl"].as_f64().unwrap();
    let chosen = candidates.iter().find(|candidate| candidate["chosen"] == true).unwrap();
    assert!(candidates.len() > 1 && candidates.iter().all(|candidate| kl(chosen) <= kl(candidate)), "{candidates:?}");
    assert!(candidates.iter().any(|candidate| candidate["what"].as_str().unwrap().starts_with("one scheme for all")), "{candidates:?}");
    assert_eq!(sandbox.names("").iter().filter(|name| name.contains("candidate")).count(), 0);
    sandbox.octet(&format!("quantize tiny small --max-size 200KB {small}")).done();
    let bytes: u64 = sandbox.names("small").iter().map(|name| fs::metadata(sandbox.path("small").join(name)).unwrap().len()).sum();
    assert!(bytes <= 200_000, "{bytes}");
    sandbox.refuses(&format!("quantize tiny none --bits-per-weight 1 {small}"), &["1 bits a weight", "the smallest possible takes 2."]);
    sandbox.refuses(&format!("quantize tiny none --max-size 20KB {small}"), &["0.020 MB", "the smallest possible takes 2."]);
}

#[test]
fn a_recipe_fixes_what_it_names() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "recipe.toml",
        "[[step]]\naction = 'mixed'\ntargets = ['linears', 'embedding', 'head']\nschemes = ['w3a16-g32', 'w5a16-g32']\nbits_per_weight = 6.5\n\n\
         [[step]]\naction = 'quantize'\ntargets = ['down & layers:0']\nscheme = 'w8a16'\n",
    );
    sandbox.octet("quantize tiny out --recipe recipe.toml --no-judge --calibration-samples 8 --calibration-length 64").done();
    let facts = sandbox.json("out/quantization_config.json");
    assert!(facts.to_string().contains("w8a16"), "{facts}");
    let decided = sandbox.json("out/mixed_precision.json");
    let groups = decided["groups"].as_array().unwrap();
    assert!(groups.iter().all(|group| group["group"] != "layer 0 down"), "{decided}");
    assert!(
        groups.iter().all(|group| ["w3a16-g32-sym", "w5a16-g32-sym"].iter().any(|s| group["scheme"] == *s) || group["scheme"].is_null()),
        "{decided}"
    );
    sandbox.octet("reproduce out --threads 1").done();
    sandbox.write("twice.toml", "[[step]]\naction='mixed'\ntargets=['linears']\n[[step]]\naction='mixed'\ntargets=['head']\n");
    sandbox.refuses("quantize tiny --recipe twice.toml", &["two mixed steps", "one of them"]);
    sandbox.write("plain.toml", "[[step]]\naction='quantize'\ntargets=['linears']\nscheme='w8a16'\n");
    sandbox.refuses_as(2, "quantize tiny --recipe plain.toml --bits-per-weight 4", &["--bits-per-weight", "mixed step"]);
}
