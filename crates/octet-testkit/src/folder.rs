//! Checkpoint folders made from other ones.

use octet_formats::safetensors::{TensorSpec, Writer};
use octet_tensor::WeightSource;
use std::{collections::BTreeMap, fs, path::Path};

/// Writes the tensors of `source` to the new folder `to`, with everything of the folder `from` that is no weights.
pub fn write_folder(from: &Path, source: &dyn WeightSource, to: &Path) -> std::io::Result<()> {
    let other = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_file() && !name.to_string_lossy().contains("safetensors") {
            fs::copy(&path, to.join(name))?;
        }
    }
    let tensors = source.names().into_iter().map(|name| source.tensor(&name).map(|tensor| tensor.map(|tensor| (name, tensor))));
    let tensors = tensors.collect::<Result<Vec<_>, _>>().map_err(|e| other(&e))?;
    let tensors: Vec<_> = tensors.into_iter().flatten().collect();
    let spec = |(name, tensor): &(String, octet_tensor::Tensor)| TensorSpec {
        name: name.clone(),
        dtype: tensor.dtype(),
        shape: tensor.shape().to_vec(),
    };
    let mut writer = Writer::create(to, tensors.iter().map(spec).collect(), u64::MAX, &BTreeMap::new()).map_err(|e| other(&e))?;
    for (name, tensor) in &tensors {
        writer.write(name, 0, tensor.bytes()).map_err(|e| other(&e))?;
    }
    writer.finish().map_err(|e| other(&e))
}
