//! Loops over pieces of work that threads share.

use octet_kernels::Engine;
use std::sync::{Mutex, PoisonError};

/// Calls `f` with every piece on any thread, and gives what it returns, in order.
pub(crate) fn each<T: Send, R: Send + Default>(engine: &Engine, pieces: Vec<T>, f: impl Fn(&mut T) -> R + Sync) -> Vec<R> {
    let pieces: Vec<_> = pieces.into_iter().map(|piece| Mutex::new((piece, R::default()))).collect();
    engine.run(pieces.len(), &|at| {
        let mut piece = pieces[at].lock().unwrap_or_else(PoisonError::into_inner);
        let (piece, result) = &mut *piece;
        *result = f(piece);
    });
    pieces.into_iter().map(|piece| piece.into_inner().unwrap_or_else(PoisonError::into_inner).1).collect()
}
