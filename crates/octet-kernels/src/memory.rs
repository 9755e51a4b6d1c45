//! Memory for what is large, lives long and is read over and over: packed weights.
//!
//! It is mapped in huge pages where the system has them: a page fault for every 2 MiB instead of every 4 KiB is the larger part of
//! the time to load a model, and the address translations of a stream of weights fit the processor's tables.

use crate::matmul::Line;
use memmap2::MmapMut;
use octet_tensor::Bytes;
use std::ops::{Deref, DerefMut};

/// Bytes below which ordinary memory serves as well.
const LARGE: usize = 4 << 20;

/// An array of lines: zeros at first, or stored ones that are not to be changed.
pub(crate) enum Lines {
    Small(Vec<Line>),
    Large(MmapMut),
    Stored(Bytes),
}

impl Lines {
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = len * size_of::<Line>();
        let map = if bytes < LARGE { None } else { MmapMut::map_anon(bytes).ok() };
        let Some(map) = map else { return Self::Small(vec![Line::ZERO; len]) };
        // It is advice: without huge pages everything works the same, a little slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Self::Large(map)
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
            // Maps start on a page, which starts on a line.
            Self::Large(map) => bytemuck::cast_slice(map),
            Self::Stored(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        match self {
            Self::Small(lines) => lines,
            Self::Large(map) => bytemuck::cast_slice_mut(map),
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
}
