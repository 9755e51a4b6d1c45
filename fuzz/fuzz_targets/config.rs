//! Any JSON is an architecture or a sentence about what is not understood; an architecture has a graph.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octet_model::ArchSpec;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = serde_json::from_slice(bytes)
        && let Ok(spec) = ArchSpec::from_config(&config)
    {
        let _ = spec.linear_sites();
    }
});
