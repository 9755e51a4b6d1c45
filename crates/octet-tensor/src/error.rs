//! What can be wrong with a tensor.

/// What can be wrong with a tensor, a matrix or where it comes from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has a shape that its use does not allow.
    #[error(
        "{name} has shape {found:?}, expected {expected}; the file does not match its config.json, download it again or mend the config"
    )]
    Shape {
        /// The tensor's name.
        name: String,
        /// What was expected, in words.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A tensor holds elements of a type its use does not allow.
    #[error("{name} holds {found} elements, expected {expected}; take the checkpoint as its authors published it")]
    Dtype {
        /// The tensor's name.
        name: String,
        /// What was expected, in words.
        expected: &'static str,
        /// The type found.
        found: crate::Dtype,
    },
    /// A tensor that must exist is not in the checkpoint.
    #[error("{name} is missing from the checkpoint; download it again, a shard may be missing")]
    Missing {
        /// The tensor's name.
        name: String,
    },
    /// Bytes that do not make sense, told by whoever reads them.
    #[error("{name}: {what}")]
    Malformed {
        /// The tensor's name.
        name: String,
        /// What is wrong and what to do about it.
        what: String,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
