//! No config.json makes the reader of quantization configs panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    if let Ok(config) = serde_json::from_slice(text) {
        let _ = octet_formats::quantization::parse(&config);
    }
});
