//! The attention of a decoding step allocates nothing, but where a cache begins a new chunk.
#![allow(missing_docs, clippy::unwrap_used)]

use octet_kernels::{AppendJob, AttentionJob, Engine, Isa, KvCache, KvDtype};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_step_allocates_nothing() {
    let (heads, kv_heads, dim, sequences) = (8, 2, 64, 3);
    let (kv, q) = (vec![0.25; 700 * kv_heads * dim], vec![0.5; heads * dim]);
    for dtype in KvDtype::ALL {
        // One thread: which thread takes which task, and so which scratch grows when, is chance.
        let engine = Engine::new(Isa::best(), NonZeroUsize::MIN).unwrap();
        let mut caches: Vec<KvCache> = (0..sequences).map(|_| KvCache::new(kv_heads, dim, dtype, 1000)).collect();
        engine.append(caches.iter_mut().map(|cache| AppendJob { cache, k: &kv, v: &kv }));
        let mut outs = vec![vec![0.0; heads * dim]; sequences];
        let mut step = || {
            let token = &kv[..kv_heads * dim];
            engine.append(caches.iter_mut().map(|cache| AppendJob { cache, k: token, v: token }));
            engine.attention(caches.iter().zip(&mut outs).map(|(cache, out)| AttentionJob {
                q: &q,
                cache,
                heads,
                scale: 0.1,
                window: None,
                soft_cap: None,
                out,
            }));
        };
        step();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..3).for_each(|_| step());
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before, "{dtype}");
    }
}
