//! Rows of codes in, bytes of stored tensors out.

use super::{Fit, Format, Piece, put_floats};
use crate::{Error, Result, awq::NIBBLE, compressed_tensors::bits, safetensors::TensorSpec};
use octet_tensor::{Dtype, QMatrix};

/// The tensors that store a matrix `[rows, cols]` of `module`; `ordered`: with the group of each input.
pub fn tensor_specs(format: Format, module: &str, [rows, cols]: [usize; 2], fit: &Fit) -> Vec<TensorSpec> {
    let (groups, width) = (fit.weights.groups(cols), fit.weights.bits.get() as usize);
    let spec = |suffix: &str, dtype, shape: Vec<usize>| TensorSpec { name: format!("{module}.{suffix}"), dtype, shape };
    match format {
        Format::Gptq => vec![
            spec("qweight", Dtype::I32, vec![cols * width / 32, rows]),
            spec("qzeros", Dtype::I32, vec![groups, rows * width / 32]),
            spec("scales", fit.scale_dtype, vec![groups, rows]),
            spec("g_idx", Dtype::I32, vec![cols]),
        ],
        Format::Awq => vec![
            spec("qweight", Dtype::I32, vec![cols, rows / 8]),
            spec("qzeros", Dtype::I32, vec![groups, rows / 8]),
            spec("scales", fit.scale_dtype, vec![groups, rows]),
        ],
        Format::Mlx => vec![
            spec("weight", Dtype::U32, vec![rows, cols * width / 32]),
            spec("scales", fit.scale_dtype, vec![rows, groups]),
            spec("biases", fit.scale_dtype, vec![rows, groups]),
        ],
        Format::Bitsandbytes => {
            vec![spec("weight", Dtype::I8, vec![rows, cols]), spec("SCB", Dtype::F32, vec![rows]), spec("weight_format", Dtype::U8, vec![])]
        }
        Format::Npz => {
            let zeros = fit.weights.is_asymmetric().then(|| spec("zero", Dtype::I8, vec![rows, groups]));
            let plain = [spec("codes", Dtype::I8, vec![rows, cols]), spec("scale", Dtype::F32, vec![rows, groups])];
            plain.into_iter().chain(zeros).collect()
        }
    }
}

/// Turns the rows of one matrix, in order, into pieces of its tensors.
///
/// What lies across rows in a file (GPTQ, AWQ) is held until the last row came: as much memory as the stored matrix takes.
pub struct Encoder {
    format: Format,
    module: String,
    rows: usize,
    cols: usize,
    fit: Fit,
    next: usize,
    /// Words, scales and zero points of formats whose first axis is the inputs.
    across: Option<Across>,
    /// The group of each input where it is not the plain one.
    order: Option<Vec<u32>>,
}

struct Across {
    words: Vec<u32>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

impl Encoder {
    /// An encoder of a matrix `[rows, cols]`, stored as `fit` says; `order` gives the group of each input where it is not the plain one.
    pub fn new(format: Format, module: &str, [rows, cols]: [usize; 2], fit: Fit, order: Option<Vec<u32>>) -> Self {
        let (groups, width) = (fit.weights.groups(cols), fit.weights.bits.get() as usize);
        let across = matches!(format, Format::Gptq | Format::Awq).then(|| Across {
            words: vec![0; cols * rows * width / 32],
            scales: vec![0.0; groups * rows],
            zeros: vec![0; groups * rows],
        });
        Self { format, module: module.into(), rows, cols, fit, next: 0, across, order }
    }

    /// Encodes the next rows.
    ///
    /// # Errors
    /// If they are not of the matrix, or a number would have to be rounded.
    pub fn rows(&mut self, q: &QMatrix) -> Result<Vec<Piece>> {
        let first = self.next;
        let same =
            (q.cols(), q.scheme().bits, q.scheme().is_asymmetric()) == (self.cols, self.fit.weights.bits, self.fit.weights.is_asymmetric());
        if !same || q.groups() * self.fit.repeats != self.fit.weights.groups(self.cols) || first + q.rows() > self.rows {
            return self.fail(format!(
                "rows {first}..{} of {} are {}, expected {}",
                first + q.rows(),
                self.rows,
                q.scheme(),
                self.fit.weights
            ));
        }
        self.next += q.rows();
        let pieces = match self.format {
            Format::Gptq | Format::Awq => {
                self.take_across(q, first);
                vec![]
            }
            Format::Mlx => self.mlx(q, first)?,
            Format::Bitsandbytes => self.bitsandbytes(q, first),
            Format::Npz => self.npz(q, first),
        };
        if self.next < self.rows { Ok(pieces) } else { Ok([pieces, self.last()?].concat()) }
    }

    fn fail<T>(&self, what: String) -> Result<T> {
        Err(Error::Encode { module: self.module.clone(), what })
    }

    fn piece(&self, suffix: &str, offset: usize, bytes: Vec<u8>) -> Piece {
        Piece { tensor: format!("{}.{suffix}", self.module), offset, bytes }
    }

    fn take_across(&mut self, q: &QMatrix, first: usize) {
        let (rows, groups, bits, format) = (self.rows, q.groups(), self.fit.weights.bits, self.format);
        let Some(across) = &mut self.across else { return };
        let mut stream = vec![];
        for (i, codes) in q.codes().chunks(self.cols.max(1)).enumerate() {
            let row = first + i;
            if format == Format::Gptq {
                stream.clear();
                bits::pack(codes, bits, &mut stream);
                for (line, &word) in stream.as_chunks::<4>().0.iter().enumerate() {
                    across.words[line * rows + row] = u32::from_le_bytes(word);
                }
            } else {
                let (word, shift) = (row / 8, 4 * NIBBLE[row % 8]);
                for (line, &code) in codes.iter().enumerate() {
                    across.words[line * (rows / 8) + word] |= bits::offset(code, bits) << shift;
                }
            }
            for group in 0..groups {
                let (scale, zero) = q.group(i, group);
                across.scales[group * rows + row] = scale;
                across.zeros[group * rows + row] = bits::offset(zero as i8, bits) as u8;
            }
        }
    }

    /// What can only be written once every row came.
    fn last(&mut self) -> Result<Vec<Piece>> {
        if self.format == Format::Bitsandbytes {
            return Ok(vec![self.piece("weight_format", 0, vec![0])]);
        }
        let Some(across) = self.across.take() else { return Ok(vec![]) };
        let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let mut scales = vec![];
        put_floats(&self.module, across.scales.iter().copied(), self.fit.scale_dtype, &mut scales)?;
        let mut pieces = vec![
            self.piece("qweight", 0, bytes(&across.words)),
            self.piece("qzeros", 0, bytes(&self.zero_words(&across.zeros))),
            self.piece("scales", 0, scales),
        ];
        if self.format == Format::Gptq {
            let size = self.fit.weights.group_size(self.cols);
            let plain = (0..self.cols).map(|input| (input / size) as u32);
            let order = self.order.take().unwrap_or_else(|| plain.collect());
            pieces.push(self.piece("g_idx", 0, bytes(&order)));
        }
        Ok(pieces)
    }

    /// Unsigned zero points `[groups, rows]` packed along the rows.
    fn zero_words(&self, zeros: &[u8]) -> Vec<u32> {
        let width = self.fit.weights.bits.get();
        let mask = (1u32 << width) - 1;
        // Format 1 of GPTQ, which symmetric matrices are written in, stores them less one.
        let less = u32::from(self.format == Format::Gptq && !self.fit.weights.is_asymmetric());
        let mut words = vec![];
        for line in zeros.chunks(self.rows.max(1)) {
            let start = words.len();
            words.resize(start + line.len() * width as usize / 32, 0u32);
            for (row, &zero) in line.iter().enumerate() {
                if self.format == Format::Awq {
                    words[start + row / 8] |= u32::from(zero) << (4 * NIBBLE[row % 8]);
                    continue;
                }
                let (at, value) = (row * width as usize, u64::from(u32::from(zero).wrapping_sub(less) & mask));
                let wide = value << (at % 32);
                words[start + at / 32] |= wide as u32;
                if wide >> 32 != 0 {
                    words[start + at / 32 + 1] |= (wide >> 32) as u32;
                }
            }
        }
        words
    }

    /// scale · (code − zero) = scale · unsigned code + bias.
    fn mlx(&self, q: &QMatrix, first: usize) -> Result<Vec<Piece>> {
        let (bits, groups, dtype) = (self.fit.weights.bits, self.fit.weights.groups(self.cols), self.fit.scale_dtype);
        let row_bytes = 4 * bits::words(self.cols, bits);
        let mut stream = Vec::with_capacity(q.rows() * row_bytes);
        q.codes().chunks(self.cols.max(1)).for_each(|row| bits::pack(row, bits, &mut stream));
        let (mut scales, mut biases) = (vec![], vec![]);
        for (row, group) in (0..q.rows()).flat_map(|row| (0..q.groups()).map(move |group| (row, group))) {
            let (scale, zero) = q.group(row, group);
            let bias = -scale * (zero - bits.min_code()) as f32;
            if f64::from(bias) != f64::from(-scale) * f64::from(zero - bits.min_code()) || dtype.round(bias) != bias {
                return self.fail(format!("the offset of row {} is not a number that {dtype} holds", first + row));
            }
            scales.extend(std::iter::repeat_n(scale, self.fit.repeats));
            biases.extend(std::iter::repeat_n(bias, self.fit.repeats));
        }
        let (mut scale_bytes, mut bias_bytes) = (vec![], vec![]);
        put_floats(&self.module, scales.into_iter(), dtype, &mut scale_bytes)?;
        put_floats(&self.module, biases.into_iter(), dtype, &mut bias_bytes)?;
        let at = first * groups * dtype.size();
        Ok(vec![
            self.piece("weight", first * row_bytes, stream),
            self.piece("scales", at, scale_bytes),
            self.piece("biases", at, bias_bytes),
        ])
    }

    fn bitsandbytes(&self, q: &QMatrix, first: usize) -> Vec<Piece> {
        // A scale of 16 bits times 127 is exact, and so is what a reader divides again.
        let largest = q.scales().iter().flat_map(|scale| (scale * 127.0).to_le_bytes()).collect();
        vec![self.piece("weight", first * self.cols, raw(q.codes())), self.piece("SCB", first * 4, largest)]
    }

    fn npz(&self, q: &QMatrix, first: usize) -> Vec<Piece> {
        let groups = q.groups();
        let scales = q.scales().iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let mut pieces = vec![self.piece("codes", first * self.cols, raw(q.codes())), self.piece("scale", first * groups * 4, scales)];
        if !q.zeros().is_empty() {
            pieces.push(self.piece("zero", first * groups, raw(q.zeros())));
        }
        pieces
    }
}

fn raw(codes: &[i8]) -> Vec<u8> {
    codes.iter().map(|&code| code as u8).collect()
}
