//! SentencePiece vocabularies with scores (`tokenizer.ggml.model` = `llama`) as byte-pair encoding.
//!
//! SentencePiece joins the neighbours whose joint piece has the highest score; written as a list of merges, sorted by the score
//! of what they make, that is byte-pair encoding. Source: transformers' `SentencePieceExtractor`.

use serde_json::{Value, json};
use std::collections::HashMap;

/// The space of SentencePiece.
pub(super) const SPACE: &str = "▁";

/// Merges of a vocabulary, the most eager first.
pub(super) fn merges(tokens: &[String], scores: &[f64]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = vec![];
    for (token, &score) in tokens.iter().zip(scores) {
        let mut splits: Vec<(usize, usize)> =
            (token.char_indices().skip(1)).filter_map(|(at, _)| Some((*ids.get(&token[..at])?, *ids.get(&token[at..])?))).collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|pair| (score, pair)));
    }
    let lengths = |&(_, (left, right)): &(f64, (usize, usize))| (tokens[left].chars().count(), tokens[right].chars().count());
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| lengths(b).cmp(&lengths(a))));
    merges.into_iter().map(|(_, (left, right))| json!([tokens[left], tokens[right]])).collect()
}

/// What becomes of text before it is cut into pieces.
pub(super) fn normalizer(leading_space: bool) -> Value {
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    match leading_space {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}),
        false => spaces,
    }
}

/// What becomes of pieces to be text again.
pub(super) fn decoder(leading_space: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if leading_space {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_sorted_by_the_score_of_what_they_make() {
        let tokens: Vec<String> = ["a", "b", "c", "ab", "bc", "abc"].map(Into::into).to_vec();
        let found = merges(&tokens, &[-9.0, -9.0, -9.0, -2.0, -1.0, -3.0]);
        assert_eq!(Value::from(found), json!([["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]));
    }
}
