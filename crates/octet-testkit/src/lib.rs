//! Helpers of octet's tests: golden loader, tolerances, tiny random models.
//!
//! Everything here panics with a plain message instead of returning errors: it is called by tests only.
#![forbid(unsafe_code)]

mod folder;
mod golden;
mod memory;
mod tiny;

pub use folder::write_folder;
pub use golden::{arch_fixtures, fixtures, npy_f32, npy_i64, relative_error, shared};
pub use memory::{MemorySource, Random};
pub use tiny::{TINY_GEMMA3, TINY_GPT2, TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE};
