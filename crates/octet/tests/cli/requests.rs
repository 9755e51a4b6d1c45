//! Requests that nothing supports: schemes, recipes, threads, numbers out of range.

use crate::sandbox::{Sandbox, ended, words};
use octet_formats::{Checkpoint, Folder};
use octet_tensor::WeightSource;
use octet_testkit::{MemorySource, write_folder};
use std::fs;

#[test]
fn schemes_nothing_supports() {
    let sandbox = Sandbox::new();
    for (scheme, why) in
        [("w9a16", "2 to 8 bits"), ("w4a4", "a16 or a8"), ("w4a16-g100", "group"), ("int8", "start like w8a16"), ("w8a16-left", "\"left\"")]
    {
        sandbox.refuses_as(2, &format!("quantize tiny --scheme {scheme}"), &[scheme, why, "write it like w8a16"]);
    }
    sandbox.refuses_as(2, "quantize tiny --bits 1", &["w1a16", "2 to 8 bits"]);
    sandbox.refuses_as(2, "quantize tiny --bits 4 --group-size 100", &["100", "32, 64, 128 or 256"]);
    sandbox.refuses_as(2, "quantize tiny --scheme w8a16,w8a16-pc", &["same scheme twice", "leave one out"]);
    sandbox.refuses("quantize tiny --scheme w4a16-g64 --portable --strict", &["down_proj", "64", "--strict"]);
}

#[test]
fn recipes_that_make_no_sense() {
    let sandbox = Sandbox::new();
    let step = |rest: &str| format!("[[step]]\naction = \"quantize\"\n{rest}\n");
    for (recipe, says) in [
        (step("targets = [\"linears\"]\nscheme = \"w8a16\"\nsmooth = 0.5"), &["unknown key \"smooth\"", "the keys are"][..]),
        (step("targets = [\"linears\"]\nscheme = \"w9a16\""), &["step 1", "w9a16"]),
        (step("targets = [\"router\"]\nscheme = \"w8a16\""), &["step 1", "\"router\"", "matches nothing", "it has"]),
        (step("targets = [\"layers:7-9\"]\nscheme = \"w8a16\""), &["\"layers:7-9\"", "matches nothing"]),
        (
            step("targets = [\"linears\"]\nscheme = \"w8a16\"") + &step("targets = [\"linears\"]\nscheme = \"w4a16\""),
            &["step 1", "decides nothing"],
        ),
        ("# one\nportable = maybe".into(), &["not TOML: line 2:"]),
        (String::new(), &["[[step]]"]),
    ] {
        sandbox.write("recipe.toml", recipe);
        sandbox.refuses("quantize tiny --recipe recipe.toml", says);
        sandbox.refuses("quantize tiny --recipe recipe.toml --dry-run", says);
    }
    sandbox.refuses("quantize tiny --recipe absent.toml", &["cannot read the recipe absent.toml", "check the path"]);
}

#[test]
fn too_little_calibration_says_how_much_is_missing() {
    let sandbox = Sandbox::new();
    let asked = "quantize pocket --scheme w4a16 --method gptq --calibration-samples";
    let says = ["1 calibration windows of 512 tokens are 512 tokens, 256 too few", "a Hessian of 768 inputs", "--calibration-samples 2"];
    sandbox.refuses(&format!("{asked} 1"), &says);
    sandbox.write("short.txt", "too short ".repeat(100));
    sandbox.refuses(&format!("{asked} 64 --calibration short.txt"), &["short.txt has only", "give ", " more"]);
}

/// The model `tiny` in floats with the weights that the codes of `folder` stand for.
fn decoded(sandbox: &Sandbox, folder: &str, to: &str) {
    let open = |name: &str| Checkpoint::open(&Folder::disk(&sandbox.path(name)).unwrap()).unwrap();
    let (original, quantized, mut floats) = (open("tiny"), open(folder), MemorySource::default());
    for name in original.names() {
        let tensor = original.tensor(&name).unwrap().unwrap();
        let module = name.strip_suffix(".weight").filter(|_| tensor.shape().len() == 2);
        let values = match module.and_then(|module| quantized.matrix(module).unwrap()) {
            Some(matrix) => {
                let mut values = vec![0.0; matrix.rows() * matrix.cols()];
                matrix.read_rows_f32(0..matrix.rows(), &mut values).unwrap();
                values
            }
            None => tensor.to_f32().unwrap(),
        };
        floats.insert(&name, tensor.shape().to_vec(), &values);
    }
    write_folder(&sandbox.path("tiny"), &floats, &sandbox.path(to)).unwrap();
}

#[test]
fn groups_in_activation_order_are_stored_and_run() {
    let sandbox = Sandbox::new();
    let step = "[[step]]\naction = 'quantize'\ntargets = ['linears']\nscheme = 'w4a16-g32'\nsolver = 'gptq'\nact_order = 'desc'\n";
    sandbox.write("desc.toml", step);
    let text = "--no-judge --calibration-samples 8 --calibration-length 64";
    sandbox.octet(&format!("quantize tiny out --recipe desc.toml {text}")).done();
    let config = sandbox.json("out/config.json");
    assert_eq!(config["quantization_config"]["config_groups"]["group_0"]["weights"]["actorder"], "group");
    let seen = sandbox.octet("inspect out --tensors").done().stdout;
    assert!(seen.contains("weight_g_idx"), "{seen}");
    sandbox.octet("run out hello -n 4").done();
    // What it computes is what a model of floats computes whose weights are what the codes stand for, and not what groups of
    // neighbours would give.
    decoded(&sandbox, "out", "floats");
    let kl = |base: &str| {
        let seen = sandbox.octet(&format!("eval out --base {base} --context 64 --eval-tokens 2048 --json")).done().json();
        seen["measures"]["kl"]["mean"].as_f64().unwrap()
    };
    let (same, original) = (kl("floats"), kl("tiny"));
    assert!(same < 1e-6 && original > 100.0 * same, "{same} {original}");
    sandbox.write("desc8.toml", step.replace("w4a16-g32", "w4a8-g32"));
    sandbox.refuses(&format!("quantize tiny two --recipe desc8.toml {text}"), &["act_order", "integer activations", "static"]);
}

#[test]
fn threads_and_instruction_sets() {
    let sandbox = Sandbox::new();
    for command in ["quantize tiny", "run tiny hello", "eval tiny", "bench tiny", "doctor"] {
        sandbox.refuses(&format!("{command} --threads 0"), &["--threads 0", "give 1 or more"]);
        sandbox.refuses(&format!("{command} --threads 100000"), &["--threads 100000", "leave it out"]);
        let before = sandbox.everything();
        let ended = ended(sandbox.command().env("OCTET_ISA", "avx1024").args(words(command)));
        let says = ["OCTET_ISA=avx1024", "not an instruction set of this machine", "choose one of scalar"];
        sandbox.check_refusal(1, &format!("{command} (OCTET_ISA=avx1024)"), &before, &ended, &says);
    }
}

#[test]
fn wrong_usage() {
    let sandbox = Sandbox::new();
    sandbox.refuses_as(2, "quantize", &["required", "MODEL"]);
    sandbox.refuses_as(2, "quantize tiny --presto w8", &["--presto"]);
    sandbox.refuses_as(2, "quantize tiny --preset w5", &["w5", "--preset"]);
    sandbox.refuses_as(2, "quantize tiny --bits 4 --scheme w4a16", &["--bits", "--scheme"]);
    for contradiction in [
        "--preset w8 --method gptq",
        "--preset w4 --method rtn",
        "--preset w8 --bits-per-weight 4",
        "--preset mixed --no-calibration",
        "--preset mixed --no-judge",
        "--bits-per-weight 4,4",
        "--bits-per-weight 20",
    ] {
        let named = contradiction.split(' ').rfind(|word| word.starts_with("--")).unwrap_or_default();
        sandbox.refuses_as(2, &format!("quantize tiny {contradiction}"), &[named]);
    }
    sandbox.refuses_as(2, "quantize tiny --preset w8 --scheme w4a16", &["--preset", "--scheme"]);
    sandbox.refuses_as(2, "quantize tiny --group-size 32", &["--bits"]);
    sandbox.refuses_as(2, "quantize tiny --threads -1", &["-1"]);
    sandbox.refuses_as(2, "quantize tiny --seed one", &["one", "--seed"]);
    sandbox.refuses_as(2, "compress tiny", &["compress"]);
    for command in ["run tiny hello", "eval tiny", "bench tiny"] {
        sandbox.refuses_as(2, &format!("{command} --kv int4"), &["int4", "--kv", "f32, f16, int16, int8"]);
    }
    sandbox.refuses_as(2, "eval tiny --base-kv f16", &["--base"]);
}

#[test]
fn numbers_out_of_range() {
    let sandbox = Sandbox::new();
    sandbox.refuses("quantize tiny --eval-tokens 0", &["--eval-tokens", "0"]);
    sandbox.refuses("quantize tiny --context 1", &["--context", "1"]);
    sandbox.refuses("quantize tiny --max-ppl-increase nan", &["--max-ppl-increase", "NaN"]);
    sandbox.refuses("quantize tiny --min-speedup nan", &["--min-speedup", "NaN"]);
    sandbox.refuses("eval tiny --context 0", &["--context", "0"]);
    sandbox.refuses("run tiny hello -n 0", &["--max-tokens 0", "give 1 or more"]);
    sandbox.refuses("run tiny hello --temperature -1", &["temperature", "-1"]);
    sandbox.refuses("run tiny hello --temperature 1 --top-p 1.5", &["top-p", "1.5"]);
    sandbox.refuses("run tiny hello --temperature 1 --min-p 2", &["min-p", "2"]);
    sandbox.refuses("run tiny hello --repetition-penalty 0", &["repetition penalty", "0"]);
    sandbox.refuses("run tiny hello --context 100000", &["100000", "256"]);
}

#[test]
fn prompts_that_cannot_be_continued() {
    let sandbox = Sandbox::new();
    sandbox.refuses("run tiny ''", &["prompt is empty"]);
    sandbox.refuses(&format!("run tiny '{}'", "long ".repeat(100)), &["500 tokens", "256", "shorten the prompt"]);
    let before = sandbox.everything();
    let silent = ended(sandbox.command().args(words("run tiny -")).write_stdin(""));
    sandbox.check_refusal(1, "run tiny - < /dev/null", &before, &silent, &["no prompt on stdin", "octet run tiny"]);
    let binary = ended(sandbox.command().args(words("run tiny -")).write_stdin([0xff, 0xfe, 0x80]));
    sandbox.check_refusal(1, "run tiny - < binary", &before, &binary, &["stdin", "UTF-8"]);
}

#[test]
fn token_ids_that_are_none() {
    let sandbox = Sandbox::new();
    let fixture = octet_testkit::fixtures().join("arch/qwen3");
    fs::copy(fixture.join("input_ids.npy"), sandbox.path("ids.npy")).unwrap();
    fs::copy(fixture.join("logits.npy"), sandbox.path("floats.npy")).unwrap();
    sandbox.write("foreign.npy", npy("<i8", "(2,)", &[5i64, 320].map(i64::to_le_bytes).concat()));
    sandbox.write("negative.npy", npy("<i8", "(1,)", &(-1i64).to_le_bytes()));
    sandbox.write("none.npy", npy("<i8", "(0,)", &[]));
    sandbox.write("deep.npy", npy("<i8", "(1, 1, 1)", &[0; 8]));
    sandbox.write("cut.npy", npy("<i8", "(4,)", &[0; 8]));
    for (ids, says) in [
        ("absent.npy", &["cannot read absent.npy", "check the path"][..]),
        ("floats.npy", &["floats.npy", "f4"]),
        ("foreign.npy", &["token 320", "vocabulary of 320"]),
        ("negative.npy", &["negative.npy holds -1", "from 0 to 319"]),
        ("none.npy", &["none.npy holds no token ids", "give at least one"]),
        ("deep.npy", &["deep.npy", "[1, 1, 1]", "expected [batch, tokens]"]),
        ("cut.npy", &["cut.npy"]),
    ] {
        sandbox.refuses(&format!("logits tiny --ids {ids} out.npy"), says);
    }
    sandbox.write("here.npy", "");
    sandbox.refuses("logits tiny --ids ids.npy here.npy", &["here.npy exists", "--force"]);
    sandbox.refuses("logits tiny --ids ids.npy no/where.npy", &["cannot write no/where.npy", "check the path"]);
}

#[test]
fn a_base_of_another_vocabulary() {
    let sandbox = Sandbox::new();
    sandbox.refuses("eval tiny --base pocket", &["4096", "320", "cannot be compared"]);
    sandbox.refuses("eval tiny --base nowhere", &["no folder nowhere"]);
}

/// An .npy file, version 1.0.
fn npy(kind: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}
