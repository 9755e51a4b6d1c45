//! Codes of four bits that are no even steps, and scales that are no floats.

use crate::sandbox::Sandbox;

#[test]
fn levels_of_every_matrix_and_points_are_written_run_and_no_other_format_has_them() {
    let sandbox = Sandbox::empty();
    sandbox.octet("quantize pocket q --scheme w4la16-g32 --method rtn --no-judge --no-receipt").done();
    let facts = sandbox.octet("inspect q --tensors --json").done().json();
    let levels = facts["tensors"].as_array().unwrap().iter().filter(|tensor| tensor["name"].as_str().unwrap().ends_with(".weight_levels"));
    assert!(levels.clone().count() > 8 && levels.clone().all(|tensor| tensor["dtype"] == "I8" && tensor["shape"][0] == 16));
    let kl = |folder: &str| sandbox.divergence(&format!("{folder} --base pocket --eval-tokens 4096"));
    sandbox.octet("quantize pocket even --scheme w4a16-g32 --method rtn --no-judge --no-receipt").done();
    let (own, even) = (kl("q"), kl("even"));
    assert!(own < 0.95 * even, "{own} of {even}");
    sandbox.refuses("export q --format gguf", &["levels of a table that no type of GGUF has", "--requantize"]);
    sandbox.refuses("export q --format npz", &["levels of a table", "--requantize"]);
    sandbox.octet("quantize pocket points --scheme w4ea16-g32 --method rtn --no-judge --no-receipt").done();
    let points = kl("points");
    assert!(points < even, "{points} of {even}");
    sandbox.refuses("export points --format gguf", &["points of a lattice", "--requantize"]);
    sandbox.octet("export q --format gguf:iq4_nl --requantize --no-calibration --no-judge").done();
}

#[test]
fn whole_scales_are_written_run_and_no_other_format_has_them() {
    let sandbox = Sandbox::empty();
    sandbox.octet("quantize pocket q --scheme w4ta16-g16-s8 --method rtn --no-judge --no-receipt").done();
    assert_eq!(sandbox.json("q/config.json")["quantization_config"]["config_groups"]["group_0"]["format"], "octet-scales");
    let facts = sandbox.octet("inspect q --tensors --json").done().json();
    let of =
        |end: &str| facts["tensors"].as_array().unwrap().iter().filter(|tensor| tensor["name"].as_str().unwrap().ends_with(end)).count();
    assert!(of(".weight_scale_factor") > 8 && of(".weight_scale_factor") < of(".weight_scale"));
    let kl = |folder: &str| sandbox.divergence(&format!("{folder} --base pocket --eval-tokens 4096"));
    sandbox.octet("quantize pocket float --scheme w4ta16-g32 --method rtn --no-judge --no-receipt").done();
    let (whole, float) = (kl("q"), kl("float"));
    assert!(whole < 0.9 * float, "{whole} of {float}");
    sandbox.refuses("export q --format gguf", &["factor of the row", "--requantize"]);
    sandbox.refuses("export q --format npz", &["levels of a table", "--requantize"]);
}
