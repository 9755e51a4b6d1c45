//! Where tensors go in the file, and what is changed on the way.

use super::cannot;
use crate::Result;
use half::{bf16, f16};
use octet_formats::{
    Checkpoint,
    gguf::{BlockType, NewTensor, Writer, encode, paired_place},
};
use octet_model::{LinearSite, gguf::Renamed};
use octet_quant::{Journal, Sink, SinkError, StageRecord};
use octet_tensor::{BlockCode, BlockRows, FloatMatrix, QMatrix, Tensor, WeightSource};
use std::collections::HashMap;

/// A tensor's place.
#[derive(Clone, Debug)]
pub(super) struct Place {
    renamed: Renamed,
    kind: BlockType,
    rows: usize,
    cols: usize,
    /// Whether it has two dimensions in the file.
    matrix: bool,
}

impl Place {
    /// Its blocks; `None` for floats.
    pub(super) fn code(&self) -> Option<BlockCode> {
        self.kind.code()
    }

    /// Whether it has two dimensions.
    pub(super) fn is_matrix(&self) -> bool {
        self.matrix
    }

    fn row_bytes(&self) -> usize {
        self.cols / self.kind.block() * self.kind.block_bytes()
    }

    /// Byte of row `row` of the checkpoint's tensor in the file's.
    fn at(&self, row: usize) -> u64 {
        let part = self.renamed.part.map_or(0, |(index, _)| index * self.rows);
        ((part + paired_place(self.renamed.paired_heads, self.rows, row)) * self.row_bytes()) as u64
    }
}

/// The place of every tensor of the checkpoint, by its name there.
pub(super) fn places(
    tensors: &[Renamed],
    kinds: &HashMap<String, BlockType>,
    sites: &HashMap<String, LinearSite>,
    checkpoint: &Checkpoint,
) -> Result<HashMap<String, Place>> {
    let place = |renamed: &Renamed| {
        let site = renamed.name.strip_suffix(".weight").and_then(|module| sites.get(module));
        let shape = match site {
            Some(site) => vec![site.rows, site.cols],
            None => {
                let stored = checkpoint.tensor(&renamed.name)?;
                stored.map(|tensor| tensor.shape().to_vec()).ok_or_else(|| octet_tensor::Error::Missing { name: renamed.name.clone() })?
            }
        };
        let matrix = shape.len() == 2;
        // Rows of a vector are its elements, so that their order can change too.
        let (rows, cols) = if matrix { (shape[0], shape[1]) } else { (shape.iter().product(), 1) };
        let kind = kinds.get(&renamed.name).copied().unwrap_or(BlockType::F32);
        Ok((renamed.name.clone(), Place { renamed: renamed.clone(), kind, rows, cols, matrix }))
    };
    tensors.iter().map(place).collect()
}

/// The file's tensors, stacks of matrices as one.
pub(super) fn tensors(tensors: &[Renamed], places: &HashMap<String, Place>) -> Vec<NewTensor> {
    let first = tensors.iter().filter(|renamed| renamed.part.is_none_or(|(index, _)| index == 0));
    let new = |place: &Place| {
        let mut shape = if place.matrix { vec![place.rows, place.cols] } else { vec![place.rows] };
        if let Some((_, count)) = place.renamed.part {
            shape.insert(0, count);
        }
        NewTensor { name: place.renamed.tensor.clone(), kind: place.kind, shape }
    };
    first.filter_map(|renamed| places.get(&renamed.name)).map(new).collect()
}

/// Takes tensors under the checkpoint's names and writes them where the file has them.
pub(super) struct GgufSink {
    writer: Writer,
    places: HashMap<String, Place>,
}

/// Values converted at a time.
const RUN: usize = 1 << 20;

impl GgufSink {
    pub(super) fn new(writer: Writer, places: HashMap<String, Place>) -> Self {
        Self { writer, places }
    }

    /// Checks that nothing is missing and brings the file to disk.
    pub(super) fn finish(self) -> Result<()> {
        Ok(self.writer.finish()?)
    }

    pub(super) fn place(&self, name: &str) -> Result<Place> {
        self.places.get(name).cloned().ok_or_else(|| cannot("GGUF", format!("{name} has no place in the file")))
    }

    /// Writes rows `first ..` of a tensor, in the order of its places.
    pub(super) fn rows(&mut self, place: &Place, first: usize, bytes: &[u8]) -> Result<()> {
        let row_bytes = place.row_bytes();
        if place.renamed.paired_heads.is_none() {
            return Ok(self.writer.write(&place.renamed.tensor, place.at(first), bytes)?);
        }
        for (row, bytes) in bytes.chunks_exact(row_bytes.max(1)).enumerate() {
            self.writer.write(&place.renamed.tensor, place.at(first + row), bytes)?;
        }
        Ok(())
    }

    /// Writes a matrix as floats.
    pub(super) fn floats(&mut self, name: &str, matrix: &FloatMatrix) -> Result<()> {
        let place = self.place(name)?;
        if let (Some((dtype, bytes)), Some(wanted), None) = (matrix.dense_bytes(), place.kind.dtype(), place.renamed.paired_heads)
            && dtype == wanted
        {
            let row = place.row_bytes().max(1);
            for (index, part) in bytes.chunks(RUN.next_multiple_of(row)).enumerate() {
                self.rows(&place, index * RUN.next_multiple_of(row) / row, part)?;
            }
            bytes.release();
            return Ok(());
        }
        let step = (RUN / place.cols.max(1)).max(1);
        let mut values = vec![];
        for first in (0..place.rows).step_by(step) {
            let range = first..(first + step).min(place.rows);
            values.resize(range.len() * place.cols, 0.0);
            matrix.read_rows(range, &mut values)?;
            let bytes = converted(name, &values, place.kind)?;
            self.rows(&place, first, &bytes)?;
        }
        Ok(())
    }

    fn vector(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let place = self.place(name)?;
        let mut values = vec![0.0; tensor.len()];
        tensor.read_f32(0, &mut values)?;
        if place.renamed.plus_one {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        let bytes = converted(name, &values, place.kind)?;
        self.rows(&place, 0, &bytes)
    }
}

/// Floats in the type of the file.
fn converted(name: &str, values: &[f32], kind: BlockType) -> Result<Vec<u8>> {
    match kind {
        BlockType::F16 => {
            if let Some(large) = values.iter().find(|value| value.is_finite() && f16::from_f32(**value).is_infinite()) {
                return Err(cannot(
                    "GGUF",
                    format!("{name} holds {large}, which is too large for F16; export to bf16, f32 or a quantized type"),
                ));
            }
            Ok(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect())
        }
        BlockType::BF16 => Ok(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()),
        _ => Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    }
}

impl Sink for GgufSink {
    fn matrix(&mut self, module: &str, _first_row: usize, _rows: usize, _q: &QMatrix) -> std::result::Result<(), SinkError> {
        Err(format!("{module} comes as plain codes, a GGUF file holds blocks").into())
    }

    fn blocks(&mut self, module: &str, first_row: usize, _rows: usize, q: BlockRows) -> std::result::Result<(), SinkError> {
        let place = self.place(&format!("{module}.weight"))?;
        Ok(self.rows(&place, first_row, &encode(&q))?)
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor) -> std::result::Result<(), SinkError> {
        let place = self.place(name)?;
        if !place.matrix {
            return Ok(self.vector(name, tensor)?);
        }
        let matrix = if place.renamed.transposed { FloatMatrix::transposed(tensor.clone()) } else { FloatMatrix::dense(tensor.clone()) };
        Ok(self.floats(name, &matrix?)?)
    }
}

/// Opens the model's weights.
type Open<'a> = &'a (dyn Fn() -> std::result::Result<Box<dyn WeightSource>, SinkError> + Sync);

/// A journal that remembers nothing on disk: an export that was stopped begins anew.
pub(super) struct Uncommitted<'a> {
    sink: &'a mut GgufSink,
    open: Open<'a>,
    done: Vec<StageRecord>,
}

impl<'a> Uncommitted<'a> {
    pub(super) fn new(sink: &'a mut GgufSink, open: Open<'a>) -> Self {
        Self { sink, open, done: vec![] }
    }
}

impl Sink for Uncommitted<'_> {
    fn matrix(&mut self, module: &str, first_row: usize, rows: usize, q: &QMatrix) -> std::result::Result<(), SinkError> {
        self.sink.matrix(module, first_row, rows, q)
    }

    fn blocks(&mut self, module: &str, first_row: usize, rows: usize, q: BlockRows) -> std::result::Result<(), SinkError> {
        self.sink.blocks(module, first_row, rows, q)
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor) -> std::result::Result<(), SinkError> {
        self.sink.tensor(name, tensor)
    }
}

impl Journal for Uncommitted<'_> {
    fn finished(&self) -> &[StageRecord] {
        &self.done
    }

    /// The embedding alone is run from here: the original's stands in for the one just written, which has 5 bits and more.
    fn results(&self) -> std::result::Result<Box<dyn WeightSource>, SinkError> {
        (self.open)()
    }

    fn commit(&mut self, record: StageRecord) -> std::result::Result<(), SinkError> {
        self.done.push(record);
        Ok(())
    }
}
