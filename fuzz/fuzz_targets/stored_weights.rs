//! A folder of any config.json and safetensors file opens or is refused in words, and so do its matrices.
#![no_main]

use octet_formats::{Checkpoint, Folder};
use octet_tensor::{Bytes, WeightSource};

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| {
    let (config, weights) = input;
    let files = vec![("config.json".into(), Bytes::new(config.to_vec())), ("model.safetensors".into(), Bytes::new(weights.to_vec()))];
    let Ok(checkpoint) = Checkpoint::open(&Folder::memory("x", files)) else { return };
    for name in checkpoint.names() {
        let modules = name.match_indices('.').map(|(at, _)| &name[..at]);
        for matrix in modules.filter_map(|module| checkpoint.matrix(module).ok().flatten()) {
            let rows = matrix.rows().min(2);
            let mut out = vec![0.0; rows * matrix.cols()];
            let _ = matrix.read_rows_f32(0..rows, &mut out);
        }
    }
});
