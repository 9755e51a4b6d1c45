//! What is fuzzed: every parser as a function of bytes that must neither panic nor set aside more than its input can fill.
//!
//! libFuzzer runs them with a nightly compiler (`fuzz_targets`), `cargo test -p octet-flow --test fuzzed` runs them over kept inputs and changes of those.

use octet_formats::{
    Checkpoint, Folder, gguf, npy, npz, packed,
    peft::{self, Adapter},
    quantization, safetensors,
};
use octet_model::ArchSpec;
use octet_quant::Recipe;
use octet_runtime::{ChatTemplate, GenerationConfig, Message, Tokenizer};
use octet_tensor::{Bytes, Matrix, WeightSource};

/// A parser that is fuzzed.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: &'static str,
    /// What is done with an input.
    pub(crate) run: fn(&[u8]),
    /// Bytes it may allocate beside [`FACTOR`] times its input.
    pub(crate) room: usize,
}

/// Bytes of memory a byte of input may become: JSON of `[[[…` is a value of its own every byte, two bits of a code a float.
pub(crate) const FACTOR: usize = 128;

/// Cuts an input of several files.
const CUT: &[u8] = b"\n\0\n";

const fn target(name: &'static str, run: fn(&[u8]), room: usize) -> Target {
    Target { name, run, room }
}

const SMALL: usize = 64 << 10;
/// What a tokenizer's patterns and caches take, whatever its vocabulary.
const TOKENIZER: usize = 64 << 20;

/// Every target.
pub(crate) const ALL: [Target; 13] = [
    target("adapter", adapter, SMALL),
    target("chat_template", chat_template, 64 << 20),
    target("config", config, 4 << 20),
    target("gguf", gguf_file, TOKENIZER),
    target("npy", npy_array, SMALL),
    target("npz", npz_archive, SMALL),
    target("packed", packed_weights, SMALL),
    target("quantization_config", quantization_config, SMALL),
    target("recipe", recipe, 16 << 20),
    target("safetensors_header", safetensors_header, SMALL),
    target("shards", shards, SMALL),
    target("stored_weights", stored_weights, SMALL),
    target("tokenizer", tokenizer, TOKENIZER),
];

/// The files of an input.
fn files<'a>(input: &'a [u8], names: &'a [&str]) -> Vec<(String, Bytes)> {
    let mut rest = Some(input);
    let mut next = || {
        let found = rest?;
        let at = found.windows(CUT.len()).position(|window| window == CUT);
        rest = at.map(|at| &found[at + CUT.len()..]);
        Some(&found[..at.unwrap_or(found.len())])
    };
    names.iter().map_while(|name| Some(((*name).to_string(), Bytes::new(next()?.to_vec())))).collect()
}

/// A config and weights of an adapter: it opens or is refused in words.
fn adapter(input: &[u8]) {
    for name in [peft::PEFT, peft::MLX] {
        let _ = Adapter::open(&Folder::memory("x", files(input, &[peft::CONFIG, name])));
    }
}

/// A chat template renders a conversation or says what is wrong with it.
fn chat_template(input: &[u8]) {
    let Ok(source) = std::str::from_utf8(input) else { return };
    let Ok(template) = ChatTemplate::new(source.into(), Some("<s>".into()), Some("</s>".into())) else { return };
    let _ = template.render(&[Message::new("system", "a"), Message::new("user", "b"), Message::new("assistant", "c")], true);
}

/// Any JSON is an architecture or a sentence about what is not understood; an architecture has a graph.
fn config(input: &[u8]) {
    let Ok(config) = serde_json::from_slice(input) else { return };
    let _ = GenerationConfig::from_json(&config, &config);
    if let Ok(spec) = ArchSpec::from_config(&config) {
        let _ = spec.linear_sites();
    }
}

/// A GGUF header that is accepted points only inside its file; what it says makes a model and a tokenizer, or a sentence.
fn gguf_file(input: &[u8]) {
    let Ok(header) = gguf::parse_header(input) else { return };
    assert!(header.tensors.iter().all(|tensor| input.get(tensor.range.clone()).is_some()));
    let Ok(opened) = gguf::File::from_bytes("x.gguf", Bytes::new(input.to_vec())) else { return };
    let Ok(folder) = octet_runtime::gguf_folder("x", &opened) else { return };
    tokenize(&folder);
    let Ok(checkpoint) = Checkpoint::open(&folder) else { return };
    matrices(&checkpoint);
}

/// An array of numpy.
fn npy_array(input: &[u8]) {
    let _ = (npy::read_i64(input), npy::read_f32(input));
}

/// An archive of arrays.
fn npz_archive(input: &[u8]) {
    let _ = npz::arrays(&Bytes::new(input.to_vec()));
}

/// A header of prepacked weights and what it is about, sealed by the checksum that would stop every change of it.
fn packed_weights(input: &[u8]) {
    let mut files = files(input, &[packed::FILE, "config.json", "model.safetensors"]);
    let Some((_, header)) = files.first_mut() else { return };
    let mut file = b"octpack\n\x01\0\0\0\x01\0\0\0".to_vec();
    file.extend([128, header.len() as u64, packed::checksum(header)].iter().flat_map(|n| n.to_le_bytes()));
    file.resize(128, 0);
    file.extend(&**header);
    *header = Bytes::new(file);
    let Ok(Some(packed)) = packed::Packed::open(&Folder::memory("x", files)) else { return };
    if let Ok(scheme) = "w8a8".parse() {
        let _ = packed.rows("m", 0..1, 1, scheme);
    }
}

/// What config.json says of a quantization.
fn quantization_config(input: &[u8]) {
    if let Ok(config) = serde_json::from_slice(input) {
        let _ = quantization::parse(&config);
    }
}

/// Any text is a recipe or a sentence about what is wrong with it; what is a recipe reads back the same when written.
fn recipe(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(recipe) = Recipe::from_toml(text) {
        let again = Recipe::from_toml(&recipe.to_string());
        assert!(again.is_ok_and(|again| again == recipe), "octet does not read what it wrote:\n{recipe}");
    }
}

/// A header that is accepted points only inside its file.
fn safetensors_header(input: &[u8]) {
    if let Ok(header) = safetensors::parse_header(input) {
        assert!(header.tensors.iter().all(|tensor| input.get(tensor.range.clone()).is_some()));
    }
}

/// An index and two shards.
fn shards(input: &[u8]) {
    let mut files = files(input, &[safetensors::INDEX, "a.safetensors", "b.safetensors"]);
    files.push(("config.json".into(), Bytes::new(b"{}".to_vec())));
    if let Ok(checkpoint) = Checkpoint::open(&Folder::memory("x", files)) {
        matrices(&checkpoint);
    }
}

/// A config and safetensors file: a folder opens or is refused in words, and so do its matrices.
fn stored_weights(input: &[u8]) {
    let files = files(input, &["config.json", "model.safetensors"]);
    if let Ok(checkpoint) = Checkpoint::open(&Folder::memory("x", files)) {
        matrices(&checkpoint);
    }
}

/// tokenizer.json, its configuration and a template.
fn tokenizer(input: &[u8]) {
    tokenize(&Folder::memory("x", files(input, &["tokenizer.json", "tokenizer_config.json", "generation_config.json"])));
}

/// The library's panics, which octet makes errors of, end a fuzzer before octet sees them.
fn leave_panics_to_octet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !octet_runtime::is_guarded() {
                usual(panic)
            }
        }));
    });
}

/// Encodes and decodes a text, and puts the tokenizer in the words of a GGUF file.
fn tokenize(folder: &Folder) {
    leave_panics_to_octet();
    let Ok(tokenizer) = Tokenizer::open(folder) else { return };
    if let Ok(ids) = tokenizer.encode("It's 12 naïve\n\tdef 漢🙂 <s>", true) {
        let _ = tokenizer.decode(&ids);
    }
    let _ = tokenizer.check_vocabulary(300, None);
    let _ = octet_runtime::tokenizer_metadata(folder, Some(&tokenizer), &serde_json::json!({}), 300);
}

/// Decodes the first rows of whatever the checkpoint's names could be modules of.
fn matrices(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let modules = name.match_indices('.').map(|(at, _)| &name[..at]);
        for matrix in modules.filter_map(|module| checkpoint.matrix(module).ok().flatten()) {
            let rows = matrix.rows().min(2);
            if let Matrix::Quant(codes) = &matrix {
                let _ = codes.read_rows(0..rows);
            }
            let mut out = vec![0.0; rows * matrix.cols()];
            let _ = matrix.read_rows_f32(0..rows, &mut out);
        }
    }
}
