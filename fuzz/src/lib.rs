//! Fuzz targets of octet's parsers and what watches their memory.

mod memory;
mod targets;

/// Runs the target `name` on `input`.
///
/// # Panics
/// If the parser does, or holds more memory than [`targets::FACTOR`] allows.
pub fn run(name: &str, input: &[u8]) {
    let Some(target) = targets::ALL.iter().find(|target| target.name == name) else { panic!("no target {name}") };
    let most = memory::most(|| (target.run)(input));
    let allowed = targets::FACTOR * input.len() + target.room;
    assert!(most <= allowed, "{name} held {most} bytes for an input of {}, {allowed} are allowed", input.len());
}
