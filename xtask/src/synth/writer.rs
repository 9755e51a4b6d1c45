//! Safetensors files, written front to back: the header is known before the first weight.

use super::shapes::TensorSpec;
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// A run of tensors that share a file.
struct Shard {
    path: PathBuf,
    header: Vec<u8>,
    bytes: u64,
}

/// Takes the bytes of all tensors in order and spreads them over the shards.
pub(crate) struct Writer {
    /// Shards not yet begun, last first.
    waiting: Vec<Shard>,
    /// The file being written and the bytes it still lacks.
    current: Option<(File, PathBuf, u64)>,
}

impl Writer {
    /// Plans the shards (each at most `shard_bytes`, or one tensor) and writes the index if there is more than one.
    pub(crate) fn new(dir: &Path, tensors: &[TensorSpec], shard_bytes: u64) -> Result<Self> {
        let groups = grouped(tensors, shard_bytes);
        let file_name = |at: usize| match groups.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", at + 1),
        };
        if groups.len() > 1 {
            let map = groups.iter().enumerate().flat_map(|(at, group)| group.iter().map(move |tensor| (at, tensor)));
            let map: Map<String, Value> = map.map(|(at, tensor)| (tensor.name.clone(), json!(file_name(at)))).collect();
            let total: u64 = tensors.iter().map(TensorSpec::bytes).sum();
            let index = json!({"metadata": {"total_size": total}, "weight_map": map});
            fs::write(dir.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)?;
        }
        let shards = groups.iter().enumerate().map(|(at, group)| shard(dir.join(file_name(at)), group));
        let mut waiting = shards.collect::<Result<Vec<_>>>()?;
        waiting.reverse();
        Ok(Self { waiting, current: None })
    }

    /// Writes the next bytes; a buffer may end one shard and begin the next.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (mut file, path, left) = match self.current.take() {
                Some(current) => current,
                None => begin(self.waiting.pop().context("more bytes came than the tensors have")?)?,
            };
            let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.write_all(&bytes[..now]).with_context(|| format!("cannot write {}", path.display()))?;
            bytes = &bytes[now..];
            let left = left - now as u64;
            self.current = (left > 0).then_some((file, path, left));
        }
        Ok(())
    }

    /// Checks that every byte has come.
    pub(crate) fn finish(self) -> Result<()> {
        ensure!(self.current.is_none() && self.waiting.is_empty(), "fewer bytes came than the tensors have");
        Ok(())
    }
}

fn begin(shard: Shard) -> Result<(File, PathBuf, u64)> {
    let mut file = File::create_new(&shard.path).with_context(|| format!("cannot create {}", shard.path.display()))?;
    file.write_all(&shard.header).with_context(|| format!("cannot write {}", shard.path.display()))?;
    Ok((file, shard.path, shard.bytes))
}

fn grouped(tensors: &[TensorSpec], shard_bytes: u64) -> Vec<Vec<&TensorSpec>> {
    let mut groups: Vec<Vec<&TensorSpec>> = vec![Vec::new()];
    let mut bytes = 0;
    for tensor in tensors {
        let last = groups.len() - 1;
        if bytes + tensor.bytes() > shard_bytes && !groups[last].is_empty() {
            groups.push(vec![tensor]);
            bytes = tensor.bytes();
        } else {
            groups[last].push(tensor);
            bytes += tensor.bytes();
        }
    }
    groups
}

fn shard(path: PathBuf, tensors: &[&TensorSpec]) -> Result<Shard> {
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes();
        let entry = json!({"dtype": tensor.fill.dtype(), "shape": tensor.shape, "data_offsets": [start, end]});
        entries.insert(tensor.name.clone(), entry);
    }
    let mut json = serde_json::to_vec(&entries)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let header = [(json.len() as u64).to_le_bytes().as_slice(), &json].concat();
    Ok(Shard { path, header, bytes: end })
}
