//! The keys and values of one layer of one sequence.
//!
//! They lie in chunks of [`CHUNK`] tokens, each an allocation of its own: a cache grows without moving what it holds, and
//! holds what its tokens need, rounded up to whole chunks. In a chunk a key-value head's keys lie together, then its
//! values, then their scales, so that whoever reads a head reads long runs of memory:
//!
//! - keys in blocks of sixteen tokens, `[blocks][head_dim / pack][16 tokens][pack]`: the lanes of a score are tokens and
//!   nothing is summed across them;
//! - values as `[tokens / pack][head_dim][pack]`, padded to whole vectors: the lanes of an output are dimensions;
//! - scales of the integer types, f32: of keys `[groups of dimensions][tokens]`, of values `[tokens]`.
//!
//! `pack` is how many codes a dot product takes at once: 2 of 16 bits, 4 of 8 bits, and 1 for floats.

use crate::{matmul::Line, memory::Lines, simd::LANES};

/// Tokens of a chunk.
pub(super) const CHUNK: usize = 64;
/// Blocks of sixteen tokens in a chunk.
const BLOCKS: usize = CHUNK / LANES;
/// Lines of one scale a token.
const SCALE_LINES: usize = CHUNK * size_of::<f32>() / size_of::<Line>();
/// Dimensions of an int8 key that share a scale.
const KEY_GROUP: usize = 64;

/// How cached keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// binary32: exact.
    F32,
    /// binary16: half the memory.
    F16,
    /// 16-bit integers with a scale a token and head: as small and as good as binary16, and computed with at the rate of
    /// integers.
    Int16,
    /// 8-bit integers with a scale a token and head (keys: each 64 dimensions): a quarter of the memory.
    Int8,
}

impl KvDtype {
    /// Every type, the most exact first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int16, Self::Int8];

    /// Its name, as it reads back.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int16 => "int16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of an element.
    const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Int16 => 2,
            Self::Int8 => 1,
        }
    }

    const fn has_scales(self) -> bool {
        matches!(self, Self::Int16 | Self::Int8)
    }
}

impl std::fmt::Display for KvDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
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
    /// Dimensions of a key that share a scale.
    #[inline(always)]
    pub(super) fn key_group(self) -> usize {
        if self.dtype == KvDtype::Int8 { KEY_GROUP.min(self.head_dim) } else { self.head_dim }
    }

    /// Scales of a key.
    #[inline(always)]
    pub(super) fn key_groups(self) -> usize {
        self.head_dim.div_ceil(self.key_group())
    }

    /// Lines of the keys of a block of sixteen tokens.
    #[inline(always)]
    pub(super) fn key_lines(self) -> usize {
        (self.head_dim * self.dtype.size()).div_ceil(4)
    }

    /// Lines of the values of a block of sixteen tokens.
    #[inline(always)]
    pub(super) fn value_lines(self) -> usize {
        self.head_dim.next_multiple_of(LANES) * self.dtype.size() / 4
    }

    #[inline(always)]
    fn scale_lines(self) -> usize {
        if self.dtype.has_scales() { SCALE_LINES * (self.key_groups() + 1) } else { 0 }
    }

    /// Lines of a key-value head.
    #[inline(always)]
    pub(super) fn head_lines(self) -> usize {
        BLOCKS * (self.key_lines() + self.value_lines()) + self.scale_lines()
    }

    fn chunk_lines(self) -> usize {
        self.kv_heads * self.head_lines()
    }

    /// Cuts a head's lines into keys, values and scales.
    pub(super) fn parts_mut(self, head: &mut [Line]) -> [&mut [Line]; 3] {
        let (keys, rest) = head.split_at_mut(BLOCKS * self.key_lines());
        let (values, scales) = rest.split_at_mut(BLOCKS * self.value_lines());
        [keys, values, scales]
    }
}

/// Keys and values of [`CHUNK`] tokens; the system hands the pages out when they are first touched.
pub(super) struct Chunk(Lines);

impl Chunk {
    fn zeroed(lines: usize) -> Self {
        Self(Lines::zeroed(lines))
    }

    #[inline(always)]
    fn lines(&self) -> &[Line] {
        &self.0
    }

    pub(super) fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.0
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

    /// Makes room for `tokens` more tokens and counts them in; gives the first one's number and the chunks.
    pub(super) fn grow(&mut self, tokens: usize) -> (usize, &mut [Chunk]) {
        assert!(self.len + tokens <= self.capacity, "{} tokens in a cache for {}", self.len + tokens, self.capacity);
        let first = self.len;
        self.len += tokens;
        while self.chunks.len() < self.len.div_ceil(CHUNK) {
            self.chunks.push(Chunk::zeroed(self.layout.chunk_lines()));
        }
        (first, &mut self.chunks[..self.len.div_ceil(CHUNK)])
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

    /// A head's lines of the chunk that block `block` of sixteen tokens lies in, and the block's number in it.
    #[inline(always)]
    fn head(&self, kv_head: usize, block: usize) -> (&[Line], usize) {
        let lines = self.layout.head_lines();
        (&self.chunks[block / BLOCKS].lines()[kv_head * lines..(kv_head + 1) * lines], block % BLOCKS)
    }

    /// The keys of a block of sixteen tokens.
    #[inline(always)]
    pub(super) fn keys(&self, kv_head: usize, block: usize) -> &[Line] {
        let (head, block) = self.head(kv_head, block);
        let lines = self.layout.key_lines();
        &head[block * lines..(block + 1) * lines]
    }

    /// The values of a block of sixteen tokens.
    #[inline(always)]
    pub(super) fn values(&self, kv_head: usize, block: usize) -> &[Line] {
        let (head, block) = self.head(kv_head, block);
        let lines = self.layout.value_lines();
        let at = BLOCKS * self.layout.key_lines() + block * lines;
        &head[at..at + lines]
    }

    /// The scales of a block of sixteen tokens: of group `group` of the keys' dimensions; of the values, where `group` is
    /// the number of groups.
    #[inline(always)]
    pub(super) fn scales(&self, kv_head: usize, block: usize, group: usize) -> &[f32; LANES] {
        let (head, block) = self.head(kv_head, block);
        let at = BLOCKS * (self.layout.key_lines() + self.layout.value_lines()) + group * SCALE_LINES + block;
        bytemuck::cast_ref(&head[at].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppendJob, Engine, Isa};
    use std::num::NonZeroUsize;

    fn append(cache: &mut KvCache, k: &[f32], v: &[f32]) {
        Engine::new(Isa::best(), NonZeroUsize::MIN).unwrap().append([AppendJob { cache, k, v }]);
    }

    #[test]
    fn grows_by_need_and_keeps_its_memory() {
        for dtype in KvDtype::ALL {
            let mut cache = KvCache::new(2, 20, dtype, 100);
            let forecast = |tokens| KvCache::bytes_for(tokens, 2, 20, dtype);
            assert_eq!((cache.bytes(), cache.is_empty()), (0, true));
            append(&mut cache, &[1.0; 3 * 40], &[2.0; 3 * 40]);
            let small = cache.bytes();
            assert_eq!(small, forecast(3));
            append(&mut cache, &[1.0; 97 * 40], &[2.0; 97 * 40]);
            assert_eq!((cache.len(), cache.bytes()), (cache.capacity(), forecast(100)));
            // Whole chunks, values padded to whole vectors, a scale for the key and one for the value.
            let scales = if dtype.has_scales() { 8 } else { 0 };
            assert_eq!(forecast(100), 128 * 2 * ((20 + 32) * dtype.size() + scales));
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
        append(&mut KvCache::new(1, 2, KvDtype::F32, 3), &[0.0; 8], &[0.0; 8]);
    }
}
