//! What can go wrong between a prompt and its text.

/// What can go wrong between a prompt and its text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A GGUF file that holds no model octet runs.
    #[error("{file} cannot be run: {what}")]
    BadGguf {
        /// The file.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// A file that every language model needs is not in the folder.
    #[error("{folder} has no {file}; {remedy}")]
    MissingFile {
        /// The model folder.
        folder: String,
        /// The file looked for.
        file: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A JSON file that cannot be read as what it should be.
    #[error("{folder}/{file} cannot be read: {what}; download it again")]
    BadFile {
        /// The model folder.
        folder: String,
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The tokenizer makes tokens the embedding has no row for.
    #[error(
        "the tokenizer has token {token:?} with id {id}, but the model's embedding has only {vocab} rows; tokenizer and weights do not belong together, take both from one checkpoint or resize the embedding"
    )]
    TokenizerTooLarge {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// Text that the tokenizer cannot encode, or ids it cannot decode.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// A chat template that cannot be compiled or rendered.
    #[error("the chat template {what}; pass the prompt as plain text, or mend chat_template in tokenizer_config.json")]
    Template {
        /// What is wrong, with the line where it is known.
        what: String,
    },
    /// The chat template itself refused the conversation.
    #[error("the model's chat template refuses this conversation: {0}")]
    Conversation(String),
    /// A prompt without a single token.
    #[error("the prompt is empty and the tokenizer adds no beginning-of-sequence token; give at least one word")]
    EmptyPrompt,
    /// A prompt that leaves no room for an answer.
    #[error("the prompt has {tokens} tokens but the context is {context}; shorten the prompt or raise the context")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens the model can see at once.
        context: usize,
    },
    /// The model's output is not a distribution.
    #[error(
        "the model gave {count} logits that are not finite after {position} tokens; its weights or its arithmetic are broken, check the checkpoint with `octet inspect --check`"
    )]
    NonFinite {
        /// Logits that are NaN or infinite.
        count: usize,
        /// Tokens the sequence had.
        position: usize,
    },
    /// A sampling option that makes no sense.
    #[error("{option} = {value} is not possible: {rule}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        rule: &'static str,
    },
    /// The model folder could not be read.
    #[error(transparent)]
    Folder(#[from] octet_formats::Error),
    /// The configuration describes no model that octet knows.
    #[error(transparent)]
    Config(#[from] octet_model::ConfigError),
    /// The weights do not make the model the configuration describes.
    #[error(transparent)]
    Load(#[from] octet_model::LoadError),
    /// The forward pass failed.
    #[error(transparent)]
    Forward(#[from] octet_model::ForwardError),
}

impl Error {
    /// Whether the model gave numbers that are not finite: a verdict about the model, not a failure of the run.
    pub fn is_non_finite(&self) -> bool {
        matches!(self, Self::NonFinite { .. } | Self::Forward(octet_model::ForwardError::NonFinite { .. }))
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
