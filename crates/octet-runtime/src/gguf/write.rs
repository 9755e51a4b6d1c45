//! A folder's tokenizer as a GGUF file's metadata: [`super::tokenizer`] the other way round.
//!
//! What such a file has no words for is refused by name. That the words mean the same tokens is shown by reading them back.

use super::{pieces, pre_tokenizers, tokenizer};
use crate::{ChatTemplate, GenerationConfig, Tokenizer, settings::read_json};
use octet_formats::{Folder, gguf::Meta};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

/// What a token is (`tokenizer.ggml.token_type`).
const NORMAL: i32 = 1;
/// As above: padding up to the embedding's rows.
const UNUSED: i32 = 5;
/// As above: a byte of its own, spelt `<0x0A>`.
const BYTE: i32 = 6;

/// What a GGUF file says of a tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct OutgoingTokenizer {
    /// Keys and values.
    pub metadata: Vec<(String, Meta)>,
    /// What readers of the file do otherwise, for people.
    pub notes: Vec<String>,
}

/// The tokenizer, special tokens and chat template of `folder`, whose tokenizer is `opened`, for an embedding of `rows` rows; `None` without a
/// tokenizer.
///
/// # Errors
/// A sentence that says what a GGUF file has no words for.
pub fn tokenizer_metadata(
    folder: &Folder,
    opened: Option<&Tokenizer>,
    config: &Value,
    rows: usize,
) -> Result<Option<OutgoingTokenizer>, String> {
    let words = |e: crate::Error| e.to_string();
    let (Some(json), Some(opened)) = (read_json(folder, "tokenizer.json").map_err(words)?, opened) else { return Ok(None) };
    let mut vocabulary = Vocabulary::new(&json, rows)?;
    let mut notes = vec![];
    let mut out = vec![];
    let mut set = |key: &str, value: Meta| out.push((format!("tokenizer.ggml.{key}"), value));
    match vocabulary.is_byte_level(&json) {
        true => byte_level(&json, &mut set, &mut notes)?,
        false => {
            let prefix = sentence_piece(&json)?;
            set("model", Meta::Text("llama".into()));
            set("pre", Meta::Text("default".into()));
            set("add_space_prefix", Meta::Bool(prefix));
            set("scores", Meta::F32s(vocabulary.scores(&json)?));
            vocabulary.mark_pieces(&json);
            if !vocabulary.types.contains(&BYTE) {
                notes.push("the vocabulary has no bytes: llama.cpp stops at characters that are not in it".into());
            }
        }
    }
    if let Some(token) = vocabulary.strips.first() {
        notes.push(format!("{token} strips the spaces beside it, which GGUF has no word for"));
    }
    set("tokens", Meta::Texts(std::mem::take(&mut vocabulary.tokens)));
    set("token_type", Meta::I32s(std::mem::take(&mut vocabulary.types)));
    let generation = GenerationConfig::open(folder, config).map_err(words)?;
    let mut ends: Vec<u32> = opened.eos().into_iter().collect();
    ends.extend(generation.eos_ids.iter().filter(|id| Some(**id) != opened.eos()));
    let names = ["eos", "eot", "eom"].into_iter().zip(&ends).map(|(name, id)| (name, *id));
    let other = |key: &str| tokenizer_config_id(folder, opened, key);
    let ids = [("bos", opened.bos()), ("unknown", other("unk_token")), ("padding", other("pad_token"))];
    for (name, id) in ids.into_iter().filter_map(|(name, id)| Some((name, id?))).chain(names) {
        set(&format!("{name}_token_id"), Meta::U32(id));
    }
    set("add_bos_token", Meta::Bool(opened.leading_bos().is_some()));
    if let Some(template) = ChatTemplate::open(folder).map_err(words)? {
        out.push(("tokenizer.chat_template".into(), Meta::Text(template.source().into())));
    }
    Ok(Some(OutgoingTokenizer { metadata: out, notes }))
}

fn tokenizer_config_id(folder: &Folder, opened: &Tokenizer, key: &str) -> Option<u32> {
    let json = read_json(folder, "tokenizer_config.json").ok()??;
    let token = json.get(key)?;
    opened.id(token.as_str().or_else(|| token.get("content")?.as_str())?)
}

/// Tokens by id.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    /// Added tokens that strip spaces.
    strips: Vec<String>,
}

impl Vocabulary {
    fn new(json: &Value, rows: usize) -> Result<Self, String> {
        let model = &json["model"];
        let kind = model["type"].as_str().unwrap_or("BPE");
        if kind != "BPE" {
            return Err(format!("its tokenizer is of the kind {kind}; GGUF files hold byte-pair encoding, so export it to another format"));
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix", "dropout"] {
            let value = &model[key];
            if !value.is_null() && value.as_str() != Some("") {
                return Err(format!("its tokenizer has {key} = {value}, which GGUF has no word for; export it to another format"));
            }
        }
        let mut all: HashMap<u32, (String, i32)> = HashMap::new();
        let known = model["vocab"].as_object().ok_or("its tokenizer.json has no vocabulary; copy it from the checkpoint again")?;
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        for (token, at) in known {
            all.insert(id(at).ok_or_else(|| format!("its tokenizer.json gives {token:?} the id {at}"))?, (token.clone(), NORMAL));
        }
        let mut strips = vec![];
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(at), Some(content)) = (id(&added["id"]), added["content"].as_str()) else { continue };
            let special = added["special"].as_bool().unwrap_or(false);
            all.insert(at, (content.into(), if special { tokenizer::CONTROL } else { tokenizer::USER_DEFINED } as i32));
            if ["lstrip", "rstrip", "single_word"].iter().any(|key| added[*key].as_bool() == Some(true)) {
                strips.push(content.to_string());
            }
        }
        let entry = |id: usize| all.remove(&(id as u32)).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
        let (tokens, types) = (0..rows).map(entry).unzip();
        Ok(Self { tokens, types, strips })
    }

    fn is_byte_level(&self, json: &Value) -> bool {
        steps(&json["pre_tokenizer"]).iter().any(|step| step["type"] == "ByteLevel")
    }

    /// Bytes and the token for what is unknown.
    fn mark_pieces(&mut self, json: &Value) {
        let unknown = json["model"]["unk_token"].as_str();
        for (token, kind) in self.tokens.iter().zip(&mut self.types) {
            if unknown == Some(token) {
                *kind = tokenizer::UNKNOWN as i32;
            } else if *kind == NORMAL && is_byte(token) {
                *kind = BYTE;
            }
        }
    }

    /// Scores that give the merges: of what is merged earlier, higher ones.
    fn scores(&self, json: &Value) -> Result<Vec<f32>, String> {
        let merges = merges(&json["model"]["merges"])?;
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (rank, (left, right)) in merges.iter().enumerate() {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
        let last = merges.len();
        let scores: Vec<f32> = self.tokens.iter().map(|token| -(ranks.get(token).copied().unwrap_or(last) as f32)).collect();
        let read: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
        let back = pieces::merges(&self.tokens, &read);
        // Ways to make the same token come in any order: only one of them is there at a time.
        let made = |pairs: &[(String, String)]| pairs.iter().map(|(left, right)| format!("{left}{right}")).collect::<Vec<_>>();
        let pair = |pair: &Value| (pair[0].as_str().unwrap_or_default().to_string(), pair[1].as_str().unwrap_or_default().to_string());
        let back: Vec<(String, String)> = back.iter().map(pair).collect();
        let all = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<BTreeSet<_>>();
        let same = made(&back) == made(&merges) && all(&back) == all(&merges);
        match same {
            true => Ok(scores),
            false => Err("its tokenizer merges pieces in an order that no scores of tokens give, which is all that GGUF has words for; \
                export it to another format"
                .into()),
        }
    }
}

/// Whether a token spells a byte, as `<0x0A>` does.
pub(super) fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// Merges as pairs; older files write them as one text.
fn merges(json: &Value) -> Result<Vec<(String, String)>, String> {
    let pair = |merge: &Value| {
        let found = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => pair.first().and_then(Value::as_str).zip(pair.get(1).and_then(Value::as_str)),
            _ => None,
        };
        found.map(|(left, right)| (left.to_string(), right.to_string()))
    };
    json.as_array()
        .into_iter()
        .flatten()
        .map(pair)
        .collect::<Option<_>>()
        .ok_or_else(|| "its tokenizer.json has a merge that is no pair".into())
}

/// The steps of a pre-tokenizer or normalizer.
fn steps(json: &Value) -> Vec<&Value> {
    match json["type"].as_str() {
        Some("Sequence") => {
            ["pretokenizers", "normalizers"].iter().filter_map(|key| json[*key].as_array()).flatten().flat_map(steps).collect()
        }
        Some(_) => vec![json],
        None => vec![],
    }
}

fn byte_level(json: &Value, set: &mut dyn FnMut(&str, Meta), notes: &mut Vec<String>) -> Result<(), String> {
    let kind = pre_tokenizers::matching(&steps(&json["pre_tokenizer"]), json["model"]["ignore_merges"].as_bool().unwrap_or(false))?;
    let composed = match &steps(&json["normalizer"])[..] {
        [] => false,
        [one] if one["type"] == "NFC" => true,
        other => {
            let names: Vec<String> = other.iter().map(|step| step["type"].to_string()).collect();
            return Err(format!(
                "its tokenizer changes text before cutting it ({}), which GGUF has no word for; export it to another format",
                names.join(", ")
            ));
        }
    };
    if composed {
        notes.push("the tokenizer composes Unicode (NFC), llama.cpp does not: decomposed text gives other tokens there".into());
    }
    let merges = merges(&json["model"]["merges"])?;
    set("model", Meta::Text("gpt2".into()));
    set("pre", Meta::Text(kind.name().into()));
    if composed != kind.composed {
        set(tokenizer::COMPOSED, Meta::Bool(composed));
    }
    set("merges", Meta::Texts(merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect()));
    Ok(())
}

/// Checks that text becomes pieces as SentencePiece does it; whether a space is put in front.
fn sentence_piece(json: &Value) -> Result<bool, String> {
    let prefix = |text: &Value| text.as_str() == Some(pieces::SPACE);
    let refuse = || Err("its tokenizer cuts text in a way that GGUF has no word for; export it to another format".to_string());
    let mut leading = false;
    for step in steps(&json["normalizer"]) {
        match step["type"].as_str() {
            Some("Prepend") if prefix(&step["prepend"]) => leading = true,
            Some("Replace") if prefix(&step["content"]) && step["pattern"]["String"] == " " => {}
            _ => return refuse(),
        }
    }
    for step in steps(&json["pre_tokenizer"]) {
        let whole = step["split"].as_bool() == Some(false);
        match (step["type"].as_str(), step["prepend_scheme"].as_str()) {
            (Some("Metaspace"), Some("always" | "first")) if whole && prefix(&step["replacement"]) => leading = true,
            (Some("Metaspace"), Some("never")) if whole && prefix(&step["replacement"]) => {}
            _ => return refuse(),
        }
    }
    Ok(leading)
}
