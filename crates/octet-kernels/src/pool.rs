//! The resident thread pool: a shared work counter, bounded spinning, then parking.
//!
//! A region (one call of [`Pool::run`]) allocates nothing and waits only for workers that took part in it: a worker
//! that is asleep is not waited for. Of more threads than cores, only as many as there are cores are woken.

use std::{
    any::Any,
    cell::UnsafeCell,
    hint,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// Turns a worker spins between regions before it parks: some tens of microseconds, the length of what a model does
/// on one thread between two regions.
const SPINS: u32 = 20_000;

/// Bit of [`Shared::state`] that says a region may be entered. Below it: how many workers are inside; above: the region's number.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

#[derive(Clone, Copy)]
struct Region {
    task: *const Task<'static>,
    tasks: usize,
}

struct Shared {
    state: AtomicU64,
    region: UnsafeCell<Option<Region>>,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    /// How many of those asleep are to wake up.
    calls: Mutex<usize>,
    wake: Condvar,
    stop: AtomicBool,
}

// SAFETY: `region` is written only while the state is closed with nobody inside, by the holder of `Pool::regions`;
// it is read only by workers inside, which entered through an acquiring exchange of the state. The task it points to is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

/// A pool of resident threads; the thread that calls [`Pool::run`] is one of them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    regions: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    /// Workers that are awake at most: one for each core but the caller's.
    most_awake: usize,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    pub(crate) fn new(threads: NonZeroUsize) -> std::io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            region: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            calls: Mutex::new(0),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let (workers, most_awake) = (Vec::with_capacity(threads.get() - 1), threads.get().min(cores) - 1);
        let mut pool = Self { shared, regions: Mutex::new(()), workers, most_awake };
        for i in 1..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new().name(format!("octet-{i}")).spawn(move || shared.work())?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that take part in a region.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with every number below `tasks`, in any order, on any thread, and returns when all are done.
    ///
    /// A panic in a task is raised here again, once no thread is in the region. Calls from inside a task, or from a
    /// second thread while a region is open, run on the calling thread.
    pub(crate) fn run(&self, tasks: usize, task: &Task<'_>) {
        let guard = if self.most_awake == 0 || tasks <= 1 { None } else { self.enter() };
        let Some(guard) = guard else {
            (0..tasks).for_each(task);
            return;
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed. The region is closed and left by every worker before this function
        // returns, on every path (tasks that panic are caught), so no call outlives the borrow.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(std::ptr::from_ref(task)) };
        let region = Region { task, tasks };
        // SAFETY: the state is closed with nobody inside (how every region ends), and `guard` keeps other callers out.
        unsafe { *shared.region.get() = Some(region) };
        shared.next.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        shared.state.store(number | OPEN, Ordering::SeqCst);
        self.wake(tasks - 1);
        shared.take_tasks(region);
        shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        wait_until(|| shared.state.load(Ordering::Acquire) & INSIDE == 0);
        let panic = lock(&shared.panic).take();
        drop(guard);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Wakes workers until `wanted` of them, but no more than there are cores for, are awake.
    fn wake(&self, wanted: usize) {
        let sleepers = self.shared.sleepers.load(Ordering::SeqCst);
        let awake = self.workers.len() - sleepers.min(self.workers.len());
        let calls = wanted.min(self.most_awake).saturating_sub(awake).min(sleepers);
        if calls > 0 {
            // Not added to: whom the last region called, and who did not come, is the same now.
            *lock(&self.shared.calls) = calls;
            (0..calls).for_each(|_| self.shared.wake.notify_one());
        }
    }

    fn enter(&self) -> Option<MutexGuard<'_, ()>> {
        match self.regions.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.calls));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches panics of its tasks; there is nothing to learn from how it ended.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut last = 0;
        while let Some(number) = self.wait_for_region(last) {
            last = number;
            // SAFETY: this worker is inside (wait_for_region counted it in), so the region is published and not changed
            // until it leaves.
            if let Some(region) = unsafe { *self.region.get() } {
                self.take_tasks(region);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a region other than number `last` and enters it; `None` when the pool ends.
    fn wait_for_region(&self, last: u64) -> Option<u64> {
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if state & OPEN != 0 && state >> 32 != last {
                let entered = self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
                if entered {
                    return Some(state >> 32);
                }
                continue;
            }
            spins += 1;
            if spins < SPINS {
                hint::spin_loop();
            } else {
                self.park(last);
                spins = 0;
            }
        }
    }

    /// Sleeps until called, unless a region other than number `last` is open.
    fn park(&self, last: u64) {
        let mut calls = lock(&self.calls);
        // Counted before the state is looked at: who opens a region after this look sees a sleeper to call.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        if state & OPEN == 0 || state >> 32 == last {
            while *calls == 0 && !self.stop.load(Ordering::SeqCst) {
                calls = self.wake.wait(calls).unwrap_or_else(PoisonError::into_inner);
            }
            *calls = calls.saturating_sub(1);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn take_tasks(&self, region: Region) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Ordering::Relaxed);
                if i >= region.tasks {
                    break;
                }
                // SAFETY: the caller is inside the region, whose task outlives it (see Pool::run).
                unsafe { (*region.task)(i) };
            }
        }));
        if let Err(payload) = outcome {
            self.next.store(region.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }
}

fn wait_until(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        spins += 1;
        // A worker that lost its core in the middle of a task needs it back before we can go on.
        if spins % 256 == 0 { thread::yield_now() } else { hint::spin_loop() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 8] {
            let pool = pool(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn many_short_regions_and_sleep_between() {
        let pool = pool(4);
        let sum = AtomicUsize::new(0);
        for round in 0..3 {
            for _ in 0..2000 {
                pool.run(3, &|i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
            }
            thread::sleep(std::time::Duration::from_millis(5 * round));
        }
        assert_eq!(sum.into_inner(), 3 * 2000 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = pool(3);
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(100, &|i| assert!(i != 40, "task forty"))));
        let payload = outcome.unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"task forty"));
        let count = AtomicUsize::new(0);
        pool.run(10, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 10);
    }

    #[test]
    fn of_more_threads_than_cores_no_more_than_cores_are_woken() {
        let cores = thread::available_parallelism().unwrap().get();
        let pool = pool(8 * cores);
        for _ in 0..20 {
            // Everybody asleep: whoever takes part then was woken for it, or called.
            while pool.shared.sleepers.load(Ordering::SeqCst) < pool.workers.len() {
                thread::yield_now();
            }
            let (sum, seen) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
            pool.run(64, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
                lock(&seen).push(thread::current().id());
                thread::yield_now();
            });
            let mut seen = seen.into_inner().unwrap();
            seen.sort_by_key(|id| format!("{id:?}"));
            seen.dedup();
            assert_eq!(sum.into_inner(), 2016);
            // One called for the last region may be waking up just now, and is counted asleep.
            assert!(seen.len() <= cores + 1, "{} threads on {cores} cores", seen.len());
        }
    }

    #[test]
    fn nested_and_concurrent_calls_do_not_deadlock() {
        let pool = pool(2);
        let count = AtomicUsize::new(0);
        let add = |_| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..50).for_each(|_| pool.run(4, &|_| pool.run(5, &add))));
            }
        });
        assert_eq!(count.into_inner(), 3 * 50 * 4 * 5);
    }
}
