//! How a row of inputs is cut into segments and octets, and memory that starts on a cache line.

use std::ops::Range;

/// Longest run of inputs whose products are summed in 32 bits: 32768 · 255 · 128 and as much again for the zero
/// point's correction stay below 2³¹.
const MAX_SEGMENT: usize = 1 << 15;

/// Sixty-four bytes that start on a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; 64]);
}

// SAFETY: a Line is 64 plain bytes, aligned to 64: no padding, every bit pattern valid.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// How the inputs of a row are laid out: segments that share a weight scale and an activation scale, each filled up
/// with zeros to whole octets (runs of eight inputs, two words of four) or, where that is the unit codes are stored in,
/// whole chunks of four octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segments {
    cols: usize,
    size: usize,
    count: usize,
    /// Inputs that segments are filled up to a multiple of.
    unit: usize,
    /// Octets of a segment that is not the last, and of all: what an inner loop would otherwise divide for.
    each: usize,
    all: usize,
}

impl Segments {
    /// Segments of `size` inputs in rows of `cols`; the last may be shorter.
    pub(crate) fn new(cols: usize, size: usize) -> Self {
        let size = size.clamp(1, cols.max(1));
        Self { cols, size, count: cols.div_ceil(size), unit: 8, each: 0, all: 0 }.counted()
    }

    fn counted(self) -> Self {
        let last = self.cols - self.count.saturating_sub(1) * self.size;
        let each = self.filled(self.size) / 8;
        Self { each, all: self.count.saturating_sub(1) * each + self.filled(last) / 8, ..self }
    }

    /// The same segments, each filled up to a multiple of `unit` inputs.
    pub(crate) fn filled_to(self, unit: usize) -> Self {
        // Where nothing needs filling the unit says nothing: such segments are equal, and matrices share their inputs.
        let whole = self.size.is_multiple_of(unit) && self.cols.is_multiple_of(unit);
        Self { unit: if whole { 8 } else { unit }, ..self }.counted()
    }

    /// The segments on whose ends every group of weights (`weight_group` inputs) and of activations ends.
    pub(crate) fn of_groups(cols: usize, weight_group: usize, activation_group: usize) -> Self {
        let size = match (weight_group >= cols, activation_group >= cols) {
            (true, _) => activation_group.min(cols),
            (_, true) => weight_group,
            _ => gcd(weight_group, activation_group),
        };
        match size {
            _ if size <= MAX_SEGMENT => Self::new(cols, size),
            _ if size >= cols => Self::new(cols, MAX_SEGMENT),
            _ => Self::new(cols, gcd(size, MAX_SEGMENT)),
        }
    }

    /// Number of segments.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Inputs of a segment (the last may be shorter).
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Inputs of segment `segment`.
    pub(crate) fn inputs(&self, segment: usize) -> Range<usize> {
        segment * self.size..self.cols.min((segment + 1) * self.size)
    }

    /// Octets of segment `segment`.
    #[inline(always)]
    pub(crate) fn octets(&self, segment: usize) -> Range<usize> {
        let start = segment * self.each;
        start..self.all.min(start + self.each)
    }

    /// Octets of a whole row.
    pub(crate) fn all_octets(&self) -> usize {
        self.all
    }

    /// The most inputs, 64 at most, that every segment is filled up to a multiple of.
    pub(crate) fn common_run(&self) -> usize {
        let last = self.cols.saturating_sub(self.count.saturating_sub(1) * self.size);
        gcd(64, gcd(self.filled(self.size), self.filled(last)))
    }

    /// Where input `k` lies in the padded row.
    pub(crate) fn position(&self, k: usize) -> usize {
        k / self.size * self.filled(self.size) + k % self.size
    }

    /// Inputs that a segment of `inputs` inputs takes.
    fn filled(&self, inputs: usize) -> usize {
        inputs.next_multiple_of(self.unit)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_groups_need_padding_at_the_end_only() {
        let s = Segments::of_groups(1020, 128, usize::MAX);
        assert_eq!((s.count(), s.size(), s.all_octets()), (8, 128, 128));
        assert_eq!(s.position(1019), 1019);
        assert_eq!(Segments::of_groups(256, 128, 96).size(), 32);
        assert_eq!(Segments::of_groups(100_000, usize::MAX, usize::MAX).size(), MAX_SEGMENT);
        assert_eq!(Segments::new(0, 4).all_octets(), 0);
        assert_eq!(Segments::new(1024, 128).filled_to(32), Segments::new(1024, 128));
        assert_eq!((Segments::new(100, 40).filled_to(32).all_octets(), Segments::new(40, 40).filled_to(32).position(39)), (20, 39));
    }

    proptest! {
        #[test]
        fn segments_cover_every_input_once(cols in 1usize..300, w in 1usize..320, a in 1usize..320, chunks: bool) {
            let s = Segments::of_groups(cols, w, a).filled_to(if chunks { 32 } else { 8 });
            let mut next = 0;
            for i in 0..s.count() {
                let inputs = s.inputs(i);
                prop_assert_eq!(inputs.start, next);
                prop_assert_eq!(s.octets(i).start * 8, s.position(inputs.start));
                prop_assert!(s.octets(i).end * 8 > s.position(inputs.end - 1));
                prop_assert!(!chunks || s.octets(i).len().is_multiple_of(4));
                prop_assert_eq!(inputs.start / w, (inputs.end - 1) / w);
                prop_assert_eq!(inputs.start / a, (inputs.end - 1) / a);
                next = inputs.end;
            }
            prop_assert_eq!(next, cols);
            prop_assert_eq!(s.octets(s.count() - 1).end, s.all_octets());
        }
    }
}
