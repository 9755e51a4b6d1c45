//! `octet quantize` where all is well, and where a gate refuses.

use crate::sandbox::{Sandbox, pocket};
use serde_json::{Value, json};
use std::fs;

/// What a folder holds that was not judged; the model's own files first named where they come from.
const UNJUDGED: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "quantization_config.json",
    "receipt.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

fn gate<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["gates"].as_array().unwrap().iter().find(|gate| gate["name"] == name).unwrap_or_else(|| panic!("no gate {name}: {report:#}"))
}

#[test]
fn pocket_becomes_an_accepted_int8() {
    let sandbox = Sandbox::empty();
    // Speed on a busy machine is not what this test is about.
    let ended = sandbox.octet("quantize pocket --scheme w8a16 --eval-tokens 20480 --min-speedup 0 --yes --json").done();
    let document = ended.json();
    let mut files: Vec<&str> = UNJUDGED.to_vec();
    files.extend(["decision_log.jsonl", "report.html", "validation_report.json"]);
    files.sort_unstable();
    assert_eq!(sandbox.names("pocket-w8a16"), files);
    assert_eq!(sandbox.names(""), ["pocket-w8a16", "quantization_summary.json"]);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(fs::read(sandbox.path("pocket-w8a16").join(name)).unwrap(), fs::read(pocket().join(name)).unwrap(), "{name}");
    }

    let report = sandbox.json("pocket-w8a16/validation_report.json");
    assert_eq!(document["reports"][0], report);
    assert!(document["paths"][0].as_str().unwrap().ends_with("pocket-w8a16"));
    assert_eq!(document["summary"], sandbox.json("quantization_summary.json"));
    assert_eq!((&report["schema_version"], &report["status"], &report["scheme"]), (&json!(1), &json!("accepted"), &json!("w8a16")));
    assert_eq!(report["command"].as_array().unwrap()[1..4], [json!("quantize"), json!("pocket"), json!("--scheme")]);
    for name in ["quality", "fidelity.kl", "fidelity.top1", "size.linears", "size.forecast", "speed", "health", "integrity"] {
        let gate = gate(&report, name);
        assert_eq!(gate["pass"], json!(true), "{gate:#}");
        for key in ["value", "ci95", "threshold", "blocking", "note"] {
            assert!(gate.get(key).is_some(), "{name} has no {key}");
        }
    }
    let measures = &report["measures"];
    for key in ["ppl", "kl", "top1", "bits_per_byte", "size", "speed", "memory", "health"] {
        assert!(!measures[key].is_null(), "no {key}");
    }
    let ratio = measures["ppl"]["ratio"].as_f64().unwrap();
    assert!((0.98..1.02).contains(&ratio), "{ratio}");
    assert!(measures["size"]["ratio"].as_f64().unwrap() < 0.6, "{}", measures["size"]);
    assert!(!report["machine"]["cpu"].is_null() && !report["machine"]["isa"].is_null());

    let described = sandbox.json("pocket-w8a16/quantization_config.json");
    assert_eq!((&described["scheme"], &described["method"], &described["portable"]), (&json!("w8a16"), &json!("rtn"), &json!(false)));
    let config = sandbox.json("pocket-w8a16/config.json");
    assert_eq!(config["quantization_config"]["quant_method"], json!("compressed-tensors"));
    assert_eq!(config["vocab_size"], json!(4096));
}

#[test]
fn a_gate_that_cannot_be_passed_refuses() {
    let sandbox = Sandbox::new();
    let ended = sandbox.octet("quantize tiny --preset w8 --eval-tokens 20480 --max-ppl-increase -1");
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stdout.contains("tiny as w8a16-g128: REFUSED") && ended.stdout.contains("FAIL      quality"), "{ended:?}");
    assert!(ended.stdout.contains("nothing was kept but the report, ./tiny-w8a16-g128.refused.json"), "{ended:?}");
    assert_eq!(sandbox.names(""), ["quantization_summary.json", "tiny", "tiny-w8a16-g128.refused.json", "tiny-w8a16-g128.refused.jsonl"]);
    let report = sandbox.json("tiny-w8a16-g128.refused.json");
    assert_eq!(report["status"], json!("refused"));
    let quality = gate(&report, "quality");
    assert_eq!((&quality["pass"], &quality["blocking"], &quality["threshold"]), (&json!(false), &json!(true), &json!(0.99)));
    assert_eq!(sandbox.json("quantization_summary.json")["variants"][0]["path"], Value::Null);
}

#[test]
fn too_little_text_is_undecided_and_several_schemes_are_compared() {
    let sandbox = Sandbox::new();
    let ended = sandbox.octet("quantize tiny --scheme w8a16,w8a8 --eval-tokens 512 --min-speedup 0 --json");
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let document = ended.json();
    assert_eq!(document["paths"], json!([null, null]));
    for report in document["reports"].as_array().unwrap() {
        assert_eq!(report["status"], json!("undecided"));
        let note = gate(report, "quality")["note"].as_str().unwrap();
        assert!(note.contains("more tokens"), "{note}");
    }
    let files = [
        "quantization_summary.html",
        "quantization_summary.json",
        "tiny",
        "tiny-w8a16.refused.json",
        "tiny-w8a16.refused.jsonl",
        "tiny-w8a8.refused.json",
        "tiny-w8a8.refused.jsonl",
    ];
    assert_eq!(sandbox.names(""), files);
}

#[test]
fn a_dry_run_writes_nothing() {
    let sandbox = Sandbox::empty();
    let plan = sandbox.octet("quantize pocket --scheme w4a16-g32 --dry-run").done().stdout;
    let timeless: Vec<&str> = plan.lines().filter(|line| !line.starts_with("time ") && !line.starts_with("running ")).collect();
    insta::assert_snapshot!(timeless.join("\n"), @r###"
pocket as w4a16-g32

tensor                                          count  role       shape       stored  becomes                         MB            why
model.embed_tokens                              1      embedding  4096 x 256  BF16    w8a16-pc-sym rtn, BF16 scales   2.10 -> 1.06
model.layers.*.self_attn.q_proj                 4      q          256 x 256   BF16    w4a16-g32-sym rtn, BF16 scales  0.52 -> 0.15
model.layers.*.self_attn.k_proj                 4      k          128 x 256   BF16    w4a16-g32-sym rtn, BF16 scales  0.26 -> 0.07
model.layers.*.self_attn.v_proj                 4      v          128 x 256   BF16    w4a16-g32-sym rtn, BF16 scales  0.26 -> 0.07
model.layers.*.self_attn.o_proj                 4      o          256 x 256   BF16    w4a16-g32-sym rtn, BF16 scales  0.52 -> 0.15
model.layers.*.mlp.gate_proj                    4      gate       768 x 256   BF16    w4a16-g32-sym rtn, BF16 scales  1.57 -> 0.44
model.layers.*.mlp.up_proj                      4      up         768 x 256   BF16    w4a16-g32-sym rtn, BF16 scales  1.57 -> 0.44
model.layers.*.mlp.down_proj                    4      down       256 x 768   BF16    w4a16-g32-sym rtn, BF16 scales  1.57 -> 0.44
model.layers.*.input_layernorm.weight           4      other      256         BF16    BF16                            0.00 -> 0.00  not a weight matrix
model.layers.*.post_attention_layernorm.weight  4      other      256         BF16    BF16                            0.00 -> 0.00  not a weight matrix
model.layers.*.self_attn.k_norm.weight          4      other      64          BF16    BF16                            0.00 -> 0.00  not a weight matrix
model.layers.*.self_attn.q_norm.weight          4      other      64          BF16    BF16                            0.00 -> 0.00  not a weight matrix
model.norm.weight                               1      other      256         BF16    BF16                            0.00 -> 0.00  not a weight matrix

weights   8.39 MB -> 2.84 MB (2.95x smaller)
bits      4.501 a weight of the linears, 5.399 of everything
memory    2.27 MB of buffers while quantizing
calibrate 64 windows, 32768 tokens of built-in calibration text
at most   95.7 MB with one block at a time; hidden states (33.6 MB) in memory
"###);
    assert!(plan.contains("of solving, by this machine's measured rate"), "{plan}");
    let document = sandbox.octet("quantize pocket --scheme w8a16,w8a8 --dry-run --json").done().json();
    assert_eq!((&document[0]["scheme"], &document[1]["scheme"]), (&json!("w8a16"), &json!("w8a8")));
    let tensors = document[0]["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|t| t["name"] == "model.layers.3.mlp.down_proj" && t["becomes"] == "w8a16-pc-sym"));
    for key in ["stored_bytes", "artefact_bytes", "linear_bits", "all_bits", "buffer_bytes", "seconds"] {
        assert!(document[0]["forecast"][key].is_number(), "{key}");
    }
    assert_eq!(sandbox.names(""), [""; 0]);
}

#[test]
fn unjudged_portable_and_renamed_outputs() {
    let sandbox = Sandbox::empty();
    let ended = sandbox.octet("quantize pocket --no-judge").done();
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("wrote ./pocket-w8a16 (") && ended.stderr.contains("not judged"), "{ended:?}");
    assert_eq!(sandbox.names("pocket-w8a16"), UNJUDGED);

    let document = sandbox.octet("quantize pocket --no-judge --portable --json").done().json();
    assert_eq!(document["judged"], json!(false));
    assert!(document["paths"][0].as_str().unwrap().ends_with("pocket-w8a16-portable"));
    let dtype = |folder: &str| {
        let facts = sandbox.octet(&format!("inspect {folder} --tensors --json")).done().json();
        let tensors = facts["tensors"].as_array().unwrap().clone();
        let table: Vec<_> = tensors.into_iter().filter(|t| t["name"].as_str().unwrap().starts_with("model.embed_tokens.weight")).collect();
        table.iter().map(|t| t["dtype"].as_str().unwrap().to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(dtype("pocket-w8a16-portable"), "BF16");
    assert!(!dtype("pocket-w8a16").starts_with("BF16"), "{}", dtype("pocket-w8a16"));
    assert_eq!(sandbox.json("pocket-w8a16-portable/quantization_config.json")["portable"], json!(true));

    sandbox.octet("quantize pocket --no-judge ./elsewhere --preset w4").done();
    assert_eq!(sandbox.json("elsewhere/quantization_config.json")["scheme"], json!("w4ta16-g32"));
    sandbox.octet("quantize pocket --no-judge --bits 4 --group-size 64").done();
    assert_eq!(sandbox.json("pocket-w4a16-g64/quantization_config.json")["group_size"], json!(64));
}

#[test]
fn force_replaces_a_model() {
    let sandbox = Sandbox::new();
    sandbox.octet("quantize tiny out --no-judge").done();
    sandbox.write("out/left-over.txt", "of the old one");
    sandbox.octet("quantize tiny out --no-judge --force --scheme w4a16-g32").done();
    assert_eq!(sandbox.names("out"), UNJUDGED);
    assert_eq!(sandbox.json("out/quantization_config.json")["scheme"], json!("w4a16-g32"));
    assert_eq!(sandbox.names(""), ["out", "tiny"]);
}

#[test]
fn several_schemes_share_a_folder() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("variants")).unwrap();
    sandbox.octet("quantize tiny variants/ --scheme w8a16,w4a16-g32-asym --no-judge").done();
    assert_eq!(sandbox.names("variants"), ["tiny-w4a16-g32-asym", "tiny-w8a16"]);
    // One that exists is refused before any is written.
    sandbox.refuses("quantize tiny variants --scheme w8a8,w8a16 --no-judge", &["tiny-w8a16", "exists already", "--force"]);
}

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", crate::sandbox::prose(5_000, 3));
    let calibration = "tiny --calibration notes.txt --no-judge";
    let runs = [
        "pocket --no-judge --scheme w8a8".into(),
        format!("{calibration} --scheme w4a16-g32-asym"),
        format!("{calibration} --scheme w4a8 --portable"),
    ];
    for run in runs {
        for threads in [1, 2, 3] {
            sandbox.octet(&format!("quantize {run} --threads {threads}").replacen(" --", &format!(" t{threads} --"), 1)).done();
        }
        for other in ["t2", "t3"] {
            for file in ["model.safetensors", "config.json", "quantization_config.json"] {
                let read = |folder: &str| fs::read(sandbox.path(folder).join(file)).unwrap();
                assert!(read("t1") == read(other), "{run}: {file} of {other} differs from that of t1");
            }
        }
        for folder in ["t1", "t2", "t3"] {
            fs::remove_dir_all(sandbox.path(folder)).unwrap();
        }
    }
}
