//! The engine: an instruction set, a thread pool and the buffers kernels reuse.

use crate::{
    Isa,
    attention::Partials,
    counters::{Counters, Kernel},
    isa,
    matmul::Inputs,
    pool::Pool,
    simd::{Level, Op},
    training::Panels,
};
use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

/// Threads an engine has at most: more than any machine octet is meant for, and few enough that a typing error is caught.
const MAX_THREADS: usize = 1024;

/// Runs kernels: the instruction set is chosen once, the threads are resident; cloning shares both.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    isa: Isa,
    level: Level,
    pool: Pool,
    counters: Counters,
    inputs: Mutex<Inputs>,
    partials: Mutex<Partials>,
    panels: Mutex<Panels>,
}

/// An engine that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The CPU lacks the instruction set.
    #[error("this CPU does not have {isa}; it has {}", isa::list(.available))]
    Unavailable {
        /// What was asked for.
        isa: Isa,
        /// What there is.
        available: Vec<Isa>,
    },
    /// Too many threads.
    #[error("{threads} threads are more than the {MAX_THREADS} octet starts; use as many as the machine has cores")]
    TooManyThreads {
        /// What was asked for.
        threads: usize,
    },
    /// The operating system did not start a thread.
    #[error("a thread of the pool did not start ({0}); use fewer threads")]
    Spawn(#[from] std::io::Error),
}

impl Engine {
    /// An engine on `isa` with `threads` threads, the caller's included.
    ///
    /// # Errors
    /// If this CPU lacks the instruction set or the threads cannot be started.
    pub fn new(isa: Isa, threads: NonZeroUsize) -> Result<Self, EngineError> {
        let level = Level::detect(isa).ok_or_else(|| EngineError::Unavailable { isa, available: Isa::available() })?;
        if threads.get() > MAX_THREADS {
            return Err(EngineError::TooManyThreads { threads: threads.get() });
        }
        let pool = Pool::new(threads)?;
        Ok(Self(Arc::new(Inner {
            isa,
            level,
            pool,
            counters: Counters::default(),
            inputs: Mutex::default(),
            partials: Mutex::default(),
            panels: Mutex::default(),
        })))
    }

    /// The instruction set kernels run on.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }

    /// Threads that take part in a parallel loop.
    pub fn threads(&self) -> usize {
        self.0.pool.threads()
    }

    /// Calls `f` with every number below `tasks`, in any order, spread over the threads, and returns when all are done.
    ///
    /// A panic in `f` is raised here again. Calls from inside a task run on the calling thread.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        self.0.pool.run(tasks, f);
    }

    /// Names of the kernels that ran since the engine was made, and how often each was called.
    pub fn kernel_calls(&self) -> Vec<(&'static str, u64)> {
        self.0.counters.read(self.0.isa)
    }

    pub(crate) fn count(&self, kernel: Kernel) {
        self.0.counters.count(kernel, false);
    }

    pub(crate) fn count_product(&self, kernel: Kernel, tiled: bool) {
        self.0.counters.count(kernel, tiled);
    }

    /// Runs `op` on this engine's instruction set.
    #[inline]
    pub(crate) fn vectorize<O: Op>(&self, op: O) -> O::Output {
        self.0.level.run(op)
    }

    pub(crate) fn level(&self) -> Level {
        self.0.level
    }

    /// Takes the buffers of matrix products' inputs; give them back with [`Engine::return_inputs`].
    pub(crate) fn take_inputs(&self) -> Inputs {
        std::mem::take(&mut *self.0.inputs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn return_inputs(&self, inputs: Inputs) {
        *self.0.inputs.lock().unwrap_or_else(PoisonError::into_inner) = inputs;
    }

    /// Takes the buffers of attention that is cut along the keys; give them back with [`Engine::return_partials`].
    pub(crate) fn take_partials(&self) -> Partials {
        std::mem::take(&mut *self.0.partials.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn return_partials(&self, partials: Partials) {
        *self.0.partials.lock().unwrap_or_else(PoisonError::into_inner) = partials;
    }

    /// Takes the buffers of the operands of a product; give them back with [`Engine::return_panels`].
    pub(crate) fn take_panels(&self) -> Panels {
        std::mem::take(&mut *self.0.panels.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn return_panels(&self, panels: Panels) {
        *self.0.panels.lock().unwrap_or_else(PoisonError::into_inner) = panels;
    }
}
