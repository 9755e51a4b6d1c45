//! Checkpoints with random weights in the shapes of real models, for tests of speed, memory and streaming where values do not matter.
//!
//! Memory stays flat whatever the size: one thread fills buffers of a few MiB, another writes them. The same name gives the same
//! bytes everywhere.

mod noise;
mod shapes;
mod tokenizer;

use anyhow::{Context, Result, bail};
use noise::{Noise, Stream};
use octet_formats::{safetensors::Writer, staging::Staging};
use serde_json::{Value, json};
use shapes::{SHAPES, Shape, Tensor};
use std::{collections::BTreeMap, fs, path::Path, sync::mpsc, thread, time::Instant};
use tokenizer::Vocabulary;

/// Bytes of one buffer; up to four exist at a time.
const BUFFER: usize = 4 << 20;

/// Largest shard.
const SHARD_BYTES: u64 = 2_000_000_000;

/// Bytes of one tensor on their way to the writer.
struct Piece {
    tensor: usize,
    offset: usize,
    bytes: Vec<u8>,
}

/// The shapes by name, one a line.
pub(crate) fn list() -> String {
    let line = |shape: &Shape| format!("{:<14} {:>5.2} GB  {}", shape.name, total_bytes(shape) as f64 / 1e9, shape.describe());
    SHAPES.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The names of the shapes.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// Writes the checkpoint called `name` into the new folder `dir`; says what was written and how fast.
///
/// # Errors
/// An unknown name, a folder that exists, too little disk space, and whatever the file system refuses; nothing stays behind.
pub(crate) fn write(name: &str, dir: &Path) -> Result<String> {
    let Some(shape) = SHAPES.iter().find(|shape| shape.name == name) else {
        bail!("no shape is called `{name}`; these exist:\n{}", list());
    };
    if dir.exists() {
        bail!("{} exists; name a folder that does not", dir.display());
    }
    let start = Instant::now();
    let staging = Staging::begin(dir, false, &[])?;
    write_weights(shape, &staging.path(), SHARD_BYTES)?;
    write_companions(shape, &staging.path())?;
    let dir = staging.commit()?;
    let (bytes, seconds) = (total_bytes(shape) as f64, start.elapsed().as_secs_f64());
    Ok(format!("{}: {:.2} GB of weights in {seconds:.1} s ({:.0} MB/s)", dir.display(), bytes / 1e9, bytes / 1e6 / seconds))
}

fn total_bytes(shape: &Shape) -> usize {
    shape.tensors().iter().map(Tensor::bytes).sum()
}

fn write_companions(shape: &Shape, dir: &Path) -> Result<()> {
    let vocabulary = Vocabulary::new(shape.tokens);
    let generation = json!({"bos_token_id": vocabulary.bos(), "eos_token_id": vocabulary.eos(), "do_sample": false});
    write_json(dir, "config.json", &shape.config(&vocabulary))?;
    write_json(dir, "generation_config.json", &generation)?;
    write_json(dir, "tokenizer_config.json", &vocabulary.tokenizer_config(shape.context))?;
    write_json(dir, "tokenizer.json", &vocabulary.tokenizer())
}

fn write_json(dir: &Path, file: &str, value: &Value) -> Result<()> {
    let path = dir.join(file);
    fs::write(&path, serde_json::to_vec_pretty(value)?).with_context(|| format!("cannot write {}", path.display()))
}

fn write_weights(shape: &Shape, dir: &Path, shard_bytes: u64) -> Result<()> {
    let tensors = shape.tensors();
    let specs = tensors.iter().map(|tensor| tensor.spec.clone()).collect();
    let mut writer = Writer::create(dir, specs, shard_bytes, &BTreeMap::new())?;
    let (filled, to_write) = mpsc::sync_channel(2);
    let (emptied, to_fill) = mpsc::channel();
    thread::scope(|scope| {
        let tensors = &tensors;
        scope.spawn(move || fill(shape.name, tensors, &filled, &to_fill));
        for Piece { tensor, offset, bytes } in to_write {
            writer.write(&tensors[tensor].spec.name, offset, &bytes)?;
            // The other end is gone once everything is filled.
            let _ = emptied.send(bytes);
        }
        Ok(writer.finish()?)
    })
}

/// Sends the bytes of all tensors, one after the other, in buffers that come back to be used again.
fn fill(seed: &str, tensors: &[Tensor], filled: &mpsc::SyncSender<Piece>, to_fill: &mpsc::Receiver<Vec<u8>>) {
    let noise = Noise::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let mut stream = Stream::new(&format!("{seed} {}", tensor.spec.name));
        let size = tensor.bytes();
        for offset in (0..size).step_by(BUFFER) {
            let mut bytes = to_fill.try_recv().unwrap_or_default();
            bytes.resize(BUFFER.min(size - offset), 0);
            noise.fill(tensor.fill, &mut stream, &mut bytes);
            // The writer stops listening only when it failed; it has the error.
            if filled.send(Piece { tensor: index, offset, bytes }).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use octet_formats::{Checkpoint, Folder};
    use octet_tensor::WeightSource;

    fn read(dir: &Path, file: &str) -> Value {
        serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap()
    }

    fn tiny(dir: &Path, fp8: bool, shard_bytes: u64) {
        let shape = Shape { name: "tiny", tokens: 300, vocabulary: 384, hidden: 256, intermediate: 384, layers: 2, fp8, ..SHAPES[0] };
        write_weights(&shape, dir, shard_bytes).unwrap();
        write_companions(&shape, dir).unwrap();
    }

    /// Header and data section of a safetensors file.
    fn open(path: &Path) -> (Value, Vec<u8>) {
        let bytes = fs::read(path).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!((8 + len) % 8, 0);
        (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), bytes[8 + len..].to_vec())
    }

    #[test]
    fn one_file_holds_gaussian_weights() {
        let dir = tempfile::tempdir().unwrap();
        tiny(dir.path(), false, u64::MAX);
        let (header, data) = open(&dir.path().join("model.safetensors"));
        let mut end = 0;
        for (name, entry) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
            let range = [0, 1].map(|at| entry["data_offsets"][at].as_u64().unwrap() as usize);
            assert_eq!(range[0], end, "{name}");
            end = range[1];
            let values: Vec<f64> =
                data[range[0]..end].chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f64()).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let std = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            let wanted = if name.contains("norm") { 1.0 } else { 0.0 };
            assert!((mean - wanted).abs() < 0.01 && (0.015..0.025).contains(&std), "{name}: mean {mean}, std {std}");
        }
        assert_eq!(end, data.len());
        assert!(!dir.path().join("model.safetensors.index.json").exists());
    }

    #[test]
    fn shards_and_index_name_every_tensor() {
        let dir = tempfile::tempdir().unwrap();
        tiny(dir.path(), true, 1 << 20);
        let index = read(dir.path(), "model.safetensors.index.json");
        let mut bytes = 0;
        let map = index["weight_map"].as_object().unwrap();
        assert!(map.values().any(|file| *file != map["model.embed_tokens.weight"]));
        for (name, file) in map {
            let (header, data) = open(&dir.path().join(file.as_str().unwrap()));
            let entry = &header[name];
            let [start, end] = [0, 1].map(|at| entry["data_offsets"][at].as_u64().unwrap() as usize);
            bytes += end - start;
            if entry["dtype"] == "F8_E4M3" {
                let scale = &header[format!("{name}_scale_inv")];
                assert_eq!(entry["shape"][0].as_u64().unwrap().div_ceil(128), scale["shape"][0], "{name}");
                let codes = &data[start..end];
                assert!(codes.iter().all(|code| code & 0x7f != 0x7f), "{name} has a NaN");
                let square: f64 = codes.iter().map(|&code| f64::from(octet_tensor::e4m3_to_f32(code)).powi(2)).sum();
                assert!((80.0..120.0).contains(&(square / codes.len() as f64).sqrt()), "{name}");
            }
        }
        assert_eq!(index["metadata"]["total_size"], bytes);
    }

    #[test]
    fn octet_opens_what_was_written() {
        for fp8 in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            tiny(dir.path(), fp8, 1 << 20);
            let checkpoint = Checkpoint::open(&Folder::disk(dir.path()).unwrap()).unwrap();
            let matrix = checkpoint.matrix("model.layers.1.mlp.down_proj").unwrap().unwrap();
            assert_eq!((matrix.rows(), matrix.cols()), (256, 384));
            assert!(checkpoint.quantization().is_none());
        }
    }

    #[test]
    fn the_same_name_gives_the_same_bytes() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let files = dirs.each_ref().map(|dir| {
            tiny(dir.path(), false, u64::MAX);
            fs::read(dir.path().join("model.safetensors")).unwrap()
        });
        assert!(files[0] == files[1]);
    }

    #[test]
    fn wrong_requests_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let message = |name: &str, dir: &Path| format!("{:#}", write(name, dir).unwrap_err());
        assert!(message("qwen9", &dir.path().join("new")).contains("qwen3-0.6b"));
        assert!(message("medium-150m", dir.path()).contains("exists"));
        assert!(message("medium-150m", &dir.path().join("a/b")).contains("a/b"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
