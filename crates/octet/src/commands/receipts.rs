//! `octet verify --receipt`, `octet reproduce` and `octet keygen`.

use super::{
    say_json,
    text::{self, BuiltIn, Given},
};
use crate::{
    Ended,
    args::{Global, Keygen, Reproduce, Verify},
    interrupt, machine, resolve,
    ui::{self, Progress},
};
use anyhow::{Context, Result, bail};
use octet_eval::memory::available_memory;
use octet_flow::{
    Calibration, Receipt,
    receipt::{self, Keys, PublicKey, RECEIPT_FILE, SignedBy, Verification, Wrong},
};
use octet_formats::Folder;
use octet_model::ArchSpec;
use octet_quant::Samples;
use octet_runtime::{ChatTemplate, Tokenizer};
use serde_json::json;
use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// Where the system gives random bytes.
const SYSTEM_RANDOM: &str = "/dev/urandom";

/// The receipt's file and the folder it is about.
fn place(given: &Path) -> (PathBuf, PathBuf) {
    if given.is_dir() {
        return (given.join(RECEIPT_FILE), given.to_path_buf());
    }
    let parent = given.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    (given.to_path_buf(), parent.to_path_buf())
}

/// The original that is named, or the one the receipt names where it is still there.
fn original(receipt: &Receipt, asked: Option<&str>) -> Result<Option<Folder>> {
    match (asked, &receipt.model.path) {
        (Some(model), _) => resolve::resolve(model).map(Some),
        (None, Some(path)) => Ok(path.is_dir().then(|| Folder::disk(path)).transpose()?),
        (None, None) => resolve::resolve(&receipt.model.name).map(Some),
    }
}

/// `octet verify --receipt`.
pub(crate) fn verify(given: &Path, args: &Verify, global: &Global) -> Result<Ended> {
    let (file, folder) = place(given);
    let receipt = Receipt::read(&file)?;
    let key = args.key.as_deref().map(PublicKey::read).transpose()?;
    let original = original(&receipt, args.original.as_deref())?;
    let engine = machine::engine(global.threads)?;
    let found = receipt::verify(&receipt, &folder, original.as_ref(), key.as_ref(), &engine)?;
    if global.json {
        say_json(&json!({ "receipt": file, "holds": found.findings.is_empty(), "verification": found }))?;
    } else {
        verified(&receipt, &folder, &found).iter().for_each(|line| ui::say(line));
    }
    Ok(if found.findings.is_empty() { Ended::Done } else { Ended::Refused })
}

/// What a person is told about a verification.
fn verified(receipt: &Receipt, folder: &Path, found: &Verification) -> Vec<String> {
    let mut lines = vec![];
    let word = match found.findings.is_empty() {
        true => "AS WRITTEN",
        false if found.findings.iter().all(|finding| finding.wrong == Wrong::Signature) => "NOT SIGNED AS EXPECTED",
        false => "CHANGED",
    };
    lines.push(format!("\n{}: {word}\n", ui::path(folder)));
    for finding in &found.findings {
        let mark = match finding.wrong {
            Wrong::Changed => "changed",
            Wrong::Missing => "missing",
            Wrong::Unknown => "added",
            Wrong::Signature => "signature",
        };
        let part = if finding.part == "artefact" { String::new() } else { format!("{}: ", finding.part) };
        lines.push(format!("  {mark:<9} {part}{}", finding.file));
        lines.push(format!("            {}", finding.note));
        for tensor in finding.tensors.iter().take(8) {
            lines.push(format!("            tensor {tensor}"));
        }
        if finding.tensors.len() > 8 {
            lines.push(format!("            and {} tensors more", finding.tensors.len() - 8));
        }
    }
    if !found.findings.is_empty() {
        lines.push(String::new());
    }
    lines.push(format!("  artefact  {} files, {}", found.files, ui::bytes(found.bytes)));
    let state = if found.original { "checked" } else { "not here, so not checked; name it with --original" };
    lines.push(format!("  original  {}: {state}", receipt.model.name));
    lines.push(match &found.signed_by {
        SignedBy::Nobody => "  signature none: the receipt shows damage, not forgery".into(),
        SignedBy::Expected(key) => format!("  signature by the key you gave\n            {key}"),
        SignedBy::Somebody(key) => format!("  signature by a key you did not name (--key FILE)\n            {key}"),
    });
    lines
}

/// `octet reproduce`.
pub(crate) fn reproduce(args: &Reproduce, global: &Global) -> Result<Ended> {
    let (file, _) = place(&args.receipt);
    let receipt = Receipt::read(&file)?;
    let engine = machine::engine(global.threads)?;
    let Some(input) = original(&receipt, args.original.as_deref())? else {
        bail!("the original {} is no longer at {}; say where it is with --original", receipt.model.name, shown(&receipt));
    };
    let calibration = calibration(&receipt, &input)?;
    let parent = args.work.clone().unwrap_or_else(std::env::temp_dir);
    let work = parent.join(format!("octet-reproduce-{}", std::process::id()));
    let mut progress = Progress::new();
    let mut step = |stage: &str, done, total, detail: &str| progress.update(stage, done, total, detail);
    let again = receipt::reproduce(&receipt, &input, calibration.as_ref(), &engine, &work, interrupt::flag(), &mut step);
    progress.finish();
    let again = match again {
        Err(error) if error.is_pause() => return Ok(Ended::Interrupted),
        other => other?,
    };
    if global.json {
        say_json(&json!({ "receipt": file, "identical": again.is_identical(), "reproduction": again }))?;
    } else if again.is_identical() {
        ui::say(&format!("\n{} as {}: SAME BYTES\n", receipt.model.name, receipt.plan.label));
        ui::say(&format!("  {} tensors, {} files, {} threads", again.tensors, again.files, engine.threads()));
    } else {
        ui::say(&format!("\n{} as {}: DIFFERENT\n", receipt.model.name, receipt.plan.label));
        let listed = [("tensor", &again.different_tensors), ("file", &again.different_files)];
        for (what, names) in listed {
            names.iter().for_each(|name| ui::say(&format!("  {what:<7} {name}")));
        }
        again.circumstances.iter().for_each(|what| ui::say(&format!("  note    {what}")));
    }
    Ok(if again.is_identical() { Ended::Done } else { Ended::Refused })
}

fn shown(receipt: &Receipt) -> String {
    receipt.model.path.as_deref().map_or_else(|| receipt.model.name.clone(), |path| path.display().to_string())
}

/// The calibration that the receipt's texts give.
fn calibration(receipt: &Receipt, input: &Folder) -> Result<Option<Calibration>> {
    let Some(record) = &receipt.calibration else { return Ok(None) };
    let checkpoint = octet_formats::Checkpoint::open(input)?;
    let vocab = ArchSpec::from_config(checkpoint.config())?.vocab_size();
    let files: Vec<PathBuf> = record.texts.iter().filter_map(|text| text.path.clone()).collect();
    let (tokenizer, chat) = (Tokenizer::open(input)?, ChatTemplate::open(input)?);
    let given = Given { files: &files, field: record.field.as_deref(), chat: chat.as_ref() };
    let tokens = text::tokens(given, BuiltIn::Calibration, &tokenizer, vocab, 1, usize::MAX)?;
    if let Some((was, is)) = record.texts.iter().zip(&tokens.sources).find(|(was, is)| was.sha256 != is.sha256) {
        bail!("the calibration text {} is not what it was ({} now); restore it", was.name, is.name);
    }
    Ok(Some(Calibration {
        texts: record.texts.iter().map(|text| text.name.clone()).collect(),
        sources: record.texts.clone(),
        field: record.field.clone(),
        length: record.length,
        samples: Samples::draw(&tokens.ids, record.windows.len(), record.length, receipt.seed),
        text: Samples::draw(&tokens.ids, usize::MAX, record.length, receipt.seed),
        sequential: record.true_sequential,
        memory_budget: available_memory().map_or(u64::MAX, |free| free / 2),
        restart: true,
    }))
}

/// `octet keygen`.
pub(crate) fn keygen(args: &Keygen, global: &Global) -> Result<Ended> {
    let mut seed = [0; 32];
    let source = args.random.as_deref().unwrap_or(Path::new(SYSTEM_RANDOM));
    let read = File::open(source).and_then(|mut file| file.read_exact(&mut seed));
    read.with_context(|| format!("cannot read 32 random bytes from {}; name a file of random bytes with --random", source.display()))?;
    let keys = Keys::from_seed(seed);
    let mut name = args.file.clone().into_os_string();
    name.push(".pub");
    let public = PathBuf::from(name);
    for path in [&args.file, &public] {
        if path.exists() {
            bail!("{} exists already; choose another name, keys are never overwritten", path.display());
        }
    }
    create(&args.file, &keys.secret, true)?;
    create(&public, &keys.public, false)?;
    if global.json {
        say_json(&json!({ "secret": args.file, "public": public }))?;
    } else {
        ui::say(&format!("wrote {} (keep it secret) and {} (give it away)", ui::path(&args.file), ui::path(&public)));
    }
    Ok(Ended::Done)
}

/// Writes a new file, which only its owner may read if it is `secret`.
fn create(path: &Path, text: &str, secret: bool) -> Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if secret {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = secret;
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}; check the path", path.display()))
}
