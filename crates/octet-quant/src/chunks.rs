//! How the rows of a matrix are cut: chunks that are in memory one at a time, tasks that threads share.
//!
//! The cuts depend on nothing but the shape, so that sums (and with them reports) come out the same on any machine.

use octet_tensor::WeightScheme;
use std::ops::Range;

/// Weights in a chunk: 4 Mi, 16 MB as f32 if all of them were decoded at once (only one task a thread is).
const CHUNK_WEIGHTS: usize = 4 << 20;

/// Weights in a task, at least: enough to make the hand-over to a thread cheap.
const TASK_WEIGHTS: usize = 16 << 10;

/// Chunks start at multiples of this many rows, which file formats that pack along the outputs rely on.
const ROWS: usize = 32;

/// The cuts of one matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunks {
    rows: usize,
    cols: usize,
    /// Rows of a chunk, a multiple of `task_rows`.
    pub(crate) chunk_rows: usize,
    /// Rows of a task, a multiple of 32.
    pub(crate) task_rows: usize,
}

impl Chunks {
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        let cols_or_one = cols.max(1);
        let task_rows = (TASK_WEIGHTS / cols_or_one).next_multiple_of(ROWS).max(ROWS);
        let chunk_rows = ((CHUNK_WEIGHTS / cols_or_one) / task_rows).max(1) * task_rows;
        Self { rows, cols, chunk_rows, task_rows }
    }

    /// Row ranges of the chunks, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        let (rows, step) = (self.rows, self.chunk_rows);
        (0..rows).step_by(step).map(move |first| first..(first + step).min(rows))
    }
}

/// Bytes of all buffers while chunks of a matrix are solved on `threads` threads: codes, scales and zero points of a
/// chunk, a copy of them on the way to the file, and the decoded weights of one task a thread.
pub(crate) fn buffer_bytes(chunks: &Chunks, scheme: WeightScheme, threads: usize) -> usize {
    let rows = chunks.chunk_rows.min(chunks.rows);
    let result = rows * (chunks.cols + 5 * scheme.groups(chunks.cols));
    let decoded = chunks.task_rows.min(chunks.rows) * chunks.cols * size_of::<f32>();
    2 * result + decoded * threads.min(rows.div_ceil(chunks.task_rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows_once_and_stay_small() {
        for (rows, cols) in [(1, 1), (151_936, 2560), (2560, 9728), (33, 100_000), (100, 0), (4096, 16)] {
            let chunks = Chunks::new(rows, cols);
            let mut next = 0;
            for range in chunks.iter() {
                assert_eq!(range.start, next);
                assert!(range.start.is_multiple_of(32) && range.len() <= chunks.chunk_rows);
                next = range.end;
            }
            assert_eq!(next, rows);
            assert!(chunks.chunk_rows * cols <= CHUNK_WEIGHTS.max(32 * cols));
            let scheme = "w4a16-g32-asym".parse::<octet_tensor::Scheme>().unwrap().weights;
            assert!(buffer_bytes(&chunks, scheme, 8) < 64 << 20, "{rows}x{cols}");
        }
    }
}
