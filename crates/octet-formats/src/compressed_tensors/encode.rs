//! Turning quantized rows into the bytes of stored tensors.

use super::{FACTOR, LEVELS, ORDER, OUTLIER_INDEX, OUTLIER_WEIGHTS, bits, is_one_byte};
use crate::{
    Error, Result,
    safetensors::TensorSpec,
    write::{Piece, put_floats},
};
use octet_tensor::{Activations, Alphabet, Dtype, QMatrix, Scheme, Share, Symmetry};

/// The tensors that store a matrix `[rows, cols]` of `module`.
///
/// `pack-quantized`: `weight_packed` I32 `[rows, ⌈cols·bits/32⌉]`, `weight_scale` `[rows, groups]`, `weight_shape` and, when
/// asymmetric, `weight_zero_point` I32 `[⌈rows·bits/32⌉, groups]`; levels of its own, `weight_levels` I8 `[16]`, ascending. `octet-scales`: as that, with `weight_scale` I8 and `weight_scale_factor` `[rows]`. `int-quantized` (8-bit weights under integer
/// activations): `weight` I8 `[rows, cols]`, `weight_scale`, and `weight_zero_point` I8 `[rows, groups]`. Outliers, which octet
/// alone reads: `weight_outlier_columns` I32 `[n]` and `weight_outliers` `[rows, n]` in 16 bits.
pub fn tensor_specs(module: &str, rows: usize, cols: usize, scheme: Scheme, scale_dtype: Dtype) -> Vec<TensorSpec> {
    let groups = scheme.weights.groups(cols);
    let bits = scheme.weights.bits;
    let spec = |suffix: &str, dtype, shape: Vec<usize>| TensorSpec { name: format!("{module}.{suffix}"), dtype, shape };
    let mut specs = if is_one_byte(scheme) {
        vec![spec("weight", Dtype::I8, vec![rows, cols])]
    } else {
        vec![spec("weight_packed", Dtype::I32, vec![rows, bits::words(cols, bits)]), spec("weight_shape", Dtype::I64, vec![2])]
    };
    if scheme.weights.has_whole_scales() {
        specs.push(spec("weight_scale", Dtype::I8, vec![rows, groups]));
        specs.push(spec(FACTOR, scale_dtype, vec![rows]));
    } else {
        specs.push(spec("weight_scale", scale_dtype, vec![rows, groups]));
    }
    if scheme.weights.is_asymmetric() {
        specs.push(match is_one_byte(scheme) {
            true => spec("weight_zero_point", Dtype::I8, vec![rows, groups]),
            false => spec("weight_zero_point", Dtype::I32, vec![bits::words(rows, bits), groups]),
        });
    }
    if scheme.weights.symmetry == Symmetry::Learnt {
        specs.push(spec(LEVELS, Dtype::I8, vec![16]));
    }
    if let Activations::Int8Beside(share) = scheme.activations {
        let count = share.columns(cols);
        specs.push(spec(OUTLIER_INDEX, Dtype::I32, vec![count]));
        specs.push(spec(OUTLIER_WEIGHTS, Share::dtype(scale_dtype), vec![rows, count]));
    }
    specs
}

/// The tensor that a matrix of `cols` inputs with an order of its own ([`QMatrix::order`]) has beside those of [`tensor_specs`]:
/// `weight_g_idx` I32 `[cols]`.
pub fn order_spec(module: &str, cols: usize) -> TensorSpec {
    TensorSpec { name: format!("{module}.{ORDER}"), dtype: Dtype::I32, shape: vec![cols] }
}

/// Encodes rows `first_row ..` of `module`, a matrix of `rows_total` rows; the pieces fit the tensors of [`tensor_specs`].
///
/// # Errors
/// If the chunk does not start and end at a multiple of 32 rows (unless at the end of the matrix), is of another
/// scheme, or its scales are of a type that no format stores.
pub fn encode_rows(module: &str, q: &QMatrix, first_row: usize, rows_total: usize, scheme: Scheme) -> Result<Vec<Piece>> {
    check(module, q, first_row, rows_total, scheme)?;
    let (bits, groups) = (scheme.weights.bits, q.groups());
    let piece = |suffix: &str, offset, bytes| Piece { tensor: format!("{module}.{suffix}"), offset, bytes };
    let mut pieces = vec![];
    if is_one_byte(scheme) {
        pieces.push(piece("weight", first_row * q.cols(), bytes_of(q.codes())));
    } else {
        let row_bytes = 4 * bits::words(q.cols(), bits);
        let mut stream = Vec::with_capacity(q.rows() * row_bytes);
        let mut numbers = vec![];
        for mut row in q.codes().chunks(q.cols().max(1)) {
            if q.alphabet() != Alphabet::Even {
                numbers.clear();
                numbers.extend_from_slice(row);
                q.alphabet().store(&mut numbers);
                row = &numbers;
            }
            bits::pack(row, bits, &mut stream);
        }
        pieces.push(piece("weight_packed", first_row * row_bytes, stream));
        if first_row == 0 {
            let shape = [rows_total, q.cols()].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
            pieces.push(piece("weight_shape", 0, shape));
        }
    }
    let float = q.scale_dtype().size();
    if scheme.weights.has_whole_scales() {
        pieces.push(piece("weight_scale", first_row * groups, whole_scales(q)));
        let mut factors = Vec::with_capacity(q.rows() * float);
        put_floats(module, q.factors().iter().map(|factor| factor.factor()), q.scale_dtype(), &mut factors)?;
        pieces.push(piece(FACTOR, first_row * float, factors));
    } else {
        pieces.push(piece("weight_scale", first_row * groups * float, scale_bytes(module, q)?));
    }
    if scheme.weights.is_asymmetric() {
        pieces.push(match is_one_byte(scheme) {
            true => piece("weight_zero_point", first_row * groups, bytes_of(q.zeros())),
            false => piece("weight_zero_point", 4 * bits::words(first_row, bits) * groups, packed_zeros(q)),
        });
    }
    if let (Some(table), Symmetry::Learnt, 0) = (q.alphabet().table(), scheme.weights.symmetry, first_row) {
        pieces.push(piece(LEVELS, 0, bytes_of(table.levels())));
    }
    if let (Some(order), 0) = (q.order(), first_row) {
        pieces.push(piece(ORDER, 0, order.iter().flat_map(|group| group.to_le_bytes()).collect()));
    }
    if let Some(beside) = q.beside() {
        if first_row == 0 {
            pieces.push(piece(OUTLIER_INDEX, 0, beside.columns().iter().flat_map(|column| column.to_le_bytes()).collect()));
        }
        let dtype = Share::dtype(q.scale_dtype());
        let mut bytes = Vec::with_capacity(beside.values().len() * dtype.size());
        put_floats(module, beside.values().iter().copied(), dtype, &mut bytes)?;
        pieces.push(piece(OUTLIER_WEIGHTS, first_row * beside.columns().len() * dtype.size(), bytes));
    }
    Ok(pieces)
}

fn check(module: &str, q: &QMatrix, first_row: usize, rows_total: usize, scheme: Scheme) -> Result<()> {
    let end = first_row + q.rows();
    let fail = |what| Err(Error::Encode { module: module.into(), what });
    if q.scheme() != scheme.weights {
        return fail(format!("the rows are {}, expected {}", q.scheme(), scheme.weights));
    }
    let outliers = match scheme.activations {
        Activations::Int8Beside(share) => share.columns(q.cols()),
        _ => 0,
    };
    if q.beside().map_or(0, |beside| beside.columns().len()) != outliers {
        return fail(format!("the rows have other outlier columns than the {outliers} of {scheme}"));
    }
    if end > rows_total || !first_row.is_multiple_of(32) || !(end.is_multiple_of(32) || end == rows_total) {
        return fail(format!("rows {first_row}..{end} of {rows_total} are not a chunk of a multiple of 32 rows"));
    }
    Ok(())
}

fn bytes_of(codes: &[i8]) -> Vec<u8> {
    codes.iter().map(|&c| c as u8).collect()
}

fn whole_scales(q: &QMatrix) -> Vec<u8> {
    let rows = q.factors().iter().zip(q.scales().chunks(q.groups().max(1)));
    rows.flat_map(|(factor, scales)| scales.iter().map(|&scale| factor.whole(scale) as u8)).collect()
}

fn scale_bytes(module: &str, q: &QMatrix) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(q.scales().len() * q.scale_dtype().size());
    put_floats(module, q.scales().iter().copied(), q.scale_dtype(), &mut bytes)?;
    Ok(bytes)
}

/// Zero points `[rows, groups]` packed along the rows into `[words, groups]`.
fn packed_zeros(q: &QMatrix) -> Vec<u8> {
    let (bits, groups) = (q.scheme().bits, q.groups());
    let mut words = vec![0u32; bits::words(q.rows(), bits) * groups];
    for (row, zeros) in q.zeros().chunks(groups.max(1)).enumerate() {
        let (word, shift) = (row * bits.get() as usize / 32, row * bits.get() as usize % 32);
        for (group, &zero) in zeros.iter().enumerate() {
            let value = u64::from(bits::offset(zero, bits)) << shift;
            words[word * groups + group] |= value as u32;
            if value >> 32 != 0 {
                words[(word + 1) * groups + group] |= (value >> 32) as u32;
            }
        }
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
