//! A byte-level BPE vocabulary of any size, made by rule: bytes, then pairs and quadruples of letters, frequent letters first.

use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Letters in the order of their frequency in English.
const LETTERS: &str = "etaoinshrdlcumwfgypbvkjxqz";

/// The last tokens.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Turns of a conversation between `<|im_start|>role` and `<|im_end|>`.
const CHAT_TEMPLATE: &str = "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor -%}\
                             {%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}";

/// Tokens and merges.
pub(crate) struct Vocabulary {
    tokens: Vec<String>,
    merges: Vec<(String, String)>,
}

impl Vocabulary {
    /// A vocabulary of `size` tokens, the special ones included (at least 259, at most about 450,000).
    pub(crate) fn new(size: usize) -> Self {
        let mut tokens: Vec<String> = byte_symbols().map(String::from).collect();
        let mut merges = Vec::new();
        let mut known: HashSet<String> = tokens.iter().cloned().collect();
        let pairs = pairs();
        let of_letters = pairs.iter().map(|&(a, b)| (a.to_string(), b.to_string()));
        // `Ġ` is the symbol of the space: a word and the space before it become one token.
        let spaced = LETTERS.chars().map(|letter| ("Ġ".to_owned(), letter.to_string()));
        let spaced_pairs = pairs.iter().map(|&(a, b)| ("Ġ".to_owned(), format!("{a}{b}")));
        let quadruples = by_rank(pairs.len()).map(|(a, b)| (text(pairs[a]), text(pairs[b])));
        for (left, right) in of_letters.chain(spaced).chain(spaced_pairs).chain(quadruples) {
            if tokens.len() + SPECIAL.len() >= size {
                break;
            }
            if known.insert(format!("{left}{right}")) {
                tokens.push(format!("{left}{right}"));
                merges.push((left, right));
            }
        }
        tokens.extend(SPECIAL.map(String::from));
        Self { tokens, merges }
    }

    /// Id of the token that begins a text.
    pub(crate) fn bos(&self) -> usize {
        self.tokens.len() - SPECIAL.len()
    }

    /// Id of the token that ends a turn.
    pub(crate) fn eos(&self) -> usize {
        self.tokens.len() - 1
    }

    /// `tokenizer.json` in the layout of the tokenizers library, version 1.0.
    pub(crate) fn tokenizer(&self) -> Value {
        let vocab: Map<String, Value> = self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let added: Vec<Value> = (self.bos()..self.tokens.len()).map(|id| added_token(id, &self.tokens[id])).collect();
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": byte_level,
            "post_processor": null,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": vocab,
                "merges": self.merges,
            },
        })
    }

    /// `tokenizer_config.json`, with a chat template.
    pub(crate) fn tokenizer_config(&self, context: usize) -> Value {
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[2],
            "add_bos_token": false,
            "clean_up_tokenization_spaces": false,
            "model_max_length": context,
            "chat_template": CHAT_TEMPLATE,
        })
    }
}

fn added_token(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

/// The printable character that stands for each byte in byte-level BPE (GPT-2's table: printable Latin-1 for itself, the others from U+0100 on).
fn byte_symbols() -> impl Iterator<Item = char> {
    let mut next = 0x100;
    (0u32..256).filter_map(move |byte| {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            return char::from_u32(byte);
        }
        next += 1;
        char::from_u32(next - 1)
    })
}

fn pairs() -> Vec<(char, char)> {
    let letters: Vec<char> = LETTERS.chars().collect();
    by_rank(letters.len()).map(|(a, b)| (letters[a], letters[b])).collect()
}

/// All pairs of numbers below `count`, smallest sum first.
fn by_rank(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..2 * count).flat_map(move |sum| (0..=sum).map(move |a| (a, sum - a)).filter(move |&(a, b)| a < count && b < count))
}

fn text(pair: (char, char)) -> String {
    String::from_iter([pair.0, pair.1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_merge_makes_a_token_of_tokens() {
        let vocabulary = Vocabulary::new(20_000);
        assert_eq!(vocabulary.tokens.len(), 20_000);
        let known: HashSet<&String> = vocabulary.tokens.iter().collect();
        assert_eq!(known.len(), 20_000);
        for (left, right) in &vocabulary.merges {
            assert!(known.contains(left) && known.contains(right) && known.contains(&format!("{left}{right}")), "{left} {right}");
        }
        assert_eq!(vocabulary.tokens[vocabulary.eos()], "<|im_end|>");
    }

    #[test]
    fn byte_symbols_are_those_of_gpt2() {
        let symbols: Vec<char> = byte_symbols().collect();
        assert_eq!(symbols.len(), 256);
        assert_eq!([symbols[0], symbols[b' ' as usize], symbols[b'a' as usize], symbols[0xad]], ['Ā', 'Ġ', 'a', 'Ń']);
    }
}
