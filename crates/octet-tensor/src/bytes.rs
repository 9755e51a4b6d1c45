//! Shared bytes: a range of something that owns memory (a mapped file, a vector, a static).

use std::{fmt, ops::Range, sync::Arc};

/// Memory that [`Bytes`] share.
pub trait Owner: Send + Sync {
    /// All of it.
    fn bytes(&self) -> &[u8];

    /// Gives the physical memory behind bytes `range` back to the system where they can be had again (a mapped file); they stay
    /// readable. Elsewhere nothing happens.
    fn release(&self, range: Range<usize>) {
        let _ = range;
    }
}

/// Memory of one's own, which is never given back early.
struct Plain<T>(T);

impl<T: AsRef<[u8]> + Send + Sync> Owner for Plain<T> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

/// A cheaply clonable range of bytes whose owner (mapped file, vector, static data) lives as long as any clone.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Owner>,
    range: Range<usize>,
}

impl Bytes {
    /// Wraps an owner of memory; nothing is copied.
    pub fn new<T: AsRef<[u8]> + Send + Sync + 'static>(owner: T) -> Self {
        Self::owned_by(Arc::new(Plain(owner)))
    }

    /// All bytes of `owner`.
    pub fn owned_by(owner: Arc<dyn Owner>) -> Self {
        let range = 0..owner.bytes().len();
        Self { owner, range }
    }

    /// Gives the physical memory behind a mapped file's bytes back (see [`Owner::release`]): for what was copied and will hardly be
    /// read again.
    pub fn release(&self) {
        if !self.is_empty() {
            self.owner.release(self.range.clone());
        }
    }

    /// The bytes `range` of these bytes, or `None` where it reaches past their end.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let inside = range.start <= range.end && range.end <= self.len();
        inside.then(|| Self { owner: Arc::clone(&self.owner), range: self.range.start + range.start..self.range.start + range.end })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn slices_share_and_check_their_bounds() {
        let all = Bytes::new(vec![1u8, 2, 3, 4]);
        let tail = all.slice(2..4).unwrap();
        assert_eq!(&*tail, &[3, 4]);
        assert_eq!(&*tail.slice(1..2).unwrap(), &[4]);
        assert!(tail.slice(1..3).is_none());
        assert!(all.slice(4..4).unwrap().is_empty());
        tail.release();
        assert_eq!(&*tail, &[3, 4]);
    }

    #[test]
    fn a_slice_releases_itself_only() {
        #[derive(Default)]
        struct Noting(Mutex<Vec<Range<usize>>>);
        impl Owner for Noting {
            fn bytes(&self) -> &[u8] {
                &[7; 10]
            }
            fn release(&self, range: Range<usize>) {
                self.0.lock().unwrap().push(range);
            }
        }
        let owner = Arc::new(Noting::default());
        let all = Bytes::owned_by(Arc::clone(&owner) as Arc<dyn Owner>);
        all.slice(2..8).unwrap().slice(1..3).unwrap().release();
        all.slice(5..5).unwrap().release();
        all.release();
        assert_eq!(*owner.0.lock().unwrap(), [3..5, 0..10]);
    }
}
