#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| octet_fuzz::run("quantization_config", input));
