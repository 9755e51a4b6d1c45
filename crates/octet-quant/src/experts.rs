//! How many calibration tokens reach each expert of a mixture: one that hardly any reaches is quantized blindly.

use crate::{Error, InputObserver, Samples, Want, sensitivity::watch};
use octet_kernels::Engine;
use octet_model::{ArchSpec, InputKind, InputSite};
use octet_tensor::WeightSource;
use std::collections::BTreeMap;

/// Tokens that an expert should see, where there is text enough.
pub const EXPERT_TOKENS: usize = 128;

/// Tokens of `samples` that reach the expert that fewest reach, in the original model; `None` where it has no experts.
///
/// # Errors
/// If weights cannot be read or the numbers of the model are not finite.
pub fn fewest_expert_tokens(
    engine: &Engine,
    spec: &ArchSpec,
    source: &dyn WeightSource,
    samples: &Samples,
) -> Result<Option<usize>, Error> {
    let sites: BTreeMap<InputSite, Want> = spec
        .linear_sites()
        .iter()
        .filter(|site| matches!(site.input.kind, InputKind::Expert(_)))
        .map(|site| (site.input, Want::Magnitudes))
        .collect();
    if sites.is_empty() {
        return Ok(None);
    }
    let mut observer = InputObserver::new(engine, sites.clone());
    watch(engine, spec, source, samples, &mut observer)?;
    let seen = observer.finish();
    Ok(sites.keys().map(|site| seen.get(site).map_or(0, |seen| seen.tokens)).min())
}

/// Draws as `draw` does (told how many times the usual number of windows) until every expert of the original is reached by
/// [`EXPERT_TOKENS`] tokens, drawing more finds no more text, or it is `most` times the usual number.
///
/// # Errors
/// As [`fewest_expert_tokens`].
pub fn topped_up(
    engine: &Engine,
    spec: &ArchSpec,
    source: &dyn WeightSource,
    most: usize,
    draw: &dyn Fn(usize) -> Samples,
) -> Result<Samples, Error> {
    let (mut times, mut samples) = (1, draw(1));
    while let Some(fewest) = fewest_expert_tokens(engine, spec, source, &samples)?
        && fewest < EXPERT_TOKENS
        && 2 * times <= most
    {
        times *= 2;
        let more = draw(times);
        if more.len() == samples.len() {
            break;
        }
        samples = more;
    }
    Ok(samples)
}
