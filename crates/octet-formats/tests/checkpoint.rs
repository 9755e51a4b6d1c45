//! Opening checkpoints: single, sharded, float, FP8, and everything that must be refused with a sentence.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use octet_formats::{
    Checkpoint, Folder,
    safetensors::{TensorSpec, Writer},
};
use octet_tensor::{Bytes, Dtype, Matrix, WeightSource};
use std::{collections::BTreeMap, fs, path::Path};

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.into() }
}

/// Bytes that differ from tensor to tensor and are finite in every dtype.
fn fill(spec: &TensorSpec) -> Vec<u8> {
    let seed = spec.name.bytes().map(usize::from).sum::<usize>();
    (0..spec.bytes().unwrap() as usize).map(|i| ((seed + i * 7) % 0x38) as u8).collect()
}

fn write(dir: &Path, config: &str, specs: &[TensorSpec], max_shard: u64) {
    fs::write(dir.join("config.json"), config).unwrap();
    let mut writer = Writer::create(dir, specs.to_vec(), max_shard, &BTreeMap::new()).unwrap();
    for spec in specs.iter().rev() {
        let bytes = fill(spec);
        let half = bytes.len() / 2;
        writer.write(&spec.name, half, &bytes[half..]).unwrap();
        writer.write(&spec.name, 0, &bytes[..half]).unwrap();
    }
    writer.finish().unwrap();
}

fn open(dir: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open(&Folder::disk(dir).unwrap()).map_err(|e| e.to_string())
}

fn refused(dir: &Path, expected: &str) {
    let message = open(dir).unwrap_err();
    assert!(message.contains(expected), "{message}\n  lacks {expected}");
}

fn some_specs() -> Vec<TensorSpec> {
    vec![
        spec("model.embed_tokens.weight", Dtype::Bf16, &[6, 4]),
        spec("model.layers.0.mlp.up_proj.weight", Dtype::F16, &[5, 4]),
        spec("model.layers.0.norm.weight", Dtype::F32, &[4]),
        spec("model.layers.0.empty.weight", Dtype::F32, &[0, 4]),
        spec("lm_head.weight", Dtype::F32, &[6, 4]),
    ]
}

#[test]
fn single_and_sharded_checkpoints_read_back() {
    for max_shard in [u64::MAX, 100, 1] {
        let dir = tempfile::tempdir().unwrap();
        let specs = some_specs();
        write(dir.path(), r#"{"model_type":"x"}"#, &specs, max_shard);
        assert_eq!(dir.path().join("model.safetensors.index.json").exists(), max_shard < u64::MAX);
        let checkpoint = open(dir.path()).unwrap();
        assert_eq!(checkpoint.config()["model_type"], "x");
        assert!(checkpoint.quantization().is_none());
        let mut names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        names.sort();
        assert_eq!(checkpoint.names(), names);
        for spec in &specs {
            let tensor = checkpoint.tensor(&spec.name).unwrap().unwrap();
            assert_eq!((tensor.dtype(), tensor.shape(), &**tensor.bytes()), (spec.dtype, &spec.shape[..], &fill(spec)[..]));
            assert_eq!(checkpoint.scan_non_finite(&spec.name), 0);
        }
        let Some(Matrix::Float(matrix)) = checkpoint.matrix("model.layers.0.mlp.up_proj").unwrap() else { panic!("no float matrix") };
        assert_eq!((matrix.rows(), matrix.cols(), matrix.dtype()), (5, 4, Dtype::F16));
        assert!(checkpoint.matrix("model.layers.9.mlp.up_proj").unwrap().is_none());
        assert!(checkpoint.matrix("model.layers.0.norm").unwrap_err().to_string().contains("model.layers.0.norm.weight"));
    }
}

#[test]
fn a_folder_in_memory_is_a_checkpoint_too() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "{}", &some_specs(), 60);
    let disk = Folder::disk(dir.path()).unwrap();
    let files = disk.files().unwrap().into_iter().map(|(name, _)| (name.clone(), Bytes::new(fs::read(dir.path().join(name)).unwrap())));
    let memory = Checkpoint::open(&Folder::memory("m", files.collect())).unwrap();
    assert_eq!(memory.names(), Checkpoint::open(&disk).unwrap().names());
}

#[test]
fn block_fp8_is_a_float_source() {
    let dir = tempfile::tempdir().unwrap();
    let specs = [spec("a.weight", Dtype::F8E4m3, &[5, 7]), spec("a.weight_scale_inv", Dtype::F32, &[3, 2])];
    let config = r#"{"quantization_config":{"quant_method":"fp8","weight_block_size":[2,4]}}"#;
    fs::write(dir.path().join("config.json"), config).unwrap();
    let mut writer = Writer::create(dir.path(), specs.to_vec(), u64::MAX, &BTreeMap::new()).unwrap();
    writer.write("a.weight", 0, &[0x38; 35]).unwrap();
    let scales: Vec<u8> = (1..=6).flat_map(|v| (v as f32).to_le_bytes()).collect();
    writer.write("a.weight_scale_inv", 0, &scales).unwrap();
    writer.finish().unwrap();
    let checkpoint = open(dir.path()).unwrap();
    assert!(checkpoint.quantization().is_none());
    let matrix = checkpoint.matrix("a").unwrap().unwrap();
    let mut out = [0.0; 35];
    matrix.read_rows_f32(0..5, &mut out).unwrap();
    for (i, &v) in out.iter().enumerate() {
        assert_eq!(v, (i / 7 / 2 * 2 + i % 7 / 4 + 1) as f32);
    }
}

#[test]
fn fp8_without_its_scale_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "{}", &[spec("a.weight", Dtype::F8E4m3, &[5, 7])], u64::MAX);
    let message = open(dir.path()).unwrap().matrix("a").unwrap_err().to_string();
    assert!(message.contains("a.weight_scale_inv"), "{message}");
}

#[test]
fn non_finite_weights_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let mut writer = Writer::create(dir.path(), vec![spec("w", Dtype::F32, &[3])], u64::MAX, &BTreeMap::new()).unwrap();
    writer.write("w", 0, &[f32::NAN, 1.0, f32::INFINITY].map(f32::to_le_bytes).concat()).unwrap();
    writer.finish().unwrap();
    assert_eq!(open(dir.path()).unwrap().scan_non_finite("w"), 2);
}

#[test]
fn broken_folders_are_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), "has no config.json");
    fs::write(dir.path().join("config.json"), "{\"a\":").unwrap();
    refused(dir.path(), "config.json is not valid");
    fs::write(dir.path().join("config.json"), "[]").unwrap();
    refused(dir.path(), "not an object");
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    refused(dir.path(), "download model.safetensors");
    fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    refused(dir.path(), "Python pickle");
    fs::write(dir.path().join("model-00001-of-00002.safetensors"), "x").unwrap();
    refused(dir.path(), "model.safetensors.index.json");
    fs::write(dir.path().join("model.safetensors"), [1, 2, 3]).unwrap();
    refused(dir.path(), "model.safetensors is not a sound safetensors file");
}

#[test]
fn broken_indices_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let specs = [spec("a", Dtype::F32, &[8]), spec("b", Dtype::F32, &[8]), spec("c", Dtype::F32, &[8])];
    write(dir.path(), "{}", &specs, 32);
    let index_path = dir.path().join("model.safetensors.index.json");
    let index = fs::read_to_string(&index_path).unwrap();
    let with = |from: &str, to: &str| fs::write(&index_path, index.replace(from, to)).unwrap();
    with("model-00002-of-00003.safetensors", "../elsewhere.safetensors");
    refused(dir.path(), "is not a plain file name");
    with("model-00002-of-00003.safetensors", "/etc/passwd");
    refused(dir.path(), "is not a plain file name");
    with("\"b\": \"model-00002", "\"b\": \"model-00003");
    refused(dir.path(), "b should be in model-00003-of-00003.safetensors");
    with("\"b\"", "\"x\"");
    refused(dir.path(), "x should be in model-00002-of-00003.safetensors");
    with("weight_map", "weights");
    refused(dir.path(), "missing field `weight_map`");
    with("", "");
    fs::copy(dir.path().join("model-00001-of-00003.safetensors"), dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    refused(dir.path(), "a is in both model-00001-of-00003.safetensors and model-00002-of-00003.safetensors");
    fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    refused(dir.path(), "1 of 3 shards");
    refused(dir.path(), "model-00002-of-00003.safetensors); download");
}

#[test]
fn truncated_files_are_refused_at_every_length() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "{}", &[spec("a", Dtype::F32, &[4])], u64::MAX);
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        refused(dir.path(), "not a sound safetensors file");
    }
}

#[test]
fn a_writer_refuses_gaps_overlaps_and_strangers() {
    let dir = tempfile::tempdir().unwrap();
    let create =
        |dir: &Path| Writer::create(dir, vec![spec("a", Dtype::I8, &[10]), spec("b", Dtype::I8, &[0])], u64::MAX, &BTreeMap::new());
    let message = |result: octet_formats::Result<()>| result.unwrap_err().to_string();
    let mut writer = create(dir.path()).unwrap();
    writer.write("a", 2, &[0; 3]).unwrap();
    writer.write("a", 7, &[0; 3]).unwrap();
    assert!(message(writer.write("a", 4, &[0; 2])).contains("written before"));
    assert!(message(writer.write("a", 6, &[0; 2])).contains("written before"));
    assert!(message(writer.write("a", 2, &[0; 3])).contains("written before"));
    assert!(message(writer.write("a", 8, &[0; 3])).contains("has 10 bytes"));
    assert!(message(writer.write("c", 0, &[0])).contains("not announced"));
    writer.write("a", 5, &[0; 2]).unwrap();
    assert!(message(writer.finish()).contains("a: only 8 of its 10 bytes"));
    assert!(create(dir.path()).unwrap_err().to_string().contains("model.safetensors"), "never overwrites");
    let twice = vec![spec("a", Dtype::I8, &[1]), spec("a", Dtype::I8, &[1])];
    let other = tempfile::tempdir().unwrap();
    assert!(Writer::create(other.path(), twice, u64::MAX, &BTreeMap::new()).unwrap_err().to_string().contains("taken"));
    let huge = vec![spec("a", Dtype::F32, &[usize::MAX, 2])];
    assert!(Writer::create(other.path(), huge, u64::MAX, &BTreeMap::new()).unwrap_err().to_string().contains("too large"));
}

#[cfg(target_os = "linux")]
#[test]
fn more_than_the_disk_holds_is_refused_first() {
    let dir = tempfile::tempdir().unwrap();
    let specs = vec![spec("a", Dtype::I8, &[1 << 60])];
    let message = Writer::create(dir.path(), specs, u64::MAX, &BTreeMap::new()).unwrap_err().to_string();
    assert!(message.contains("the disk is full") && message.contains("are free"), "{message}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
