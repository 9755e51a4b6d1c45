//! Shared bytes: a range of something that owns memory (a mapped file, a vector, a static).

use std::{fmt, ops::Range, sync::Arc};

/// A cheaply clonable range of bytes whose owner (mapped file, vector, static data) lives as long as any clone.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// Wraps an owner of memory; nothing is copied.
    pub fn new<T: AsRef<[u8]> + Send + Sync + 'static>(owner: T) -> Self {
        let range = 0..owner.as_ref().len();
        Self { owner: Arc::new(owner), range }
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
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    #[test]
    fn slices_share_and_check_their_bounds() {
        let all = Bytes::new(vec![1u8, 2, 3, 4]);
        let tail = all.slice(2..4).unwrap();
        assert_eq!(&*tail, &[3, 4]);
        assert_eq!(&*tail.slice(1..2).unwrap(), &[4]);
        assert!(tail.slice(1..3).is_none());
        assert!(all.slice(4..4).unwrap().is_empty());
    }
}
