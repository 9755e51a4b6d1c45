//! The keys and values of one layer of one sequence.
//!
//! They lie in chunks of [`CHUNK`] tokens, each an allocation of its own: a cache grows without moving what it holds, and
//! holds what its tokens need, rounded up to whole chunks. In a chunk a key-value head's keys lie together, then its
//! values, so that whoever reads a head reads long runs of memory:
//!
//! - keys in blocks of sixteen tokens, `[blocks][head_dim][16 tokens]`: the lanes of a score are tokens and nothing is
//!   summed across them;
//! - values as `[tokens][head_dim]`, padded to whole vectors: the lanes of an output are dimensions.

use crate::{matmul::Line, simd::LANES};
use half::f16;

/// Tokens of a chunk.
pub(super) const CHUNK: usize = 64;
/// Blocks of sixteen tokens in a chunk.
const BLOCKS: usize = CHUNK / LANES;

/// How cached keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// binary32: exact.
    F32,
    /// binary16: half the memory.
    F16,
}

impl KvDtype {
    /// Bytes of an element.
    const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Keys and values of one layer of one sequence; grows by need up to its capacity.
pub struct KvCache {
    chunks: Vec<Chunk>,
    layout: Layout,
    capacity: usize,
    len: usize,
}

/// Where things lie in a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) dtype: KvDtype,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Layout {
    /// Lines of the keys of a block of sixteen tokens.
    fn block_lines(self) -> usize {
        (self.head_dim * self.dtype.size()).div_ceil(4)
    }

    /// Lines of the values of a block of sixteen tokens.
    fn value_lines(self) -> usize {
        self.head_dim.div_ceil(LANES) * LANES * self.dtype.size() / 4
    }

    /// Lines of a key-value head.
    fn head_lines(self) -> usize {
        BLOCKS * (self.block_lines() + self.value_lines())
    }

    fn chunk_lines(self) -> usize {
        self.kv_heads * self.head_lines()
    }
}

/// Zeroed memory that starts on a cache line; the system hands its pages out when they are first touched.
struct Chunk {
    words: Vec<u64>,
    start: usize,
}

impl Chunk {
    const WORDS: usize = size_of::<Line>() / size_of::<u64>();

    fn zeroed(lines: usize) -> Self {
        let words = vec![0u64; (lines + 1) * Self::WORDS];
        let start = words.as_ptr().align_offset(align_of::<Line>()).min(Self::WORDS);
        Self { words, start }
    }

    fn lines(&self) -> &[Line] {
        let end = self.words.len() - Self::WORDS + self.start;
        bytemuck::cast_slice(&self.words[self.start..end])
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        let end = self.words.len() - Self::WORDS + self.start;
        bytemuck::cast_slice_mut(&mut self.words[self.start..end])
    }
}

impl KvCache {
    /// An empty cache for at most `capacity` tokens of `kv_heads` heads of `head_dim`; nothing is allocated yet.
    pub fn new(kv_heads: usize, head_dim: usize, dtype: KvDtype, capacity: usize) -> Self {
        Self { chunks: Vec::new(), layout: Layout { dtype, kv_heads, head_dim }, capacity, len: 0 }
    }

    /// Bytes that a cache of `tokens` tokens of `kv_heads` heads of `head_dim` holds.
    pub fn bytes_for(tokens: usize, kv_heads: usize, head_dim: usize, dtype: KvDtype) -> usize {
        tokens.div_ceil(CHUNK) * Layout { dtype, kv_heads, head_dim }.chunk_lines() * size_of::<Line>()
    }

    /// Adds the keys and values of some tokens, both `[tokens, kv_heads · head_dim]`.
    ///
    /// # Panics
    /// If the slices are not whole tokens of the same number, or the capacity does not hold them.
    pub fn append(&mut self, k: &[f32], v: &[f32]) {
        let width = self.layout.kv_heads * self.layout.head_dim;
        assert!(
            width > 0 && k.len() == v.len() && k.len().is_multiple_of(width),
            "{} keys and {} values of width {width}",
            k.len(),
            v.len()
        );
        let tokens = k.len() / width;
        assert!(self.len + tokens <= self.capacity, "{} tokens in a cache for {}", self.len + tokens, self.capacity);
        let (first, layout) = (self.len, self.layout);
        self.len += tokens;
        while self.chunks.len() < self.len.div_ceil(CHUNK) {
            self.chunks.push(Chunk::zeroed(layout.chunk_lines()));
        }
        for (token, (k, v)) in (first..).zip(k.chunks_exact(width).zip(v.chunks_exact(width))) {
            let lines = self.chunks[token / CHUNK].lines_mut();
            match layout.dtype {
                KvDtype::F32 => put(lines, layout, token % CHUNK, k, v, |v| v),
                KvDtype::F16 => put(lines, layout, token % CHUNK, k, v, |v| f16::from_f32(v).to_bits()),
            }
        }
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens but the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        self.len = self.len.min(tokens);
    }

    /// Forgets all tokens; the memory stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Bytes allocated: [`KvCache::bytes_for`] the most tokens it has held.
    pub fn bytes(&self) -> usize {
        self.chunks.len() * self.layout.chunk_lines() * size_of::<Line>()
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// The keys of a block of sixteen tokens, `[head_dim]` vectors of them.
    #[inline(always)]
    pub(super) fn keys<T: bytemuck::AnyBitPattern>(&self, kv_head: usize, block: usize) -> &[[T; LANES]]
    where
        [T; LANES]: bytemuck::AnyBitPattern,
    {
        let lines = self.layout.block_lines();
        let at = kv_head * self.layout.head_lines() + block % BLOCKS * lines;
        &bytemuck::cast_slice(&self.chunks[block / BLOCKS].lines()[at..at + lines])[..self.layout.head_dim]
    }

    /// The values of a block of sixteen tokens, `[16, padded head_dim / 16]` vectors.
    #[inline(always)]
    pub(super) fn values<T: bytemuck::AnyBitPattern>(&self, kv_head: usize, block: usize) -> &[[T; LANES]]
    where
        [T; LANES]: bytemuck::AnyBitPattern,
    {
        let lines = self.layout.value_lines();
        let at = kv_head * self.layout.head_lines() + BLOCKS * self.layout.block_lines() + block % BLOCKS * lines;
        bytemuck::cast_slice(&self.chunks[block / BLOCKS].lines()[at..at + lines])
    }
}

/// Puts a token's keys and values into its place in a chunk.
fn put<T: Copy + bytemuck::Pod>(lines: &mut [Line], layout: Layout, token: usize, k: &[f32], v: &[f32], convert: impl Fn(f32) -> T) {
    let dim = layout.head_dim;
    let heads = lines.chunks_exact_mut(layout.head_lines());
    for (head, (k, v)) in heads.zip(k.chunks_exact(dim).zip(v.chunks_exact(dim))) {
        let (keys, values) = head.split_at_mut(BLOCKS * layout.block_lines());
        let (block, lane) = (token / LANES, token % LANES);
        let keys: &mut [T] = bytemuck::cast_slice_mut(&mut keys[block * layout.block_lines()..(block + 1) * layout.block_lines()]);
        keys[lane..].iter_mut().step_by(LANES).zip(k).for_each(|(key, &k)| *key = convert(k));
        let width = dim.next_multiple_of(LANES);
        let values: &mut [T] = bytemuck::cast_slice_mut(values);
        values[token * width..].iter_mut().zip(v).for_each(|(value, &v)| *value = convert(v));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_by_need_and_keeps_its_memory() {
        for dtype in [KvDtype::F32, KvDtype::F16] {
            let mut cache = KvCache::new(2, 20, dtype, 100);
            let forecast = |tokens| KvCache::bytes_for(tokens, 2, 20, dtype);
            assert_eq!((cache.bytes(), cache.is_empty()), (0, true));
            cache.append(&[1.0; 3 * 40], &[2.0; 3 * 40]);
            let small = cache.bytes();
            assert_eq!(small, forecast(3));
            cache.append(&[1.0; 97 * 40], &[2.0; 97 * 40]);
            assert_eq!((cache.len(), cache.bytes()), (cache.capacity(), forecast(100)));
            // Whole chunks, values padded to whole vectors.
            assert_eq!(forecast(100), 128 * 2 * (20 + 32) * dtype.size());
            cache.truncate(5);
            cache.truncate(50);
            assert_eq!(cache.len(), 5);
            cache.clear();
            assert!(cache.is_empty() && cache.bytes() > small);
        }
    }

    #[test]
    #[should_panic(expected = "4 tokens in a cache for 3")]
    fn capacity_is_a_limit() {
        KvCache::new(1, 2, KvDtype::F32, 3).append(&[0.0; 8], &[0.0; 8]);
    }
}
