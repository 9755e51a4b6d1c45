//! bitsandbytes checkpoints, read: LLM.int8 (`SCB`) and 4-bit tables (NF4, FP4), with or without quantized scales.
//!
//! Source: bitsandbytes 0.50 (`functional.py`: `QuantState`, `dequantize_4bit`; Dettmers et al., LLM.int8(), section 3, and
//! QLoRA, section 3), checked against checkpoints it made.

mod int8;
mod table;

pub(crate) use int8::{SCHEME as INT8, inputs, int8};
pub(crate) use table::{QuantState, quant_state, table};

/// What follows a 4-bit module's name, before the kind of its table.
pub(crate) const STATE: &str = ".weight.quant_state.bitsandbytes__";
