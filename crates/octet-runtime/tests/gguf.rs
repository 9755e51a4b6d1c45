//! GGUF files of llama.cpp and its tools, against the logits of transformers and of llama.cpp.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

use octet_formats::Folder;
use octet_runtime::{Tokenizer, gguf_folder, open_gguf};
use octet_tensor::log_sum_exp;
use octet_testkit::npy_f32;
use std::path::Path;
use support::{compare, find, logits};

/// A file, the ids it was run on, and the logits in exact arithmetic.
const EXACT: &[(&str, &str, &str)] = &[
    ("arch-llama-F32", "arch/llama/input_ids.npy", "arch/llama/logits.npy"),
    ("arch-qwen3-F32", "arch/qwen3/input_ids.npy", "arch/qwen3/logits.npy"),
    ("arch-smollm3-F32", "arch/smollm3/input_ids.npy", "arch/smollm3/logits.npy"),
    ("arch-gpt2-F32", "arch/gpt2/input_ids.npy", "arch/gpt2/logits.npy"),
    ("arch-gemma3-F32", "arch/gemma3/input_ids.npy", "arch/gemma3/logits.npy"),
    ("arch-gemma2-F32", "arch/gemma2/input_ids.npy", "arch/gemma2/logits.npy"),
    ("arch-phi3-longrope-F32", "arch/phi3-longrope/input_ids.npy", "arch/phi3-longrope/logits.npy"),
    ("arch-qwen3-moe-F32", "arch/qwen3-moe/input_ids.npy", "arch/qwen3-moe/logits.npy"),
    ("llama-F16", "peft-base/input_ids.npy", "gguf/llama-F16.logits_f32.npy"),
    ("llama-BF16", "peft-base/input_ids.npy", "gguf/llama-BF16.logits_f32.npy"),
    ("llama-Q8_0", "peft-base/input_ids.npy", "gguf/llama-Q8_0.logits_f32.npy"),
    ("llama-Q4_0", "peft-base/input_ids.npy", "gguf/llama-Q4_0.logits_f32.npy"),
    ("llama-Q2_K", "peft-base/input_ids.npy", "gguf/llama-Q2_K.logits_f32.npy"),
    ("llama-Q4_K_M", "gguf/input_ids.npy", "gguf/llama-Q4_K_M.logits_f32.npy"),
    ("llama-Q5_K_M", "peft-base/input_ids.npy", "gguf/llama-Q5_K_M.logits_f32.npy"),
    ("llama-Q6_K", "peft-base/input_ids.npy", "gguf/llama-Q6_K.logits_f32.npy"),
];

/// A file and the ids that llama.cpp was run on; it rounds activations of quantized products to eight bits.
const LLAMA_CPP: &[(&str, &str, f64)] = &[
    ("arch-llama-F32", "arch/llama/input_ids.npy", 1e-3),
    ("arch-qwen3-F32", "arch/qwen3/input_ids.npy", 1e-3),
    ("arch-smollm3-F32", "arch/smollm3/input_ids.npy", 1e-3),
    ("arch-gpt2-F32", "arch/gpt2/input_ids.npy", 1e-2),
    ("arch-gemma3-F32", "arch/gemma3/input_ids.npy", 1e-2),
    ("llama-Q8_0", "peft-base/input_ids.npy", 0.1),
    ("llama-Q4_K_M", "peft-base/input_ids.npy", 0.2),
    ("qwen2-Q8_0", "peft-base/input_ids.npy", 0.5),
    ("qwen3-Q8_0", "peft-base/input_ids.npy", 0.5),
    ("qwen3-Q4_0", "peft-base/input_ids.npy", 0.5),
];

fn open(name: &str) -> Option<Folder> {
    find(&format!("gguf/{name}.gguf")).map(|path| open_gguf(&path).unwrap_or_else(|e| panic!("{name}: {e}")))
}

#[test]
fn files_run_as_exact_arithmetic_would() {
    println!("{:<22}{:>10}{:>12}{:>12}", "file", "max |Δ|", "rel. rms", "same top");
    let mut run = 0;
    for (name, ids, golden) in EXACT {
        let (Some(folder), Some(ids), Some(golden)) = (open(name), find(ids), find(golden)) else { continue };
        let (shape, expected) = npy_f32(&golden);
        let found = logits(&folder, &ids);
        let (largest, rms, same) = compare(&found[..expected.len()], &expected, *shape.last().unwrap());
        println!("{name:<22}{largest:>10.1e}{rms:>12.1e}{:>11.1}%", 100.0 * same);
        assert!(rms <= 1e-4, "{name}: {rms:e} off");
        run += 1;
    }
    assert!(run > 0);
}

#[test]
fn files_run_as_llama_cpp_runs_them() {
    println!("{:<22}{:>14}{:>14}{:>10}", "file", "max |Δ log p|", "mean |Δ log p|", "same top");
    for (name, ids, allowed) in LLAMA_CPP {
        let (Some(folder), Some(ids)) = (open(name), find(ids)) else { continue };
        let Some(golden) = find(&format!("gguf/{name}.llamacpp_logprobs.npz")) else { continue };
        let (found, tokens) = (logits(&folder, &ids), octet_testkit::npy_i64(&ids).0[1]);
        let (mut largest, mut sum, mut count, mut same, mut rows) = (0f64, 0.0, 0, 0, 0);
        for ((row, length), expected) in arrays(&golden) {
            let at = (row * tokens + length - 1) * expected.len();
            let found = &found[at..at + expected.len()];
            let total = log_sum_exp(found);
            let differences = found.iter().zip(&expected).map(|(&a, b)| (f64::from(a) - total - b).abs());
            let top = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            for difference in differences {
                (largest, sum, count) = (largest.max(difference), sum + difference, count + 1);
            }
            let wide: Vec<f64> = found.iter().map(|&v| f64::from(v)).collect();
            (same, rows) = (same + usize::from(top(&wide) == top(&expected)), rows + 1);
        }
        println!("{name:<22}{largest:>14.1e}{:>14.1e}{same:>7}/{rows}", sum / f64::from(count));
        assert!(rows > 0 && sum / f64::from(count) <= *allowed, "{name}: {:e} off on average", sum / f64::from(count));
    }
}

/// The arrays of doubles in an uncompressed .npz, by the `row_length` that names them.
fn arrays(path: &Path) -> Vec<((usize, usize), Vec<f64>)> {
    let bytes = std::fs::read(path).unwrap();
    let places =
        |pattern: &[u8]| bytes.windows(pattern.len()).enumerate().filter(|(_, w)| *w == pattern).map(|(at, _)| at).collect::<Vec<_>>();
    let (entries, magics) = (places(b"PK\x03\x04"), places(b"\x93NUMPY"));
    let read = |(&entry, &magic): (&usize, &usize)| {
        let short = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let name = std::str::from_utf8(&bytes[entry + 30..entry + 30 + short(entry + 26)]).unwrap();
        let (row, length) = name.trim_end_matches(".npy").split_once('_').unwrap();
        let start = magic + 10 + short(magic + 8);
        let header = std::str::from_utf8(&bytes[magic + 10..start]).unwrap();
        assert!(header.contains("'<f8'"), "{header}");
        let count: usize = header.split_once("'shape': (").unwrap().1.split(',').next().unwrap().parse().unwrap();
        let values = bytes[start..start + 8 * count].as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
        ((row.parse().unwrap(), length.parse().unwrap()), values)
    };
    entries.iter().zip(&magics).map(read).collect()
}

#[test]
fn tokenizers_come_out_as_they_went_in() {
    let (Some(folder), Some(base)) = (open("llama-Q2_K"), find("peft-base/llama")) else { return };
    let (found, expected) = (Tokenizer::open(&folder).unwrap(), Tokenizer::open(&Folder::disk(&base).unwrap()).unwrap());
    for text in ["def value(self): return argument 12345", "  naïve\n\n\tstring ======== äöü 漢字 🙂", "", "a", "It's they'll\r\nX  y   z"]
    {
        let (a, b) = (found.encode(text, false).unwrap(), expected.encode(text, false).unwrap());
        assert_eq!(a, b, "{text:?}");
        assert_eq!(found.decode(&a).unwrap(), expected.decode(&b).unwrap());
    }
    assert_eq!((found.bos(), found.eos(), found.len()), (expected.bos(), expected.eos(), expected.len()));
}

#[test]
fn damaged_files_are_refused_in_words() {
    let Some(path) = find("gguf/llama-Q2_K.gguf") else { return };
    let whole = std::fs::read(&path).unwrap();
    let refusal = |bytes: Vec<u8>| match octet_formats::gguf::File::from_bytes("x.gguf", octet_tensor::Bytes::new(bytes)) {
        Err(e) => e.to_string(),
        Ok(file) => gguf_folder("x", &file).unwrap_err().to_string(),
    };
    let renamed = |from: &[u8], to: &[u8]| {
        let mut bytes = whole.clone();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    assert!(refusal(whole[..whole.len() - 40].to_vec()).contains("reaches past"));
    assert!(refusal(whole[..1000].to_vec()).contains("download it again"));
    assert!(
        refusal(renamed(b"blk.0.attn_q", b"blk.0.attn_x")).contains("blk.0.attn_q"),
        "{}",
        refusal(renamed(b"blk.0.attn_q", b"blk.0.attn_x"))
    );
    assert!(refusal(renamed(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lxama")).contains("lxama"));
    assert!(refusal(renamed(b"blk.0.attn_q", b"blk.0.attn_k")).contains("twice"));
}
