//! Finding the safetensors files of a folder and listing what they hold.

use super::{Entry, find, json};
use crate::{
    Error, Folder, Result,
    folder::is_plain,
    gguf, npz,
    safetensors::{INDEX, SINGLE, parse_header},
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Everything the folder's safetensors files hold, sorted by name.
pub(super) fn entries(folder: &Folder) -> Result<Vec<Entry>> {
    if let Some(bound) = folder.bound() {
        return Ok(bound_entries(bound));
    }
    // A single file wins over an index beside it, as in transformers.
    if let Some(bytes) = folder.read(SINGLE)? {
        let mut entries = vec![];
        list(folder, SINGLE, &bytes, &mut entries)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        return Ok(entries);
    }
    if let Some(bytes) = folder.read(npz::FILE)? {
        return archived(folder, &bytes);
    }
    let Some(bytes) = folder.read(INDEX)? else { return Err(no_weights(folder)?) };
    let index: Index = json(folder, INDEX, &bytes)?;
    sharded(folder, &index)
}

/// What an archive of arrays holds.
fn archived(folder: &Folder, bytes: &octet_tensor::Bytes) -> Result<Vec<Entry>> {
    let arrays = npz::arrays(bytes).map_err(|e| match e {
        Error::Npz(what) => Error::Npz(format!("{}/{}: {what}", folder.describe(), npz::FILE)),
        other => other,
    })?;
    let entry = |array: npz::Array| {
        let (name, dtype, shape, data) = (array.name, array.dtype, array.shape, array.data);
        Entry { name, dtype, shape, bytes: data.len(), shard: npz::FILE.into(), blocks: None, data }
    };
    let mut entries: Vec<Entry> = arrays.into_iter().map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// What a GGUF file holds; blocks of codes are bytes.
fn bound_entries(bound: &[gguf::Bound]) -> Vec<Entry> {
    let entry = |bound: &gguf::Bound| {
        let (dtype, shape) = bound.described();
        let (name, shard, data) = (bound.name.clone(), bound.file.clone(), bound.data.clone());
        let blocks = bound.kind.dtype().is_none().then(|| bound.kind.name());
        Entry { name, dtype, shape, bytes: data.len(), shard, blocks, data }
    };
    let mut entries: Vec<Entry> = bound.iter().map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

fn sharded(folder: &Folder, index: &Index) -> Result<Vec<Entry>> {
    let shards: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    let (mut entries, mut missing) = (vec![], vec![]);
    for &shard in &shards {
        if !is_plain(shard) {
            return Err(Error::NotAPlainName { name: shard.into(), folder: folder.describe() });
        }
        match folder.read(shard)? {
            Some(bytes) => list(folder, shard, &bytes, &mut entries)?,
            None => missing.push(shard),
        }
    }
    if let Some(first) = missing.first().map(|name| name.to_string()) {
        let (index, folder) = (INDEX.into(), folder.describe());
        return Err(Error::MissingShards { index, folder, missing: missing.len(), all: shards.len(), first });
    }
    entries.sort_by(|a, b| (&a.name, &a.shard).cmp(&(&b.name, &b.shard)));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let (first, second) = (pair[0].shard.clone(), pair[1].shard.clone());
        return Err(Error::DuplicateTensor { name: pair[0].name.clone(), first, second });
    }
    match index.weight_map.iter().find(|(name, shard)| find(&entries, name).is_none_or(|entry| entry.shard != **shard)) {
        Some((name, shard)) => Err(Error::NotInShard { name: name.clone(), shard: shard.clone(), index: INDEX.into() }),
        None => Ok(entries),
    }
}

fn list(folder: &Folder, shard: &str, bytes: &octet_tensor::Bytes, entries: &mut Vec<Entry>) -> Result<()> {
    let file = || format!("{}/{shard}", folder.describe());
    let header = parse_header(bytes).map_err(|source| Error::Header { file: file(), source })?;
    for info in header.tensors {
        let Some(data) = bytes.slice(info.range.clone()) else { continue };
        let bytes = info.range.len();
        entries.push(Entry { name: info.name, dtype: info.dtype, shape: info.shape, bytes, shard: shard.into(), blocks: None, data });
    }
    Ok(())
}

/// Says what the folder has instead of safetensors.
fn no_weights(folder: &Folder) -> Result<Error> {
    let files = folder.files()?;
    let has = |test: &dyn Fn(&str) -> bool| files.iter().find(|(name, _)| test(name)).map(|(name, _)| name.clone());
    let remedy = if let Some(shard) = has(&|name| name.ends_with(".safetensors")) {
        format!("there is {shard}, so download {INDEX} too, or rename a single file to {SINGLE}")
    } else if let Some(pickle) = has(&|name| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end))) {
        format!("there is {pickle}, which is a Python pickle: convert it to safetensors first")
    } else {
        format!("download {SINGLE}, or {INDEX} and the shards it names")
    };
    Ok(Error::NoFile { folder: folder.describe(), file: SINGLE.into(), remedy })
}
