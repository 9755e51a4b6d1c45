//! Checkpoint folders of other tools: GPTQ, AWQ, MLX, bitsandbytes, compressed-tensors, and octet's archive of arrays.

use super::{
    Export, ExportRun, Source, archive,
    convert::{Conversion, Holds, Job, Planned, codes, float_spec, float_tensor, order, told},
};
use crate::{Progress, Result, artefact};
use octet_formats::{
    Folder, compressed_tensors,
    safetensors::{TensorSpec, Writer},
    write::{Described, Encoder, Fit, Format, Given, Piece, quantization_config, tensor_specs},
};
use octet_tensor::{Dtype, Scheme, Tensor, WeightSource};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::Path};

/// Which layout a folder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// compressed-tensors, the layout octet itself writes.
    CompressedTensors,
    /// Floats: no codes at all.
    Floats,
    /// One of the others.
    Other(Format),
}

/// Keys of config.json that say how the input was quantized.
const OLD_KEYS: [&str; 3] = ["quantization_config", "quantization", "compression_config"];

impl Layout {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::CompressedTensors => "compressed-tensors",
            Self::Floats => "safetensors",
            Self::Other(format) => format.name(),
        }
    }

    /// See [`super::Format::executed_by`].
    pub(super) fn executed_by(self) -> Option<&'static str> {
        match self {
            Self::CompressedTensors => Some("transformers 5.23 with compressed-tensors 0.20"),
            Self::Floats => Some("transformers 5.23"),
            Self::Other(Format::Gptq | Format::Awq) => Some("transformers 5.23 with gptqmodel 7.7"),
            Self::Other(Format::Mlx) => Some("mlx-lm 0.32"),
            Self::Other(Format::Bitsandbytes) => Some("transformers 5.23 with bitsandbytes 0.50"),
            Self::Other(Format::Npz) => Some("numpy 2.4"),
            Self::Other(_) => None,
        }
    }

    /// What a linear is solved to where it must be.
    fn usual(self) -> Scheme {
        let text = match self {
            Self::Other(Format::Bitsandbytes | Format::Npz) => "w8a16",
            Self::Other(Format::Awq) => "w4a16-g128-asym",
            Self::Other(Format::Mlx) => "w4a16-g64",
            _ => "w4a16-g128",
        };
        text.parse().unwrap_or(Scheme { weights: octet_tensor::WeightScheme::W8, activations: octet_tensor::Activations::Exact })
    }

    fn plan(self, job: Job<'_>) -> Result<Conversion> {
        let fits = |given: &Given| match self {
            Self::CompressedTensors => match given.scheme.weights.uneven() {
                Some(codes) => Err(format!("has {codes}; compressed-tensors has even steps")),
                None if given.scheme.weights.has_whole_scales() => {
                    Err("has whole scales times a factor of the row; compressed-tensors has a float for every group".into())
                }
                None => Ok(()),
            },
            Self::Floats => Err("is in codes; safetensors has plain floats".into()),
            Self::Other(format) => format.fit(given).map(drop),
        };
        let (tables, mixes) = match self {
            Self::CompressedTensors | Self::Floats => (false, true),
            Self::Other(format) => (format.holds_tables(), format.mixes()),
        };
        let inputs_first = matches!(self, Self::CompressedTensors | Self::Floats | Self::Other(Format::Npz));
        let codes = self != Self::Floats;
        Conversion::plan(
            job,
            &Holds {
                format: self.name(),
                fits: &fits,
                tables,
                inputs_first,
                // compressed-tensors 0.20 no longer loads it (`actorder: group`).
                ordered: self == Self::Other(Format::Gptq),
                mixes,
                codes,
                floats: !codes,
                anew: true,
                rounds: &|_| matches!(self, Self::CompressedTensors | Self::Other(Format::Bitsandbytes | Format::Npz)),
                rounds_all: self == Self::Other(Format::Bitsandbytes),
                usual: self.usual(),
            },
        )
    }
}

/// Every layout, in the order they are listed in.
const LAYOUTS: [Layout; 7] = [
    Layout::CompressedTensors,
    Layout::Other(Format::Gptq),
    Layout::Other(Format::Awq),
    Layout::Other(Format::Mlx),
    Layout::Other(Format::Bitsandbytes),
    Layout::Other(Format::Npz),
    Layout::Floats,
];

/// The layout of this name.
pub(super) fn named(name: &str) -> Option<Layout> {
    LAYOUTS.into_iter().find(|layout| layout.name() == name)
}

/// A folder about to be written.
pub(super) struct CheckpointExport<'a> {
    job: Job<'a>,
    layout: Layout,
    plan: Conversion,
}

impl<'a> CheckpointExport<'a> {
    pub(super) fn new(source: &'a Source, layout: Layout, requantize: bool) -> Result<Self> {
        let job = Job { source, requantize };
        let mut plan = layout.plan(job)?;
        let config = config(job, layout, &plan);
        plan.notes.extend(rounding(job, layout, &config).into_iter().chain(unread(layout, &plan)));
        Ok(Self { job, layout, plan })
    }
}

impl Export for CheckpointExport<'_> {
    fn notes(&self) -> &[String] {
        &self.plan.notes
    }

    fn write(&self, path: &Path, run: &ExportRun<'_>, progress: Progress<'_>) -> Result<()> {
        let Self { job, layout, plan } = self;
        let (job, layout) = (*job, *layout);
        let mut files = Files::create(job, layout, plan, path)?;
        let mut told = told(plan, progress);
        for planned in &plan.matrices {
            match planned.codes() {
                Some((scheme, dtype)) => write_codes(job, layout, planned, (scheme, dtype), run, &mut files)?,
                None => files.whole(&float_tensor(job, planned)?)?,
            }
            told(planned);
        }
        for name in &plan.others {
            let tensor = job.source.checkpoint.tensor(name)?.ok_or_else(|| octet_tensor::Error::Missing { name: name.clone() })?;
            files.whole(&tensor)?;
        }
        files.finish()?;
        let config = config(job, layout, plan);
        artefact::write_json(&path.join("config.json"), &config)?;
        if layout == Layout::Other(Format::Gptq) {
            artefact::write_json(&path.join("quantize_config.json"), &config["quantization_config"])?;
        }
        if layout == Layout::Other(Format::Npz) {
            archive::documents(job, plan, &config, path)?;
        }
        artefact::copy_companions(path, &job.source.input)
    }

    fn reopen(&self, path: &Path) -> Result<Option<Folder>> {
        Ok(Some(Folder::disk(path)?))
    }
}

/// What whoever loads it rounds that octet does not.
fn rounding(job: Job<'_>, layout: Layout, config: &Value) -> Option<String> {
    let stored = job.source.checkpoint.quantization();
    let exact = stored.is_none_or(|q| q.modules.values().all(|s| s.activations == octet_tensor::Activations::Exact));
    (layout == Layout::Other(Format::Bitsandbytes) && exact).then(|| {
        let limit = &config["quantization_config"]["llm_int8_threshold"];
        format!(
            "bitsandbytes rounds activations to 8 bits, those of {limit} and more excepted, and so does octet where it runs such a folder"
        )
    })
}

/// What not every reader of the format loads.
fn unread(layout: Layout, plan: &Conversion) -> Option<String> {
    let schemes = || plan.matrices.iter().filter_map(Planned::codes).map(|(scheme, _)| scheme.weights);
    let packed = |weights: octet_tensor::WeightScheme| weights.is_asymmetric() && weights.bits.get() < 8;
    match layout {
        Layout::CompressedTensors if schemes().any(packed) => Some(
            "packed zero points were executed by transformers 5.17 with compressed-tensors 0.19; 5.23 with 0.20 does not load them".into(),
        ),
        Layout::Other(Format::Gptq) => {
            let kinds = schemes().map(|weights| weights.to_string()).collect::<std::collections::BTreeSet<_>>();
            let partly = plan.matrices.iter().any(|planned| planned.site.layer.is_some() && planned.codes().is_none());
            (kinds.len() > 1 || partly).then(|| {
                "linears differ in width or are floats: gptqmodel itself loads that (`dynamic`), transformers' GPTQ reader does not".into()
            })
        }
        _ => None,
    }
}

fn fit(layout: Layout, planned: &Planned, scheme: Scheme, scale_dtype: Dtype) -> Option<(Format, Fit)> {
    let Layout::Other(format) = layout else { return None };
    let given = Given { rows: planned.site.rows, cols: planned.site.cols, scheme, scale_dtype, ordered: planned.ordered };
    Some((format, format.fit(&given).ok()?))
}

/// The tensors of a matrix of codes.
fn specs(layout: Layout, planned: &Planned, scheme: Scheme, dtype: Dtype) -> Vec<TensorSpec> {
    let site = &planned.site;
    match fit(layout, planned, scheme, dtype) {
        Some((format, fit)) => tensor_specs(format, &site.module, [site.rows, site.cols], &fit),
        None => compressed_tensors::tensor_specs(&site.module, site.rows, site.cols, scheme, dtype),
    }
}

fn write_codes(
    job: Job<'_>,
    layout: Layout,
    planned: &Planned,
    (scheme, dtype): (Scheme, Dtype),
    run: &ExportRun<'_>,
    files: &mut Files,
) -> Result<()> {
    let (module, shape) = (&planned.site.module, [planned.site.rows, planned.site.cols]);
    let order = order(job, planned)?;
    let mut encoder = fit(layout, planned, scheme, dtype).map(|(format, fit)| Encoder::new(format, module, shape, fit, order));
    let mut first = 0;
    codes(job, planned, run, &mut |q| {
        let pieces = match &mut encoder {
            Some(encoder) => encoder.rows(&q)?,
            None => compressed_tensors::encode_rows(module, &q, first, shape[0], scheme)?,
        };
        first += q.rows();
        pieces.iter().try_for_each(|piece| files.piece(piece))
    })
}

/// The weight files that are being written.
enum Files {
    Safetensors(Writer),
    Archive(octet_formats::npz::Writer),
}

impl Files {
    fn create(job: Job<'_>, layout: Layout, plan: &Conversion, at: &Path) -> Result<Self> {
        let mut all = vec![];
        for planned in &plan.matrices {
            match planned.codes() {
                Some((scheme, dtype)) => all.extend(specs(layout, planned, scheme, dtype)),
                None => {
                    let (dtype, shape) = float_spec(job, planned)?;
                    all.push(TensorSpec { name: format!("{}.weight", planned.site.module), dtype, shape });
                }
            }
        }
        for name in &plan.others {
            let tensor = job.source.checkpoint.tensor(name)?.ok_or_else(|| octet_tensor::Error::Missing { name: name.clone() })?;
            all.push(TensorSpec { name: name.clone(), dtype: tensor.dtype(), shape: tensor.shape().to_vec() });
        }
        if layout == Layout::Other(Format::Npz) {
            return Ok(Self::Archive(octet_formats::npz::Writer::create(&at.join(octet_formats::npz::FILE), &all)?));
        }
        let mlx = layout == Layout::Other(Format::Mlx);
        let metadata = mlx.then(|| ("format".to_string(), "mlx".to_string()));
        Ok(Self::Safetensors(Writer::create(at, all, artefact::MAX_SHARD_BYTES, &BTreeMap::from_iter(metadata))?))
    }

    fn piece(&mut self, piece: &Piece) -> Result<()> {
        match self {
            Self::Safetensors(writer) => writer.write(&piece.tensor, piece.offset, &piece.bytes)?,
            Self::Archive(writer) => writer.append(&piece.tensor, &piece.bytes)?,
        }
        Ok(())
    }

    fn whole(&mut self, tensor: &Tensor) -> Result<()> {
        match self {
            Self::Safetensors(writer) => writer.write(tensor.name(), 0, tensor.bytes())?,
            Self::Archive(writer) => writer.append(tensor.name(), tensor.bytes())?,
        }
        tensor.bytes().release();
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Safetensors(writer) => writer.finish()?,
            Self::Archive(writer) => writer.finish()?,
        }
        Ok(())
    }
}

/// config.json of the new folder.
fn config(job: Job<'_>, layout: Layout, plan: &Conversion) -> Value {
    let mut config = without_quantization(job.source.checkpoint.config());
    if let Some(fields) = config.as_object_mut() {
        fields.extend(described(layout, plan));
    }
    config
}

/// A config.json that does not say how the input was quantized.
pub(super) fn without_quantization(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        OLD_KEYS.iter().for_each(|key| drop(fields.remove(*key)));
    }
    config
}

/// What config.json says of the codes.
fn described(layout: Layout, plan: &Conversion) -> Map<String, Value> {
    let mut kept: Vec<String> = plan
        .matrices
        .iter()
        .filter(|p| p.codes().is_none() && p.site.role != octet_model::Role::Embedding)
        .map(|p| p.site.module.clone())
        .collect();
    // Readers make a head of its own for tied models and would expect it quantized like any other linear.
    if !kept.iter().any(|name| name == artefact::HEAD) && !matches!(layout, Layout::Other(Format::Mlx | Format::Npz)) {
        kept.push(artefact::HEAD.into());
    }
    let coded = plan.matrices.iter().filter_map(|planned| Some((planned, planned.codes()?)));
    if layout == Layout::Floats {
        return Map::new();
    }
    let Layout::Other(format) = layout else {
        let modules: Vec<(String, Scheme)> = coded.map(|(planned, (scheme, _))| (planned.site.module.clone(), scheme)).collect();
        let value = compressed_tensors::quantization_config(&modules, &kept);
        return Map::from_iter([("quantization_config".to_string(), value)]);
    };
    let modules: Vec<Described> = coded
        .filter_map(|(planned, (scheme, dtype))| {
            let (_, fit) = fit(layout, planned, scheme, dtype)?;
            Some(Described { module: planned.site.module.clone(), fit, activations: scheme.activations, ordered: planned.ordered })
        })
        .collect();
    quantization_config(format, &modules, &kept)
}
