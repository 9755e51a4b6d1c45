//! Quantization schemes: how weights and activations are represented.

use crate::{Alphabet, Dtype, LEVELS, Table};
use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    str::FromStr,
};

/// Width of a weight code: 2 to 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bits(u8);

impl Bits {
    /// Eight bits.
    pub const B8: Self = Self(8);
    /// Four bits.
    pub const B4: Self = Self(4);

    /// A width of `bits`, or `None` outside 2..=8.
    pub fn new(bits: u32) -> Option<Self> {
        (2..=8).contains(&bits).then_some(Self(bits as u8))
    }

    /// The width as a number.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }

    /// Smallest signed code, −2^(b−1).
    pub fn min_code(self) -> i32 {
        -(1 << (self.0 - 1))
    }

    /// Largest signed code, 2^(b−1) − 1.
    pub fn max_code(self) -> i32 {
        (1 << (self.0 - 1)) - 1
    }
}

/// Whether codes are centred on zero or carry a zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Symmetry {
    /// w = scale · code.
    Symmetric,
    /// w = scale · (code − zero point).
    Asymmetric,
    /// w = scale · level, one of the sixteen [`crate::LEVELS`]: four bits.
    Table,
    /// w = scale · level, one of sixteen that the matrix has for itself: four bits.
    Learnt,
    /// w = scale · code, eight codes of a row being a point of a lattice ([`crate::Alphabet::Lattice`]): four bits.
    Lattice,
}

/// How many weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One scale a row (output channel).
    PerChannel,
    /// One scale for each run of this many inputs of a row; the last run of a row may be shorter.
    Group(NonZeroUsize),
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scales {
    /// A float each.
    #[default]
    Float,
    /// A whole number of eight bits each, times a factor of the row ([`crate::RowFactor`]).
    Whole,
}

/// How a weight matrix is represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightScheme {
    /// Width of a code.
    pub bits: Bits,
    /// Symmetric or with zero points.
    pub symmetry: Symmetry,
    /// How many weights share a scale.
    pub granularity: Granularity,
    /// How scales are stored.
    pub scales: Scales,
}

impl WeightScheme {
    /// Symmetric per-channel codes of 8 bits.
    pub const W8: Self = Self::floats(Bits::B8, Symmetry::Symmetric, Granularity::PerChannel);

    /// A scheme whose scales are floats.
    pub const fn floats(bits: Bits, symmetry: Symmetry, granularity: Granularity) -> Self {
        Self { bits, symmetry, granularity, scales: Scales::Float }
    }

    /// Inputs that share a scale in a row of `cols` inputs.
    pub fn group_size(&self, cols: usize) -> usize {
        match self.granularity {
            Granularity::PerChannel => cols.max(1),
            Granularity::Group(size) => size.get(),
        }
    }

    /// Groups in a row of `cols` inputs.
    pub fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group_size(cols))
    }

    /// Whether weights carry zero points.
    pub fn is_asymmetric(&self) -> bool {
        self.symmetry == Symmetry::Asymmetric
    }

    /// Whether codes are levels of a table.
    pub fn is_table(&self) -> bool {
        matches!(self.symmetry, Symmetry::Table | Symmetry::Learnt)
    }

    /// Whether scales are whole numbers times a factor of their row.
    pub fn has_whole_scales(&self) -> bool {
        self.scales == Scales::Whole
    }

    /// Bytes that the scales of a row of `cols` inputs take, floats being of type `dtype`.
    pub fn scale_bytes(&self, cols: usize, dtype: Dtype) -> usize {
        match self.scales {
            Scales::Float => self.groups(cols) * dtype.size(),
            Scales::Whole => self.groups(cols) + dtype.size(),
        }
    }

    /// What codes are, where they are no whole numbers in even steps.
    pub fn uneven(&self) -> Option<&'static str> {
        match self.symmetry {
            Symmetry::Symmetric | Symmetry::Asymmetric => None,
            Symmetry::Table | Symmetry::Learnt => Some("levels of a table"),
            Symmetry::Lattice => Some("points of a lattice"),
        }
    }

    /// What the codes of a matrix are that has no levels of its own.
    pub fn alphabet(&self) -> Alphabet {
        match self.symmetry {
            Symmetry::Symmetric | Symmetry::Asymmetric => Alphabet::Even,
            Symmetry::Table | Symmetry::Learnt => Alphabet::Table(Table::USUAL),
            Symmetry::Lattice => Alphabet::Lattice,
        }
    }

    /// The smallest and the largest code.
    pub fn range(&self) -> (i32, i32) {
        match self.symmetry {
            Symmetry::Table => (i32::from(LEVELS[0]), i32::from(LEVELS[LEVELS.len() - 1])),
            Symmetry::Learnt => (i8::MIN.into(), i8::MAX.into()),
            Symmetry::Lattice => (-16, 15),
            _ => (self.bits.min_code(), self.bits.max_code()),
        }
    }

    /// Letter of the alphabet in a scheme's text.
    fn letter(&self) -> &'static str {
        match self.symmetry {
            Symmetry::Symmetric | Symmetry::Asymmetric => "",
            Symmetry::Table => "t",
            Symmetry::Learnt => "l",
            Symmetry::Lattice => "e",
        }
    }

    /// Bits a weight costs in rows of `cols` inputs, scales (floats of `dtype`) and zero points of the codes' width included.
    pub fn bits_per_weight(&self, cols: usize, dtype: Dtype) -> f64 {
        let zero_bits = if self.is_asymmetric() { self.groups(cols) * self.bits.get() as usize } else { 0 };
        f64::from(self.bits.get()) + (8 * self.scale_bytes(cols, dtype) + zero_bits) as f64 / cols.max(1) as f64
    }
}

/// The magnitude beyond which inputs are outliers, in steps of a hundredth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit(NonZeroU32);

impl Limit {
    /// What LLM.int8 uses: 6.
    pub const USUAL: Self = Self(match NonZeroU32::new(600) {
        Some(hundredths) => hundredths,
        None => NonZeroU32::MIN,
    });

    /// Below what LLM.int8 uses, for models whose activations are smaller: 3, which three in a thousand normally distributed inputs of unit size exceed.
    pub const LOW: Self = Self(match NonZeroU32::new(300) {
        Some(hundredths) => hundredths,
        None => NonZeroU32::MIN,
    });

    /// A limit of `value`, or `None` where that is no multiple of a hundredth from 0.01 to 10,000.
    pub fn new(value: f64) -> Option<Self> {
        let hundredths = (value * 100.0).round();
        let whole = (hundredths - value * 100.0).abs() < 1e-6 && (1.0..=1e6).contains(&hundredths);
        whole.then(|| NonZeroU32::new(hundredths as u32)).flatten().map(Self)
    }

    /// The limit.
    pub fn get(self) -> f32 {
        (f64::from(self.0.get()) / 100.0) as f32
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0.get()) / 100.0)
    }
}

/// How many of a linear's inputs are outliers, in hundredths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(NonZeroU32);

impl Share {
    /// One percent.
    pub const USUAL: Self = Self(match NonZeroU32::new(100) {
        Some(share) => share,
        None => NonZeroU32::MIN,
    });

    /// A share of `percent`, or `None` where that is no multiple of a hundredth from 0.01 to 50.
    pub fn new(percent: f64) -> Option<Self> {
        let hundredths = (percent * 100.0).round();
        let whole = (hundredths - percent * 100.0).abs() < 1e-6 && (1.0..=5e3).contains(&hundredths);
        whole.then(|| NonZeroU32::new(hundredths as u32)).flatten().map(Self)
    }

    /// The share in percent.
    pub fn percent(self) -> f64 {
        f64::from(self.0.get()) / 100.0
    }

    /// Outliers among so many inputs, at least one.
    pub fn columns(self, inputs: usize) -> usize {
        (inputs * self.0.get() as usize).div_ceil(10_000).clamp(1, inputs.max(1))
    }

    /// The type that the weights of outliers are kept in, beside scales of type `scales`: 16 bits.
    pub fn dtype(scales: Dtype) -> Dtype {
        if scales == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F16 }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.percent())
    }
}

/// What the inputs of a quantized linear are at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Exact floats; weights are dequantized.
    Exact,
    /// int8 with one scale a token, quantized at run time.
    Int8PerToken,
    /// int8 with one scale a token, quantized at run time; inputs of a larger magnitude are multiplied as floats
    /// (LLM.int8, arXiv 2208.07339, for each token by itself).
    Int8Below(Limit),
    /// int8 with one scale a token, quantized at run time; the inputs that calibration saw the largest are multiplied as floats,
    /// with weights that are kept in 16 bits (LLM.int8 with a fixed set of outliers).
    Int8Beside(Share),
    /// int8 with one scale for each run of this many inputs of a token, quantized at run time.
    Int8PerGroup(NonZeroUsize),
}

/// A quantization scheme such as `w4a16-g128-sym`: weights and activations.
///
/// Grammar: `w<bits>a<16|8>[-g<size>|-pc][-sym|-asym][-s16|-s8][-at|-ag<size>|-o<limit>|-c<percent>]`, or `w4ta…`, `w4la…` (tables) and `w4ea…` (a lattice) without `-sym` and `-asym`. Defaults: 4 bits and fewer group 128,
/// more bits per channel; symmetric; scales that are floats of 16 bits (`-s16`; `-s8`: [`Scales::Whole`]); `a8` per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// How weights are represented.
    pub weights: WeightScheme,
    /// What activations are at run time.
    pub activations: Activations,
}

/// A scheme that cannot be read or does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no scheme {text:?}: {why}; write it like w8a16, w8a8, w4a16-g128-sym or w4a8-g64-asym (bits 2-8, group 32, 64, 128 or 256, with 4 bits also 16)"
)]
pub struct SchemeError {
    text: String,
    why: String,
}

impl fmt::Display for WeightScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = self.letter();
        match self.granularity {
            Granularity::PerChannel => write!(f, "w{}{letter}-pc", self.bits.get())?,
            Granularity::Group(size) => write!(f, "w{}{letter}-g{size}", self.bits.get())?,
        }
        f.write_str(match self.symmetry {
            Symmetry::Symmetric => "-sym",
            Symmetry::Asymmetric => "-asym",
            Symmetry::Table | Symmetry::Learnt | Symmetry::Lattice => "",
        })?;
        f.write_str(if self.has_whole_scales() { "-s8" } else { "" })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.activations == Activations::Exact { 16 } else { 8 };
        let weights = self.weights.to_string();
        let (bits, rest) = weights.split_once('-').unwrap_or((&weights, ""));
        write!(f, "{bits}a{width}-{rest}")?;
        match self.activations {
            Activations::Int8PerGroup(size) => write!(f, "-ag{size}"),
            Activations::Int8Below(limit) => write!(f, "-o{limit}"),
            Activations::Int8Beside(share) => write!(f, "-c{share}"),
            _ => Ok(()),
        }
    }
}

impl Scheme {
    /// The shortest text that reads back as this scheme, such as `w8a16` for `w8a16-pc-sym`; used in folder names.
    pub fn short(&self) -> String {
        let full = self.to_string();
        let mut parts: Vec<&str> = full.split('-').collect();
        for candidate in ["sym", if self.weights.bits.get() <= 4 { "g128" } else { "pc" }] {
            parts.retain(|part| *part != candidate);
        }
        parts.join("-")
    }
}

impl FromStr for Scheme {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let fail = |why: String| SchemeError { text: text.into(), why };
        let lower = text.to_ascii_lowercase();
        let mut parts = lower.split('-');
        let head = parts.next().unwrap_or_default();
        let (bits, acts) = head.strip_prefix('w').and_then(|h| h.split_once('a')).ok_or_else(|| fail("it must start like w8a16".into()))?;
        let (bits, own) = alphabet(bits);
        let bits = bits.parse().ok().and_then(Bits::new).ok_or_else(|| fail(format!("{bits:?} is not a width of 2 to 8 bits")))?;
        let mut activations = match acts {
            "16" => Activations::Exact,
            "8" => Activations::Int8PerToken,
            other => return Err(fail(format!("activations are a16 or a8, not a{other}"))),
        };
        if own.is_some() && bits != Bits::B4 {
            return Err(fail("tables and lattices have four bits: w4t, w4l or w4e".into()));
        }
        let default_group = if bits.get() <= 4 { group(128) } else { Some(Granularity::PerChannel) };
        let (mut granularity, mut symmetry, mut scales) = (None, own, None);
        for part in parts {
            let fresh = match part {
                "pc" => granularity.replace(Granularity::PerChannel).is_none(),
                "sym" => symmetry.replace(Symmetry::Symmetric).is_none(),
                "asym" => symmetry.replace(Symmetry::Asymmetric).is_none(),
                "s16" => scales.replace(Scales::Float).is_none(),
                "s8" => scales.replace(Scales::Whole).is_none(),
                "at" => activations == Activations::Int8PerToken,
                _ if part.starts_with('o') => {
                    let fresh = activations == Activations::Int8PerToken;
                    let limit = part[1..].parse().ok().and_then(Limit::new);
                    activations =
                        limit.map(Activations::Int8Below).ok_or_else(|| fail(format!("{part:?} is no limit such as o6 or o4.5")))?;
                    fresh
                }
                _ if part.starts_with('c') => {
                    let fresh = activations == Activations::Int8PerToken;
                    let share = part[1..].parse().ok().and_then(Share::new);
                    let why = || fail(format!("{part:?} is no share of the inputs such as c1 or c0.5 (percent)"));
                    activations = share.map(Activations::Int8Beside).ok_or_else(why)?;
                    fresh
                }
                _ => match (part.strip_prefix("ag"), part.strip_prefix('g')) {
                    (Some(size), _) => {
                        let fresh = activations == Activations::Int8PerToken;
                        activations = group_of(size, 32).map(Activations::Int8PerGroup).ok_or_else(|| fail(bad_group(size)))?;
                        fresh
                    }
                    (None, Some(size)) => {
                        let least = if bits == Bits::B4 { 16 } else { 32 };
                        let group = group_of(size, least).map(Granularity::Group);
                        granularity.replace(group.ok_or_else(|| fail(bad_group(size)))?).is_none()
                    }
                    _ => return Err(fail(format!("{part:?} means nothing here"))),
                },
            };
            if !fresh {
                return Err(fail(format!("{part:?} contradicts the rest")));
            }
        }
        let granularity = granularity.or(default_group).unwrap_or(Granularity::PerChannel);
        let weights =
            WeightScheme { bits, symmetry: symmetry.unwrap_or(Symmetry::Symmetric), granularity, scales: scales.unwrap_or_default() };
        if weights.has_whole_scales() && granularity == Granularity::PerChannel {
            return Err(fail("a row with one scale has no use for -s8; give it groups, such as -g16".into()));
        }
        Ok(Self { weights, activations })
    }
}

/// The width, and what the letter behind it stands for.
fn alphabet(bits: &str) -> (&str, Option<Symmetry>) {
    let letters = [('t', Symmetry::Table), ('l', Symmetry::Learnt), ('e', Symmetry::Lattice)];
    let found = letters.into_iter().find_map(|(letter, symmetry)| Some((bits.strip_suffix(letter)?, Some(symmetry))));
    found.unwrap_or((bits, None))
}

fn group(size: usize) -> Option<Granularity> {
    NonZeroUsize::new(size).map(Granularity::Group)
}

/// A group of at least `least` inputs: codes of other widths than four bits are stored 32 inputs at a time.
fn group_of(text: &str, least: usize) -> Option<NonZeroUsize> {
    text.parse::<NonZeroUsize>().ok().filter(|n| matches!(n.get(), 16 | 32 | 64 | 128 | 256) && n.get() >= least)
}

fn bad_group(size: &str) -> String {
    format!("a group of {size:?} does not exist")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Scheme {
        text.parse().unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        assert_eq!(parse("w4a16").to_string(), "w4a16-g128-sym");
        assert_eq!(parse("w8a16").to_string(), "w8a16-pc-sym");
        assert_eq!(parse("w8a8-at"), parse("w8a8"));
        assert_eq!(parse("w4a8-ag32").to_string(), "w4a8-g128-sym-ag32");
        assert_eq!(parse("w8a16").short(), "w8a16");
        assert_eq!(parse("w4a16-g32-asym").short(), "w4a16-g32-asym");
        assert_eq!(parse("w4a16-pc").short(), "w4a16-pc");
        assert_eq!(parse("w4ta16").to_string(), "w4ta16-g128");
        assert_eq!(parse("w4ta8-g32-ag32").to_string(), "w4ta8-g32-ag32");
        assert_eq!(parse("w4ta16-g128").short(), "w4ta16");
        assert_eq!(parse("w4ta16-pc"), parse(&parse("w4ta16-pc").short()));
        assert_eq!(parse("w4a16-g16-s8").to_string(), "w4a16-g16-sym-s8");
        assert_eq!(parse("w4a16-g16-s8").short(), "w4a16-g16-s8");
        assert_eq!(parse("w4ta8-s8-ag32").to_string(), "w4ta8-g128-s8-ag32");
        assert_eq!(parse("w3a16-s16"), parse("w3a16"));
        assert_eq!(parse("w4la8-g32-o6").to_string(), "w4la8-g32-o6");
        assert_eq!(parse("w4la16").short(), "w4la16");
        assert_ne!(parse("w4la16"), parse("w4ta16"));
        assert_eq!(parse("w4ea8-g32").to_string(), "w4ea8-g32");
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for text in [
            "",
            "w9a16",
            "w3ta16",
            "w8la16",
            "w4lta16",
            "w4la16-sym",
            "w4ta16-sym",
            "w4ta16-asym",
            "w4",
            "w4a4",
            "w4a16-g48",
            "w3a16-g16",
            "w4a8-ag16",
            "w4a16-pc-s8",
            "w8a16-s8",
            "w4a16-s8-s8",
            "w4a16-s4",
            "w4a16-g32-g64",
            "w4a16-at",
            "w8a8-at-ag32-ag64",
            "w4a16-sym-asym",
            "w4a16-x",
            "w8a16-o6",
            "w8a8-o0",
            "w8a8-o6-o6",
            "w8a8-ox",
            "w8a8-o6.001",
            "w8a16-c1",
            "w8a8-c0",
            "w8a8-c51",
            "w8a8-c1-o6",
        ] {
            assert!(text.parse::<Scheme>().is_err(), "{text}");
        }
    }

    #[test]
    fn cost_counts_scales_and_zero_points() {
        assert_eq!(parse("w4a16-g128-sym").weights.bits_per_weight(256, Dtype::F16), 4.125);
        assert_eq!(parse("w4a16-g32-asym").weights.bits_per_weight(64, Dtype::Bf16), 4.0 + 20.0 / 32.0);
        assert_eq!(parse("w4a16-g16-s8").weights.bits_per_weight(512, Dtype::F16), 4.5 + 16.0 / 512.0);
    }

    #[test]
    fn shares_are_at_least_one_column() {
        let columns = |percent, inputs| Share::new(percent).unwrap().columns(inputs);
        assert_eq!((columns(1.0, 64), columns(1.0, 200), columns(1.0, 201), columns(50.0, 1)), (1, 2, 3, 1));
    }

    proptest! {
        #[test]
        fn round_trips(bits in 2u32..=8, size in prop::sample::select(vec![0usize, 32, 64, 128, 256]), asym: bool, whole: bool,
                       acts in prop::sample::select(vec!["16", "8", "8-ag32", "8-ag128", "8-o6", "8-o4.25", "8-c1", "8-c0.25"])) {
            let granularity = if size == 0 { "pc".into() } else { format!("g{size}") };
            let (width, tail) = acts.split_once('-').map_or((acts, String::new()), |(w, t)| (w, format!("-{t}")));
            let scales = if whole && size > 0 { "-s8" } else { "" };
            let text = format!("w{bits}a{width}-{granularity}-{}{scales}{tail}", if asym { "asym" } else { "sym" });
            let scheme = parse(&text);
            prop_assert_eq!(scheme.to_string(), text);
            prop_assert_eq!(parse(&scheme.short()), scheme);
        }

        #[test]
        fn never_panics(text in ".{0,24}") {
            let _ = text.parse::<Scheme>();
        }
    }
}
