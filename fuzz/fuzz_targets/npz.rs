//! No bytes make the reader of archives of arrays panic.
#![no_main]

use octet_tensor::Bytes;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let _ = octet_formats::npz::arrays(&Bytes::new(file.to_vec()));
});
