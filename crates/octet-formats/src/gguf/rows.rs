//! Tensors of block types as matrices whose rows are unpacked when asked for.

use super::{BlockType, blocks};
use crate::stored::{check_rows, malformed, of_module};
use octet_tensor::{Activations, Bytes, Dtype, FloatRows, QMatrix, QuantRows, Result, Scheme, Tensor};
use std::ops::Range;

/// Rows of blocks.
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) kind: BlockType,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) data: Bytes,
    /// Heads whose rows lie in pairs (row j of a head beside row j + half), to be laid out in halves.
    pub(super) heads: Option<usize>,
}

impl Stored {
    fn row_bytes(&self) -> usize {
        self.cols / self.kind.block() * self.kind.block_bytes()
    }

    fn row(&self, row: usize) -> &[u8] {
        let (at, bytes) = (place(self.heads, self.rows, row), self.row_bytes());
        &self.data[at * bytes..(at + 1) * bytes]
    }

    fn give_back(&self, range: Range<usize>) {
        // Rows in pairs stay within their head, whose end is not known to be the range's: all is given back at the end.
        let bytes = self.row_bytes();
        let range = match self.heads {
            None => range.start * bytes..range.end * bytes,
            Some(_) if range.end == self.rows => 0..self.data.len(),
            Some(_) => return,
        };
        if let Some(bytes) = self.data.slice(range) {
            bytes.release();
        }
    }
}

/// Where row `row` of `rows` lies in the file, if rows of `heads` lie in pairs there.
pub fn place(heads: Option<usize>, rows: usize, row: usize) -> usize {
    let Some(width) = heads.map(|heads| rows / heads.max(1)).filter(|&width| width > 1) else { return row };
    let (head, at) = (row / width, row % width);
    head * width + at % (width / 2) * 2 + at / (width / 2)
}

impl QuantRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn scheme(&self) -> Scheme {
        let weights = blocks::scheme(self.kind).map_or(octet_tensor::WeightScheme::W8, |(weights, _)| weights);
        Scheme { weights, activations: Activations::Exact }
    }

    fn stored_bytes(&self) -> usize {
        self.data.len()
    }

    fn release(&self, range: Range<usize>) {
        self.give_back(range);
    }

    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        check_rows(&self.name, &range, self.rows)?;
        let Some((weights, dtype)) = blocks::scheme(self.kind) else {
            return Err(malformed(&self.name, format!("is {}, which is not made of codes", self.kind.name())));
        };
        let (groups, a_block) = (weights.groups(self.cols), self.kind.block() / weights.group_size(self.cols));
        let (mut codes, mut scales) = (vec![0; range.len() * self.cols], vec![0.0; range.len() * groups]);
        for (i, row) in range.clone().enumerate() {
            let (codes, scales) = (&mut codes[i * self.cols..][..self.cols], &mut scales[i * groups..][..groups]);
            let parts = codes.chunks_mut(self.kind.block()).zip(scales.chunks_mut(a_block));
            for (block, (codes, scales)) in self.row(row).chunks(self.kind.block_bytes()).zip(parts) {
                blocks::codes(self.kind, block, codes, scales);
            }
        }
        of_module(&self.name, QMatrix::new(range.len(), self.cols, weights, codes, scales, dtype, vec![]))
    }
}

impl FloatRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn stored_bytes(&self) -> usize {
        self.data.len()
    }

    fn release(&self, range: Range<usize>) {
        self.give_back(range);
    }

    fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        for (row, out) in range.zip(out.chunks_mut(self.cols.max(1))) {
            match self.kind.dtype() {
                Some(dtype) => read_floats(&self.name, dtype, self.row(row), out)?,
                None => {
                    for (block, out) in self.row(row).chunks(self.kind.block_bytes()).zip(out.chunks_mut(self.kind.block())) {
                        blocks::values(self.kind, block, out);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Decodes plain floats.
pub(super) fn read_floats(name: &str, dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    Tensor::new(name, dtype, vec![out.len()], Bytes::new(bytes.to_vec()))?.read_f32(0, out)
}
