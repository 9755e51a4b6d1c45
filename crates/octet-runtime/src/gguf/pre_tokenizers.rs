//! How text is cut before merging, by the name GGUF files give it (`tokenizer.ggml.pre`).
//!
//! Source: the tokenizer.json of the models llama.cpp's `convert_hf_to_gguf.py` names them after.

use serde_json::{Value, json};

/// How one kind of byte-level tokenizer cuts text.
pub(super) struct PreTokenizer {
    /// Names files give it.
    names: &'static [&'static str],
    cut: Cut,
    /// Whether a word that is in the vocabulary is taken whole, whatever its merges.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with the beginning-of-sequence token unless the file says otherwise.
    pub(super) add_bos: bool,
    /// Whether text is composed (Unicode NFC) first.
    pub(super) composed: bool,
}

enum Cut {
    /// As GPT-2 does.
    Gpt2,
    /// Digit by digit, then as GPT-2 does.
    DigitsThenGpt2,
    /// By patterns, each cutting what the one before left.
    Patterns(&'static [&'static str]),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT2: PreTokenizer = PreTokenizer {
    names: &["gpt-2", "gpt2", "jina-en", "jina-es", "jina-de", "phi-2", "olmo", "mpt"],
    cut: Cut::Gpt2,
    ignore_merges: false,
    add_bos: false,
    composed: false,
};

const ALL: &[PreTokenizer] = &[
    GPT2,
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        cut: Cut::Patterns(&[LLAMA3]),
        ignore_merges: true,
        add_bos: true,
        ..GPT2
    },
    PreTokenizer { names: &["smaug-bpe", "dbrx"], cut: Cut::Patterns(&[LLAMA3]), ..GPT2 },
    PreTokenizer { names: &["qwen2", "deepseek-r1-qwen", "megrez"], cut: Cut::Patterns(&[QWEN2]), composed: true, ..GPT2 },
    PreTokenizer { names: &["smollm", "starcoder", "refact", "command-r", "codeshell"], cut: Cut::DigitsThenGpt2, ..GPT2 },
    PreTokenizer { names: &["gpt-4o", "llama4", "phi-4"], cut: Cut::Patterns(&[GPT4O]), ..GPT2 },
];

/// The kind of a name.
pub(super) fn find(name: &str) -> Result<&'static PreTokenizer, String> {
    ALL.iter().find(|kind| kind.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = ALL.iter().flat_map(|kind| kind.names).copied().collect();
        format!(
            "its tokenizer cuts text as {name:?} does, which octet does not know ({} are); use the checkpoint it was made from",
            known.join(", ")
        )
    })
}

/// The kind that cuts text in the `steps` of a tokenizer.json.
pub(super) fn matching(steps: &[&Value], ignore_merges: bool) -> Result<&'static PreTokenizer, String> {
    let found = spelt(steps);
    let same = |kind: &&PreTokenizer| {
        let json = kind.json();
        let own: Vec<&Value> = json["pretokenizers"].as_array().map_or_else(|| vec![&json], |list| list.iter().collect());
        spelt(&own) == found
    };
    let cut: Vec<&PreTokenizer> = ALL.iter().filter(same).collect();
    cut.iter().find(|kind| kind.ignore_merges == ignore_merges).copied().ok_or_else(|| match cut.first() {
        Some(kind) => format!(
            "its tokenizer has ignore_merges = {ignore_merges} and cuts text as {} does, which GGUF has no word for; export it to another format",
            kind.name()
        ),
        None => format!(
            "its tokenizer cuts text in a way that octet knows no GGUF name for ({}); export it to another format",
            found.join("; ")
        ),
    })
}

/// Steps in words that are the same for what does the same.
fn spelt(steps: &[&Value]) -> Vec<String> {
    let one = |step: &&Value| {
        let flag = |key: &str, usual: bool| step[key].as_bool().unwrap_or(usual);
        match step["type"].as_str().unwrap_or_default() {
            "ByteLevel" => format!("bytes, cut {}, space {}", flag("use_regex", true), flag("add_prefix_space", true)),
            "Digits" => format!("digits, each {}", flag("individual_digits", false)),
            "Split" => {
                // A class of one space is a space.
                let pattern =
                    step["pattern"]["Regex"].as_str().map_or_else(|| step["pattern"].to_string(), |text| text.replace("[ ]", " "));
                format!("split {pattern} {} {}", step["behavior"], flag("invert", false))
            }
            other => other.to_string(),
        }
    };
    steps.iter().map(one).collect()
}

impl PreTokenizer {
    /// The name files give it.
    pub(super) fn name(&self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    /// The `pre_tokenizer` of tokenizer.json.
    pub(super) fn json(&self) -> Value {
        let bytes = |cut: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cut});
        match self.cut {
            Cut::Gpt2 => bytes(true),
            Cut::DigitsThenGpt2 => {
                json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, bytes(true)]})
            }
            Cut::Patterns(patterns) => {
                let split =
                    |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
                let all: Vec<Value> = patterns.iter().map(split).chain([bytes(false)]).collect();
                json!({"type": "Sequence", "pretokenizers": all})
            }
        }
    }
}
