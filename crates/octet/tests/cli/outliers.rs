//! Activation outliers: planted in the built-in model, they break plain 8-bit activations and nothing that copes with them.

use crate::sandbox::{Sandbox, pocket};
use octet_formats::{Checkpoint, Folder};
use octet_model::ArchSpec;
use octet_quant::{BlockWeights, plant_outliers};
use octet_tensor::Dtype;
use octet_testkit::write_folder;

/// Windows of 512 of the built-in text; speed is not what this is about.
const JUDGED: &str = "--context 512 --eval-tokens 10240 --health-prompts 4 --min-speedup 0 --yes --json";

/// The folder `planted`: the built-in model with outliers.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::empty();
    let checkpoint = Checkpoint::open(&Folder::disk(&pocket()).unwrap()).unwrap();
    let mut spec = ArchSpec::from_config(checkpoint.config()).unwrap();
    spec.settle(&checkpoint).unwrap();
    let mut weights = BlockWeights::new(&checkpoint);
    let planted = plant_outliers(&spec.graph(), Dtype::Bf16, &mut weights).unwrap();
    assert_eq!(planted.len(), 16, "two norms, the values and the way up of four blocks");
    write_folder(&pocket(), &weights, &sandbox.path("planted")).unwrap();
    sandbox
}

#[test]
fn planted_outliers_are_refused_with_plain_activations_and_accepted_when_smoothed_or_set_aside() {
    let sandbox = sandbox();
    // Nothing but the way it is computed has changed.
    let same = sandbox.octet("eval planted --base pocket --context 512 --eval-tokens 4096 --json").done().json();
    let kl = same["measures"]["kl"]["mean"].as_f64().unwrap();
    assert!(kl < 1e-5, "{kl}");
    let plain = sandbox.octet(&format!("quantize planted plain --scheme w8a8 --no-ladder {JUDGED}"));
    assert_eq!(plain.code, Some(3), "{plain:?}");
    assert_eq!(plain.json()["reports"][0]["status"], "refused");
    let smooth = sandbox.octet(&format!("quantize planted smooth --preset smooth-w8a8 {JUDGED}")).done().json();
    assert_eq!(smooth["reports"][0]["status"], "accepted");
    let aside = sandbox.octet(&format!("quantize planted aside --method llm-int8 --no-calibration {JUDGED}")).done().json();
    assert_eq!((&aside["reports"][0]["status"], &aside["reports"][0]["scheme"]), (&"accepted".into(), &"w8a8-o6".into()));
    let fixed = format!("quantize planted fixed --method llm-int8 --calibration-samples 8 {JUDGED}");
    let fixed = sandbox.octet(&fixed).done().json();
    assert_eq!((&fixed["reports"][0]["status"], &fixed["reports"][0]["scheme"]), (&"accepted".into(), &"llm-int8".into()));
    let tried = sandbox.json("fixed/mixed_precision.json")["candidates"].as_array().unwrap().clone();
    let chosen: Vec<_> = tried.iter().filter(|one| one["chosen"] == true).map(|one| one["what"].as_str().unwrap()).collect();
    assert_eq!((tried.len(), &chosen[..]), (3, &["w8a8-c1 for all"][..]), "planted columns are what fixed columns are for: {tried:?}");
    let calls = fixed["reports"][0]["measures"]["kernels"].to_string();
    assert!(calls.contains("float-outliers"), "{calls}");
    let described = sandbox.json("smooth/quantization_config.json");
    assert_eq!(described["method"], "smoothquant+rtn");
}

#[test]
fn methods_that_do_not_fit_what_is_asked_say_so() {
    let sandbox = Sandbox::new();
    sandbox
        .refuses("quantize tiny --method smoothquant --scheme w8a16", &["step 1 of the recipe makes no sense", "activations stay exact"]);
    sandbox.refuses("quantize tiny --method awq --no-calibration", &["so they need calibration; leave --no-calibration out"]);
    sandbox.refuses("quantize tiny --scheme w8a8-c1 --no-calibration", &["fixed outlier columns", "leave --no-calibration out"]);
    sandbox.refuses_as(2, "quantize tiny --method llm-int8 --scheme w8a16", &["inputs of 8 bits with one scale a token", "use w8a8"]);
    sandbox.write("short.txt", "too short ".repeat(100));
    sandbox.refuses("quantize tiny --method awq --no-judge --calibration short.txt", &["short.txt has only 1000 tokens", "give 3096 more"]);
}
