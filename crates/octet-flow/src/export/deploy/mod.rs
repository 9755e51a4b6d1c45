//! What the servers that take over need: commands, manifests, and whether the model can be cut among several of them.

mod check;
mod text;

use super::{Format, Source, checkpoint::Layout};
use crate::{Error, Result};
use check::Checked;
use octet_formats::{Checkpoint, write};
use std::{fs, path::Path};

/// Who loads a format.
#[derive(Clone, Copy)]
enum Serves {
    /// Servers of checkpoints; some need flags for it.
    Checkpoint { flags: &'static str },
    /// llama.cpp and what builds on it.
    Gguf,
    /// mlx-lm.
    Mlx,
    /// onnxruntime.
    Onnx,
    /// No server.
    Nothing,
}

impl Serves {
    fn of(format: Format) -> Self {
        match format {
            Format::Gguf(_) => Self::Gguf,
            Format::Onnx => Self::Onnx,
            Format::Folder(Layout::Other(write::Format::Mlx)) => Self::Mlx,
            Format::Folder(Layout::Other(write::Format::Npz)) => Self::Nothing,
            Format::Folder(Layout::Other(write::Format::Bitsandbytes)) => Self::Checkpoint { flags: " --quantization bitsandbytes" },
            Format::Folder(_) => Self::Checkpoint { flags: "" },
        }
    }
}

/// Writes the page and manifests into the folder `at`; `weights` is where the weights lie, seen from there, and `written` what they are now
/// where octet reads them.
pub(super) fn write(source: &Source, format: Format, weights: &str, written: Option<&Checkpoint>, at: &Path) -> Result<()> {
    fs::create_dir_all(at).map_err(Error::write(at))?;
    let checked = Checked::of(&source.spec, written.unwrap_or(&source.checkpoint))?;
    let (name, serves, context) = (served_name(source.input.name()), Serves::of(format), source.spec.context());
    let page = ("README.md", text::page(&name, serves, weights, context, &checked));
    for (file, contents) in text::files(&name, serves, weights, context).into_iter().chain([page]) {
        fs::write(at.join(file), contents).map_err(Error::write(at.join(file)))?;
    }
    Ok(())
}

/// A name that servers and manifests take: small letters, digits and dashes.
fn served_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(plain).collect::<String>().trim_matches('-').to_string()
}
