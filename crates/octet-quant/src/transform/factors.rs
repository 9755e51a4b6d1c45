//! Moving factors of channels from what makes a value to what reads it.

use crate::{BlockWeights, Error};
use octet_model::{Fold, LinearSite, Maker, graph::Param};
use octet_tensor::{Dtype, Tensor, WeightSource};

/// Divides what `fold` makes by `factors` (one a channel, above zero) and multiplies what reads it, in `weights`; gives the
/// factors that were moved.
///
/// Matrices take the type that `dtype` says. A norm keeps its own: its weight is rounded first and the factor is then the
/// exact ratio of the old and the new one, so that rounding it costs nothing. A channel that a norm switched off, or whose
/// weight would leave the range of its type, stays as it is.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn move_factors(
    fold: &Fold,
    factors: &[f32],
    dtype: &dyn Fn(&LinearSite) -> Dtype,
    weights: &mut BlockWeights<'_>,
) -> Result<Vec<f32>, Error> {
    let moved = match &fold.maker {
        Maker::Norm { weight, bias } => {
            let moved = divide_norm(weight, factors, weights)?;
            if let Some(bias) = bias {
                divide(bias, 0, &moved, weights)?;
            }
            moved
        }
        Maker::Rows { site, rows, bias } => {
            let divisors: Vec<f32> = factors.iter().map(|f| f64::from(*f).powf(f64::from(fold.power).recip()) as f32).collect();
            let mut values = weights.weights(site)?;
            for (row, divisor) in values.chunks_exact_mut(site.cols.max(1)).skip(rows.start).zip(&divisors) {
                row.iter_mut().for_each(|value| *value /= divisor);
            }
            weights.set_weights(site, dtype(site), &values)?;
            if let Some(bias) = bias {
                divide(bias, rows.start, &divisors, weights)?;
            }
            factors.to_vec()
        }
    };
    for site in &fold.readers {
        let mut values = weights.weights(site)?;
        multiply_columns(&mut values, fold, site.cols, &moved);
        weights.set_weights(site, dtype(site), &values)?;
    }
    Ok(moved)
}

/// Multiplies every column of rows of `cols` by the factor of the channel it reads.
pub(super) fn multiply_columns(values: &mut [f32], fold: &Fold, cols: usize, factors: &[f32]) {
    let columns: Vec<f32> = (0..cols).map(|column| factors[fold.channel(column, cols)]).collect();
    for row in values.chunks_exact_mut(cols.max(1)) {
        row.iter_mut().zip(&columns).for_each(|(value, factor)| *value *= factor);
    }
}

fn tensor(param: &Param, weights: &BlockWeights<'_>) -> Result<Tensor, Error> {
    let missing = || octet_tensor::Error::Missing { name: param.name.clone() };
    Ok(weights.tensor(&param.name)?.ok_or_else(missing)?)
}

fn divide_norm(weight: &Param, factors: &[f32], weights: &mut BlockWeights<'_>) -> Result<Vec<f32>, Error> {
    let tensor = tensor(weight, weights)?;
    let (dtype, mut values) = (tensor.dtype(), tensor.to_f32()?);
    let one = if weight.plus_one { 1.0 } else { 0.0 };
    let mut moved = vec![1.0; values.len()];
    for ((value, moved), factor) in values.iter_mut().zip(&mut moved).zip(factors) {
        let before = *value + one;
        let after = dtype.round(before / factor - one);
        let ratio = before / (after + one);
        if ratio.is_finite() && ratio > 0.0 {
            (*value, *moved) = (after, ratio);
        }
    }
    weights.set_tensor(&weight.name, Tensor::rounded(weight.name.as_str(), dtype, weight.shape.clone(), &values)?);
    Ok(moved)
}

/// Divides elements of a bias from `first` on.
fn divide(bias: &Param, first: usize, divisors: &[f32], weights: &mut BlockWeights<'_>) -> Result<(), Error> {
    let tensor = tensor(bias, weights)?;
    let mut values = tensor.to_f32()?;
    values.iter_mut().skip(first).zip(divisors).for_each(|(value, divisor)| *value /= divisor);
    weights.set_tensor(&bias.name, Tensor::rounded(bias.name.as_str(), tensor.dtype(), bias.shape.clone(), &values)?);
    Ok(())
}
