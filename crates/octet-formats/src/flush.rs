//! Bringing a file to disk while it is still being written: what is left to wait for at the end is short.

use std::{
    fs::File,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
};

/// Bytes that are written between two flushes.
const EVERY: u64 = 32 << 20;

/// A thread that brings a file to disk every now and then. An error it meets is kept: the system tells it only once.
#[derive(Debug)]
pub(crate) struct Flusher {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    failure: Arc<Mutex<Option<io::Error>>>,
    waiting: u64,
}

impl Flusher {
    /// For a file that will have `bytes` bytes; `None` where it is small or the system gives no thread: then all of it is
    /// waited for at the end.
    pub(crate) fn new(file: &File, bytes: u64) -> Option<Self> {
        if bytes < 2 * EVERY {
            return None;
        }
        let (file, (wake, woken)) = (file.try_clone().ok()?, sync_channel(1));
        let failure = Arc::new(Mutex::new(None));
        let kept = Arc::clone(&failure);
        let run = move || {
            let failed = woken.iter().find_map(|()| file.sync_data().err());
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        };
        let thread = Builder::new().name("flush".into()).spawn(run).ok()?;
        Some(Self { wake: Some(wake), thread: Some(thread), failure, waiting: 0 })
    }

    /// Counts what was written, and has it flushed when there is enough.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.waiting += bytes as u64;
        if self.waiting >= EVERY {
            self.waiting = 0;
            // A thread that is still busy has the next flush noted already, and one that failed has said so.
            let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }

    /// Ends the thread of a file where there is one, and brings the rest to disk.
    pub(crate) fn sync(flusher: &mut Option<Self>, file: &File) -> io::Result<()> {
        flusher.as_mut().map_or(Ok(()), Self::finish).and_then(|()| file.sync_all())
    }

    /// The error the thread met, if it did; it is given once.
    pub(crate) fn check(&self) -> io::Result<()> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    /// Ends the thread, and says how it went.
    fn finish(&mut self) -> io::Result<()> {
        self.wake = None;
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        self.check()?;
        if ended { Ok(()) } else { Err(io::Error::other("the thread that brings the file to disk panicked")) }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_written_is_flushed_and_an_end_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("file")).unwrap();
        assert!(Flusher::new(&file, EVERY).is_none());
        let mut flusher = Flusher::new(&file, 4 * EVERY).unwrap();
        for _ in 0..4 {
            file.write_all(&[1; 1000]).unwrap();
            flusher.wrote(EVERY as usize);
        }
        flusher.finish().unwrap();
        flusher.finish().unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_error_is_kept_until_somebody_asks() {
        // A pipe cannot be brought to disk.
        let (_reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let mut flusher = Flusher::new(&file, 4 * EVERY).unwrap();
        flusher.wrote(EVERY as usize);
        flusher.wrote(EVERY as usize);
        assert!(flusher.finish().is_err());
        flusher.finish().unwrap();
    }
}
