//! Quantized weights as kernels read them.
//!
//! Codes are stored unsigned (code + 2^(bits − 1)), sixteen rows interleaved: a line of 64 bytes holds four consecutive
//! inputs of each of 16 rows, so that lanes are rows and a product needs no horizontal sums. Codes of two to six bits are
//! stored densely, in planes of such lines (`codes.rs`); codes of seven bits take a byte. Zero points are stored unsigned likewise; a symmetric matrix has the same
//! one, 2^(bits − 1), everywhere (128 where codes are levels of a table, of which only the numbers are stored). The zero point never enters the inner loop: Σ (code − zero) · a = Σ code · a − zero · Σ a.
//!
//! Scales that are whole numbers stay so; what they are multiples of is multiplied once a row, after all groups.

use super::{
    codes::{self, CHUNK},
    digits,
    layout::{Line, Segments},
    pack::PackBlock,
};
use crate::{
    Engine,
    memory::Lines,
    parallel::Shared,
    simd::{LANES, Simd},
};
use half::{bf16, f16};
use octet_tensor::{Activations, Alphabet, Bytes, Dtype, Error, QMatrix, Result, RowFactor, StoredQuant, Symmetry, WeightScheme};
use std::sync::{Mutex, PoisonError};

/// Codes and scales of a quantized matrix in blocks of sixteen rows.
pub(crate) struct Ints {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Bits a stored code takes.
    pub(crate) bits: usize,
    /// Whether codes are numbers of levels.
    pub(crate) table: bool,
    /// Whether every eight codes are a point of the lattice.
    pub(crate) points: bool,
    /// Those levels made unsigned; zeros where there are none.
    pub(crate) levels: [u8; 16],
    alphabet: Alphabet,
    /// Whether the matrix has levels of its own.
    pub(crate) own: bool,
    /// Whether every stored code is at most 63.
    pub(crate) small: bool,
    /// What was added to codes to make them unsigned: the zero point of symmetric weights.
    pub(crate) offset: u8,
    pub(crate) segments: Segments,
    /// Segments a group of weights has.
    segments_a_group: usize,
    groups: usize,
    /// `[blocks, lines of a block]`.
    lines: Lines,
    /// `[blocks, groups]`, sixteen rows each.
    scales: Scales,
    /// `[blocks]`, sixteen rows each: what whole scales are multiples of; none where scales are floats.
    units: Vec<[f32; LANES]>,
    /// `[blocks, groups]`, sixteen rows each; none when symmetric.
    zeros: Option<Vec<[u8; LANES]>>,
}

/// How much of what a matrix takes.
struct Extent {
    bits: usize,
    segments: Segments,
    blocks: usize,
    groups: usize,
    lines: usize,
}

impl Extent {
    fn of(rows: usize, cols: usize, scheme: WeightScheme, activations: Activations) -> Self {
        let activation_group = match activations {
            Activations::Int8PerGroup(size) => size.get(),
            Activations::Exact if scheme.group_size(cols) >= cols => digits::GROUP,
            Activations::Int8PerToken | Activations::Int8Below(_) | Activations::Int8Beside(_) | Activations::Exact => usize::MAX,
        };
        let bits = codes::stored_bits(scheme.bits.get());
        let segments = Segments::of_groups(cols, scheme.group_size(cols), activation_group).filled_to(codes::unit(bits));
        let (blocks, groups) = (rows.div_ceil(LANES), scheme.groups(cols));
        Self { bits, segments, blocks, groups, lines: blocks * segments.all_octets() * bits / CHUNK }
    }
}

enum Scales {
    F32(Vec<[f32; LANES]>),
    F16(Vec<[u16; LANES]>),
    Bf16(Vec<[u16; LANES]>),
    /// Whole numbers.
    Whole(Vec<[i8; LANES]>),
}

impl Ints {
    /// Packs a stored matrix, rows in parallel and a few blocks at a time, for activations as `activations` says.
    pub(crate) fn pack(engine: &Engine, stored: &StoredQuant, activations: Activations) -> Result<Self> {
        let (rows, cols, scheme) = (stored.rows(), stored.cols(), stored.scheme().weights);
        let mut packed = Self::zeroed(rows, cols, scheme, activations, spelling(stored)?, true);
        packed.fill(engine, stored)?;
        Ok(packed)
    }

    /// A matrix from the sections that [`Ints::sections`] gave, one after the other; `None` where they are of another size.
    pub(crate) fn from_bytes(stored: &StoredQuant, activations: Activations, bytes: &Bytes) -> Result<Option<Self>> {
        let (rows, cols, scheme, spelling) = (stored.rows(), stored.cols(), stored.scheme().weights, spelling(stored)?);
        if bytes.len() != Self::forecast(rows, cols, scheme, activations, spelling.0) {
            return Ok(None);
        }
        let mut packed = Self::zeroed(rows, cols, scheme, activations, spelling, false);
        let lines = packed.blocks() * packed.lines_a_block() * size_of::<Line>();
        let Some(codes) = bytes.slice(0..lines) else { return Ok(None) };
        packed.lines = Lines::from(codes);
        let mut rest = &bytes[lines..];
        let zeros = packed.zeros.as_mut().map(|zeros| bytemuck::cast_slice_mut(zeros));
        let units = bytemuck::cast_slice_mut(&mut packed.units);
        for to in std::iter::once(packed.scales.bytes_mut()).chain(zeros).chain([units]) {
            let (part, after) = rest.split_at(to.len());
            to.copy_from_slice(part);
            rest = after;
        }
        Ok(Some(packed))
    }

    /// Codes, scales, zero points and units as bytes.
    pub(crate) fn sections(&self) -> [&[u8]; 4] {
        let zeros = self.zeros.as_ref().map_or(&[][..], |zeros| bytemuck::cast_slice(zeros));
        [bytemuck::cast_slice(&self.lines[..]), self.scales.bytes(), zeros, bytemuck::cast_slice(&self.units)]
    }

    fn zeroed(
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        activations: Activations,
        (scale, alphabet): (Dtype, Alphabet),
        codes: bool,
    ) -> Self {
        let Extent { bits, segments, blocks, groups, lines } = Extent::of(rows, cols, scheme, activations);
        let group = scheme.group_size(cols);
        Self {
            rows,
            cols,
            bits,
            table: alphabet.table().is_some(),
            points: alphabet == Alphabet::Lattice,
            levels: alphabet.table().map_or([0; 16], |table| table.levels().map(|level| (level as u8).wrapping_add(codes::LEVEL_OFFSET))),
            alphabet,
            own: scheme.symmetry == Symmetry::Learnt,
            small: scheme.bits.get() <= 6 && !scheme.is_table(),
            offset: match alphabet {
                Alphabet::Even => 1 << (scheme.bits.get() - 1),
                Alphabet::Table(_) => codes::LEVEL_OFFSET,
                Alphabet::Lattice => codes::POINT_OFFSET,
            },
            segments,
            segments_a_group: if group >= cols { segments.count().max(1) } else { group / segments.size() },
            groups,
            lines: if codes { Lines::zeroed(lines) } else { Lines::default() },
            scales: if scheme.has_whole_scales() {
                Scales::Whole(vec![[0; LANES]; blocks * groups])
            } else {
                Scales::new(scale, blocks * groups)
            },
            units: if scheme.has_whole_scales() { vec![[0.0; LANES]; blocks] } else { vec![] },
            zeros: scheme.is_asymmetric().then(|| vec![[0; LANES]; blocks * groups]),
        }
    }

    fn fill(&mut self, engine: &Engine, stored: &StoredQuant) -> Result<()> {
        let blocks = self.blocks();
        if blocks == 0 || self.cols == 0 {
            return Ok(());
        }
        let (lines_a_block, groups) = (self.lines_a_block(), self.groups);
        let blocks_a_task = ((1 << 17) / (LANES * self.cols)).clamp(1, blocks);
        let mut lines = std::mem::take(&mut self.lines);
        let mut zeros = self.zeros.take();
        let mut scales = std::mem::replace(&mut self.scales, Scales::F32(Vec::new()));
        let mut units = std::mem::take(&mut self.units);
        let (shared_lines, shared_zeros) = (Shared::new(&mut lines[..]), zeros.as_mut().map(|z| Shared::new(&mut z[..])));
        let (shared_scales, whole) = (SharedScales::new(&mut scales), !units.is_empty());
        let shared_units = Shared::new(&mut units[..]);
        let failure = Mutex::new(None);
        engine.run(blocks.div_ceil(blocks_a_task), &|task| {
            let first = task * blocks_a_task;
            let last = blocks.min(first + blocks_a_task);
            let outcome = stored.read_rows(first * LANES..self.rows.min(last * LANES)).and_then(|q| {
                if q.alphabet() != self.alphabet {
                    let what = format!("has other levels from row {} on than at its start", first * LANES);
                    return Err(Error::Malformed { name: stored.name().into(), what });
                }
                // Numbers of levels and of points are packed as if they were signed codes of four bits.
                let even = self.alphabet == Alphabet::Even;
                let mut numbers = if even { vec![] } else { q.codes().to_vec() };
                self.alphabet.store(&mut numbers);
                let (codes, offset) = if even { (q.codes(), self.offset) } else { (&numbers[..], 8) };
                for block in first..last {
                    // SAFETY: a block belongs to one task, so no two parts that are alive overlap; likewise below.
                    let lines = unsafe { shared_lines.part(block * lines_a_block..(block + 1) * lines_a_block) };
                    let row = |lane| codes.chunks_exact(self.cols).nth((block - first) * LANES + lane).unwrap_or_default();
                    let rows = std::array::from_fn(row);
                    engine.vectorize(PackBlock { rows, segments: self.segments, bits: self.bits, offset, lines });
                    let at = block * groups..(block + 1) * groups;
                    if let Some(zeros) = &shared_zeros {
                        // SAFETY: as above.
                        self.pack_zeros(&q, (block - first) * LANES, unsafe { zeros.part(at.clone()) });
                    }
                    if whole {
                        let factors = q.factors().iter().skip((block - first) * LANES);
                        // SAFETY: as above.
                        let units = &mut unsafe { shared_units.part(block..block + 1) }[0];
                        units.iter_mut().zip(factors).for_each(|(unit, factor)| *unit = factor.unit());
                    }
                    // SAFETY: as above.
                    if !unsafe { shared_scales.pack(&q, (block - first) * LANES, at) } {
                        let what = format!("scales of rows from {} on are not all {}", block * LANES, shared_scales.dtype());
                        return Err(Error::Malformed { name: stored.name().into(), what });
                    }
                }
                Ok(())
            });
            if let Err(error) = outcome {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        });
        (self.lines, self.zeros, self.scales, self.units) = (lines, zeros, scales, units);
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn pack_zeros(&self, q: &QMatrix, row: usize, zeros: &mut [[u8; LANES]]) {
        for lane in 0..LANES.min(q.rows() - row) {
            for (group, zeros) in zeros.iter_mut().enumerate() {
                zeros[lane] = (q.group(row + lane, group).1 + i32::from(self.offset)) as u8;
            }
        }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    fn lines_a_block(&self) -> usize {
        self.segments.all_octets() * self.bits / CHUNK
    }

    /// The codes of block `block`.
    #[inline(always)]
    pub(crate) fn block(&self, block: usize) -> &[Line] {
        let n = self.lines_a_block();
        &self.lines[block * n..(block + 1) * n]
    }

    /// The codes of blocks `blocks`, one after the other.
    #[inline(always)]
    pub(crate) fn lines(&self, blocks: std::ops::Range<usize>) -> &[Line] {
        let n = self.lines_a_block();
        &self.lines[blocks.start * n..blocks.end * n]
    }

    /// Bytes that a matrix of such a shape will take, its scales stored as `scale`.
    pub(crate) fn forecast(rows: usize, cols: usize, scheme: WeightScheme, activations: Activations, scale: Dtype) -> usize {
        let extent = Extent::of(rows, cols, scheme, activations);
        let (scale, unit) = match scale {
            _ if scheme.has_whole_scales() => (1, 4),
            Dtype::F16 | Dtype::Bf16 => (2, 0),
            _ => (4, 0),
        };
        let a_row = extent.groups * (scale + usize::from(scheme.is_asymmetric())) + unit;
        extent.lines * size_of::<Line>() + extent.blocks * LANES * a_row
    }

    /// Bytes all of it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.sections().into_iter().map(<[u8]>::len).sum()
    }

    /// Where the scales and zero points of segment `segment` of block `block` are.
    #[inline(always)]
    pub(crate) fn group_at(&self, block: usize, segment: usize) -> usize {
        // A group mostly is a segment, and an inner loop should not divide to find that out.
        block * self.groups + if self.segments_a_group == 1 { segment } else { segment / self.segments_a_group }
    }

    /// Scales of sixteen rows, in their units ([`Ints::units`]).
    #[inline(always)]
    pub(crate) fn scales<S: Simd>(&self, s: S, at: usize) -> S::F {
        match &self.scales {
            Scales::F32(all) => s.load(&all[at]),
            Scales::F16(all) => s.load_f16(bytemuck::cast_ref(&all[at])),
            Scales::Bf16(all) => s.load_bf16(bytemuck::cast_ref(&all[at])),
            Scales::Whole(all) => s.to_f(s.load_i8(&all[at])),
        }
    }

    /// What the scales of the sixteen rows of block `block` are multiples of; `None` where they are what they are.
    #[inline(always)]
    pub(crate) fn units(&self, block: usize) -> Option<&[f32; LANES]> {
        self.units.get(block)
    }

    /// The scale of one row of block `block`.
    fn scale(&self, block: usize, at: usize, lane: usize) -> f32 {
        self.scales.get(at, lane) * self.units(block).map_or(1.0, |units| units[lane])
    }

    /// Whether every zero point is [`Ints::offset`].
    #[inline(always)]
    pub(crate) fn is_symmetric(&self) -> bool {
        self.zeros.is_none()
    }

    /// Unsigned zero points of sixteen rows, or `None` when symmetric ([`Ints::offset`] everywhere).
    #[inline(always)]
    pub(crate) fn zeros(&self, at: usize) -> Option<&[u8; LANES]> {
        self.zeros.as_ref().map(|zeros| &zeros[at])
    }

    /// Decodes column `column` of the sixteen rows of block `block`.
    pub(crate) fn column(&self, block: usize, column: usize) -> [f32; LANES] {
        let at = self.group_at(block, column / self.segments.size());
        let position = self.segments.position(column);
        let (chunk, word) = (position / (8 * CHUNK), position / 4 % (2 * CHUNK));
        let mut codes = [0u8; LANES];
        if self.points {
            let line = self.block(block)[position / 8].0.as_chunks().0;
            codes = std::array::from_fn(|lane| codes::point(line[lane])[position % 8]);
        }
        for &(first, bits) in codes::planes(self.bits).iter().filter(|_| !self.points) {
            let (line, bit) = codes::place(first, bits, word);
            let line = &self.block(block)[chunk * self.bits + line].0;
            for (code, bytes) in codes.iter_mut().zip(line.as_chunks::<4>().0) {
                *code |= (bytes[position % 4] >> bit & (0xff >> (8 - bits))) << first;
            }
        }
        if self.table {
            codes = codes.map(|code| self.levels[usize::from(code)]);
        }
        let zeros = self.zeros(at);
        std::array::from_fn(|lane| {
            let zero = zeros.map_or(self.offset, |zeros| zeros[lane]);
            self.scale(block, at, lane) * (i32::from(codes[lane]) - i32::from(zero)) as f32
        })
    }

    /// Decodes row `row`.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let (block, lane) = (row / LANES, row % LANES);
        let lines = self.block(block);
        for segment in 0..self.segments.count() {
            let at = self.group_at(block, segment);
            let (scale, zero) = (self.scale(block, at, lane), self.zeros(at).map_or(self.offset, |z| z[lane]));
            for k in self.segments.inputs(segment) {
                let position = self.segments.position(k);
                let (chunk, word) = (position / (8 * CHUNK), position / 4 % (2 * CHUNK));
                let mut code = 0;
                for &(first, bits) in codes::planes(self.bits) {
                    let (line, bit) = codes::place(first, bits, word);
                    code |= (lines[chunk * self.bits + line].0[lane * 4 + position % 4] >> bit & (0xff >> (8 - bits))) << first;
                }
                if self.table {
                    code = self.levels[usize::from(code)];
                }
                if self.points {
                    code = codes::point(lines[position / 8].0.as_chunks().0[lane])[position % 8];
                }
                out[k] = scale * (i32::from(code) - i32::from(zero)) as f32;
            }
        }
    }
}

/// The type of the scales of a matrix, and what its codes are.
pub(super) fn spelling(stored: &StoredQuant) -> Result<(Dtype, Alphabet)> {
    if stored.rows() == 0 {
        return Ok((Dtype::F32, stored.scheme().weights.alphabet()));
    }
    let first = stored.read_rows(0..1)?;
    Ok((first.scale_dtype(), first.alphabet()))
}

impl Scales {
    fn new(dtype: Dtype, len: usize) -> Self {
        match dtype {
            Dtype::F16 => Self::F16(vec![[0; LANES]; len]),
            Dtype::Bf16 => Self::Bf16(vec![[0; LANES]; len]),
            _ => Self::F32(vec![[0.0; LANES]; len]),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(all) => bytemuck::cast_slice(all),
            Self::F16(all) | Self::Bf16(all) => bytemuck::cast_slice(all),
            Self::Whole(all) => bytemuck::cast_slice(all),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(all) => bytemuck::cast_slice_mut(all),
            Self::F16(all) | Self::Bf16(all) => bytemuck::cast_slice_mut(all),
            Self::Whole(all) => bytemuck::cast_slice_mut(all),
        }
    }

    fn get(&self, at: usize, lane: usize) -> f32 {
        match self {
            Self::F32(all) => all[at][lane],
            Self::F16(all) => f16::from_bits(all[at][lane]).to_f32(),
            Self::Bf16(all) => bf16::from_bits(all[at][lane]).to_f32(),
            Self::Whole(all) => f32::from(all[at][lane]),
        }
    }
}

/// Scales that tasks fill.
enum SharedScales<'a> {
    F32(Shared<'a, [f32; LANES]>),
    F16(Shared<'a, [u16; LANES]>),
    Bf16(Shared<'a, [u16; LANES]>),
    Whole(Shared<'a, [i8; LANES]>),
}

impl<'a> SharedScales<'a> {
    fn new(scales: &'a mut Scales) -> Self {
        match scales {
            Scales::F32(all) => Self::F32(Shared::new(all)),
            Scales::F16(all) => Self::F16(Shared::new(all)),
            Scales::Bf16(all) => Self::Bf16(Shared::new(all)),
            Scales::Whole(all) => Self::Whole(Shared::new(all)),
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) | Self::Whole(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Stores the scales of the sixteen rows from `row` on in `range`; false where one does not fit the type.
    ///
    /// # Safety
    /// No other call for an overlapping range may run at the same time.
    unsafe fn pack(&self, q: &QMatrix, row: usize, range: std::ops::Range<usize>) -> bool {
        let mut exact = true;
        for lane in 0..LANES.min(q.rows() - row) {
            let factor = q.factors().get(row + lane).copied().unwrap_or(RowFactor::ZERO);
            for (group, at) in range.clone().enumerate() {
                let scale = q.group(row + lane, group).0;
                exact &= self.dtype().round(scale) == scale;
                match self {
                    // SAFETY: the caller promises that no other part of this range is alive.
                    Self::F32(all) => (unsafe { all.part(at..at + 1) })[0][lane] = scale,
                    // SAFETY: as above.
                    Self::F16(all) => (unsafe { all.part(at..at + 1) })[0][lane] = f16::from_f32(scale).to_bits(),
                    // SAFETY: as above.
                    Self::Bf16(all) => (unsafe { all.part(at..at + 1) })[0][lane] = bf16::from_f32(scale).to_bits(),
                    // SAFETY: as above.
                    Self::Whole(all) => (unsafe { all.part(at..at + 1) })[0][lane] = factor.whole(scale),
                }
            }
        }
        exact
    }
}
