//! Parallel loops over slices: the places where several threads write into one output.

use crate::Engine;
use std::{marker::PhantomData, ops::Range};

/// Elements a task of an element-wise loop handles at least: below that a second thread is not worth waking.
const GRAIN: usize = 16 * 1024;

/// An output that tasks write disjoint parts of.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shared` is a slice borrowed mutably; its parts are handed out only by `part`, whose callers promise disjointness.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as a `&mut [T]`.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `slice` for as long as it is borrowed.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// Elements `range`.
    ///
    /// # Safety
    /// No other part that is alive at the same time may overlap it.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        // SAFETY: the range lies inside the slice this was made from (checked above), and the caller promises that no
        // other part of it that is alive overlaps.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl Engine {
    /// Calls `f` with every run of rows (their first number and their elements) of a matrix of rows of `width`
    /// elements, in parallel where it is worth it. `cost` is the work an element takes, 1 for an addition.
    pub(crate) fn each_rows<T: Send>(&self, all: &mut [T], width: usize, cost: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        if width == 0 || all.is_empty() {
            return;
        }
        let rows = all.len() / width;
        let rows_a_task = (GRAIN / (width * cost.max(1))).clamp(1, rows);
        let tasks = rows.div_ceil(rows_a_task);
        let shared = Shared::new(all);
        self.run(tasks, &|task| {
            let (first, last) = (task * rows_a_task, rows.min((task + 1) * rows_a_task));
            // SAFETY: tasks are distinct numbers, so their runs of rows do not overlap.
            let part = unsafe { shared.part(first * width..last * width) };
            f(first, part);
        });
    }
}
