//! Every hot loop: one folder an operation, one file an instruction set; CPU detection; the thread pool.
