//! Memory for what is large, lives long and is read over and over: packed weights.
//!
//! It is mapped in huge pages where the system has them: a page fault for every 2 MiB instead of every 4 KiB is the larger part of
//! the time to load a model, and the address translations of a stream of weights fit the processor's tables. Matrices are
//! often smaller than such a page, so they share regions, one after the other.

use crate::matmul::Line;
use memmap2::MmapMut;
use octet_tensor::Bytes;
use std::{
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// Bytes below which ordinary memory serves as well.
const LARGE: usize = 128 << 10;
/// Bytes of a region that arrays share; what is larger has its own.
const REGION: usize = 32 << 20;
/// Arrays begin on a page, so that the pages of one can be given back.
const PAGE: usize = 4 << 10;

/// An array of lines: zeros at first, or stored ones that are not to be changed.
pub(crate) enum Lines {
    Small(Vec<Line>),
    Large(Part),
    Stored(Bytes),
}

/// Mapped memory of which arrays get parts that do not overlap.
struct Region {
    map: MmapMut,
    base: NonNull<u8>,
}

// SAFETY: a region is the map and where it starts; its bytes are reached through parts alone, which are each other's strangers.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Some bytes of a region, from a page's start on, that are no other part's.
pub(crate) struct Part {
    region: Arc<Region>,
    start: usize,
    lines: usize,
}

/// The region that is filled now, and the bytes of it that are taken. It lives as long as its parts.
static OPEN: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));

impl Region {
    fn new(bytes: usize) -> Option<Arc<Self>> {
        let mut map = MmapMut::map_anon(bytes).ok()?;
        // It is advice: without huge pages everything works the same, a little slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let base = NonNull::new(map.as_mut_ptr())?;
        Some(Arc::new(Self { map, base }))
    }
}

impl Part {
    /// So many lines of zeros: what was never handed out before.
    fn zeroed(lines: usize) -> Option<Self> {
        let bytes = (lines * size_of::<Line>()).next_multiple_of(PAGE);
        if bytes > REGION / 2 {
            return Some(Self { region: Region::new(bytes)?, start: 0, lines });
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (region, start) = match open.0.upgrade() {
            Some(region) if open.1 + bytes <= region.map.len() => (region, open.1),
            _ => (Region::new(REGION)?, 0),
        };
        *open = (Arc::downgrade(&region), start + bytes);
        Some(Self { region, start, lines })
    }

    fn at(&self) -> *mut Line {
        // SAFETY: a part lies inside its region.
        unsafe { self.region.base.as_ptr().add(self.start).cast() }
    }
}

impl Drop for Part {
    /// Gives the pages back to the system, though the region may live on.
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        {
            let bytes = (self.lines * size_of::<Line>()).next_multiple_of(PAGE);
            // SAFETY: the pages are this part's alone, and nobody reads them again.
            let _ = unsafe { self.region.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.start, bytes) };
        }
    }
}

impl Lines {
    pub(crate) fn zeroed(len: usize) -> Self {
        let part = if len * size_of::<Line>() < LARGE { None } else { Part::zeroed(len) };
        part.map_or_else(|| Self::Small(vec![Line::ZERO; len]), Self::Large)
    }
}

impl From<Bytes> for Lines {
    /// Lines where they are, if that is at the start of a line, else a copy.
    fn from(bytes: Bytes) -> Self {
        if bytemuck::try_cast_slice::<u8, Line>(&bytes).is_ok() {
            return Self::Stored(bytes);
        }
        let mut lines = Self::zeroed(bytes.len() / size_of::<Line>());
        let all = bytemuck::cast_slice_mut::<Line, u8>(&mut lines);
        let len = all.len();
        all.copy_from_slice(&bytes[..len]);
        lines
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::Small(Vec::new())
    }
}

impl Deref for Lines {
    type Target = [Line];

    #[inline(always)]
    fn deref(&self) -> &[Line] {
        match self {
            Self::Small(lines) => lines,
            // SAFETY: a part is that many lines from the start of a page on, and its bytes are its own.
            Self::Large(part) => unsafe { std::slice::from_raw_parts(part.at(), part.lines) },
            Self::Stored(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        match self {
            Self::Small(lines) => lines,
            // SAFETY: as in `deref`, and it is borrowed mutably.
            Self::Large(part) => unsafe { std::slice::from_raw_parts_mut(part.at(), part.lines) },
            // What is stored is never written: it is given no task.
            Self::Stored(_) => &mut [],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_lines_are_read_wherever_they_lie() {
        let bytes = Bytes::new((0..64 * 4).map(|i| i as u8).collect::<Vec<_>>());
        for start in 0..64 {
            let lines = Lines::from(bytes.slice(start..start + 128).unwrap());
            assert!(lines.len() == 2 && lines[1].0[5] == (start + 69) as u8);
        }
    }

    #[test]
    fn small_and_large_are_zero_and_keep_what_is_written() {
        for len in [0, 3, LARGE / 64, LARGE / 64 + 1000] {
            let mut lines = Lines::zeroed(len);
            assert_eq!((lines.len(), matches!(lines, Lines::Large(_))), (len, len * 64 >= LARGE));
            assert!(lines.iter().all(|line| line.0 == [0; 64]));
            if let Some(last) = lines.last_mut() {
                last.0[63] = 7;
            }
            assert_eq!(lines.last().map_or(7, |line| line.0[63]), 7);
        }
    }

    #[test]
    fn parts_are_their_own_and_never_used_twice() {
        let sizes = [LARGE / 64, LARGE / 64 + 1, REGION / 64, 3 * LARGE / 64, REGION / 128, REGION / 128, REGION / 128];
        let fill = |value: u8| {
            let mut all: Vec<Lines> = sizes.iter().map(|&len| Lines::zeroed(len)).collect();
            assert!(all.iter().all(|lines| lines.iter().all(|line| line.0 == [0; 64])));
            all.iter_mut().enumerate().for_each(|(i, lines)| lines.fill(Line([value + i as u8; 64])));
            all
        };
        let mut first = fill(1);
        first.truncate(3);
        let second = fill(100);
        for (all, value) in [(&first, 1), (&second, 100)] {
            for (i, lines) in all.iter().enumerate() {
                assert!(lines.iter().all(|line| line.0 == [value + i as u8; 64]));
            }
        }
    }
}
