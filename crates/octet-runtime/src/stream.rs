//! Text that appears token by token: whole characters only, and stop strings found across token boundaries.

use crate::{Result, Tokenizer};

/// Tokens of context a decoder sees in front of new ones; decoders look at most one token back.
const CONTEXT: usize = 8;

/// Tokens after which bytes that make no character are given out as replacement characters; a character has four bytes.
const PATIENCE: usize = 8;

/// Decodes ids one by one; a piece is given out once its last character is complete.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// `ids[..given]` have been given out (or are context).
    given: usize,
}

impl<'a> DecodeStream<'a> {
    /// A stream that continues `before` (a prompt): the space in front of its first word is kept.
    pub fn new(tokenizer: &'a Tokenizer, before: &[u32]) -> Self {
        let ids = before[before.len().saturating_sub(CONTEXT)..].to_vec();
        Self { tokenizer, given: ids.len(), ids }
    }

    /// Adds a token; returns the text that is now complete (often empty while a character is in parts).
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.take(self.ids.len() - self.given >= PATIENCE)
    }

    /// The rest at the end of a text; bytes that make no character become replacement characters.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        self.take(true)
    }

    fn take(&mut self, force: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.given])?;
        let all = self.tokenizer.decode(&self.ids)?;
        if all.ends_with(char::REPLACEMENT_CHARACTER) && !force {
            return Ok(String::new());
        }
        let known = common_prefix(&before, &all);
        let text = all[known..].to_string();
        if self.ids.len() > 2 * CONTEXT {
            self.ids.drain(..self.ids.len() - CONTEXT);
        }
        self.given = self.ids.len();
        Ok(text)
    }
}

/// Length in bytes of what two texts begin with alike, at a character boundary of both.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(c, _)| c.len_utf8()).sum()
}

/// Holds back text that may turn out to begin a stop string.
#[derive(Clone, Debug)]
pub struct StopBuffer {
    stops: Vec<String>,
    pending: String,
}

impl StopBuffer {
    /// A buffer that looks for `stops`; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), pending: String::new() }
    }

    /// Adds text; returns what is safe to show and whether a stop string was met (it and what follows are dropped).
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.pending.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.pending.find(stop.as_str())).min() {
            self.pending.truncate(at);
            return (std::mem::take(&mut self.pending), true);
        }
        let safe = self.pending.len() - self.held_back();
        let rest = self.pending.split_off(safe);
        (std::mem::replace(&mut self.pending, rest), false)
    }

    /// What was held back, at the end of a text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }

    /// Bytes at the end of the pending text that begin some stop string.
    fn held_back(&self) -> usize {
        let begins = |stop: &str| stop.char_indices().skip(1).map(|(i, _)| i).filter(|&i| self.pending.ends_with(&stop[..i])).max();
        self.stops.iter().filter_map(|stop| begins(stop)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut buffer = StopBuffer::new(&stops);
        let mut all = String::new();
        for piece in pieces {
            let (text, stopped) = buffer.push(piece);
            all.push_str(&text);
            if stopped {
                return (all, true);
            }
        }
        (all + &buffer.finish(), false)
    }

    #[test]
    fn stop_strings_across_pieces() {
        assert_eq!(run(&["\n\nUser:"], &["Hi", "\n", "\nUs", "er: x"]), ("Hi".into(), true));
        assert_eq!(run(&["\n\nUser:"], &["Hi", "\n", "\nUs", "e"]), ("Hi\n\nUse".into(), false));
        assert_eq!(run(&["b", "ab"], &["xa", "b"]), ("x".into(), true));
        assert_eq!(run(&["ää"], &["ä", "ö", "ä", "ä"]), ("äö".into(), true));
        assert_eq!(run(&["", "aab"], &["aa", "ab"]), ("a".into(), true));
    }

    #[test]
    fn nothing_is_held_back_without_stops() {
        let mut buffer = StopBuffer::new(&[]);
        assert_eq!(buffer.push("text"), ("text".into(), false));
        assert_eq!(buffer.finish(), "");
    }
}
