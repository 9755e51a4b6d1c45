//! The built-in model `pocket` and the text it is calibrated and judged on, carried inside the binary.

use octet_formats::Folder;
use octet_tensor::Bytes;

/// The name under which the built-in model is asked for.
pub(crate) const NAME: &str = "pocket";

/// Documents that calibrate the built-in model, JSON lines.
pub(crate) const CALIBRATION: &str = include_str!("../../../models/pocket/text/calibration.jsonl");

/// Documents that the built-in model is judged on, JSON lines; none occurs in [`CALIBRATION`].
pub(crate) const EVALUATION: &str = include_str!("../../../models/pocket/text/evaluation.jsonl");

/// Questions about facts that the built-in model has read, JSON lines; none is asked in [`CALIBRATION`] or [`EVALUATION`].
pub(crate) const TASKS: &str = include_str!("../../../models/pocket/text/tasks.jsonl");

/// The kinds of documents in [`EVALUATION`]; each is a text of its own.
pub(crate) const EVALUATION_KINDS: [&str; 3] = ["hardware", "commands", "docs"];

/// Name and content of the calibration text.
pub(crate) fn calibration() -> (&'static str, &'static str) {
    ("built-in calibration text", CALIBRATION)
}

/// Name and content of the evaluation text.
pub(crate) fn evaluation() -> (&'static str, &'static str) {
    ("built-in evaluation text", EVALUATION)
}

macro_rules! files {
    ($($name:literal),*) => {
        vec![$(($name.to_string(), Bytes::new(include_bytes!(concat!("../../../models/pocket/", $name)).as_slice()))),*]
    };
}

/// The model's folder, in memory.
pub(crate) fn folder() -> Folder {
    Folder::memory(NAME, files!("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"))
}
