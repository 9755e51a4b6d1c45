//! Integrity of what was written: files byte for byte, logits bit for bit.

use crate::Result;
use octet_model::{Logits, Model, Step};
use serde::{Deserialize, Serialize};

/// One thing that must hold of the written files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it holds.
    pub pass: bool,
    /// What was found where it does not.
    pub note: String,
}

impl Check {
    /// A check that came out as `result`.
    pub fn new(name: impl Into<String>, result: std::result::Result<(), String>) -> Self {
        let note = result.as_ref().err().cloned().unwrap_or_default();
        Self { name: name.into(), pass: result.is_ok(), note }
    }
}

/// Whether file `name` was taken over byte for byte; a file that the original does not have must not appear.
pub fn same_bytes(name: &str, original: Option<&[u8]>, written: Option<&[u8]>) -> Check {
    let result = match (original, written) {
        (None, None) => Ok(()),
        (Some(a), Some(b)) => match a.iter().zip(b).position(|(x, y)| x != y) {
            None if a.len() == b.len() => Ok(()),
            None => Err(format!("{} bytes were written, the original has {}", b.len(), a.len())),
            Some(at) => Err(format!("differs from the original at byte {at}")),
        },
        (Some(_), None) => Err("was not written".into()),
        (None, Some(_)) => Err("was written although the original has none".into()),
    };
    Check::new(name, result)
}

/// Whether two models give the same logits, bit for bit, after each of `ids`.
///
/// # Errors
/// If a model fails.
pub fn same_logits(judged: &Model, reopened: &Model, ids: &[u32]) -> Result<Check> {
    let (a, b) = (logits(judged, ids)?, logits(reopened, ids)?);
    let different = a.iter().zip(&b).filter(|(x, y)| x.to_bits() != y.to_bits()).count();
    let same = a.len() == b.len() && different == 0;
    let result = if same { Ok(()) } else { Err(format!("{different} of {} logits differ from those that were judged", a.len())) };
    Ok(Check::new("logits", result))
}

fn logits(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let (mut sequence, mut out) = (model.new_sequence(), vec![]);
    model.forward(&mut [Step { sequence: &mut sequence, tokens: ids, logits: Logits::All }], &mut out, None)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_is_found() {
        assert!(same_bytes("f", Some(b"abc"), Some(b"abc")).pass);
        assert!(same_bytes("f", None, None).pass);
        let changed = same_bytes("tokenizer.json", Some(b"abc"), Some(b"abd"));
        assert_eq!((changed.pass, changed.note.as_str()), (false, "differs from the original at byte 2"));
        assert!(same_bytes("f", Some(b"abc"), Some(b"ab")).note.contains("2 bytes were written"));
        assert!(!same_bytes("f", Some(b"abc"), None).pass && !same_bytes("f", None, Some(b"")).pass);
    }
}
