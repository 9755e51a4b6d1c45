//! A model with everything that turns text into text.

use crate::{ChatTemplate, GenerationConfig, Result, Tokenizer};
use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, KvDtype};
use octet_model::{ArchSpec, LoadOptions, Model};
use octet_tensor::{Activations, WeightSource};
use std::thread;

/// How a model folder is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Activations of every quantized linear; `None` as the folder says.
    pub activations: Option<Activations>,
    /// Element type of the KV cache (Int16 unless asked: half the memory of F32, an error far below that of 8-bit weights,
    /// and the fastest over long prompts).
    pub kv: KvDtype,
    /// Tokens the model may see at once; `None` as its config says.
    pub context: Option<usize>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { activations: None, kv: KvDtype::Int16, context: None }
    }
}

/// A language model with its tokenizer, generation defaults and chat template.
pub struct TextModel {
    /// The weights, ready to run.
    pub model: Model,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// How its makers want text to be generated.
    pub generation: GenerationConfig,
    /// How a conversation becomes a prompt; base models have none.
    pub chat: Option<ChatTemplate>,
}

impl TextModel {
    /// Opens a model folder on `engine`.
    ///
    /// # Errors
    /// If a file is missing or damaged, the architecture is unknown, or tokenizer and weights do not fit together.
    pub fn open(folder: &Folder, engine: &Engine, options: OpenOptions) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let spec = ArchSpec::from_config(checkpoint.config())?;
        Self::assemble(folder, checkpoint.config(), engine, spec, &checkpoint, options, &mut |_, _| {})
    }

    /// As [`TextModel::open`], with the weights from `source` (a variant of what the folder holds), telling
    /// `progress` blocks loaded and blocks in all.
    ///
    /// # Errors
    /// As [`TextModel::open`].
    pub fn assemble(
        folder: &Folder,
        config: &serde_json::Value,
        engine: &Engine,
        spec: ArchSpec,
        source: &dyn WeightSource,
        options: OpenOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        if folder.read("tokenizer.json")?.is_none() {
            // Said before the weights are read.
            Tokenizer::open(folder)?;
        }
        // A large tokenizer takes as long to read as the weights take to pack, and one thread.
        let load = LoadOptions { activations: options.activations, kv: options.kv, context: options.context };
        let vocab = spec.vocab_size();
        let (tokenizer, model) = thread::scope(|scope| {
            let tokenizer = scope.spawn(|| Tokenizer::open(folder));
            let model = Model::load(engine, spec, source, load, progress);
            (tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), model)
        });
        let (tokenizer, model) = (tokenizer?, model?);
        let mut generation = GenerationConfig::open(folder, config)?;
        if generation.eos_ids.is_empty() {
            generation.eos_ids.extend(tokenizer.eos());
        }
        let chat = ChatTemplate::open(folder)?;
        tokenizer.check_vocabulary(vocab, chat.as_ref().map(ChatTemplate::source))?;
        Ok(Self { model, tokenizer, generation, chat })
    }

    /// Rows of a logits vector.
    pub fn vocab(&self) -> usize {
        self.model.spec().vocab_size()
    }

    /// Tokens the model can see at once.
    pub fn context(&self) -> usize {
        self.model.context()
    }
}
