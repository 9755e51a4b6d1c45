//! Model folders in memory whose files can be damaged.

use octet_flow::{Prepared, QuantizeSettings};
use octet_formats::Folder;
use octet_kernels::Engine;
use octet_quant::{Flags, Recipe, SolverChoice};
use octet_tensor::Bytes;
use serde_json::{Value, json};
use std::{collections::BTreeMap, error::Error, path::Path, sync::atomic::AtomicBool};

/// The weights' file.
const WEIGHTS: &str = "model.safetensors";

/// Files by name.
#[derive(Clone)]
pub(crate) struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// The files of a folder on disk.
    pub(crate) fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let folder = Folder::disk(path)?;
        let mut files = BTreeMap::new();
        for (name, _) in folder.files()? {
            if let Some(bytes) = folder.read(&name)? {
                files.insert(name, bytes.to_vec());
            }
        }
        Ok(Self(files))
    }

    /// `original` quantized by `scheme`, without its receipt.
    pub(crate) fn quantized(original: &Folder, scheme: &str, engine: &Engine) -> Result<Self, Box<dyn Error>> {
        let parsed = scheme.parse()?;
        let solver = SolverChoice::Rtn { candidates: None };
        let prepared = Prepared::new(original, |spec| {
            let flags = Flags { scheme: parsed, embedding: None, head: None, portable: false, solver, transform: None };
            Ok(QuantizeSettings { recipe: Recipe::from_flags(&flags, spec.head().tied)?, label: scheme.into(), strict: false, seed: 0 })
        })?;
        let target = std::env::temp_dir().join(format!("octet-sabotage-{}-{scheme}", std::process::id()));
        let staged = prepared.write(&target, true, true, engine, &AtomicBool::new(false), &mut |_, _, _, _| {})?;
        let files = Self::read(&staged.path());
        staged.discard();
        files
    }

    /// As a folder that can be opened.
    pub(crate) fn folder(&self, name: &str) -> Folder {
        Folder::memory(name, self.0.iter().map(|(name, bytes)| (name.clone(), Bytes::new(bytes.clone()))).collect())
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.values().map(|bytes| bytes.len() as u64).sum()
    }

    /// Adds or replaces a file.
    pub(crate) fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.0.insert(name.into(), bytes);
    }

    /// Changes a file's bytes.
    pub(crate) fn edit(&mut self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(bytes) = self.0.get_mut(name) {
            change(bytes);
        }
    }

    /// Changes a JSON file.
    pub(crate) fn edit_json(&mut self, name: &str, change: impl FnOnce(&mut Value)) -> Result<(), Box<dyn Error>> {
        let mut value: Value = serde_json::from_slice(self.0.get(name).map_or(&[][..], Vec::as_slice))?;
        change(&mut value);
        self.put(name, serde_json::to_vec(&value)?);
        Ok(())
    }

    /// The model says that it has so many positions.
    pub(crate) fn positions(&mut self, most: u64) -> Result<(), Box<dyn Error>> {
        self.edit_json("config.json", |config| config["max_position_embeddings"] = most.into())
    }

    /// Cuts the weights' file to a share of its length.
    pub(crate) fn truncate_weights(&mut self, share: f64) {
        self.edit(WEIGHTS, |bytes| bytes.truncate((bytes.len() as f64 * share) as usize));
    }

    /// Changes the bytes of every tensor whose name `wanted` accepts; gives how many there were.
    pub(crate) fn edit_tensors(
        &mut self,
        wanted: impl Fn(&str) -> bool,
        mut change: impl FnMut(&str, &mut [u8]),
    ) -> Result<usize, Box<dyn Error>> {
        let bytes = self.0.get_mut(WEIGHTS).ok_or("there are no weights")?;
        let (header, start) = header(bytes)?;
        let mut count = 0;
        for (name, entry) in header.as_object().into_iter().flatten().filter(|(name, _)| wanted(name)) {
            if let Some([from, to]) = offsets(entry) {
                change(name, &mut bytes[start + from..start + to]);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Multiplies the BF16 values of the tensors that `wanted` accepts by what `factor` gives for each value.
    pub(crate) fn scale(&mut self, wanted: impl Fn(&str) -> bool, mut factor: impl FnMut() -> f32) -> Result<usize, Box<dyn Error>> {
        self.edit_tensors(wanted, |_, bytes| {
            for value in bytes.as_chunks_mut::<2>().0 {
                let scaled = f32::from_bits(u32::from(u16::from_le_bytes(*value)) << 16) * factor();
                *value = ((scaled.to_bits() >> 16) as u16).to_le_bytes();
            }
        })
    }

    /// Rounds 8-bit codes of the modules that `wanted` accepts so that only `levels` bits of them are left.
    pub(crate) fn coarsen(&mut self, wanted: impl Fn(&str) -> bool, bits: u32) -> Result<usize, Box<dyn Error>> {
        let step = f32::from(1u8 << (8 - bits));
        self.edit_tensors(
            |name| name.ends_with(".weight_packed") && wanted(name),
            |_, bytes| {
                for byte in bytes {
                    let code = (f32::from(*byte) - 128.0) / step;
                    *byte = (code.round() * step).clamp(-128.0, 127.0 - (step - 1.0)) as i32 as u8 ^ 0x80;
                }
            },
        )
    }

    /// Puts `times` copies of every layer into the model, one after the other.
    pub(crate) fn repeat_layers(&mut self, times: usize) -> Result<(), Box<dyn Error>> {
        const LAYERS: &str = "model.layers.";
        let bytes = self.0.get(WEIGHTS).ok_or("there are no weights")?.clone();
        let (old, start) = header(&bytes)?;
        let (mut new, mut data, mut layers) = (serde_json::Map::new(), vec![], 0);
        let numbered = |name: &str| {
            let (number, rest) = name.strip_prefix(LAYERS)?.split_once('.')?;
            Some((number.parse::<usize>().ok()?, rest.to_string()))
        };
        for (name, _) in old.as_object().into_iter().flatten() {
            layers = numbered(name).map_or(layers, |(number, _)| layers.max(number + 1));
        }
        for (name, entry) in old.as_object().into_iter().flatten() {
            let Some([from, to]) = offsets(entry) else { continue };
            for copy in 0..if numbered(name).is_some() { times } else { 1 } {
                let name = numbered(name).map_or(name.clone(), |(number, rest)| format!("{LAYERS}{}.{rest}", number + copy * layers));
                let place = [data.len(), data.len() + to - from];
                data.extend(&bytes[start + from..start + to]);
                new.insert(name, json!({ "dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": place }));
            }
        }
        let mut text = serde_json::to_vec(&Value::Object(new))?;
        text.resize(text.len().next_multiple_of(8), b' ');
        let file = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
        self.put(WEIGHTS, file);
        self.edit_json("config.json", |config| {
            config["num_hidden_layers"] = (layers * times).into();
            config["layer_types"] = Value::Null;
            if let Some(fields) = config.as_object_mut() {
                fields.remove("layer_types");
            }
        })
    }
}

/// The JSON header of a safetensors file and where its data begin.
fn header(bytes: &[u8]) -> Result<(Value, usize), Box<dyn Error>> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("too short")?;
    let length = u64::from_le_bytes(*length) as usize;
    Ok((serde_json::from_slice(rest.get(..length).ok_or("too short")?)?, 8 + length))
}

fn offsets(entry: &Value) -> Option<[usize; 2]> {
    let place = entry.get("data_offsets")?.as_array()?;
    Some([place.first()?.as_u64()? as usize, place.get(1)?.as_u64()? as usize])
}
