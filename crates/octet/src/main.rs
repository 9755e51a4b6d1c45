//! One binary: compress a language model, judge it, run it.
fn main() {}
