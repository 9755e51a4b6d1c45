//! Panics of the tokenizer library as errors: it takes for granted, when it reads and when it runs, what a damaged tokenizer.json breaks.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is where a panic becomes an error, so that nothing need be said of it.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Calls `run`; a panic in it is an error of its words.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    let before = GUARDED.replace(true);
    // What is left of the library's own state is read by nobody: a tokenizer that failed is not used again, or only read.
    let result = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(before);
    result.map_err(|payload| words(&*payload))
}

fn words(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no reason given").to_string()
}
