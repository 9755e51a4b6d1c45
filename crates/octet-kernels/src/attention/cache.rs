//! The keys and values of one layer of one sequence.
//!
//! Both lie in blocks of sixteen tokens, `[blocks][kv heads][…]`: keys of a block as `[head_dim][16 tokens]`, so that the
//! lanes of a score are tokens and nothing is summed across them; values as `[16 tokens][head_dim]`, padded to whole
//! vectors, so that the lanes of an output are dimensions.

use crate::simd::LANES;
use half::f16;

/// How cached keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// binary32: exact.
    F32,
    /// binary16: half the memory.
    F16,
}

/// Keys and values of one layer of one sequence; grows by need up to its capacity.
pub struct KvCache {
    pub(crate) store: Store,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    capacity: usize,
    len: usize,
}

/// Vectors of sixteen elements.
pub(crate) enum Store {
    F32 { keys: Vec<[f32; LANES]>, values: Vec<[f32; LANES]> },
    F16 { keys: Vec<[u16; LANES]>, values: Vec<[u16; LANES]> },
}

impl KvCache {
    /// An empty cache for at most `capacity` tokens of `kv_heads` heads of `head_dim`; nothing is allocated yet.
    pub fn new(kv_heads: usize, head_dim: usize, dtype: KvDtype, capacity: usize) -> Self {
        let store = match dtype {
            KvDtype::F32 => Store::F32 { keys: Vec::new(), values: Vec::new() },
            KvDtype::F16 => Store::F16 { keys: Vec::new(), values: Vec::new() },
        };
        Self { store, kv_heads, head_dim, capacity, len: 0 }
    }

    /// Adds the keys and values of some tokens, both `[tokens, kv_heads · head_dim]`.
    ///
    /// # Panics
    /// If the slices are not whole tokens of the same number, or the capacity does not hold them.
    pub fn append(&mut self, k: &[f32], v: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        assert!(
            width > 0 && k.len() == v.len() && k.len().is_multiple_of(width),
            "{} keys and {} values of width {width}",
            k.len(),
            v.len()
        );
        let tokens = k.len() / width;
        assert!(self.len + tokens <= self.capacity, "{} tokens in a cache for {}", self.len + tokens, self.capacity);
        let (first, heads, dim) = (self.len, self.kv_heads, self.head_dim);
        self.len += tokens;
        let (blocks, most) = (self.len.div_ceil(LANES), self.capacity.div_ceil(LANES));
        let (key, value) = (heads * dim, heads * LANES * dim.div_ceil(LANES));
        match &mut self.store {
            Store::F32 { keys, values } => {
                grow(keys, blocks * key, most * key);
                grow(values, blocks * value, most * value);
                fill(keys, values, [k, v], first, heads, dim, |v| v);
            }
            Store::F16 { keys, values } => {
                grow(keys, blocks * key, most * key);
                grow(values, blocks * value, most * value);
                fill(keys, values, [k, v], first, heads, dim, |v| f16::from_f32(v).to_bits());
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

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::F32 { keys, values } => (keys.capacity() + values.capacity()) * LANES * 4,
            Store::F16 { keys, values } => (keys.capacity() + values.capacity()) * LANES * 2,
        }
    }
}

/// Makes `all` hold `need` vectors, allocating half as much again (but no more than `most`) so that appending token by
/// token rarely moves what is there.
fn grow<T: Clone + Default>(all: &mut Vec<[T; LANES]>, need: usize, most: usize)
where
    [T; LANES]: Default,
{
    if need > all.capacity() {
        all.reserve_exact((need + need / 2).min(most).max(need) - all.len());
    }
    if need > all.len() {
        all.resize(need, Default::default());
    }
}

fn fill<T: Copy>(
    keys: &mut [[T; LANES]],
    values: &mut [[T; LANES]],
    [k, v]: [&[f32]; 2],
    first: usize,
    heads: usize,
    dim: usize,
    convert: impl Fn(f32) -> T + Copy,
) {
    let chunks = dim.div_ceil(LANES);
    for (token, (k, v)) in k.chunks_exact(heads * dim).zip(v.chunks_exact(heads * dim)).enumerate() {
        let (block, lane) = ((first + token) / LANES, (first + token) % LANES);
        for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
            let place = block * heads + head;
            for (key, &k) in keys[place * dim..(place + 1) * dim].iter_mut().zip(k) {
                key[lane] = convert(k);
            }
            let row = (place * LANES + lane) * chunks;
            for (value, v) in values[row..row + chunks].iter_mut().zip(v.chunks(LANES)) {
                value.iter_mut().zip(v).for_each(|(value, &v)| *value = convert(v));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_by_need_and_keeps_its_memory() {
        let mut cache = KvCache::new(2, 20, KvDtype::F16, 100);
        assert_eq!((cache.bytes(), cache.is_empty()), (0, true));
        cache.append(&[1.0; 3 * 40], &[2.0; 3 * 40]);
        let small = cache.bytes();
        cache.append(&[1.0; 97 * 40], &[2.0; 97 * 40]);
        assert_eq!(cache.len(), cache.capacity());
        assert!(small < cache.bytes() && cache.bytes() <= 7 * 2 * 16 * (20 + 32) * 2);
        cache.truncate(5);
        cache.truncate(50);
        assert_eq!(cache.len(), 5);
        cache.clear();
        assert!(cache.is_empty() && cache.bytes() > small);
    }

    #[test]
    #[should_panic(expected = "4 tokens in a cache for 3")]
    fn capacity_is_a_limit() {
        KvCache::new(1, 2, KvDtype::F32, 3).append(&[0.0; 8], &[0.0; 8]);
    }
}
