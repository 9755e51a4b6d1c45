//! Outlier columns that calibration chooses: their weights stay floats beside the codes (LLM.int8 with a fixed set, Dettmers et
//! al., arXiv 2208.07339).

use crate::{Error, InputStatistics};
use octet_tensor::{Activations, Beside, FloatMatrix, QMatrix, Scheme, Share};
use std::sync::Arc;

/// The inputs that text made largest, as many as `scheme` says, ascending; `None` where it keeps none. All linears that read an
/// input get the same, so that their activations are quantized once. Where nothing was seen it is the first ones.
pub(crate) fn columns(scheme: Scheme, cols: usize, seen: Option<&InputStatistics>) -> Option<Arc<[u32]>> {
    let Activations::Int8Beside(share) = scheme.activations else { return None };
    let mut all: Vec<u32> = (0..cols as u32).collect();
    if let Some(seen) = seen.filter(|seen| seen.max_abs.len() == cols) {
        // A stable sort: of equal ones the first.
        all.sort_by(|&a, &b| seen.max_abs[b as usize].total_cmp(&seen.max_abs[a as usize]));
    }
    all.truncate(share.columns(cols));
    all.sort_unstable();
    Some(all.into())
}

/// Puts the weights of `columns` beside `q`, which is rows `first ..` of `matrix`, in the 16 bits they are stored in.
pub(crate) fn attach(q: QMatrix, matrix: &FloatMatrix, first: usize, columns: &Arc<[u32]>) -> Result<QMatrix, Error> {
    let (cols, dtype) = (q.cols(), Share::dtype(q.scale_dtype()));
    let mut row = vec![0.0; cols];
    let mut values = Vec::with_capacity(q.rows() * columns.len());
    for index in first..first + q.rows() {
        matrix.read_rows(index..index + 1, &mut row)?;
        values.extend(columns.iter().map(|&column| dtype.round(row[column as usize])));
    }
    Ok(q.with_beside(Beside::new(columns.clone(), values))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_inputs_are_chosen() {
        let seen = InputStatistics { max_abs: vec![1.0, 9.0, 3.0, 9.0, 0.0], ..Default::default() };
        let chosen = |text: &str, seen| columns(text.parse().unwrap(), 5, seen).map(|c| c.to_vec());
        assert_eq!(chosen("w8a8-c20", Some(&seen)), Some(vec![1]));
        assert_eq!(chosen("w8a8-c50", Some(&seen)), Some(vec![1, 2, 3]));
        assert_eq!(chosen("w8a8-c50", None), Some(vec![0, 1, 2]));
        assert_eq!(chosen("w8a8-o6", Some(&seen)), None);
    }
}
