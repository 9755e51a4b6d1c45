//! Rotary embeddings out of config.json, in both styles that exist: nested `rope_parameters` (transformers 5) and
//! `rope_theta` with `rope_scaling` (before).

use crate::{
    config::{Key, Reader},
    error::ConfigError,
    families::{Family, Positions},
    rope::{Rope, RopeScaling},
};

/// Reads the rotary embeddings of a model: one, or for families with a local base the global and the local one.
pub(crate) fn ropes(family: &Family, r: &Reader<'_>, head_dim: usize) -> Result<Vec<Rope>, ConfigError> {
    let local_theta = match family.positions {
        Positions::Learned => return Ok(Vec::new()),
        Positions::RopeAndLocal { local_base } => Some(r.positive("rope_local_base_freq")?.value().unwrap_or(local_base)),
        Positions::Rope | Positions::RopeOrNone => None,
    };
    let shared = Shared::read(family, r)?;
    let theta = r.positive("rope_theta")?.value();
    let scaling = r.object("rope_scaling")?;
    let parameters = r.object("rope_parameters")?;
    let nested = parameters.as_ref().is_some_and(|p| p.holds_object("full_attention") || p.holds_object("sliding_attention"));
    if let (Some(parameters), true) = (&parameters, nested) {
        let Some(local_theta) = local_theta else {
            return Err(r.bad_key("rope_parameters", "one rope for all layers"));
        };
        let full = parameters.object("full_attention")?;
        let local = parameters.object("sliding_attention")?;
        parameters.finish(&[])?;
        let full = scaling.or(full);
        return Ok(vec![
            shared.rope(full.as_ref(), theta.unwrap_or(family.defaults.rope_theta), head_dim)?,
            shared.rope(local.as_ref(), local_theta, head_dim)?,
        ]);
    }
    let main = scaling.or(parameters);
    let mut ropes = vec![shared.rope(main.as_ref(), theta.unwrap_or(family.defaults.rope_theta), head_dim)?];
    if let Some(base) = local_theta {
        ropes.push(Rope { base: base as f32, dims: head_dim, scaling: RopeScaling::Default });
    }
    Ok(ropes)
}

/// What lies outside the rope's own object.
struct Shared {
    family: &'static str,
    known: &'static [&'static str],
    context: usize,
    original: Option<usize>,
    /// What `original` is when nothing says so (Phi-3; the others take the context).
    default_original: Option<usize>,
    /// `None` when the family ignores the key.
    partial: Option<Option<f64>>,
}

impl Shared {
    fn read(family: &Family, r: &Reader<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            family: family.name,
            known: family.ropes,
            context: r.count("max_position_embeddings")?.value().unwrap_or(family.defaults.context),
            original: r.count("original_max_position_embeddings")?.value(),
            default_original: family.default_original,
            partial: if family.partial_rotary { Some(r.positive("partial_rotary_factor")?.value()) } else { None },
        })
    }

    fn rope(&self, r: Option<&Reader<'_>>, theta: f64, head_dim: usize) -> Result<Rope, ConfigError> {
        let Some(r) = r else {
            let dims = self.dims(None, head_dim)?;
            return Ok(Rope { base: theta as f32, dims, scaling: RopeScaling::Default });
        };
        let base = r.positive("rope_theta")?.value().unwrap_or(theta) as f32;
        let dims = self.dims(Some(r), head_dim)?;
        let scaling = match self.kind(r)? {
            "linear" => RopeScaling::Linear { factor: required(r, "factor")? },
            "llama3" => self.llama3(r)?,
            "yarn" => self.yarn(r)?,
            "longrope" => self.longrope(r, dims)?,
            _ => {
                r.count("original_max_position_embeddings")?;
                RopeScaling::Default
            }
        };
        r.finish(&[])?;
        Ok(Rope { base, dims, scaling })
    }

    /// The rope type under its present name, if the family has it.
    fn kind(&self, r: &Reader<'_>) -> Result<&'static str, ConfigError> {
        let (new, old) = (r.text("rope_type")?.value(), r.text("type")?.value());
        let found = new.or(old).unwrap_or("default");
        let current = |name: &str| match name {
            "su" => Some("longrope"),
            // Early Phi-3 configs said yarn for what became longrope.
            "yarn" if !self.known.contains(&"yarn") && self.known.contains(&"longrope") => Some("longrope"),
            name => self.known.iter().find(|known| **known == name).copied(),
        };
        let unknown =
            |found: &str| ConfigError::UnknownRope { found: found.into(), family: self.family.into(), known: self.known.join(", ") };
        let kind = current(found).filter(|kind| self.known.contains(kind)).ok_or_else(|| unknown(found))?;
        match old.filter(|old| current(old) != Some(kind)) {
            Some(_) => Err(r.bad_key("type", &format!("{found:?} as rope_type says"))),
            None => Ok(kind),
        }
    }

    fn dims(&self, r: Option<&Reader<'_>>, head_dim: usize) -> Result<usize, ConfigError> {
        let inside = match (r, self.partial.is_some()) {
            (Some(r), true) => r.positive("partial_rotary_factor")?.value(),
            _ => None,
        };
        let factor = inside.or(self.partial.flatten()).unwrap_or(1.0);
        let dims = (head_dim as f64 * factor) as usize;
        if factor > 1.0 || dims < 2 || !dims.is_multiple_of(2) {
            let (key, found) =
                if factor == 1.0 { ("head_dim", head_dim.to_string()) } else { ("partial_rotary_factor", factor.to_string()) };
            return Err(ConfigError::Value {
                key: key.into(),
                expected: "an even number of rotary dimensions within a head".into(),
                found,
            });
        }
        Ok(dims)
    }

    /// Context of pre-training: the top-level key wins, then the rope's own.
    fn original(&self, r: &Reader<'_>) -> Result<Option<usize>, ConfigError> {
        let inside = r.count("original_max_position_embeddings")?.value();
        Ok(self.original.or(if self.default_original.is_some() { self.default_original } else { inside }))
    }

    fn llama3(&self, r: &Reader<'_>) -> Result<RopeScaling, ConfigError> {
        let (low, high) = (required(r, "low_freq_factor")?, required(r, "high_freq_factor")?);
        if high <= low {
            return Err(r.bad_key("high_freq_factor", &format!("more than low_freq_factor ({low})")));
        }
        let original = self.original(r)?.ok_or_else(|| r.missing("original_max_position_embeddings"))? as f32;
        Ok(RopeScaling::Llama3 { factor: required(r, "factor")?, low, high, original })
    }

    fn yarn(&self, r: &Reader<'_>) -> Result<RopeScaling, ConfigError> {
        let original = self.original(r)?.unwrap_or(self.context);
        let factor = r.positive("factor")?.value().unwrap_or(self.context as f64 / original as f64);
        let magnitude = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let zero_is_absent = |key: &str| -> Result<Option<f64>, ConfigError> {
            Ok(match r.raw(key)? {
                Key::Is(value) if value.as_f64() == Some(0.0) => None,
                _ => r.positive(key)?.value(),
            })
        };
        let (m, m_all) = (zero_is_absent("mscale")?, zero_is_absent("mscale_all_dim")?);
        let attention = r.positive("attention_factor")?.value().unwrap_or(match (m, m_all) {
            (Some(m), Some(all)) => magnitude(m) / magnitude(all),
            _ => magnitude(1.0),
        });
        Ok(RopeScaling::Yarn {
            factor: factor as f32,
            beta_fast: zero_is_absent("beta_fast")?.unwrap_or(32.0) as f32,
            beta_slow: zero_is_absent("beta_slow")?.unwrap_or(1.0) as f32,
            truncate: r.flag("truncate", true)?,
            original: original as f32,
            attention: attention as f32,
        })
    }

    fn longrope(&self, r: &Reader<'_>, dims: usize) -> Result<RopeScaling, ConfigError> {
        let divisors = |key: &str| -> Result<Vec<f32>, ConfigError> {
            let positive = |v: &serde_json::Value| v.as_f64().filter(|&d| d > 0.0).map(|d| d as f32);
            let expected = format!("a list of {} numbers above 0", dims / 2);
            let list = r.list(key, &expected, positive)?.ok_or_else(|| r.missing(key))?;
            if list.len() == dims / 2 { Ok(list) } else { Err(r.bad_key(key, &expected)) }
        };
        let (short, long) = (divisors("short_factor")?, divisors("long_factor")?);
        let original = self.original(r)?.unwrap_or(self.context);
        let factor = r.positive("factor")?.value().unwrap_or(self.context as f64 / original as f64);
        let derived = if factor <= 1.0 || original < 2 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        let attention = r.positive("attention_factor")?.value().unwrap_or(derived) as f32;
        Ok(RopeScaling::LongRope { short, long, original, attention })
    }
}

fn required(r: &Reader<'_>, key: &str) -> Result<f32, ConfigError> {
    r.positive(key)?.value().map(|v| v as f32).ok_or_else(|| r.missing(key))
}
