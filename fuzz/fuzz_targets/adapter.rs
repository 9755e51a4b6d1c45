//! A folder of any adapter config and weights opens or is refused in words.
#![no_main]

use octet_formats::{
    Folder,
    peft::{self, Adapter},
};
use octet_tensor::Bytes;

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8], bool)| {
    let (config, weights, mlx) = input;
    let name = if mlx { peft::MLX } else { peft::PEFT };
    let files = vec![(peft::CONFIG.into(), Bytes::new(config.to_vec())), (name.into(), Bytes::new(weights.to_vec()))];
    let _ = Adapter::open(&Folder::memory("x", files));
});
