//! The tools' work.

use super::{CompareOutputs, Compared, ComparedOutput, QuantizeModel, QuantizedModel, ValidateQuantization, Validated};
use crate::{Calibration, Error, JudgeSettings, Original, Prepared, QuantizeSettings, ReceiptFacts, Result, TextSource, judge};
use octet_eval::{
    EvalText,
    gates::{Outcome, Status, Thresholds},
    memory::available_memory,
    risk::{Coverage, Risk},
    text::{ReadOptions, Text},
    trinity::{Inputs, Trinity},
};
use octet_formats::Folder;
use octet_kernels::Engine;
use octet_quant::{Event, Flags, Recipe, Samples, SolverChoice};
use octet_runtime::{ChatTemplate, GenerateOptions, OpenOptions, TextModel, Tokenizer, generate};
use octet_tensor::Scheme;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// Calibration windows, and tokens of each.
const SAMPLES: usize = 64;
const LENGTH: usize = 512;

/// Fewest tokens to calibrate and to judge on.
const LEAST_TOKENS: usize = 2048;

/// Prompts of the health check.
const HEALTH_PROMPTS: usize = 16;

/// Finds a model by what an agent calls it.
pub type Resolve<'a> = &'a dyn Fn(&str) -> std::result::Result<Folder, String>;

/// The tools, with what they work with.
pub struct Tools<'a> {
    /// Threads and kernels.
    pub engine: &'a Engine,
    /// Finds models.
    pub resolve: Resolve<'a>,
    /// Name and content (JSON lines) of the texts that stand in for a calibration and a test dataset that are not given.
    pub texts: [Option<(&'a str, &'a str)>; 2],
    /// Set it to stop.
    pub cancel: &'a AtomicBool,
}

impl Tools<'_> {
    fn folder(&self, name: &str) -> Result<Folder> {
        (self.resolve)(name).map_err(Error::Request)
    }

    /// The tokens of a dataset, or of the text that stands in for it.
    fn tokens(&self, dataset: Option<&str>, stand_in: usize, input: &Folder, vocab: usize) -> Result<(TextSource, Vec<u32>)> {
        let (tokenizer, chat) = (Tokenizer::open(input)?, ChatTemplate::open(input)?);
        let options = ReadOptions { vocab: Some(vocab), field: None, chat: chat.as_ref() };
        let (source, text) = match (dataset, self.texts[stand_in]) {
            (Some(path), _) => (TextSource::file(Path::new(path))?, Text::open(Path::new(path), options)?),
            (None, Some((name, text))) => (TextSource::built_in(name, text), Text::parse(name.into(), text.into(), true, options)?),
            (None, None) => return Err(Error::Request("no dataset was named, and there is no built-in text; name one".into())),
        };
        let ids = text.tokens(&tokenizer, vocab, LEAST_TOKENS)?;
        Ok((source, ids))
    }

    /// Quantizes a checkpoint into a new folder; nothing is judged.
    ///
    /// # Errors
    /// If the scheme is none, the checkpoint cannot be quantized, the text is too short, or the folder cannot be written.
    pub fn quantize_model(&self, request: &QuantizeModel) -> Result<QuantizedModel> {
        let input = self.folder(&request.checkpoint_path)?;
        let scheme = scheme(&request.quant_type)?;
        let prepared = Prepared::new(&input, |spec| {
            let solver = SolverChoice::Rtn { candidates: None };
            let flags = Flags { scheme, embedding: None, head: None, portable: false, solver, transform: None };
            let recipe = Recipe::from_flags(&flags, spec.head().tied)?;
            Ok(QuantizeSettings { recipe, label: scheme.short(), strict: false, seed: request.seed })
        })?;
        let target = PathBuf::from(&request.output_path);
        prepared.check_target(&target, false)?;
        let calibration = prepared.wants_calibration().then(|| self.calibration(request, &input, &prepared)).transpose()?;
        let staged = match &calibration {
            Some(calibration) => {
                prepared.write_calibrated(&target, false, calibration, self.engine, self.cancel, &mut |_: &Event<'_>| {})?
            }
            None => prepared.write(&target, false, true, self.engine, self.cancel, &mut |_, _, _, _| {})?,
        };
        let command: Vec<String> = ["octet", "tool", "quantize_model"].map(String::from).into();
        let facts = ReceiptFacts { command: &command, calibration: calibration.as_ref(), evaluation: &[], key: None };
        let receipt = staged.add_receipt(&prepared, facts, self.engine)?;
        let figures = staged.tensor_figures();
        let worst = figures.iter().max_by(|a, b| a.error.total_cmp(&b.error)).map(|tensor| (tensor.name.clone(), tensor.error));
        let bits_per_weight = prepared.plan().forecast(self.engine.threads(), None).linear_bits;
        let bytes = staged.bytes()?;
        let output_path = staged.commit()?.display().to_string();
        Ok(QuantizedModel {
            output_path,
            scheme: scheme.to_string(),
            method: "rtn".into(),
            bytes,
            bits_per_weight,
            worst_tensor: worst,
            calibration_tokens: calibration.map_or(0, |calibration| calibration.samples.tokens().len()),
            receipt_sha256: receipt.sha256,
        })
    }

    fn calibration(&self, request: &QuantizeModel, input: &Folder, prepared: &Prepared) -> Result<Calibration> {
        let spec = prepared.spec();
        let (source, ids) = self.tokens(request.calibration_dataset.as_deref(), 0, input, spec.vocab_size())?;
        let length = LENGTH.min(spec.context());
        Ok(Calibration {
            texts: vec![source.name.clone()],
            sources: vec![source],
            field: None,
            length,
            samples: Samples::draw(&ids, SAMPLES, length, request.seed),
            text: Samples::default(),
            sequential: true,
            memory_budget: available_memory().map_or(u64::MAX, |free| free / 2),
            restart: true,
        })
    }

    /// Judges a quantized model against its original.
    ///
    /// # Errors
    /// If a model cannot be opened or the text is too short; a bad model is no error but a refusal.
    pub fn validate_quantization(&self, request: &ValidateQuantization) -> Result<Validated> {
        let input = self.folder(&request.original_path)?;
        let quantized = self.folder(&request.quantized_path)?;
        let Some(dir) = quantized.path() else {
            return Err(Error::Request(format!("{} is not a folder on disk; quantize it into one first", request.quantized_path)));
        };
        let checkpoint = octet_formats::Checkpoint::open(&input)?;
        let vocab = octet_model::ArchSpec::from_config(checkpoint.config())?.vocab_size();
        let (source, mut ids) = self.tokens(request.test_dataset.as_deref(), 1, &input, vocab)?;
        ids.truncate(request.max_tokens);
        let thresholds = Thresholds { ppl_ratio: 1.0 + request.max_ppl_increase / 100.0, ..Thresholds::default() };
        let settings = JudgeSettings {
            texts: vec![EvalText { name: source.name, ids }],
            context: None,
            thresholds,
            seed: 0,
            tasks: None,
            health_prompts: HEALTH_PROMPTS,
            store: None,
            command: ["octet", "tool", "validate_quantization"].map(String::from).into(),
        };
        let mut original = Original::open(&input, self.engine, &settings)?;
        let label = octet_formats::Checkpoint::open(&quantized)?
            .quantization()
            .and_then(|q| q.main_scheme())
            .map_or_else(|| "16-bit".to_string(), |scheme| scheme.short());
        let judged = judge(&mut original, dir, &label, None, &settings, self.engine, self.cancel, &mut |_, _, _, _| {})?;
        let mut report = judged.report;
        let trinity = Trinity::of(&Inputs::of(&report));
        let risk = Risk::of(&report, &trinity, Coverage::default());
        let failed: Vec<&str> = report
            .gates
            .iter()
            .filter(|g| g.blocking && g.outcome != Outcome::Passed && g.outcome != Outcome::NotApplicable)
            .map(|g| g.name.as_str())
            .collect();
        let accepted = report.status == Status::Accepted;
        let summary = if accepted { "every gate passed".into() } else { format!("not accepted because of {}", failed.join(", ")) };
        let (trinity_score, risk_score) = (trinity.score, risk.score);
        (report.trinity, report.risk) = (Some(trinity), Some(risk));
        Ok(Validated { accepted, summary, trinity_score, risk: risk_score, report })
    }

    /// Lets both models continue the same prompts, greedily.
    ///
    /// # Errors
    /// If a model cannot be opened or run, or there is nothing to compare.
    pub fn compare_outputs(&self, request: &CompareOutputs) -> Result<Compared> {
        if request.prompts.is_empty() {
            return Err(Error::Request("compare_outputs: there is no prompt; give one at least".into()));
        }
        if request.max_tokens == 0 {
            return Err(Error::Request("compare_outputs: max_tokens 0 compares nothing; give 1 or more, or leave it out".into()));
        }
        let open = |name: &str| Ok::<_, Error>(TextModel::open(&self.folder(name)?, self.engine, OpenOptions::default())?);
        let (original, quantized) = (open(&request.original_model)?, open(&request.quantized_model)?);
        let options = GenerateOptions { max_tokens: request.max_tokens, ..GenerateOptions::default() };
        let mut outputs = vec![];
        for prompt in &request.prompts {
            let ids = original.tokenizer.encode(prompt, true)?;
            let write = |model: &TextModel| generate(model, &ids, &options, &mut |_| ControlFlow::Continue(()));
            let (base, quant) = (write(&original)?, write(&quantized)?);
            let same_tokens = base.ids.iter().zip(&quant.ids).take_while(|(a, b)| a == b).count();
            let parts_at = octet_eval::samples::parts_at(&base.text, &quant.text);
            outputs.push(ComparedOutput { prompt: prompt.clone(), original: base.text, quantized: quant.text, same_tokens, parts_at });
        }
        let alike = outputs.iter().filter(|output| output.parts_at.is_none()).count();
        let identical = alike as f64 / outputs.len() as f64;
        Ok(Compared { outputs, identical })
    }
}

/// The scheme that `quant_type` means.
fn scheme(quant_type: &str) -> Result<Scheme> {
    let text = match quant_type {
        "int8" => "w8a16",
        "int8_dynamic" => "w8a8",
        "int4" => "w4a16",
        other => other,
    };
    text.parse().map_err(|e: octet_tensor::SchemeError| Error::Request(e.to_string()))
}
