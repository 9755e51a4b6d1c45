//! A GGUF header that is accepted points only inside its file; what it says makes a model or a sentence.
#![no_main]

use octet_formats::gguf;
use octet_tensor::{Bytes, Matrix, WeightSource};

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let Ok(header) = gguf::parse_header(file) else { return };
    assert!(header.tensors.iter().all(|tensor| file.get(tensor.range.clone()).is_some()));
    let Ok(opened) = gguf::File::from_bytes("x.gguf", Bytes::new(file.to_vec())) else { return };
    let Ok(folder) = octet_runtime::gguf_folder("x", &opened) else { return };
    let Ok(checkpoint) = octet_formats::Checkpoint::open(&folder) else { return };
    for name in checkpoint.names() {
        if let Ok(Some(Matrix::Quant(matrix))) = checkpoint.matrix(name.trim_end_matches(".weight")) {
            let _ = matrix.read_rows(0..matrix.rows().min(4));
        }
    }
});
