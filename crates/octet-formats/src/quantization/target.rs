//! Targets of a config group: module names, `re:` patterns and class names.

use crate::{Error, Result};
use regex_lite::Regex;

/// What a config group or the ignore list names.
#[derive(Clone, Debug)]
pub enum Target {
    /// A module path, such as `lm_head`.
    Name(String),
    /// A `re:` pattern, matched from the start of the module path as Python's `re.match` does.
    Pattern(Regex),
    /// A class of modules, such as `Linear`.
    Class(String),
}

impl Target {
    /// Reads a target as compressed-tensors writes it.
    ///
    /// # Errors
    /// If a `re:` pattern cannot be understood (look-around and back-references are not supported).
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(pattern) = text.strip_prefix("re:") {
            // Python anchors `re.match` at the start only.
            return Regex::new(&format!("^(?:{pattern})")).map(Self::Pattern).map_err(|e| Error::QuantizationConfig {
                key: text.into(),
                what: format!("is not a pattern that octet understands ({e}); name the modules or write it without look-around"),
            });
        }
        // Module paths are Python identifiers in lower case; a single capitalised word is a class.
        let class = !text.contains('.') && text.starts_with(|c: char| c.is_ascii_uppercase());
        Ok(if class { Self::Class(text.into()) } else { Self::Name(text.into()) })
    }

    /// How closely the target names `module`: 0 by name, 1 by pattern, 2 by class; `None` when it does not.
    ///
    /// compressed-tensors lets the closest win. The classes of modules are not stored in a checkpoint: `Embedding` is
    /// taken to mean token and position tables, every other class the rest.
    pub fn closeness(&self, module: &str) -> Option<u8> {
        match self {
            Self::Name(name) => (name == module).then_some(0),
            Self::Pattern(pattern) => pattern.is_match(module).then_some(1),
            Self::Class(class) => ((class == "Embedding") == is_embedding(module)).then_some(2),
        }
    }
}

fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    last.starts_with("embed_") || matches!(last, "wte" | "wpe" | "word_embeddings")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closeness(target: &str, module: &str) -> Option<u8> {
        Target::parse(target).unwrap().closeness(module)
    }

    #[test]
    fn names_patterns_and_classes() {
        assert_eq!(closeness("lm_head", "lm_head"), Some(0));
        assert_eq!(closeness("lm_head", "model.lm_head"), None);
        assert_eq!(closeness("re:.*mlp.gate$", "model.layers.3.mlp.gate"), Some(1));
        assert_eq!(closeness("re:.*mlp.gate$", "model.layers.3.mlp.gate_proj"), None);
        assert_eq!(closeness("re:mlp", "model.mlp"), None, "patterns are anchored at the start");
        assert_eq!(closeness("re:model|lm", "model.mlp"), Some(1), "the end is open");
        assert_eq!(closeness("re:a|mlp", "model.mlp"), None, "the anchor holds for every alternative");
        assert_eq!(closeness("Linear", "model.layers.0.mlp.up_proj"), Some(2));
        assert_eq!(closeness("Linear", "model.embed_tokens"), None);
        assert_eq!(closeness("Embedding", "model.embed_tokens"), Some(2));
    }

    #[test]
    fn patterns_that_cannot_be_understood_are_refused() {
        let message = Target::parse("re:^(?!.*mtp).*").unwrap_err().to_string();
        assert!(message.contains("re:^(?!.*mtp).*") && message.contains("look-around"), "{message}");
    }
}
