//! The weights once more, in the layout kernels execute: opening such a folder is a map and no copy.

use crate::{Result, Staged};
use octet_formats::{Checkpoint, Folder, packed};
use octet_kernels::{Engine, LAYOUT, PackedLinear};
use octet_model::ArchSpec;
use octet_tensor::{Matrix, WeightSource};

impl Staged {
    /// Stores the quantized matrices as kernels execute them too (`model.packed`), one at a time.
    ///
    /// # Errors
    /// If the artefact cannot be read or the disk is full.
    pub fn prepack(&self, engine: &Engine) -> Result<()> {
        let folder = Folder::disk(&self.path())?;
        let checkpoint = Checkpoint::open(&folder)?;
        let mut spec = ArchSpec::from_config(checkpoint.config())?;
        spec.settle(&checkpoint)?;
        let mut writer = packed::Writer::create(&self.path(), LAYOUT)?;
        for (module, rows) in spec.packed_parts() {
            let Some(Matrix::Quant(matrix)) = checkpoint.matrix(&module)? else { continue };
            let Some(part) = matrix.slice_rows(rows.clone()) else { continue };
            let scheme = part.scheme();
            let ready = PackedLinear::pack(engine, &Matrix::Quant(part), None)?;
            if let Some(sections) = ready.sections() {
                writer.add(&module, rows, scheme, &sections)?;
            }
        }
        Ok(writer.finish(&folder)?)
    }
}
