//! What can be wrong with a config, with loading and with a forward pass.

use std::fmt;

/// Why a config.json does not describe a model octet can run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The config is not a JSON object.
    #[error("config.json is not a JSON object; take it from the model's page again")]
    NotAnObject,
    /// A key without which the model cannot be built.
    #[error("config.json has no {key}, and {family} models have no safe default for it; add it as the model's page gives it")]
    Missing {
        /// The key.
        key: String,
        /// The family that needs it.
        family: String,
    },
    /// A key whose value is of another type or out of range.
    #[error("config.json: {key} is {found}, expected {expected}; mend it as the model's page gives it")]
    Value {
        /// The key, with its path when nested.
        key: String,
        /// What was expected, in words.
        expected: String,
        /// The value found, as JSON.
        found: String,
    },
    /// A key that may change the result and that octet does not understand.
    #[error(
        "config.json: {key} = {found} is not understood for {family} models; it may change the model's results, so octet refuses it \
         (remove the key if you know that it changes nothing)"
    )]
    NotUnderstood {
        /// The key, with its path when nested.
        key: String,
        /// The value found, as JSON.
        found: String,
        /// The family.
        family: String,
    },
    /// An architecture octet does not know.
    #[error("model_type {found:?} is not supported{hint}; octet knows {known}")]
    UnknownModelType {
        /// The value found.
        found: String,
        /// What to use instead, where there is something (starts with `: `), or nothing.
        hint: &'static str,
        /// The model types that exist.
        known: String,
    },
    /// A rope scaling octet does not do.
    #[error("rope type {found:?} is not supported for {family} models; octet knows {known}")]
    UnknownRope {
        /// The value found.
        found: String,
        /// The family.
        family: String,
        /// The rope types that exist.
        known: String,
    },
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A tensor is missing, misshapen or unreadable.
    #[error(transparent)]
    Tensor(#[from] octet_tensor::Error),
    /// A longer context was asked than the model was made for.
    #[error("a context of {asked} tokens was asked, but the model was made for {context}; ask for {context} or fewer")]
    Context {
        /// The context asked for.
        asked: usize,
        /// The context the model was made for.
        context: usize,
    },
    /// Inputs that the config says are turned and that cannot be.
    #[error(
        "transform_config turns the inputs of {module}, which is no linear of a block whose inputs come in eights; the config belongs to \
         another model, get it again"
    )]
    Turned {
        /// The module.
        module: String,
    },
    /// The checkpoint holds a tensor in a block that the architecture has no use for.
    #[error(
        "the checkpoint holds {name}, for which a {family} block as config.json describes it has no use; the result would be wrong \
         without it, so mend the config or use another octet version"
    )]
    Unexpected {
        /// The tensor's name.
        name: String,
        /// The family.
        family: &'static str,
    },
}

/// Where in the model something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The embedding.
    Embedding,
    /// The block with this index, from 0.
    Layer(usize),
    /// The final norm and head.
    Head,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("the embedding"),
            Self::Layer(layer) => write!(f, "layer {layer}"),
            Self::Head => f.write_str("the head"),
        }
    }
}

/// Why a forward pass failed; the sequences are left as they were before it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// A step without tokens.
    #[error("step {step} of the batch has no tokens; give at least one")]
    Empty {
        /// Index of the step.
        step: usize,
    },
    /// A token id the embedding has no row for.
    #[error("token {token} is outside the vocabulary of {vocab}; the tokenizer does not belong to this model")]
    Token {
        /// The token id.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// The sequence would grow past the context.
    #[error("{position} + {tokens} tokens do not fit the context of {context}; shorten the text or open the model with a longer context")]
    ContextFull {
        /// Tokens already in the sequence.
        position: usize,
        /// Tokens asked to be added.
        tokens: usize,
        /// The limit.
        context: usize,
    },
    /// A hidden state (or logit) became infinite or not a number.
    #[error("{place} produced values that are not finite; the weights are damaged or overflow, check them with `octet inspect --check`")]
    NonFinite {
        /// Where it was first seen.
        place: Place,
    },
}
