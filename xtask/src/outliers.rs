//! Checkpoints with activation outliers, to hold schemes with 8-bit activations to.

use anyhow::{Context, Result, bail};
use octet_formats::{Checkpoint, Folder};
use octet_model::ArchSpec;
use octet_quant::{BlockWeights, plant_outliers};
use octet_tensor::WeightSource;
use std::path::Path;

/// Writes the checkpoint in `model` to the new folder `dir` with planted outliers, and says how many.
pub(crate) fn write(model: &Path, dir: &Path) -> Result<String> {
    if dir.exists() {
        bail!("{} exists already; name a new folder", dir.display());
    }
    let checkpoint = Checkpoint::open(&Folder::disk(model)?)?;
    let mut spec = ArchSpec::from_config(checkpoint.config())?;
    spec.settle(&checkpoint)?;
    let graph = spec.graph();
    let first = graph.embed.linears().first().map(|table| format!("{}.weight", table.site.module)).unwrap_or_default();
    let dtype = checkpoint.tensor(&first)?.with_context(|| format!("{first} is missing"))?.dtype();
    let mut weights = BlockWeights::new(&checkpoint);
    let planted = plant_outliers(&graph, dtype, &mut weights)?;
    octet_testkit::write_folder(model, &weights, dir)?;
    let channels: usize = planted.iter().map(|(_, channels)| channels.len()).sum();
    Ok(format!("planted {channels} outlier channels in {} inputs: {}", planted.len(), dir.display()))
}
