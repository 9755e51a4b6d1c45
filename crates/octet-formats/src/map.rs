//! Memory-mapped files: the one place of this crate with `unsafe`.

use crate::{Error, Result};
use octet_tensor::{Bytes, Owner};
use std::{fs::File, io::ErrorKind, ops::Range, path::Path, sync::Arc};

/// A file mapped to be read.
struct Mapped(memmap2::Mmap);

impl Owner for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    #[cfg(unix)]
    fn release(&self, range: Range<usize>) {
        // SAFETY: the map is shared, read-only and of a file that does not change (see `map`), so pages that are dropped come
        // back from the file with the same bytes when they are next read.
        let dropped = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        // It is advice: where the system does not take it, memory stays as it is.
        let _ = dropped;
    }
}

/// The bytes of a file, memory-mapped; `None` where there is none.
///
/// # Errors
/// If it is no file or cannot be opened or mapped.
pub(crate) fn map(path: &Path) -> Result<Option<Bytes>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path)(e)),
    };
    let meta = file.metadata().map_err(Error::io("read", path))?;
    if !meta.is_file() {
        let source = std::io::Error::new(ErrorKind::InvalidInput, "it is not a file");
        return Err(Error::Io { action: "read", path: path.display().to_string(), source });
    }
    if meta.len() == 0 {
        return Ok(Some(Bytes::new(vec![])));
    }
    // SAFETY: the map is read-only and private, and only ever seen as `&[u8]`. The files of a model are not changed
    // while it is open: octet never writes to a folder it reads, and replaces its own by renaming, which leaves the
    // mapped file as it was. Someone else truncating the file ends the process (SIGBUS), as with every mapped reader.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("map", path))?;
    Ok(Some(Bytes::owned_by(Arc::new(Mapped(map)))))
}
