//! Calibration and evaluation texts: plain text, JSONL, or token ids.

use crate::{Error, Result};
use octet_runtime::{ChatTemplate, Message, Tokenizer};
use serde_json::Value;
use std::path::Path;

/// What stands between the documents of a JSONL file.
const BETWEEN: &str = "\n\n";

/// A text as read, before a tokenizer sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Text.
    Text(String),
    /// Token ids (a `.bin` file: little-endian uint16 or uint32).
    Ids(Vec<u32>),
}

/// A text with a name for messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// Where it came from.
    pub name: String,
    /// What it holds.
    pub source: Source,
}

/// How a text file is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions<'a> {
    /// The field of a JSONL line to take; `None` for `text`, else `messages`.
    pub field: Option<&'a str>,
    /// Renders the `messages` of a JSONL line; without one their contents are joined by line breaks.
    pub chat: Option<&'a ChatTemplate>,
    /// Vocabulary of the model, to tell uint16 from uint32 ids.
    pub vocab: Option<usize>,
}

impl Text {
    /// A text called `name`.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), source: Source::Text(text.into()) }
    }

    /// Reads a file: `.jsonl` and `.json` line by line, `.bin` as token ids, everything else as UTF-8 text.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else than its name says.
    pub fn open(path: &Path, options: ReadOptions<'_>) -> Result<Self> {
        let name = path.display().to_string();
        let fail = |what: String| Error::Read { path: name.clone(), what };
        let bytes = std::fs::read(path).map_err(|e| fail(format!("{e}; check the path")))?;
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if kind == "bin" {
            let ids = read_ids(&bytes, options.vocab).map_err(fail)?;
            return Ok(Self { name, source: Source::Ids(ids) });
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            fail(format!("it is not UTF-8 (byte {}); convert it, or call it .bin if it holds ids", e.utf8_error().valid_up_to()))
        })?;
        Self::parse(name, text, matches!(kind.as_str(), "jsonl" | "json" | "ndjson"), options)
    }

    /// A text from memory, `jsonl` or plain.
    ///
    /// # Errors
    /// If a line of the JSONL is not an object with the field asked for.
    pub fn parse(name: String, text: String, jsonl: bool, options: ReadOptions<'_>) -> Result<Self> {
        let text = if jsonl { join_documents(&name, &text, options)? } else { text };
        Ok(Self { name, source: Source::Text(text) })
    }

    /// Its token ids, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer fails, there are fewer than `needed` tokens, or an id is outside a vocabulary of `vocab`.
    pub fn tokens(&self, tokenizer: &Tokenizer, vocab: usize, needed: usize) -> Result<Vec<u32>> {
        let ids = match &self.source {
            Source::Text(text) => tokenizer.encode(text, false)?,
            Source::Ids(ids) => ids.clone(),
        };
        if ids.len() < needed {
            return Err(Error::TooShort { name: self.name.clone(), tokens: ids.len(), needed });
        }
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(&id) => Err(Error::ForeignToken { name: self.name.clone(), id, vocab }),
            None => Ok(ids),
        }
    }
}

fn join_documents(name: &str, text: &str, options: ReadOptions<'_>) -> Result<String> {
    let mut out = String::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fail = |what: String| Error::Line { path: name.into(), line: i + 1, what };
        let value: Value = serde_json::from_str(line).map_err(|e| fail(format!("not JSON ({e}); every line must be an object")))?;
        let document = document(&value, options).map_err(fail)?;
        if !out.is_empty() {
            out.push_str(BETWEEN);
        }
        out.push_str(document.trim_end_matches('\n'));
    }
    Ok(out)
}

fn document(line: &Value, options: ReadOptions<'_>) -> std::result::Result<String, String> {
    let field = match options.field {
        Some(field) => field,
        None if line.get("text").is_none() && line.get("messages").is_some() => "messages",
        None => "text",
    };
    match line.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ Value::Array(_)) => {
            let messages: Vec<Message> = serde_json::from_value(value.clone())
                .map_err(|e| format!("{field:?} is not a list of messages with role and content ({e})"))?;
            match options.chat {
                Some(chat) => chat.render(&messages, false).map_err(|e| e.to_string()),
                None => Ok(messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")),
            }
        }
        Some(_) => Err(format!("{field:?} is neither a text nor a list of messages")),
        None => {
            let has: Vec<&str> = line.as_object().map(|o| o.keys().map(String::as_str).collect()).unwrap_or_default();
            Err(format!("there is no field {field:?}, only {has:?}; choose one with --text-field"))
        }
    }
}

/// Ids of two or four bytes. A file of uint32 read as uint16 has nothing but zeros (or another high half that is far
/// below the vocabulary's) in every second place; that, and the vocabulary where it is known, tells them apart.
fn read_ids(bytes: &[u8], vocab: Option<usize>) -> std::result::Result<Vec<u32>, String> {
    if bytes.is_empty() {
        return Err("it is empty; give a file of uint16 or uint32 token ids".into());
    }
    let wide: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let limit = vocab.map_or(1 << 20, |v| v as u64);
    if bytes.len().is_multiple_of(4) && wide.iter().all(|&id| u64::from(id) < limit) {
        return Ok(wide);
    }
    if !bytes.len().is_multiple_of(2) {
        return Err(format!("its {} bytes are no whole number of uint16 or uint32 ids; write it again", bytes.len()));
    }
    Ok(bytes.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, field: Option<&str>) -> Result<String> {
        let text = Text::parse("t.jsonl".into(), text.into(), true, ReadOptions { field, ..Default::default() })?;
        let Source::Text(text) = text.source else { panic!("text expected") };
        Ok(text)
    }

    #[test]
    fn documents_are_joined_by_a_blank_line() {
        assert_eq!(parse("{\"text\": \"a\\n\"}\n\n{\"text\": \"b\"}\n", None).unwrap(), "a\n\nb");
        assert_eq!(parse("{\"text\": \"a\", \"body\": \"c\"}", Some("body")).unwrap(), "c");
        let chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"r\"}]}";
        assert_eq!(parse(chat, None).unwrap(), "q\nr");
        let template = ChatTemplate::new("{% for m in messages %}[{{ m.content }}]{% endfor %}".into(), None, None).unwrap();
        let options = ReadOptions { chat: Some(&template), ..Default::default() };
        assert_eq!(Text::parse("t".into(), chat.into(), true, options).unwrap().source, Source::Text("[q][r]".into()));
    }

    #[test]
    fn bad_lines_are_named() {
        let error = parse("{\"text\": \"a\"}\n{\"body\": 1}", None).unwrap_err().to_string();
        assert!(error.contains("t.jsonl, line 2") && error.contains("\"text\"") && error.contains("body"), "{error}");
        assert!(parse("nonsense", None).unwrap_err().to_string().contains("line 1: not JSON"));
        assert!(parse("{\"text\": 3}", None).unwrap_err().to_string().contains("neither"));
    }

    #[test]
    fn ids_of_two_and_four_bytes() {
        let ids = [5u32, 4000, 77, 1];
        let narrow: Vec<u8> = ids.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect();
        let wide: Vec<u8> = ids.iter().flat_map(|v| v.to_le_bytes()).collect();
        for vocab in [None, Some(4096)] {
            assert_eq!(read_ids(&narrow, vocab).unwrap(), ids);
            assert_eq!(read_ids(&wide, vocab).unwrap(), ids);
        }
        assert!(read_ids(&[1, 2, 3], None).is_err());
        assert!(read_ids(&[], None).is_err());
    }

    #[test]
    fn files_that_are_not_text_are_refused() {
        let path = std::env::temp_dir().join(format!("octet-eval-text-{}.txt", std::process::id()));
        std::fs::write(&path, [b'a', 0xff]).unwrap();
        let error = Text::open(&path, ReadOptions::default()).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("not UTF-8 (byte 1)"), "{error}");
        assert!(Text::open(&path, ReadOptions::default()).is_err());
    }
}
