//! From text to text: tokenizer, chat template, sampler and the generation loop.
//!
//! What lives here: [`TextModel`] (a model folder opened for text), [`Tokenizer`], [`ChatTemplate`], [`SamplerConfig`] and
//! [`generate`] / [`generate_batch`]. What does not: the forward pass (octet-model), judging texts (octet-eval), printing.
#![forbid(unsafe_code)]

mod calendar;
mod chat;
mod error;
mod generate;
mod gguf;
mod guard;
mod memory;
mod rng;
mod sampler;
mod settings;
mod stream;
mod text_model;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use error::{Error, Result};
pub use generate::{Event, FinishReason, GenerateOptions, Generation, Timings, draw_each, generate, generate_batch, generate_several};
pub use gguf::{OutgoingTokenizer, folder as gguf_folder, open_gguf, tokenizer_metadata};
pub use guard::is_guarded;
pub use memory::{MemoryForecast, MemoryNeeds};
pub use rng::Rng;
pub use sampler::{Sampler, SamplerConfig};
pub use settings::GenerationConfig;
pub use stream::{DecodeStream, StopBuffer};
pub use text_model::{OpenOptions, TextModel};
pub use tokenizer::Tokenizer;
