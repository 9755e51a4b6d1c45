//! A header that is accepted points only inside its file.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    if let Ok(header) = octet_formats::safetensors::parse_header(file) {
        assert!(header.tensors.iter().all(|tensor| file.get(tensor.range.clone()).is_some()));
    }
});
