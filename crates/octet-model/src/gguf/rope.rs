//! Rotary embeddings out of metadata.

use super::{TranslateError, config::Keys};
use crate::families::Family;
use serde_json::{Value, json};

/// Sets `rope_theta`, `rope_scaling` and the share of a head that turns.
pub(super) fn rope(
    keys: &Keys<'_>,
    family: &Family,
    head_dim: u64,
    set: &mut dyn FnMut(&str, Value) -> Option<Value>,
) -> Result<(), TranslateError> {
    let theta = keys.float("rope.freq_base")?.unwrap_or(1e4);
    set("rope_theta", theta.into());
    let turned = keys.count("rope.dimension_count")?.unwrap_or(head_dim);
    if turned != head_dim {
        if !family.partial_rotary || turned > head_dim {
            return Err(keys.bad("rope.dimension_count", "the width of a head"));
        }
        set("partial_rotary_factor", (turned as f64 / head_dim as f64).into());
    }
    if let Some(scaling) = scaling(keys, theta, turned)? {
        set("rope_scaling", scaling);
    }
    Ok(())
}

fn scaling(keys: &Keys<'_>, theta: f64, turned: u64) -> Result<Option<Value>, TranslateError> {
    let floats = keys.file.floats;
    if let (Some(long), Some(short)) = (floats("rope_factors_long.weight"), floats("rope_factors_short.weight")) {
        return Ok(Some(json!({"rope_type": "longrope", "long_factor": long, "short_factor": short})));
    }
    if let Some(factors) = floats("rope_freqs.weight") {
        return llama3(&factors, theta, turned).map(Some).ok_or_else(|| keys.bad("rope.freq_base", "one that fits rope_freqs.weight"));
    }
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.float("rope.scale_linear")?,
    };
    let named = keys.get("rope.scaling.type").map(|kind| kind.as_str().unwrap_or_default());
    match (named, factor) {
        (None | Some("none"), None) | (Some("none"), _) => Ok(None),
        (None | Some("linear"), Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        (Some("yarn"), Some(factor)) => {
            let mut scaling = json!({"rope_type": "yarn", "factor": factor});
            if let Some(original) = keys.count("rope.scaling.original_context_length")? {
                scaling["original_max_position_embeddings"] = original.into();
            }
            Ok(Some(scaling))
        }
        _ => Err(keys.bad("rope.scaling.type", "none, linear or yarn, with a factor")),
    }
}

/// The parameters of Llama 3's scaling that give these factors, if any do: the file stores the factors only.
fn llama3(factors: &[f32], theta: f64, turned: u64) -> Option<Value> {
    let factor = f64::from(factors.iter().copied().fold(1.0f32, f32::max));
    let fits = |original: f64| {
        factors.len() as u64 * 2 == turned
            && factors.iter().enumerate().all(|(i, &found)| {
                let wave = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / turned as f64);
                let smooth = ((original / wave - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
                let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
                (f64::from(found) - expected).abs() <= 1e-4 * expected
            })
    };
    // All published models have these two shares; what differs is the context they were first trained with.
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    let original = (5..=17).map(|power| 1u64 << power).find(|&original| fits(original as f64))?;
    Some(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factors_of_llama_3_give_its_parameters_back() {
        let (theta, turned, original, factor) = (5e5f64, 64u64, 8192f64, 8.0);
        let factors: Vec<f32> = (0..32)
            .map(|i| {
                let wave = std::f64::consts::TAU * theta.powf(2.0 * f64::from(i) / turned as f64);
                let smooth = (original / wave - 1.0) / 3.0;
                if wave < original / 4.0 {
                    1.0
                } else if wave > original {
                    factor as f32
                } else {
                    (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
                }
            })
            .collect();
        let found = llama3(&factors, theta, turned).unwrap();
        assert_eq!((found["factor"].as_f64(), found["original_max_position_embeddings"].as_u64()), (Some(8.0), Some(8192)));
        let mut other = factors;
        other[20] *= 1.01;
        assert_eq!(llama3(&other, theta, turned), None);
    }
}
