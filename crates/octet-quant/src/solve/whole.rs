//! Rows whose scales are whole multiples of a factor: the search for both.

use super::{
    candidates::{Choice, Choices},
    rounding::{Rounding, Stored},
    rtn::{Normal, RtnRows},
};
use crate::ErrorSums;
use octet_kernels::CANDIDATES;
use octet_tensor::{Dtype, RowFactor};

/// The factors tried, by how far their largest scale is from the largest that groups want: a little less, which clips that one and
/// serves the others better, to a little more.
const REACHES: [f32; CANDIDATES] = [1.0, 1.01, 1.02, 1.03, 1.04, 1.06, 1.08, 1.1, 1.13, 1.16, 0.99, 0.98, 0.97, 0.95, 0.92, 0.88];

/// What a group would have if scales were any float.
#[derive(Clone, Copy, Default)]
struct Wish {
    choice: Choice,
    /// Its scale is in units of 2 to this power.
    exponent: i32,
}

impl Wish {
    fn scale(&self) -> f32 {
        (f64::from(self.choice.scale) * 2f64.powi(self.exponent)) as f32
    }
}

/// The whole numbers around a wished scale, nearest first, as scales in the units of the wish.
fn around(wish: Wish, factor: RowFactor) -> Choices {
    let unit = f64::from(factor.unit()) / 2f64.powi(wish.exponent);
    let nearest = i32::from(factor.whole(wish.scale()));
    let at = |j: usize| {
        let step = (j.div_ceil(2) as i32) * if j % 2 == 1 { 1 } else { -1 };
        (f64::from((nearest + step).clamp(-127, 127)) * unit) as f32
    };
    Choices::with_zero(std::array::from_fn(at), wish.choice.zero)
}

impl RtnRows<'_> {
    /// Solves one row: what every group wishes for, the factor that leaves the least error of sixteen, and then the best whole number
    /// near every wish.
    pub(super) fn whole_row(&self, row: &[f32], codes: &mut [i8], scales: &mut [f32], zeros: &mut [i8], sums: &mut ErrorSums) {
        let size = self.job().group_size();
        let wishes: Vec<Wish> =
            row.chunks(size).enumerate().map(|(group, weights)| self.wish(weights, self.importance(group, weights.len()))).collect();
        let factor = self.factor(row, &wishes);
        for (group, (weights, codes)) in row.chunks(size).zip(codes.chunks_mut(size)).enumerate() {
            let importance = self.importance(group, weights.len());
            let choice = match Normal::of(self.job().engine, weights) {
                Some(normal) if factor != RowFactor::ZERO => {
                    let choices = around(wishes[group], factor);
                    let best = self.least(&normal, importance, &choices, (Choice::default(), f64::INFINITY));
                    self.encode(&normal, importance, best, codes, sums)
                }
                _ => self.nothing(codes),
            };
            // What is so small that its codes are all zero wants no scale.
            scales[group] = factor.round(choice.scale);
            if let Some(zero) = zeros.get_mut(group) {
                *zero = choice.zero as i8;
            }
        }
    }

    fn wish(&self, weights: &[f32], importance: &[f32]) -> Wish {
        let Some(normal) = Normal::of(self.job().engine, weights) else { return Wish::default() };
        let any = Rounding { stored: Stored::Float(Dtype::F32), exponent: normal.exponent };
        let (choice, _) = self.search(&normal, importance, any);
        Wish { choice, exponent: normal.exponent }
    }

    /// The factor under which the row loses least, every group's scale being the multiple that is nearest to its wish.
    fn factor(&self, row: &[f32], wishes: &[Wish]) -> RowFactor {
        let dtype = self.job().scale_dtype;
        let largest = wishes.iter().map(|wish| wish.scale().abs()).filter(|scale| scale.is_finite()).fold(0.0, f32::max);
        let factors = REACHES.map(|reach| RowFactor::reaching(largest * reach, dtype));
        let mut errors = [0.0; CANDIDATES];
        for (group, (weights, wish)) in row.chunks(self.job().group_size()).zip(wishes).enumerate() {
            let Some(normal) = Normal::of(self.job().engine, weights) else { continue };
            let unit = 2f64.powi(wish.exponent);
            let scale = factors.map(|factor| (f64::from(factor.round(wish.scale())) / unit) as f32);
            let choices = Choices::with_zero(scale, wish.choice.zero);
            let found = self.errors(&normal, self.importance(group, weights.len()), &choices);
            errors.iter_mut().zip(found).for_each(|(sum, error)| *sum += error * unit * unit);
        }
        let mut best = 0;
        (1..CANDIDATES).for_each(|j| {
            if errors[j] < errors[best] {
                best = j
            }
        });
        factors[best]
    }
}
