//! One `QuantizationArgs` object of compressed-tensors.

use crate::{
    Error, Result,
    compressed_tensors::{LATTICE_LEVELS, OUTLIER_COLUMNS, OUTLIER_LIMIT, OWN_LEVELS, TABLE_LEVELS},
};
use octet_tensor::{Activations, Bits, Granularity, InputRounding, LEVELS, Limit, Scales, Share, Symmetry, WeightScheme};
use serde::Deserialize;
use serde_json::Value;
use std::num::NonZeroUsize;

use super::Float8Scale;

/// How weights or activations are quantized, as written.
#[derive(Debug, Deserialize)]
pub(super) struct Args {
    num_bits: u32,
    #[serde(rename = "type", default = "int")]
    kind: String,
    #[serde(default = "yes")]
    symmetric: bool,
    strategy: Option<String>,
    group_size: Option<i64>,
    block_structure: Option<Value>,
    #[serde(default)]
    dynamic: Value,
    #[serde(default)]
    observer_kwargs: Value,
}

fn int() -> String {
    "int".into()
}

fn yes() -> bool {
    true
}

/// A whole number of the quantization config.
pub(crate) fn number(raw: &Value, key: &str) -> Result<i64> {
    match raw.get(key).filter(|value| !value.is_null()) {
        None => bad(key, "is missing, expected a number"),
        Some(value) => value.as_i64().map_or_else(|| bad(key, format!("is {value}, expected a whole number")), Ok),
    }
}

/// An error about `key` of the quantization config.
pub(crate) fn bad<T>(key: &str, what: impl Into<String>) -> Result<T> {
    Err(Error::QuantizationConfig { key: key.into(), what: what.into() })
}

impl Args {
    pub(super) fn read(key: &str, value: &Value) -> Result<Self> {
        Self::deserialize(value).or_else(|e| bad(key, format!("is not a set of quantization arguments ({e})")))
    }

    pub(super) fn is_float(&self) -> bool {
        self.kind == "float"
    }

    /// The strategy, or what its absence means.
    fn strategy(&self) -> &str {
        match (self.strategy.as_deref(), self.group_size) {
            (Some(strategy), _) => strategy,
            (None, Some(-1)) => "channel",
            (None, Some(_)) => "group",
            (None, None) => "tensor",
        }
    }

    fn group(&self, key: &str) -> Result<NonZeroUsize> {
        let size = self.group_size.and_then(|n| usize::try_from(n).ok()).and_then(NonZeroUsize::new);
        size.map_or_else(|| bad(key, format!("has group_size {:?}, expected a positive number", self.group_size)), Ok)
    }

    /// Integer weights.
    pub(super) fn weights(&self, key: &str) -> Result<WeightScheme> {
        let Some(bits) = Bits::new(self.num_bits).filter(|_| self.kind == "int") else {
            return bad(key, format!("asks for {} bits of type {:?}, octet reads integers of 2 to 8 bits", self.num_bits, self.kind));
        };
        let granularity = match self.strategy() {
            "channel" | "tensor" => Granularity::PerChannel,
            "group" if self.group_size == Some(-1) => Granularity::PerChannel,
            "group" => Granularity::Group(self.group(key)?),
            other => return bad(key, format!("has strategy {other:?}, octet reads tensor, channel and group for integers")),
        };
        let symmetry = if self.symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric };
        Ok(WeightScheme::floats(bits, symmetry, granularity))
    }

    /// Weights that are levels of octet's table, or of one that every matrix has for itself, or points of a lattice.
    pub(super) fn levels(&self, key: &str) -> Result<WeightScheme> {
        let weights = self.weights(key)?;
        let given = self.observer_kwargs.get(TABLE_LEVELS);
        let levels = given.and_then(|levels| Vec::<i8>::deserialize(levels).ok());
        let symmetry = match given.and_then(Value::as_str) {
            Some(OWN_LEVELS) => Some(Symmetry::Learnt),
            Some(LATTICE_LEVELS) => Some(Symmetry::Lattice),
            _ => (levels.as_deref() == Some(&LEVELS[..])).then_some(Symmetry::Table),
        };
        let whole = |size: NonZeroUsize| symmetry != Some(Symmetry::Lattice) || size.get().is_multiple_of(8);
        let fits = match weights.granularity {
            Granularity::PerChannel => true,
            Granularity::Group(size) => whole(size),
        };
        match symmetry {
            Some(symmetry) if fits && weights.bits == Bits::B4 && weights.symmetry == Symmetry::Symmetric => {
                Ok(WeightScheme { symmetry, ..weights })
            }
            _ => bad(key, "is another table than those of this version; make the folder again from the original"),
        }
    }

    /// Weights whose scales are whole numbers, and which may be levels.
    pub(super) fn whole_scales(&self, key: &str) -> Result<WeightScheme> {
        let table = self.observer_kwargs.get(TABLE_LEVELS).is_some();
        let weights = if table { self.levels(key)? } else { self.weights(key)? };
        Ok(WeightScheme { scales: Scales::Whole, ..weights })
    }

    /// FP8 weights.
    pub(super) fn float8(&self, key: &str) -> Result<Float8Scale> {
        if self.num_bits != 8 || !self.symmetric {
            return bad(
                key,
                format!("asks for {}-bit floats (symmetric: {}), octet reads symmetric 8-bit ones", self.num_bits, self.symmetric),
            );
        }
        match self.strategy() {
            "tensor" => Ok(Float8Scale::Tensor),
            "channel" => Ok(Float8Scale::Channel),
            "block" => self.block(key).map(Float8Scale::Block),
            "group" => self.group(key).map(|size| Float8Scale::Block([1, size.get()])),
            other => bad(key, format!("has strategy {other:?}, octet reads tensor, channel, group and block for FP8")),
        }
    }

    fn block(&self, key: &str) -> Result<[usize; 2]> {
        let block = match &self.block_structure {
            Some(Value::String(text)) => text.split_once('x').and_then(|(r, c)| Some([r.parse().ok()?, c.parse().ok()?])),
            Some(value) => <[usize; 2]>::deserialize(value).ok(),
            None => None,
        };
        match block {
            Some(block) if !block.contains(&0) => Ok(block),
            _ => bad(key, format!("has block_structure {:?}, expected two positive numbers", self.block_structure)),
        }
    }

    /// FP8 activations, rounded at run time; `None` where their scale was fixed by calibration: those are left exact.
    pub(super) fn float8_inputs(&self, key: &str) -> Result<Option<InputRounding>> {
        if !self.is_float() || self.num_bits != 8 || !self.symmetric {
            let what = format!("asks for {}-bit {} activations (symmetric: {})", self.num_bits, self.kind, self.symmetric);
            return bad(key, format!("{what} beside FP8 weights, octet runs symmetric 8-bit floats"));
        }
        match (self.dynamic == Value::Bool(true), self.strategy()) {
            (false, _) => Ok(None),
            (true, "token") => Ok(Some(InputRounding::Float8PerToken)),
            (true, "group") => self.group(key).map(|size| Some(InputRounding::Float8PerGroup(size))),
            (true, other) => bad(key, format!("has strategy {other:?} at run time, octet runs token and group")),
        }
    }

    /// Integer activations, quantized at run time.
    pub(super) fn activations(&self, key: &str) -> Result<Activations> {
        if self.kind != "int" || self.num_bits != 8 || !self.symmetric {
            let what = format!("asks for {}-bit {} activations (symmetric: {})", self.num_bits, self.kind, self.symmetric);
            return bad(key, format!("{what}, octet runs symmetric 8-bit integer ones"));
        }
        if self.dynamic != Value::Bool(true) {
            return bad(key, format!("has dynamic: {}, octet quantizes activations at run time (dynamic: true)", self.dynamic));
        }
        match self.strategy() {
            "token" => match (self.observer_kwargs.get(OUTLIER_LIMIT), self.observer_kwargs.get(OUTLIER_COLUMNS)) {
                (None, None) => Ok(Activations::Int8PerToken),
                (None, Some(share)) => match share.as_f64().and_then(Share::new) {
                    Some(share) => Ok(Activations::Int8Beside(share)),
                    None => bad(key, format!("has {OUTLIER_COLUMNS} {share}, expected a percentage in hundredths from 0.01 to 50")),
                },
                (Some(limit), _) => match limit.as_f64().and_then(Limit::new) {
                    Some(limit) => Ok(Activations::Int8Below(limit)),
                    None => bad(key, format!("has {OUTLIER_LIMIT} {limit}, expected a number of hundredths above zero")),
                },
            },
            "group" => self.group(key).map(Activations::Int8PerGroup),
            other => bad(key, format!("has strategy {other:?}, octet runs token and group")),
        }
    }
}
