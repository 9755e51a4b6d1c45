//! A text on which tokenizers differ if they differ anywhere: Unicode, white space, code.

use crate::integrity::Check;
use octet_runtime::{ChatTemplate, Message, Tokenizer};

/// The text: scripts and combining marks, emoji with joiners, numbers, white space of every kind, code, what looks like
/// special tokens.
pub const TORTURE: &str = concat!(
    "The quick brown fox isn't 1,234.56% sure; e.g. \u{201c}quotes\u{201d} \u{2014} and na\u{ef}ve caf\u{e9}, cafe\u{301}.\n",
    "Gr\u{f6}\u{df}e \u{130}stanbul \u{141}\u{f3}d\u{17a} \u{395}\u{3bb}\u{3bb}\u{3b7}\u{3bd}\u{3b9}\u{3ba}\u{3ac} \u{420}\u{443}\u{441}\u{441}\u{43a}\u{438}\u{439} ",
    "\u{5e2}\u{5d1}\u{5e8}\u{5d9}\u{5ea} \u{627}\u{644}\u{639}\u{631}\u{628}\u{64a}\u{629} \u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940} \u{e44}\u{e17}\u{e22}\n",
    "\u{6c49}\u{5b57}\u{4e0e}\u{5047}\u{540d} \u{3072}\u{3089}\u{304c}\u{306a}\u{30ab}\u{30bf} \u{d55c}\u{ad6d}\u{c5b4} \u{20000} \u{1d4d0}\u{1f600}\n",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{1f1e9}\u{1f1ea} \u{1f44d}\u{1f3fd} z\u{310}\u{35c}a\u{30a}lgo \u{fb01}\u{fb02} \u{2167} \u{bd} \u{2460} \u{200b}\u{feff}\u{ad}\n",
    "\t\ttabs\u{a0}and\u{2003}spaces   \r\n\r\n\n   \u{3000}end \n \n",
    "def f(x: int) -> str:\n    return f\"{x!r:>08}\" if x != 0x1F else None  # TODO\n",
    "for (int i=0;i<n;++i){a[i]+=b[i]<<2;}\tlet s = r#\"\\u{41}\"#; SELECT * FROM t WHERE a<>'b';\n",
    "https://example.org/a?b=c&d=%20#e <b>html&amp;</b> ${HOME}/.config \\n \\\\ \u{0}\u{1b}[31m\n",
    "<s> </s> <|endoftext|> <|im_start|>user [INST] <pad> <unk> 0 00 000 0000 00000 3.14159 1e-5 ",
);

/// Whether two tokenizers turn the [`TORTURE`] text into the same ids and these back into the same text.
pub fn same_tokens(original: &Tokenizer, written: &Tokenizer) -> Check {
    let ids = |tokenizer: &Tokenizer| tokenizer.encode(TORTURE, true).map_err(|error| error.to_string());
    let compared = ids(original).and_then(|a| {
        let b = ids(written)?;
        match a.iter().zip(&b).position(|(x, y)| x != y) {
            Some(at) => Err(format!("token {at} of a text of Unicode, white space and code is {} instead of {}", b[at], a[at])),
            None if a.len() != b.len() => {
                Err(format!("a text of Unicode, white space and code becomes {} tokens instead of {}", b.len(), a.len()))
            }
            None => {
                let text = |tokenizer: &Tokenizer| tokenizer.decode(&a).map_err(|error| error.to_string());
                if text(original)? == text(written)? { Ok(()) } else { Err("the same tokens become another text".into()) }
            }
        }
    });
    Check::new("tokens", compared)
}

/// Whether two chat templates (or their absence) make the same prompt of a conversation.
pub fn same_prompts(original: Option<&ChatTemplate>, written: Option<&ChatTemplate>) -> Check {
    let messages: Vec<Message> = [("user", "Hello,\n\"world\"  "), ("assistant", " {{ yes }} "), ("user", "\u{e4} <|im_end|>")]
        .map(|(role, content)| Message { role: role.into(), content: content.into() })
        .into();
    let prompt = |template: Option<&ChatTemplate>| template.map(|template| template.render(&messages, true).map_err(|e| e.to_string()));
    let result = match (prompt(original), prompt(written)) {
        (a, b) if a == b => Ok(()),
        (Some(_), None) => Err("the chat template is missing".into()),
        (None, Some(_)) => Err("there is a chat template although the original has none".into()),
        _ => Err("the chat template makes another prompt of the same conversation".into()),
    };
    Check::new("chat template", result)
}
