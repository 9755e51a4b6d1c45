//! A folder of its own for each test, with a small model in it, and the octet binary run there.

use assert_cmd::Command;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Tokens of the byte-level tokenizer of the small model: three special ones and the 256 bytes.
const BYTE_TOKENS: u64 = 259;

/// A temporary folder that commands run in.
pub(crate) struct Sandbox {
    dir: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The one JSON document that stdout holds.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("stdout is not one JSON document: {e}\n{self:?}"))
    }

    /// This, if the command was done (or its model accepted).
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
}

impl Sandbox {
    /// An empty folder.
    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A folder that holds the model `tiny`: the Qwen3 fixture (random weights, 3 blocks of 64, F32) with a tokenizer of bytes.
    pub(crate) fn new() -> Self {
        let sandbox = Self::empty();
        write_tiny(&sandbox.path("tiny"));
        sandbox
    }

    /// The path of `name` in the folder.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Reads a JSON file.
    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// Changes a JSON file.
    pub(crate) fn edit_json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = self.json(name);
        change(&mut value);
        self.write(name, serde_json::to_vec_pretty(&value).unwrap());
    }

    /// The names in a folder, sorted; none where there is no folder.
    pub(crate) fn names(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).into_iter().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The octet binary, to run in this folder without anything of the machine's own settings.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octet"));
        command.current_dir(self.dir.path()).env_remove("OCTET_ISA").env_remove("HF_HUB_CACHE").env("HF_HOME", "no-cache");
        // What originals make of texts is kept here, for all tests.
        command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
        command.timeout(std::time::Duration::from_secs(300));
        command
    }

    /// Runs `octet` with arguments separated by blanks (`'` keeps some together).
    pub(crate) fn octet(&self, args: &str) -> Ended {
        ended(self.command().args(words(args)))
    }

    /// Every file and folder below this one with its bytes.
    pub(crate) fn everything(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        gather(self.dir.path(), &mut found);
        found
    }

    /// Mean divergence that `octet eval` finds, whose arguments these are.
    #[track_caller]
    pub(crate) fn divergence(&self, args: &str) -> f64 {
        let measured = self.octet(&format!("eval {args} --json")).done().json();
        measured["measures"]["kl"]["mean"].as_f64().unwrap()
    }

    /// Runs a command that must be refused as every bad input must: see [`Sandbox::check_refusal`].
    #[track_caller]
    pub(crate) fn refuses(&self, args: &str, says: &[&str]) {
        self.refuses_as(1, args, says);
    }

    /// As [`Sandbox::refuses`] with another exit code.
    #[track_caller]
    pub(crate) fn refuses_as(&self, code: i32, args: &str, says: &[&str]) {
        let before = self.everything();
        let ended = self.octet(args);
        self.check_refusal(code, args, &before, &ended, says);
    }

    /// A refusal is one sentence on stderr that says all of `says`, an exit code, and nothing left behind or changed.
    #[track_caller]
    pub(crate) fn check_refusal(&self, code: i32, what: &str, before: &BTreeMap<PathBuf, Option<Vec<u8>>>, ended: &Ended, says: &[&str]) {
        assert_eq!(ended.code, Some(code), "octet {what}: {ended:?}");
        let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(lines.len(), 1, "octet {what}: not one error\n{}", ended.stderr);
        let said = ended.stderr.trim_end();
        assert!(code == 2 || said.ends_with(lines[0]), "octet {what}: something follows the error\n{said}");
        // Wrong usage is explained over several lines.
        let sentence = if code == 2 { said } else { lines[0] };
        for word in says {
            assert!(sentence.contains(word), "octet {what}: {sentence:?} does not say {word:?}");
        }
        assert!(ended.stdout.is_empty(), "octet {what}: stdout {:?}", ended.stdout);
        let after = self.everything();
        let changed: Vec<_> = after.iter().filter(|(path, bytes)| before.get(*path) != Some(bytes)).map(|(path, _)| path).collect();
        let gone: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
        assert!(changed.is_empty() && gone.is_empty(), "octet {what}: left or changed {changed:?}, removed {gone:?}");
        self.record(what, code, &sentence.split_whitespace().collect::<Vec<_>>().join(" "));
    }

    /// Adds a line to the table that `OCTET_REFUSALS` names, to read all messages side by side.
    fn record(&self, what: &str, code: i32, message: &str) {
        let Some(table) = std::env::var_os("OCTET_REFUSALS") else { return };
        let here = format!("{}/", self.dir.path().canonicalize().unwrap().display());
        let test = std::thread::current().name().unwrap_or_default().to_string();
        let message = message.replace(&here, "").replace('|', "\\|");
        let what: String = what.chars().take(120).collect();
        let line = format!("| {test} | `octet {what}` | {code} | {message} |\n");
        fs::File::options().create(true).append(true).open(table).unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// Runs a command to its end.
pub(crate) fn ended(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Arguments as a shell would split them, as far as these tests need it: blanks separate, `'` quotes.
pub(crate) fn words(args: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut open) = (vec![], String::new(), false, false);
    for c in args.chars() {
        match c {
            '\'' => (quoted, open) = (!quoted, true),
            ' ' if !quoted => {
                if open {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            c => {
                word.push(c);
                open = true;
            }
        }
    }
    if open {
        words.push(word);
    }
    words
}

/// Writes the small model into the new folder `dir`.
pub(crate) fn write_tiny(dir: &Path) {
    let (fixture, pocket) = (octet_testkit::fixtures().join("arch/qwen3"), pocket());
    fs::create_dir(dir).unwrap();
    for (from, names) in [(&fixture, ["config.json", "model.safetensors"]), (&pocket, ["tokenizer_config.json", "generation_config.json"])]
    {
        for name in names {
            fs::copy(from.join(name), dir.join(name)).unwrap();
        }
    }
    // The built-in tokenizer without its merges: one token a byte, few enough for the fixture's embedding.
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(pocket.join("tokenizer.json")).unwrap()).unwrap();
    tokenizer["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < BYTE_TOKENS);
    tokenizer["model"]["merges"] = Value::Array(vec![]);
    fs::write(dir.join("tokenizer.json"), serde_json::to_vec(&tokenizer).unwrap()).unwrap();
}

/// The folder of the built-in model.
pub(crate) fn pocket() -> PathBuf {
    octet_testkit::fixtures().join("../models/pocket")
}

/// A text of so many letters (the small model takes each for a token) that repeats nothing.
pub(crate) fn prose(letters: usize, seed: u64) -> String {
    let mut state = seed;
    let letter = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b"etaoinshrdlu ."[(state >> 40) as usize % 14] as char
    };
    (0..letters).map(letter).collect()
}

fn gather(dir: &Path, found: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap();
        if kind.is_dir() {
            gather(&path, found);
        }
        let bytes = kind.is_file().then(|| fs::read(&path).unwrap());
        found.insert(path, bytes);
    }
}
