//! Outputs that cannot or must not be written.

use crate::sandbox::{Sandbox, write_tiny};
use std::fs;

#[test]
fn an_output_that_exists() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("tiny-w8a16")).unwrap();
    for command in ["quantize tiny --scheme w8a16", "quantize tiny --no-judge", "quantize tiny tiny-w8a16"] {
        sandbox.refuses(command, &["tiny-w8a16", "exists", "--force"]);
    }
    // --force replaces models, not whatever else has that name.
    fs::write(sandbox.path("tiny-w8a16/thesis.tex"), "years of work").unwrap();
    sandbox.refuses("quantize tiny --scheme w8a16 --force", &["tiny-w8a16", "does not look like a model folder", "remove it yourself"]);
    sandbox.write("file", "");
    for command in ["quantize tiny file", "quantize tiny file --force"] {
        sandbox.refuses(command, &["file", "choose another output folder"]);
    }
}

#[test]
fn an_output_that_is_not_writable() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "");
    sandbox.refuses("quantize tiny file/out", &["file", "not a folder", "choose another output folder"]);
    sandbox.refuses("quantize tiny no/such/out", &["no/such", "does not exist", "create it first"]);
    sandbox.refuses("quantize tiny ..", &["..", "give the name of a new folder"]);
    sandbox.refuses("quantize tiny /", &["give the name of a new folder"]);
}

#[cfg(unix)]
#[test]
fn an_output_without_permission() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("locked")).unwrap();
    fs::set_permissions(sandbox.path("locked"), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(sandbox.path("locked/probe"), "").is_ok() {
        let _ = fs::remove_file(sandbox.path("locked/probe"));
        println!("skipped: this user may write everywhere");
        return;
    }
    sandbox.refuses("quantize tiny locked/out", &["locked/out", "not writable", "choose another output folder"]);
}

#[test]
fn an_output_that_touches_the_input() {
    let sandbox = Sandbox::empty();
    fs::create_dir(sandbox.path("outer")).unwrap();
    write_tiny(&sandbox.path("outer/tiny"));
    for force in ["", " --force"] {
        sandbox
            .refuses(&format!("quantize outer/tiny outer/tiny{force}"), &["outer/tiny", "it is the input", "choose another output folder"]);
        sandbox.refuses(&format!("quantize outer/tiny outer/tiny/out{force}"), &["inside the input", "choose a folder outside"]);
        sandbox.refuses(&format!("quantize outer/tiny outer{force}"), &["outer", "lies inside it", "choose another output folder"]);
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("outer/tiny", sandbox.path("alias")).unwrap();
        sandbox.refuses("quantize alias outer/tiny --force", &["it is the input"]);
        sandbox.refuses("quantize outer/tiny alias --force", &["choose another output folder"]);
        sandbox.refuses("quantize outer/tiny alias/out", &["inside the input"]);
    }
}

/// A limit on the size of files stands in for a disk that is full halfway through.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up() {
    let sandbox = Sandbox::new();
    for (scheme, kilobytes) in [("w8a16", 64), ("w4a16-g32", 16)] {
        let before = sandbox.everything();
        // Without the trap the limit would end the process before it could say anything.
        let script = format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$0\" quantize tiny out --no-judge --scheme {scheme}");
        let mut bash = assert_cmd::Command::new("bash");
        let ended = crate::sandbox::ended(bash.current_dir(sandbox.path("")).args(["-c", &script, env!("CARGO_BIN_EXE_octet")]));
        let what = format!("quantize tiny out --scheme {scheme} (files limited to {kilobytes} kB)");
        sandbox.check_refusal(1, &what, &before, &ended, &["model.safetensors", "ulimit -f", "write elsewhere"]);
    }
}

/// A disk too small for the forecast is refused before anything is written to it.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_too_small() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("disk")).unwrap();
    let inside = |script: &str| {
        let mut unshare = assert_cmd::Command::new("unshare");
        let script = format!("mount -t tmpfs -o size=100k tmpfs disk && {script}");
        unshare.current_dir(sandbox.path("")).args(["-rm", "sh", "-c", &script, env!("CARGO_BIN_EXE_octet")]);
        unshare.output().map(|output| (output.status.code(), String::from_utf8(output.stderr).unwrap()))
    };
    if !inside("true").is_ok_and(|(code, _)| code == Some(0)) {
        println!("skipped: this user may not mount a file system in a namespace of its own");
        return;
    }
    let before = sandbox.everything();
    let (code, stderr) = inside("\"$0\" quantize tiny disk/out --no-judge; code=$?; test -z \"$(ls -A disk)\" && exit $code").unwrap();
    let ended = crate::sandbox::Ended { code, stdout: String::new(), stderr };
    let what = "quantize tiny disk/out (a disk of 100 kB)";
    sandbox.check_refusal(1, what, &before, &ended, &["disk/out has 0.1 MB free, 0.2 MB are needed", "free some space"]);
}

/// Packed weights are used where they belong to the weights beside them, and change nothing; otherwise the model runs without.
#[test]
fn packed_weights_are_used_or_left() {
    let sandbox = Sandbox::new();
    sandbox.octet("quantize tiny plain --scheme w4a8-g32 --no-judge").done();
    sandbox.octet("quantize tiny packed --scheme w4a8-g32 --no-judge --prepack --no-receipt").done();
    assert!(sandbox.path("plain/receipt.json").exists() && !sandbox.path("packed/receipt.json").exists());
    let text = |model: &str| sandbox.octet(&format!("run {model} --raw --json -n 8 --temperature 0 abc")).done().json()["text"].clone();
    let packed = || sandbox.octet("inspect packed --json").done().json()["packed"].clone();
    let expected = text("plain");
    assert_eq!((packed(), text("packed")), (true.into(), expected.clone()));
    assert_eq!(sandbox.octet("inspect plain --json").done().json()["packed"], false);
    let whole = fs::read(sandbox.path("packed/model.packed")).unwrap();
    for (what, bytes) in [
        ("incomplete or damaged", whole[..whole.len() - 1].to_vec()),
        ("no file of packed weights", b"hello".to_vec()),
        ("of format 255", [&whole[..8], &[255], &whole[9..]].concat()),
    ] {
        sandbox.write("packed/model.packed", bytes);
        assert!(packed().as_str().unwrap().contains(what), "{what}: {}", packed());
        assert_eq!(text("packed"), expected, "{what}");
    }
    // Of another layout, and then beside other weights.
    sandbox.write("packed/model.packed", [&whole[..12], &[255], &whole[13..]].concat());
    assert_eq!(text("packed"), expected);
    sandbox.write("packed/model.packed", &whole);
    sandbox.octet("quantize tiny other --scheme w8a8 --no-judge").done();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(sandbox.path(format!("other/{file}")), sandbox.path(format!("packed/{file}"))).unwrap();
    }
    assert!(packed().as_str().unwrap().contains("is not the file it was made from"), "{}", packed());
    assert_eq!(text("packed"), text("other"));
}
