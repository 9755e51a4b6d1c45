//! No bytes make the reader of numpy arrays panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let _ = octet_formats::npy::read_i64(file);
    let _ = octet_formats::npy::read_f32(file);
});
