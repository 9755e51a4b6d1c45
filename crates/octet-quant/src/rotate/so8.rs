//! Rotations of eight values, and of many values in blocks of eight.

use std::{array, f64::consts::FRAC_1_SQRT_2};

/// Values of a block.
pub const EIGHT: usize = 8;

/// Pairs of eight in seven rounds of four that share none, as in a tournament.
pub(super) const PAIRS: [(usize, usize); 28] = tournament();

const fn tournament() -> [(usize, usize); 28] {
    let (mut pairs, mut round) = ([(0, 0); 28], 0);
    while round < 7 {
        pairs[4 * round] = (round, 7);
        let mut step = 1;
        while step < 4 {
            let (a, b) = ((round + step) % 7, (round + 7 - step) % 7);
            pairs[4 * round + step] = if a < b { (a, b) } else { (b, a) };
            step += 1;
        }
        round += 1;
    }
    pairs
}

/// A rotation of eight values: rows are what the values of a block become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct So8([[f64; EIGHT]; EIGHT]);

impl So8 {
    /// The rotation that changes nothing.
    pub const IDENTITY: Self = {
        let (mut rows, mut i) = ([[0.0; EIGHT]; EIGHT], 0);
        while i < EIGHT {
            rows[i][i] = 1.0;
            i += 1;
        }
        Self(rows)
    };

    /// Sylvester's Hadamard matrix over √8, with the sign of input i turned where bit i of `signs` is set, and that of the last
    /// one as well where the determinant would be −1 otherwise.
    pub fn hadamard(signs: u8) -> Self {
        let signs = if signs.count_ones().is_multiple_of(2) { signs } else { signs ^ 0x80 };
        Self(array::from_fn(|i| {
            array::from_fn(|j| {
                let flips = (i & j).count_ones() + u32::from(signs >> i & 1);
                if flips.is_multiple_of(2) { 0.5 * FRAC_1_SQRT_2 } else { -0.5 * FRAC_1_SQRT_2 }
            })
        }))
    }

    /// This rotation, then one by `angle` (in radians) in the plane of results `a` and `b`.
    ///
    /// # Panics
    /// If there are no such results.
    pub fn turned(&self, (a, b): (usize, usize), angle: f64) -> Self {
        let (sin, cos) = angle.sin_cos();
        let mut rows = self.0;
        for row in &mut rows {
            (row[a], row[b]) = (cos * row[a] - sin * row[b], sin * row[a] + cos * row[b]);
        }
        Self(rows)
    }

    /// What eight values become.
    #[inline]
    pub fn apply(&self, x: &[f64; EIGHT]) -> [f64; EIGHT] {
        let mut out = [0.0; EIGHT];
        for (x, row) in x.iter().zip(&self.0) {
            out.iter_mut().zip(row).for_each(|(out, r)| *out += x * r);
        }
        out
    }

    /// What a symmetric form of eight values (second moments) becomes: Rᵀ·H·R.
    pub fn conjugate(&self, h: &[[f64; EIGHT]; EIGHT]) -> [[f64; EIGHT]; EIGHT] {
        let half = h.each_ref().map(|row| self.apply(row));
        let turned: [[f64; EIGHT]; EIGHT] = array::from_fn(|j| self.apply(&array::from_fn(|i| half[i][j])));
        array::from_fn(|i| array::from_fn(|j| turned[j][i]))
    }

    /// This rotation, then another.
    pub fn then(&self, other: &Self) -> Self {
        Self(self.0.each_ref().map(|row| other.apply(row)))
    }

    /// The rotation back.
    pub fn inverse(&self) -> Self {
        Self(array::from_fn(|i| array::from_fn(|j| self.0[j][i])))
    }

    /// ‖RᵀR − I‖ (Frobenius): how far rounding has taken it from a rotation.
    pub fn drift(&self) -> f64 {
        let entry = |i: usize, j: usize| self.0.iter().map(|row| row[i] * row[j]).sum::<f64>() - f64::from(u8::from(i == j));
        (0..EIGHT * EIGHT).map(|at| entry(at / EIGHT, at % EIGHT).powi(2)).sum::<f64>().sqrt()
    }

    /// Its determinant: +1 of a rotation, −1 where a reflection has got in.
    pub fn determinant(&self) -> f64 {
        let (mut rows, mut determinant) = (self.0, 1.0);
        for column in 0..EIGHT {
            let pivot = (column..EIGHT).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs())).unwrap_or(column);
            if pivot != column {
                rows.swap(pivot, column);
                determinant = -determinant;
            }
            let top = rows[column];
            determinant *= top[column];
            if top[column] == 0.0 {
                return 0.0;
            }
            for row in &mut rows[column + 1..] {
                let factor = row[column] / top[column];
                row.iter_mut().zip(&top).for_each(|(value, top)| *value -= factor * top);
            }
        }
        determinant
    }
}

/// A rotation of many values, block-diagonal in blocks of eight.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRotation(pub Vec<So8>);

impl BlockRotation {
    /// Hadamard in every block, each with signs of its own that depend on nothing but its number.
    pub fn hadamard(blocks: usize) -> Self {
        // The golden ratio's multiples, as in Knuth's multiplicative hashing: signs that show no pattern.
        let signs = |block: usize| ((block as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
        Self((0..blocks).map(|block| So8::hadamard(signs(block))).collect())
    }

    /// The same Hadamard matrix in every block, as [`octet_model::turn`] multiplies by.
    pub fn plain_hadamard(blocks: usize) -> Self {
        Self(vec![So8::hadamard(0); blocks])
    }

    /// This rotation, then another of as many blocks.
    pub fn then(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(first, second)| first.then(second)).collect())
    }

    /// Values it is for.
    pub fn width(&self) -> usize {
        EIGHT * self.0.len()
    }

    /// Turns runs as long as it is wide, one after the other.
    pub fn turn(&self, values: &mut [f32]) {
        for run in values.chunks_exact_mut(self.width().max(1)) {
            for (block, values) in self.0.iter().zip(run.as_chunks_mut::<EIGHT>().0) {
                *values = block.apply(&values.map(f64::from)).map(|value| value as f32);
            }
        }
    }

    /// Turns rows of `cols` values against each other: `rows` are those of whole blocks from number `first` on.
    pub fn turn_rows(&self, first: usize, rows: &mut [f32], cols: usize) {
        for (block, rows) in self.0.iter().skip(first).zip(rows.chunks_exact_mut((EIGHT * cols).max(1))) {
            for col in 0..cols {
                let turned = block.apply(&array::from_fn(|row| f64::from(rows[row * cols + col])));
                turned.iter().enumerate().for_each(|(row, value)| rows[row * cols + col] = *value as f32);
            }
        }
    }

    /// The largest [`So8::drift`] of its blocks, and the determinant that is farthest from 1.
    pub fn health(&self) -> (f64, f64) {
        let drift = self.0.iter().map(So8::drift).fold(0.0, f64::max);
        let determinants = self.0.iter().map(So8::determinant);
        (drift, determinants.fold(1.0, |worst: f64, d| if (d - 1.0).abs() > (worst - 1.0).abs() { d } else { worst }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_rotation() -> impl Strategy<Value = So8> {
        let turns = prop::collection::vec((0usize..28, -3.2f64..3.2), 0..80);
        (any::<Option<u8>>(), turns).prop_map(|(signs, turns)| {
            let start = signs.map_or(So8::IDENTITY, So8::hadamard);
            turns.into_iter().fold(start, |r, (pair, angle)| r.turned(PAIRS[pair], angle))
        })
    }

    #[test]
    fn every_pair_comes_once_and_rounds_share_no_value() {
        let mut all: Vec<_> = PAIRS.into_iter().filter(|(a, b)| a < b && *b < EIGHT).collect();
        for round in PAIRS.chunks(4) {
            let mut values: Vec<_> = round.iter().flat_map(|&(a, b)| [a, b]).collect();
            values.sort_unstable();
            assert_eq!(values, (0..EIGHT).collect::<Vec<_>>());
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 28);
    }

    #[test]
    fn hadamard_is_a_rotation_with_any_signs_and_spreads_one_value_evenly() {
        for signs in 0..=255 {
            let r = So8::hadamard(signs);
            assert!(r.drift() < 1e-14 && (r.determinant() - 1.0).abs() < 1e-14, "{signs}: {} {}", r.drift(), r.determinant());
            assert!(r.apply(&[0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0]).iter().all(|v| (v.abs() - 2f64.sqrt()).abs() < 1e-14));
        }
    }

    #[test]
    fn a_reflection_and_a_stretch_are_told_from_rotations() {
        let mut reflected = So8::IDENTITY;
        reflected.0[3][3] = -1.0;
        assert_eq!((reflected.drift(), reflected.determinant()), (0.0, -1.0));
        let mut stretched = So8::IDENTITY;
        stretched.0[2][2] = 1.5;
        assert!(stretched.drift() > 1.0 && stretched.determinant() == 1.5);
        assert_eq!(BlockRotation(vec![So8::IDENTITY, reflected, So8::IDENTITY]).health(), (0.0, -1.0));
    }

    proptest! {
        #[test]
        fn products_of_turns_stay_rotations_and_have_their_inverse(r in any_rotation(), x in prop::array::uniform8(-100.0f64..100.0)) {
            prop_assert!(r.drift() < 1e-13, "{}", r.drift());
            prop_assert!((r.determinant() - 1.0).abs() < 1e-13, "{}", r.determinant());
            prop_assert!(r.then(&r.inverse()).apply(&x).iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-11));
            let back = r.inverse().apply(&r.apply(&x));
            prop_assert!(back.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-11));
        }

        #[test]
        fn moments_turn_as_the_values_do(r in any_rotation(), x in prop::array::uniform8(-2.0f64..2.0)) {
            let outer = |x: &[f64; 8]| -> [[f64; 8]; 8] { array::from_fn(|i| array::from_fn(|j| x[i] * x[j])) };
            let (found, expected) = (r.conjugate(&outer(&x)), outer(&r.apply(&x)));
            prop_assert!(found.iter().flatten().zip(expected.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-12));
        }

        #[test]
        fn turning_rows_is_turning_columns_of_the_transpose(a in any_rotation(), b in any_rotation(), values in prop::collection::vec(-5f32..5.0, 48)) {
            let rotation = BlockRotation(vec![a, b]);
            let transposed = |v: &[f32], cols: usize| -> Vec<f32> {
                let rows = v.len() / cols;
                (0..v.len()).map(|at| v[at % rows * cols + at / rows]).collect()
            };
            let (mut rows, mut columns) = (values.clone(), transposed(&values, 3));
            rotation.turn_rows(0, &mut rows, 3);
            rotation.turn(&mut columns);
            prop_assert_eq!(transposed(&rows, 3), columns);
            let mut second = values[24..].to_vec();
            rotation.turn_rows(1, &mut second, 3);
            prop_assert_eq!(&second, &rows[24..]);
        }
    }
}
