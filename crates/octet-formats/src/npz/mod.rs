//! Archives of numpy arrays: ZIP files whose entries are stored, not compressed, so that arrays are mapped and an archive is never
//! larger than it says.
//!
//! Format: PKWARE's APPNOTE 6.3.10 (sections 4.3 and 4.5.3) and `numpy.savez`.

mod directory;
mod matrix;
mod writer;

pub use directory::{Array, arrays};
pub use matrix::Config;
pub(crate) use matrix::matrix;
pub use writer::Writer;

/// The archive of a model's tensors in a folder.
pub const FILE: &str = "model_tensors_8bit.npz";

/// What ends the codes of a module.
pub(crate) const CODES: &str = ".codes";
