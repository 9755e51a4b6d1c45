//! Writing behind: while one chunk is solved, the one before it is packed and written by a thread of its own.

use crate::{Error, Sink, SinkError};
use octet_tensor::{BlockRows, QMatrix, Tensor};
use std::{
    sync::mpsc::{self, Receiver, SyncSender},
    thread,
};

/// Pieces that may wait to be written: one beside the one at work, so that memory stays small.
const WAITING: usize = 1;

/// What is to be written.
enum Piece {
    Matrix { module: String, first_row: usize, rows: usize, q: QMatrix },
    Blocks { module: String, first_row: usize, rows: usize, q: BlockRows },
    Tensor { name: String, tensor: Tensor },
}

/// A sink that hands everything on to the thread that writes.
struct Behind {
    pieces: SyncSender<Piece>,
}

/// Calls `work` with a sink that writes to `sink` on another thread, and returns once all is written.
///
/// # Errors
/// What `work` returns; where it succeeded, or failed because the sink did, the first error of `sink`.
pub(crate) fn writing<T>(sink: &mut dyn Sink, work: impl FnOnce(&mut dyn Sink) -> Result<T, Error>) -> Result<T, Error> {
    let (pieces, to_write) = mpsc::sync_channel(WAITING);
    thread::scope(|scope| {
        let writer = scope.spawn(move || write(sink, &to_write));
        let result = work(&mut Behind { pieces });
        // The channel is closed now, so the writer ends once it has written what waits.
        match writer.join() {
            Ok(Ok(())) => result,
            Ok(Err(error)) => match result {
                Err(other) if !matches!(other, Error::Sink { .. }) => Err(other),
                _ => Err(error),
            },
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn write(sink: &mut dyn Sink, to_write: &Receiver<Piece>) -> Result<(), Error> {
    for piece in to_write {
        match piece {
            Piece::Matrix { module, first_row, rows, q } => {
                sink.matrix(&module, first_row, rows, &q).map_err(|source| Error::Sink { name: module, source })?;
            }
            Piece::Blocks { module, first_row, rows, q } => {
                sink.blocks(&module, first_row, rows, q).map_err(|source| Error::Sink { name: module, source })?;
            }
            Piece::Tensor { name, tensor } => {
                sink.tensor(&name, &tensor).map_err(|source| Error::Sink { name, source })?;
                tensor.bytes().release();
            }
        }
    }
    Ok(())
}

impl Behind {
    /// The writer stops listening only when it failed; its error then counts, not this one.
    fn send(&self, piece: Piece) -> Result<(), SinkError> {
        self.pieces.send(piece).map_err(|_| "an earlier write failed".into())
    }
}

impl Sink for Behind {
    fn matrix(&mut self, module: &str, first_row: usize, rows: usize, q: &QMatrix) -> Result<(), SinkError> {
        self.matrix_owned(module, first_row, rows, q.clone())
    }

    fn matrix_owned(&mut self, module: &str, first_row: usize, rows: usize, q: QMatrix) -> Result<(), SinkError> {
        self.send(Piece::Matrix { module: module.into(), first_row, rows, q })
    }

    fn blocks(&mut self, module: &str, first_row: usize, rows: usize, q: BlockRows) -> Result<(), SinkError> {
        self.send(Piece::Blocks { module: module.into(), first_row, rows, q })
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<(), SinkError> {
        self.send(Piece::Tensor { name: name.into(), tensor: tensor.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many tensors, then fails.
    struct Full(Vec<String>, usize);

    impl Sink for Full {
        fn matrix(&mut self, _: &str, _: usize, _: usize, _: &QMatrix) -> Result<(), SinkError> {
            Err("no matrix was sent".into())
        }

        fn tensor(&mut self, name: &str, _: &Tensor) -> Result<(), SinkError> {
            if self.0.len() == self.1 {
                return Err(format!("no room for {name}").into());
            }
            self.0.push(name.into());
            Ok(())
        }
    }

    fn send(sink: &mut dyn Sink) -> Result<usize, Error> {
        let tensor = Tensor::from_f32("t", vec![1], &[1.0]).unwrap();
        for name in ["a", "b", "c", "d", "e"] {
            sink.tensor(name, &tensor).map_err(|source| Error::Sink { name: name.into(), source })?;
        }
        Ok(5)
    }

    #[test]
    fn everything_is_written_in_order_before_it_returns() {
        let mut sink = Full(vec![], 9);
        assert_eq!(writing(&mut sink, send).unwrap(), 5);
        assert_eq!(sink.0, ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn the_error_is_that_of_the_write_that_failed() {
        for room in 0..5 {
            let error = writing(&mut Full(vec![], room), send).unwrap_err();
            let name = ["a", "b", "c", "d", "e"][room];
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(cause, format!("no room for {name}"));
        }
        let error = writing(&mut Full(vec![], 0), |_| Err::<(), _>(Error::Interrupted { done: 1, total: 2 })).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }));
    }
}
