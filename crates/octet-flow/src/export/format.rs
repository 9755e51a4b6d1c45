//! The formats there are, by the names they are asked for.

use super::{
    Export, Source,
    checkpoint::{self, CheckpointExport, Layout},
    gguf,
    onnx::{self, OnnxExport},
};
use crate::Result;
use std::{fmt, str::FromStr};

/// A format to export to, such as `gguf:q4_k_m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One GGUF file for llama.cpp and what builds on it.
    Gguf(gguf::Target),
    /// A folder as another tool lays it out.
    Folder(Layout),
    /// A graph for onnxruntime.
    Onnx,
}

/// Names with what follows them.
const KNOWN: &str = "gguf, gguf:TYPE or gguf:TYPE:TYPE OF EMBEDDING AND HEAD (such as gguf:q4_k_m), compressed-tensors, gptq, awq, mlx, bnb8, \
                     npz, onnx and safetensors";

impl Format {
    /// Makes the format ready for a model. With `requantize`, weights that are quantized already in a way the format cannot hold
    /// are decoded and quantized anew.
    ///
    /// # Errors
    /// What the format cannot hold, as a sentence with what to do instead.
    pub fn prepare(self, source: &Source, requantize: bool) -> Result<Box<dyn Export + '_>> {
        match self {
            Self::Gguf(target) => Ok(Box::new(gguf::GgufExport::new(source, target, requantize)?)),
            Self::Folder(layout) => Ok(Box::new(CheckpointExport::new(source, layout, requantize)?)),
            Self::Onnx => Ok(Box::new(OnnxExport::new(source)?)),
        }
    }

    /// What is added to a model's name to name the export.
    pub fn suffix(&self) -> String {
        match self {
            Self::Gguf(_) => format!("{}.gguf", self.to_string().trim_start_matches("gguf").trim_start_matches(':').replace(':', "-")),
            Self::Folder(layout) => layout.name().into(),
            Self::Onnx => onnx::NAME.into(),
        }
    }
}

impl Format {
    /// The tool that executed such exports, its logits held against octet's; `None` where none did. `scripts/interop` has the checks.
    pub fn executed_by(self) -> Option<&'static str> {
        match self {
            Self::Gguf(_) => Some("llama.cpp (of llama-cpp-python 0.3.36)"),
            Self::Folder(layout) => layout.executed_by(),
            Self::Onnx => Some("onnxruntime 1.31"),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf(target) => write!(f, "gguf{target}"),
            Self::Folder(layout) => f.write_str(layout.name()),
            Self::Onnx => f.write_str(onnx::NAME),
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        match (name, rest, checkpoint::named(text)) {
            ("gguf", ..) => rest.map_or(Ok(gguf::Target::default()), str::parse).map(Self::Gguf),
            (_, _, Some(layout)) => Ok(Self::Folder(layout)),
            (onnx::NAME, None, _) => Ok(Self::Onnx),
            _ => Err(format!("{text:?} is no format; octet exports {KNOWN}")),
        }
    }
}
