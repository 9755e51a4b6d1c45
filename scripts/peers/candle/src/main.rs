//! Times candle on a GGUF file: `candle-bench MODEL.gguf PROMPT_TOKENS DECODE_TOKENS`. Prints JSON: tokens a second of
//! a prompt and of decoding from an empty cache, each after a warm-up. `RAYON_NUM_THREADS` sets the threads.

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::{quantized_llama, quantized_qwen3};
use std::{fs::File, time::Instant};

enum Model {
    Llama(quantized_llama::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
}

impl Model {
    fn open(path: &str) -> Result<Self> {
        let mut file = File::open(path)?;
        let content = Content::read(&mut file)?;
        let arch = content.metadata.get("general.architecture").context("the file names no architecture")?.to_string()?.clone();
        Ok(match arch.as_str() {
            "llama" => Self::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?),
            "qwen3" => Self::Qwen3(quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?),
            other => bail!("{other} is neither llama nor qwen3"),
        })
    }

    /// Logits after `tokens` that stand at `position`; 0 forgets what was before.
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<()> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match self {
            Self::Llama(model) => {
                if position == 0 {
                    model.clear_kv_cache();
                }
                model.forward(&input, position)?
            }
            Self::Qwen3(model) => {
                if position == 0 {
                    model.clear_kv_cache();
                }
                model.forward(&input, position)?
            }
        };
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        anyhow::ensure!(values.iter().all(|v| v.is_finite()), "logits are not finite");
        Ok(())
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, prompt, decode] = args.as_slice() else { bail!("usage: candle-bench MODEL.gguf PROMPT_TOKENS DECODE_TOKENS") };
    let (prompt, decode): (usize, usize) = (prompt.parse()?, decode.parse()?);
    let mut model = Model::open(path)?;
    let ids: Vec<u32> = (0..prompt.max(decode) as u32).map(|i| (i * 7919 + 13) % 4096).collect();
    let mut prefill = || -> Result<f64> {
        let started = Instant::now();
        model.forward(&ids[..prompt], 0)?;
        Ok(prompt as f64 / started.elapsed().as_secs_f64())
    };
    prefill()?;
    let prefill = prefill()?;
    let mut steps = |count: usize| -> Result<f64> {
        let started = Instant::now();
        for (position, id) in ids[..count].iter().enumerate() {
            model.forward(&[*id], position)?;
        }
        Ok(count as f64 / started.elapsed().as_secs_f64())
    };
    steps(2)?;
    let decode = steps(decode)?;
    println!("{{\"prefill\": {{\"tok_s\": {prefill}}}, \"decode\": {{\"tok_s\": {decode}}}}}");
    Ok(())
}
