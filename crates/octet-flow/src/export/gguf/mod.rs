//! Export to GGUF: metadata and names from the model's description, blocks from solvers, or the codes there are.

mod codes;
mod sink;

use super::{
    Export, ExportRun, Source,
    source::{Decoded, cannot},
};
use crate::{Error, Progress, Result, spill::OnDisk};
use octet_formats::{
    Folder,
    gguf::{BlockType, FileType, Meta, ModelFacts, NewTensor, Writer},
};
use octet_model::{
    LinearSite,
    gguf::{Fact, Outgoing, describe},
    spec::Mlp,
};
use octet_quant::{
    CalibratedOptions, CalibratedRun, CalibrationForecast, GptqSettings, HiddenStates, InMemory, Inventory, Plan, Run, SinkError,
    SolverChoice,
};
use octet_runtime::{open_gguf, tokenizer_metadata};
use octet_tensor::{Dtype, Matrix, WeightSource};
use sink::GgufSink;
use std::{collections::HashMap, fmt, path::Path, str::FromStr};

/// What a GGUF file is to be made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The mixture; `None`: what there is, without loss.
    file: Option<FileType>,
    /// The type of embedding and head, where it is not the mixture's.
    embedding: Option<BlockType>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (file, embedding) = text.split_once(':').map_or((text, None), |(file, rest)| (file, Some(rest)));
        let named = |name: &str| {
            BlockType::named(&name.to_ascii_uppercase())
                .ok_or_else(|| format!("{name:?} is no type of GGUF tensors; take one such as q8_0 or f16"))
        };
        Ok(Self { file: Some(file.parse()?), embedding: embedding.map(named).transpose()? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.map_or(Ok(()), |file| write!(f, ":{file}"))?;
        self.embedding.map_or(Ok(()), |kind| write!(f, ":{}", kind.name().to_ascii_lowercase()))
    }
}

/// A GGUF file about to be written.
pub(super) struct GgufExport<'a> {
    source: &'a Source,
    outgoing: Outgoing,
    metadata: Vec<(String, Meta)>,
    target: Target,
    /// Whether stored codes are taken over.
    direct: bool,
    notes: Vec<String>,
}

impl<'a> GgufExport<'a> {
    pub(super) fn new(source: &'a Source, target: Target, requantize: bool) -> Result<Self> {
        let refuse = |what: String| cannot("GGUF", what);
        let config = source.checkpoint.config();
        let outgoing = describe(&source.spec, config).map_err(|e| refuse(e.to_string()))?;
        let direct = match (source.quantized(), target.file) {
            (Some(scheme), Some(file)) if !requantize => {
                return Err(refuse(format!(
                    "the model is quantized already ({scheme}): export it as plain gguf, which takes its codes over, give the original, or \
                     quantize it anew as {file} with --requantize"
                )));
            }
            (Some(_), None) => true,
            _ => false,
        };
        let mut notes = outgoing.notes.clone();
        notes.extend(source.rounded_inputs()?);
        let mut metadata = vec![
            ("general.architecture".to_string(), Meta::Text(source.spec.gguf_name().into())),
            ("general.type".to_string(), Meta::Text("model".into())),
            ("general.name".to_string(), Meta::Text(source.input.name().into())),
        ];
        metadata.extend(outgoing.metadata.iter().map(|(key, fact)| (key.clone(), meta(fact))));
        match tokenizer_metadata(&source.input, source.tokenizer()?, config, source.spec.vocab_size()).map_err(refuse)? {
            Some(tokenizer) => {
                metadata.extend(tokenizer.metadata);
                notes.extend(tokenizer.notes);
            }
            None => {
                metadata.push(("tokenizer.ggml.model".into(), Meta::Text("none".into())));
                notes.push("the model has no tokenizer.json: the file takes token ids only".into());
            }
        }
        Ok(Self { source, outgoing, metadata, target, direct, notes })
    }

    fn facts(&self, calibrated: bool) -> ModelFacts {
        let spec = &self.source.spec;
        let first = spec.layers().first();
        let experts = |mlp: &Mlp| if let Mlp::Experts { count, .. } = mlp { *count } else { 0 };
        ModelFacts {
            layers: spec.layers().len(),
            queries_per_key: first.map_or(1, |layer| layer.attention.heads / layer.attention.kv_heads.max(1)),
            experts: first.map_or(0, |layer| experts(&layer.mlp)),
            tied: spec.head().tied,
            calibrated,
        }
    }

    /// The type of every tensor of the checkpoint, by its name there.
    fn kinds(&self, calibrated: bool) -> Result<HashMap<String, BlockType>> {
        let (facts, sites) = (self.facts(calibrated), self.sites());
        let mut kinds = HashMap::new();
        for renamed in &self.outgoing.tensors {
            let module = renamed.name.strip_suffix(".weight").unwrap_or(&renamed.name);
            let kind = match (sites.get(module), self.target.file) {
                (None, _) => BlockType::F32,
                (Some(site), Some(file)) => file.tensor(&renamed.tensor, site.cols, &facts, self.target.embedding),
                (Some(_), None) => self.held(module)?,
            };
            kinds.insert(renamed.name.clone(), kind);
        }
        Ok(kinds)
    }

    /// The type that holds a matrix as it is.
    fn held(&self, module: &str) -> Result<BlockType> {
        Ok(match self.source.checkpoint.matrix(module)? {
            Some(Matrix::Quant(rows)) => {
                codes::holding(rows.scheme().weights, rows.cols()).map_err(|what| cannot("GGUF", format!("{module} {what}")))?
            }
            Some(Matrix::Float(matrix)) => match matrix.dtype() {
                Dtype::F16 => BlockType::F16,
                Dtype::Bf16 => BlockType::BF16,
                _ => BlockType::F32,
            },
            None => BlockType::F32,
        })
    }

    fn sites(&self) -> HashMap<String, LinearSite> {
        self.source.spec.linear_sites().into_iter().map(|site| (site.module.clone(), site)).collect()
    }

    fn names(&self) -> Vec<String> {
        self.outgoing.tensors.iter().map(|renamed| renamed.name.clone()).collect()
    }

    /// The file with its header, and where everything goes.
    fn sink(&self, path: &Path, kinds: &HashMap<String, BlockType>) -> Result<GgufSink> {
        let main = self.target.file.unwrap_or_else(|| {
            let mut counts: HashMap<BlockType, usize> = HashMap::new();
            let sites = self.sites();
            for (name, kind) in kinds {
                if let Some(site) = sites.get(name.strip_suffix(".weight").unwrap_or(name)) {
                    *counts.entry(*kind).or_default() += site.rows * site.cols;
                }
            }
            counts.into_iter().max_by_key(|(kind, count)| (*count, kind.name())).map_or(FileType::F16, |(kind, _)| FileType::mostly(kind))
        });
        let mut metadata = self.metadata.clone();
        metadata.push(("general.file_type".into(), Meta::U32(main.number())));
        if kinds.values().any(|kind| kind.dtype().is_none()) {
            metadata.push(("general.quantization_version".into(), Meta::U32(2)));
        }
        let floats = self.outgoing.floats.iter().map(|(name, values)| NewTensor {
            name: name.clone(),
            kind: BlockType::F32,
            shape: vec![values.len()],
        });
        let places = sink::places(&self.outgoing.tensors, kinds, &self.sites(), &self.source.checkpoint)?;
        let tensors: Vec<NewTensor> = floats.chain(sink::tensors(&self.outgoing.tensors, &places)).collect();
        let mut writer = Writer::create(path, &metadata, &tensors)?;
        for (name, values) in &self.outgoing.floats {
            writer.write(name, 0, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        Ok(GgufSink::new(writer, places))
    }

    /// Solves with what flows through the model, or without.
    fn solve(
        &self,
        path: &Path,
        sink: &mut GgufSink,
        kinds: &HashMap<String, BlockType>,
        run: &ExportRun<'_>,
        progress: Progress<'_>,
    ) -> Result<()> {
        let decoded = Decoded::open(&self.source.input, self.names())?;
        let inventory = Inventory::new(&self.source.spec.linear_sites(), &decoded)?;
        let plan = Plan::in_blocks(&inventory, &|site| {
            let code = kinds.get(&format!("{}.weight", site.module))?.code()?;
            Some((code, solver(site, code.bits_per_weight(), run.calibration.is_some())))
        });
        let Some(calibration) = run.calibration else {
            let streamed = Run { plan: &plan, source: &decoded, engine: run.engine, cancel: run.cancel };
            streamed.quantize(sink, &mut |at| progress("writing", at.done_bytes, at.total_bytes, at.tensor)).map_err(stopped)?;
            return Ok(());
        };
        drop(decoded);
        let open =
            || -> std::result::Result<Box<dyn WeightSource>, SinkError> { Ok(Box::new(Decoded::open(&self.source.input, self.names())?)) };
        let calibrated = CalibratedRun {
            plan: &plan,
            spec: &self.source.spec,
            open: &open,
            samples: &calibration.samples,
            transforms: &[],
            options: CalibratedOptions { sequential: calibration.sequential, strict: false },
            engine: run.engine,
            cancel: run.cancel,
        };
        let forecast =
            CalibrationForecast::new(&plan, &self.source.spec, &calibration.samples, calibration.sequential, calibration.memory_budget);
        let spill = path.with_extension("hidden");
        let mut hidden: Box<dyn HiddenStates> = match forecast.spilled {
            true => Box::new(OnDisk::create(&spill).map_err(Error::write(&spill))?),
            false => Box::new(InMemory::new(forecast.hidden_bytes as usize / size_of::<f32>())),
        };
        let mut journal = sink::Uncommitted::new(sink, &open);
        let mut event = |event: &octet_quant::Event<'_>| {
            let detail = format!("{} {}", event.place, event.tensor.unwrap_or(event.what));
            progress("quantizing", event.done, event.total, &detail);
        };
        calibrated.quantize(&mut journal, &mut *hidden, &mut event).map_err(stopped)?;
        drop(hidden);
        if forecast.spilled {
            std::fs::remove_file(&spill).map_err(Error::write(&spill))?;
        }
        Ok(())
    }
}

fn stopped(error: octet_quant::Error) -> Error {
    match error {
        octet_quant::Error::Interrupted { .. } => Error::Interrupted,
        other => other.into(),
    }
}

/// What chooses the codes of a matrix: feedback where inputs were measured and codes are coarse.
fn solver(site: &LinearSite, bits: f64, calibrated: bool) -> SolverChoice {
    match calibrated && bits < 8.0 && site.layer.is_some() {
        true => SolverChoice::Gptq(GptqSettings::USUAL),
        false => SolverChoice::Rtn { candidates: None },
    }
}

fn meta(fact: &Fact) -> Meta {
    match fact {
        Fact::Count(count) => Meta::U32(u32::try_from(*count).unwrap_or(u32::MAX)),
        Fact::Float(value) => Meta::F32(*value),
        Fact::Text(text) => Meta::Text(text.clone()),
        Fact::Flags(flags) => Meta::Bools(flags.clone()),
    }
}

impl Export for GgufExport<'_> {
    fn is_file(&self) -> bool {
        true
    }

    fn wants_calibration(&self) -> bool {
        !self.direct && self.target.file.is_some_and(|file| file.main().code().is_some_and(|code| code.bits_per_weight() < 8.0))
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn write(&self, path: &Path, run: &ExportRun<'_>, progress: Progress<'_>) -> Result<()> {
        let kinds = self.kinds(run.calibration.is_some())?;
        let mut sink = self.sink(path, &kinds)?;
        match self.direct {
            true => codes::take_over(self.source, &self.outgoing, &mut sink, run, progress)?,
            false => self.solve(path, &mut sink, &kinds, run, progress)?,
        }
        sink.finish()
    }

    fn reopen(&self, path: &Path) -> Result<Option<Folder>> {
        Ok(Some(open_gguf(path)?))
    }
}
