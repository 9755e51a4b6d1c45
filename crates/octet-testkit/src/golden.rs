//! Where golden files are, and how far a result may be from them.

use octet_formats::npy;
use std::path::{Path, PathBuf};

/// The repository's `fixtures` folder.
pub fn fixtures() -> PathBuf {
    root().join("fixtures")
}

/// The folder `shared` beside the repository, where larger reference data may lie; `None`, with a plain word on standard
/// error, where it does not.
pub fn shared() -> Option<PathBuf> {
    let path = root().join("../shared");
    if path.is_dir() {
        return Some(path);
    }
    let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: there is no ../shared beside the repository\n");
    None
}

/// Every architecture fixture, by name: folders of `fixtures/arch` with a config.json.
pub fn arch_fixtures() -> Vec<(String, PathBuf)> {
    let folder = fixtures().join("arch");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.filter_map(|entry| entry.ok().map(|e| e.path())).filter(|path| path.join("config.json").is_file());
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut found: Vec<_> = paths.map(|path| (name(&path), path)).collect();
    found.sort();
    found
}

/// max |found − expected| / max |expected|; infinite when lengths differ or anything found is not a number.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    if found.len() != expected.len() || found.iter().any(|v| v.is_nan()) {
        return f32::INFINITY;
    }
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let worst = found.iter().zip(expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    if worst == 0.0 { 0.0 } else { worst / largest }
}

/// Shape and values of an .npy file of 32-bit floats.
pub fn npy_f32(path: &Path) -> (Vec<usize>, Vec<f32>) {
    npy::read_f32(&bytes(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Shape and values of an .npy file of 64-bit integers.
pub fn npy_i64(path: &Path) -> (Vec<usize>, Vec<i64>) {
    npy::read_i64(&bytes(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[cfg(test)]
mod tests {
    use super::relative_error;

    #[test]
    fn errors_are_relative_to_the_largest_expected() {
        assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 4.0]), 0.5);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative_error(&[1.0], &[1.0, 2.0]), f32::INFINITY);
        assert_eq!(relative_error(&[f32::NAN], &[1.0]), f32::INFINITY);
    }
}
