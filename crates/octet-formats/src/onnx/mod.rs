//! ONNX models: a graph of operators in `model.onnx`, the weights beside it in a file that readers map.
//!
//! Format: `onnx.proto3` of ONNX 1.20 (field numbers), external data as `docs/ExternalData.md` has it. The operators of a graph are
//! the caller's business.

mod blocks;
mod proto;

pub use blocks::{Blocks, blocks, decoded, holds, stored_bits};

use crate::{Error, Result};
use proto::Message;
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// The graph's file in a folder.
pub const FILE: &str = "model.onnx";
/// The weights' file beside it.
pub const DATA: &str = "model.onnx.data";

/// Tensors start at multiples of this in the weights' file.
const ALIGN: usize = 64;
/// Version of the file format, and of the standard operators used.
const IR: i64 = 10;
const OPSET: i64 = 21;

/// Element types, by the number that ONNX gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    /// binary32.
    F32 = 1,
    /// Bytes.
    U8 = 2,
    /// Signed bytes.
    I8 = 3,
    /// Signed words of 64 bits.
    I64 = 7,
    /// binary16.
    F16 = 10,
    /// bfloat16.
    Bf16 = 16,
}

/// An attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A whole number.
    Int(i64),
    /// A real number.
    Float(f32),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// Text.
    Text(String),
}

/// A dimension of an input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always the same.
    Fixed(usize),
    /// Called so.
    Named(&'static str),
}

/// A graph that is being put together.
#[derive(Debug, Default)]
pub struct Graph {
    body: Message,
    nodes: usize,
}

/// The domain of onnxruntime's own operators.
pub const MICROSOFT: &str = "com.microsoft";

impl Graph {
    fn edit(&mut self, change: impl FnOnce(Message) -> Message) {
        self.body = change(std::mem::take(&mut self.body));
    }

    /// Adds a node; a domain of "" is the standard one.
    pub fn node(&mut self, domain: &str, op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) {
        let mut node = inputs.iter().fold(Message::default(), |node, name| node.text(1, name));
        node = outputs.iter().fold(node, |node, name| node.text(2, name));
        node = node.text(3, &format!("n{}_{op}", self.nodes)).text(4, op);
        for (name, value) in attributes {
            node = node.message(5, &attribute(name, value));
        }
        let node = if domain.is_empty() { node } else { node.text(7, domain) };
        self.nodes += 1;
        self.edit(|body| body.message(1, &node));
    }

    /// Adds a small tensor, little-endian.
    pub fn constant(&mut self, name: &str, elem: Elem, dims: &[usize], bytes: &[u8]) {
        let tensor = tensor(name, elem, dims).bytes(9, bytes);
        self.edit(|body| body.message(5, &tensor));
    }

    /// Adds a tensor that lies in the weights' file.
    pub fn external(&mut self, name: &str, elem: Elem, dims: &[usize], at: &Stored) {
        let pair = |key: &str, value: &str| Message::default().text(1, key).text(2, value);
        let tensor = tensor(name, elem, dims)
            .message(13, &pair("location", DATA))
            .message(13, &pair("offset", &at.offset.to_string()))
            .message(13, &pair("length", &at.length.to_string()))
            .int(14, 1);
        self.edit(|body| body.message(5, &tensor));
    }

    /// Declares an input.
    pub fn input(&mut self, name: &str, elem: Elem, dims: &[Dim]) {
        let info = value_info(name, elem, dims);
        self.edit(|body| body.message(11, &info));
    }

    /// Declares an output.
    pub fn output(&mut self, name: &str, elem: Elem, dims: &[Dim]) {
        let info = value_info(name, elem, dims);
        self.edit(|body| body.message(12, &info));
    }

    /// The model's bytes.
    pub fn model(mut self, name: &str, metadata: &[(&str, String)]) -> Vec<u8> {
        self.edit(|body| body.text(2, name));
        let opset = |domain: &str, version: i64| Message::default().text(1, domain).int(2, version);
        let mut model = Message::default().int(1, IR).text(2, "octet").text(3, env!("CARGO_PKG_VERSION")).message(7, &self.body);
        model = model.message(8, &opset("", OPSET)).message(8, &opset(MICROSOFT, 1));
        metadata.iter().fold(model, |model, (key, value)| model.message(14, &Message::default().text(1, key).text(2, value))).finish()
    }
}

fn tensor(name: &str, elem: Elem, dims: &[usize]) -> Message {
    dims.iter().fold(Message::default(), |tensor, &n| tensor.int(1, n as i64)).int(2, elem as i64).text(8, name)
}

fn attribute(name: &str, value: &Attribute) -> Message {
    let named = Message::default().text(1, name);
    match value {
        Attribute::Float(value) => named.float(2, *value).int(20, 1),
        Attribute::Int(value) => named.int(3, *value).int(20, 2),
        Attribute::Text(value) => named.text(4, value).int(20, 3),
        Attribute::Ints(values) => values.iter().fold(named, |named, &value| named.int(8, value)).int(20, 7),
    }
}

fn value_info(name: &str, elem: Elem, dims: &[Dim]) -> Message {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(n) => Message::default().int(1, *n as i64),
        Dim::Named(name) => Message::default().text(2, name),
    };
    let shape = dims.iter().fold(Message::default(), |shape, d| shape.message(1, &dim(d)));
    let tensor = Message::default().int(1, elem as i64).message(2, &shape);
    Message::default().text(1, name).message(2, &Message::default().message(1, &tensor))
}

/// Where a tensor lies in the weights' file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
}

/// The weights' file, written from front to back.
#[derive(Debug)]
pub struct Data {
    path: PathBuf,
    file: BufWriter<File>,
    at: usize,
    start: usize,
}

impl Data {
    /// Creates the file in `dir`.
    ///
    /// # Errors
    /// If it exists or cannot be created.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(DATA);
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 20, file), at: 0, start: 0 })
    }

    /// Appends bytes to the tensor at work.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len();
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Ends the tensor at work, says where it lies and begins the next.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn end(&mut self) -> Result<Stored> {
        let stored = Stored { offset: self.start, length: self.at - self.start };
        self.append(&vec![0; self.at.next_multiple_of(ALIGN) - self.at])?;
        self.start = self.at;
        Ok(stored)
    }

    /// Brings the file to disk.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn finish(self) -> Result<()> {
        let file = self.file.into_inner().map_err(|e| Error::io("write", &self.path)(e.into_error()))?;
        file.sync_all().map_err(Error::io("write", &self.path))
    }
}
