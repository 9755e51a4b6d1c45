//! Weights in blocks: runs of codes share a scale (and an offset), which are whole multiples of two floats of their block.
//!
//! This is what the quantized types of GGUF mean (ggml's `ggml-common.h`); how their bits lie in a file is no concern here.

use crate::{Error, LEVELS, Result, qmatrix::all_rows};

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// Every whole number from `low` to `high`.
    Uniform {
        /// The smallest.
        low: i8,
        /// The largest.
        high: i8,
    },
    /// The numbers of the table, [`LEVELS`].
    Table,
}

/// What the scales of a block's runs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunScales {
    /// The block's float itself; the block is one run.
    Float,
    /// Whole multiples of the block's float.
    Multiples {
        /// The smallest.
        low: i8,
        /// The largest.
        high: i8,
    },
}

/// What is taken off every value of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOffsets {
    /// Nothing.
    None,
    /// The block's second float; the block is one run.
    Float,
    /// Whole multiples, from 0 to this, of the block's second float.
    Multiples(u8),
}

/// A block type: weight = d · scale · code − m · offset, with d and m (16-bit floats) of the block, scale and offset (whole
/// numbers) of the run, code (a whole number) of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCode {
    /// Its name, such as `Q4_K`.
    pub name: &'static str,
    /// Weights of a block.
    pub block: usize,
    /// Weights of a run.
    pub run: usize,
    /// What codes stand for.
    pub levels: Levels,
    /// Scales of the runs.
    pub scales: RunScales,
    /// Offsets of the runs.
    pub offsets: RunOffsets,
    /// Bytes a block takes in a file.
    pub bytes: usize,
}

const Q4_0: BlockCode = BlockCode {
    name: "Q4_0",
    block: 32,
    run: 32,
    levels: Levels::Uniform { low: -8, high: 7 },
    scales: RunScales::Float,
    offsets: RunOffsets::None,
    bytes: 18,
};
const Q4_K: BlockCode = BlockCode {
    name: "Q4_K",
    block: 256,
    levels: Levels::Uniform { low: 0, high: 15 },
    scales: RunScales::Multiples { low: 0, high: 63 },
    offsets: RunOffsets::Multiples(63),
    bytes: 144,
    ..Q4_0
};

impl BlockCode {
    /// Every block type.
    pub const ALL: [Self; 12] = [
        Q4_0,
        Self { name: "Q4_1", levels: Levels::Uniform { low: 0, high: 15 }, offsets: RunOffsets::Float, bytes: 20, ..Q4_0 },
        Self { name: "Q5_0", levels: Levels::Uniform { low: -16, high: 15 }, bytes: 22, ..Q4_0 },
        Self { name: "Q5_1", levels: Levels::Uniform { low: 0, high: 31 }, offsets: RunOffsets::Float, bytes: 24, ..Q4_0 },
        Self { name: "Q8_0", levels: Levels::Uniform { low: -128, high: 127 }, bytes: 34, ..Q4_0 },
        Self {
            name: "Q2_K",
            run: 16,
            levels: Levels::Uniform { low: 0, high: 3 },
            scales: RunScales::Multiples { low: 0, high: 15 },
            offsets: RunOffsets::Multiples(15),
            bytes: 84,
            ..Q4_K
        },
        Self {
            name: "Q3_K",
            run: 16,
            levels: Levels::Uniform { low: -4, high: 3 },
            scales: RunScales::Multiples { low: -32, high: 31 },
            offsets: RunOffsets::None,
            bytes: 110,
            ..Q4_K
        },
        Q4_K,
        Self { name: "Q5_K", levels: Levels::Uniform { low: 0, high: 31 }, bytes: 176, ..Q4_K },
        Self {
            name: "Q6_K",
            run: 16,
            levels: Levels::Uniform { low: -32, high: 31 },
            scales: RunScales::Multiples { low: -128, high: 127 },
            offsets: RunOffsets::None,
            bytes: 210,
            ..Q4_K
        },
        Self { name: "IQ4_NL", levels: Levels::Table, ..Q4_0 },
        Self {
            name: "IQ4_XS",
            levels: Levels::Table,
            scales: RunScales::Multiples { low: -32, high: 31 },
            offsets: RunOffsets::None,
            bytes: 136,
            ..Q4_K
        },
    ];

    /// The type called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name == name)
    }

    /// Runs of a block.
    pub fn runs(&self) -> usize {
        self.block / self.run
    }

    /// Bits a weight takes.
    pub fn bits_per_weight(&self) -> f64 {
        (8 * self.bytes) as f64 / self.block as f64
    }

    /// Smallest and largest code.
    pub fn range(&self) -> (i8, i8) {
        match self.levels {
            Levels::Uniform { low, high } => (low, high),
            Levels::Table => (LEVELS[0], LEVELS[15]),
        }
    }
}

/// Rows of weights in blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRows {
    /// Their type.
    pub code: BlockCode,
    /// Number of rows.
    pub rows: usize,
    /// Weights of a row: whole blocks.
    pub cols: usize,
    /// Codes `[rows, cols]`.
    pub codes: Vec<i8>,
    /// d of every block `[rows, blocks]`, exact in 16 bits.
    pub d: Vec<f32>,
    /// m of every block; empty where there are no offsets.
    pub m: Vec<f32>,
    /// Scales of the runs `[rows, runs]`; empty where they are d itself.
    pub scales: Vec<i8>,
    /// Offsets of the runs; empty where there are none or they are m itself.
    pub offsets: Vec<u8>,
}

impl BlockRows {
    /// Rows of zeros.
    ///
    /// # Errors
    /// If a row is not made of whole blocks.
    pub fn zeros(code: BlockCode, rows: usize, cols: usize) -> Result<Self> {
        if !cols.is_multiple_of(code.block) {
            let what = format!("has rows of {cols} weights, which are no whole blocks of {}", code.block);
            return Err(Error::Malformed { name: format!("a matrix of {} blocks", code.name), what });
        }
        let blocks = rows * (cols / code.block);
        let runs = blocks * code.runs();
        Ok(Self {
            code,
            rows,
            cols,
            codes: vec![0; rows * cols],
            d: vec![0.0; blocks],
            m: vec![0.0; if code.offsets == RunOffsets::None { 0 } else { blocks }],
            scales: vec![0; if code.scales == RunScales::Float { 0 } else { runs }],
            offsets: vec![0; if matches!(code.offsets, RunOffsets::Multiples(_)) { runs } else { 0 }],
        })
    }

    /// Runs of a row.
    pub fn runs(&self) -> usize {
        self.cols / self.code.run
    }

    /// Scale and offset of run `run` of row `row`: weight = scale · code − offset.
    pub fn run(&self, row: usize, run: usize) -> (f32, f32) {
        let at = row * self.runs() + run;
        let block = at / self.code.runs();
        let scale = self.scales.get(at).map_or(self.d[block], |&scale| self.d[block] * f32::from(scale));
        let m = self.m.get(block).copied().unwrap_or_default();
        (scale, self.offsets.get(at).map_or(m, |&offset| m * f32::from(offset)))
    }

    /// Decodes row `row` into `out` (`cols` values).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let codes = &self.codes[row * self.cols..(row + 1) * self.cols];
        for (run, (out, codes)) in out.chunks_mut(self.code.run).zip(codes.chunks(self.code.run)).enumerate() {
            let (scale, offset) = self.run(row, run);
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = scale * f32::from(code) - offset;
            }
        }
    }

    /// All weights, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        all_rows(self.rows, self.cols, |row, out| self.dequantize_row(row, out))
    }

    /// Appends rows of the same type and width.
    ///
    /// # Errors
    /// If they are of another.
    pub fn append(&mut self, other: Self) -> Result<()> {
        if (other.code, other.cols) != (self.code, self.cols) {
            let what = format!("gets rows of {} weights in {} blocks", other.cols, other.code.name);
            return Err(Error::Malformed { name: format!("a matrix of {} {} blocks a row", self.cols, self.code.name), what });
        }
        self.rows += other.rows;
        self.codes.extend(other.codes);
        self.d.extend(other.d);
        self.m.extend(other.m);
        self.scales.extend(other.scales);
        self.offsets.extend(other.offsets);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_a_weight_are_those_of_the_types() {
        let bits = |name| BlockCode::named(name).unwrap().bits_per_weight();
        assert_eq!(
            ["Q8_0", "Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"].map(bits),
            [8.5, 4.5, 5.0, 2.625, 3.4375, 4.5, 5.5, 6.5625, 4.5, 4.25]
        );
        assert!(BlockCode::ALL.iter().all(|code| code.block.is_multiple_of(code.run)));
    }

    #[test]
    fn weights_are_scales_times_codes_less_offsets() {
        let mut rows = BlockRows::zeros(BlockCode::named("Q4_K").unwrap(), 1, 256).unwrap();
        (rows.d[0], rows.m[0]) = (0.5, 0.25);
        (rows.scales[1], rows.offsets[1], rows.codes[33]) = (3, 2, 7);
        assert_eq!(rows.dequantize()[32..34], [-0.5, 10.0]);
        let mut rows = BlockRows::zeros(BlockCode::named("Q4_1").unwrap(), 2, 32).unwrap();
        (rows.d[1], rows.m[1], rows.codes[35]) = (2.0, -1.0, 5);
        assert_eq!((rows.dequantize()[0], rows.dequantize()[35]), (0.0, 11.0));
        assert!(BlockRows::zeros(BlockCode::named("Q4_K").unwrap(), 1, 128).is_err());
    }
}
