//! Matrices: written once, multiplied with or looked up in.

use super::{block, graph::Builder};
use crate::{
    Error, Result,
    export::convert::{Planned, codes, float_tensor},
};
use octet_formats::{
    onnx::{Attribute, Elem, MICROSOFT, Stored, blocks, stored_bits},
    write::{Given, floats},
};
use octet_tensor::{Activations, Dtype, Granularity, Scheme, Symmetry, WeightScheme};

/// Whether the graph rounds what the matrix is multiplied with, and multiplies integers.
pub(super) fn rounds_inputs(scheme: Scheme) -> bool {
    let plain = WeightScheme { symmetry: Symmetry::Symmetric, granularity: Granularity::PerChannel, ..scheme.weights };
    scheme.activations == Activations::Int8PerToken && scheme.weights == plain
}

/// A matrix in the weights' file.
#[derive(Clone, Debug)]
pub(super) enum Weights {
    /// Floats; `narrow`: of 16 bits; `inputs_first`: `[inputs, outputs]`.
    Floats { name: String, narrow: bool, inputs_first: bool },
    /// Blocks of codes under scales.
    Codes(Codes),
    /// Signed bytes `[outputs, inputs]` with a scale a row, for inputs that are rounded to 8 bits.
    Bytes { name: String, codes: Stored, scales: Stored },
}

/// A matrix of codes in the weights' file.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub bits: usize,
    pub block: usize,
    pub codes: Stored,
    pub scales: Stored,
    pub zeros: Option<Stored>,
}

impl Builder<'_> {
    /// Writes a matrix.
    pub(super) fn write(&mut self, planned: &Planned) -> Result<Weights> {
        let (site, name) = (&planned.site, planned.site.module.clone());
        let Some((scheme, scale_dtype)) = planned.codes() else { return self.write_floats(planned) };
        let (rows, cols) = (site.rows, site.cols);
        if rounds_inputs(scheme) && site.layer.is_some() {
            return self.write_bytes(planned);
        }
        let block = block(&Given { rows, cols, scheme, scale_dtype, ordered: false }).map_err(Error::Internal)?;
        let (bits, count) = (stored_bits(scheme.weights.bits), cols.div_ceil(block));
        let (mut scales, mut zeros) = (vec![], vec![]);
        let data = &mut self.data;
        codes(self.job, planned, self.run, &mut |q| {
            let part = blocks(&q, block);
            scales.extend(part.scales);
            zeros.extend(part.zeros);
            Ok(data.append(&part.codes)?)
        })?;
        let codes = self.data.end()?;
        self.graph.external(&format!("{name}.codes"), Elem::U8, &[rows, count, block * bits / 8], &codes);
        self.data.append(&floats(&name, &scales, Dtype::F32)?)?;
        let scales = self.data.end()?;
        self.graph.external(&format!("{name}.scales"), Elem::F32, &[rows, count], &scales);
        let zeros = if zeros.is_empty() {
            None
        } else {
            self.data.append(&zeros)?;
            let at = self.data.end()?;
            self.graph.external(&format!("{name}.zeros"), Elem::U8, &[rows, (count * bits).div_ceil(8)], &at);
            Some(at)
        };
        Ok(Weights::Codes(Codes { name, rows, cols, bits, block, codes, scales, zeros }))
    }

    fn write_bytes(&mut self, planned: &Planned) -> Result<Weights> {
        let (site, name) = (&planned.site, planned.site.module.clone());
        let mut scales = vec![];
        let data = &mut self.data;
        codes(self.job, planned, self.run, &mut |q| {
            scales.extend_from_slice(q.scales());
            Ok(data.append(&q.codes().iter().map(|&code| code as u8).collect::<Vec<u8>>())?)
        })?;
        let codes = self.data.end()?;
        self.graph.external(&format!("{name}.codes"), Elem::I8, &[site.rows, site.cols], &codes);
        self.data.append(&floats(&name, &scales, Dtype::F32)?)?;
        let scales = self.data.end()?;
        self.graph.external(&format!("{name}.scales"), Elem::F32, &[site.rows], &scales);
        Ok(Weights::Bytes { name, codes, scales })
    }

    fn write_floats(&mut self, planned: &Planned) -> Result<Weights> {
        let tensor = float_tensor(self.job, planned)?;
        let (elem, narrow) = match tensor.dtype() {
            Dtype::F16 => (Elem::F16, true),
            Dtype::Bf16 => (Elem::Bf16, true),
            _ => (Elem::F32, false),
        };
        if matches!(tensor.dtype(), Dtype::F16 | Dtype::Bf16 | Dtype::F32) {
            self.data.append(tensor.bytes())?;
        } else {
            self.data.append(&floats(tensor.name(), &tensor.to_f32()?, Dtype::F32)?)?;
        }
        let at = self.data.end()?;
        self.graph.external(tensor.name(), elem, tensor.shape(), &at);
        tensor.bytes().release();
        // What is decoded from codes has its outputs first, whatever the checkpoint's own order.
        let inputs_first = planned.site.transposed && tensor.shape() == [planned.site.cols, planned.site.rows];
        Ok(Weights::Floats { name: tensor.name().into(), narrow, inputs_first })
    }

    fn weights(&self, module: &str) -> Result<Weights> {
        self.weights.get(module).cloned().ok_or_else(|| Error::Internal(format!("{module} was not written")))
    }

    /// `[tokens, inputs]` times the matrix.
    pub(super) fn product(&mut self, input: &str, module: &str) -> Result<String> {
        Ok(match self.weights(module)? {
            Weights::Floats { name, narrow, inputs_first } => {
                let weight = if narrow { self.cast(&name, Elem::F32) } else { name };
                self.op("Gemm", &[input, &weight], &[("transB", Attribute::Int(i64::from(!inputs_first)))])
            }
            Weights::Bytes { name, .. } => self.rounded_product(input, &name),
            Weights::Codes(Codes { name, rows, cols, bits, block, zeros, .. }) => {
                let parts = ["codes", "scales", "zeros"].map(|part| format!("{name}.{part}"));
                let mut inputs = vec![input, parts[0].as_str(), parts[1].as_str()];
                inputs.extend(zeros.is_some().then_some(parts[2].as_str()));
                let number = |n: usize| Attribute::Int(n as i64);
                let attributes = [("K", number(cols)), ("N", number(rows)), ("bits", number(bits)), ("block_size", number(block))];
                self.op_of(MICROSOFT, "MatMulNBits", &inputs, &attributes)
            }
        })
    }

    /// The product of inputs that are rounded to 8 bits, a scale a token: what `DynamicQuantizeLinear` does for all tokens together.
    fn rounded_product(&mut self, input: &str, name: &str) -> String {
        let (last, half) = (self.ints(&[-1]), self.number(127.5));
        let sizes = self.op("Abs", &[input], &[]);
        let largest = self.op("ReduceMax", &[&sizes, &last], &[("keepdims", Attribute::Int(1))]);
        let scale = self.op("Div", &[&largest, &half], &[]);
        // A token of zeros has the scale zero.
        let (least, low, high) = (self.number(f32::MIN_POSITIVE), self.number(-128.0), self.number(127.0));
        let divisor = self.op("Max", &[&scale, &least], &[]);
        let steps = self.op("Div", &[input, &divisor], &[]);
        let steps = self.op("Round", &[&steps], &[]);
        let steps = self.op("Clip", &[&steps, &low, &high], &[]);
        let steps = self.cast(&steps, Elem::I8);
        let weight = self.op("Transpose", &[&format!("{name}.codes")], &[("perm", Attribute::Ints(vec![1, 0]))]);
        let sums = self.op("MatMulInteger", &[&steps, &weight], &[]);
        let sums = self.cast(&sums, Elem::F32);
        let by_token = self.op("Mul", &[&sums, &scale], &[]);
        self.op("Mul", &[&by_token, &format!("{name}.scales")], &[])
    }

    /// Rows of a table for token ids.
    pub(super) fn look_up(&mut self, module: &str, width: usize, ids: &str) -> Result<String> {
        let Codes { name, bits, zeros, cols, block, .. } = match self.weights(module)? {
            Weights::Floats { name, narrow, .. } => {
                let rows = self.op("Gather", &[&name, ids], &[]);
                return Ok(if narrow { self.cast(&rows, Elem::F32) } else { rows });
            }
            Weights::Codes(codes) => codes,
            Weights::Bytes { name, .. } => return Err(Error::Internal(format!("{name} is no table"))),
        };
        let count = cols.div_ceil(block);
        let codes = self.op("Gather", &[&format!("{name}.codes"), ids], &[]);
        let codes = self.unpacked(&codes, bits, &[0, count as i64, block as i64]);
        let scales = self.op("Gather", &[&format!("{name}.scales"), ids], &[]);
        let last = self.ints(&[-1]);
        let scales = self.op("Unsqueeze", &[&scales, &last], &[]);
        let offset = if zeros.is_some() {
            let zeros = self.op("Gather", &[&format!("{name}.zeros"), ids], &[]);
            let zeros = self.unpacked(&zeros, bits, &[0, (count.next_multiple_of(8 / bits)) as i64]);
            let zeros = self.cut(&zeros, 0..count);
            self.op("Unsqueeze", &[&zeros, &last], &[])
        } else {
            self.number((1u32 << (bits - 1)) as f32)
        };
        let centred = self.op("Sub", &[&codes, &offset], &[]);
        let values = self.op("Mul", &[&centred, &scales], &[]);
        let rows = self.reshape(&values, &[0, -1]);
        Ok(if count * block == width { rows } else { self.cut(&rows, 0..width) })
    }

    /// Bytes of one or two codes as floats of the shape.
    fn unpacked(&mut self, bytes: &str, bits: usize, shape: &[i64]) -> String {
        if bits == 8 {
            return self.cast(bytes, Elem::F32);
        }
        let wide = self.cast(bytes, Elem::F32);
        let sixteen = self.number(16.0);
        let ratio = self.op("Div", &[&wide, &sixteen], &[]);
        let high = self.op("Floor", &[&ratio], &[]);
        let above = self.op("Mul", &[&high, &sixteen], &[]);
        let low = self.op("Sub", &[&wide, &above], &[]);
        let last = self.ints(&[-1]);
        let [low, high] = [low, high].map(|half| self.op("Unsqueeze", &[&half, &last], &[]));
        let pairs = self.op("Concat", &[&low, &high], &[("axis", Attribute::Int(-1))]);
        self.reshape(&pairs, shape)
    }
}
