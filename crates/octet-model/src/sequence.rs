//! A sequence: its tokens and the keys and values of all layers.

use crate::spec::ArchSpec;
use octet_kernels::{KvCache, KvDtype};

/// Tokens a sequence has room for from the start.
const RESERVED: usize = 4096;

/// The state of one text: its tokens so far and every layer's keys and values.
pub struct Sequence {
    pub(crate) caches: Vec<KvCache>,
    /// All tokens, those of the call under way included.
    pub(crate) tokens: Vec<u32>,
    /// How many of them the caches hold; fewer only within a call.
    pub(crate) cached: usize,
    /// Length above which positions turn by other frequencies.
    switch: Option<usize>,
    /// Whether the cached keys were turned by the frequencies beyond it.
    far: bool,
}

impl Sequence {
    pub(crate) fn new(spec: &ArchSpec, dtype: KvDtype, capacity: usize) -> Self {
        Self {
            caches: (0..spec.layers().len()).map(|layer| spec.new_cache(layer, dtype, capacity)).collect(),
            tokens: Vec::with_capacity(capacity.min(RESERVED)),
            cached: 0,
            switch: spec.ropes().iter().find_map(|rope| rope.switches_at()),
            far: false,
        }
    }

    /// Tokens it holds: the position of the next one.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether it holds no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens it holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.cached = self.cached.min(self.tokens.len());
        self.caches.iter_mut().for_each(|cache| cache.truncate(self.cached));
    }

    /// Takes keys and values back that a pass added before it was counted.
    pub(crate) fn forget_uncached(&mut self) {
        self.caches.iter_mut().for_each(|cache| cache.truncate(self.cached));
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Bytes its keys and values hold.
    pub fn bytes(&self) -> usize {
        self.caches.iter().map(KvCache::bytes).sum()
    }

    /// Takes new tokens in. Where the length passes the switch of the frequencies, all keys are computed again, as if the
    /// whole text had been given at once.
    pub(crate) fn extend(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        let far = self.switch.is_some_and(|switch| self.tokens.len() > switch);
        if far != self.far {
            self.far = far;
            self.cached = 0;
            self.caches.iter_mut().for_each(KvCache::clear);
        }
    }
}

impl ArchSpec {
    /// An empty cache for the keys and values of block `layer`, for at most `capacity` tokens.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn new_cache(&self, layer: usize, dtype: KvDtype, capacity: usize) -> KvCache {
        let attention = &self.layers()[layer].attention;
        KvCache::new(attention.kv_heads, attention.head_dim, dtype, capacity)
    }
}
