//! What codes can be besides whole numbers in even steps, and the numbers they are stored as.

/// The levels that a stored code of four bits stands for where weights are in a table: close to what leaves the least error of normally
/// distributed weights under a scale that was searched for (the table of GGUF's IQ4_NL).
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What is added to a stored number of four bits to make it a signed code of four bits.
const LEAST: i8 = -8;

/// Sixteen levels in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Table([i8; 16]);

impl Table {
    /// The table of [`LEVELS`].
    pub const USUAL: Self = Self(LEVELS);

    /// A table of `levels`, or `None` where they do not ascend strictly.
    pub fn new(levels: [i8; 16]) -> Option<Self> {
        levels.is_sorted_by(|a, b| a < b).then_some(Self(levels))
    }

    /// The levels.
    pub fn levels(&self) -> &[i8; 16] {
        &self.0
    }

    /// The level with this number.
    pub fn level(&self, number: u8) -> i8 {
        self.0[usize::from(number) % self.0.len()]
    }

    /// The number of `level`; of what is none, of the next above it.
    pub fn number(&self, level: i8) -> u8 {
        self.0.partition_point(|&other| other < level).min(self.0.len() - 1) as u8
    }

    /// The number of every level's byte; 0 for what is none.
    fn numbers(&self) -> [u8; 256] {
        let mut all = [0; 256];
        self.0.iter().zip(0..).for_each(|(&level, number)| all[usize::from(level as u8)] = number);
        all
    }
}

/// Codes of a point of the lattice.
const EIGHT: usize = 8;

/// What is taken off twice a number and the choice of even or odd codes to make a code of a point.
const MIDDLE: i8 = 16;

/// What the codes of a matrix can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alphabet {
    /// Whole numbers within the scheme's range; they are stored as they are.
    #[default]
    Even,
    /// Levels; their numbers are stored.
    Table(Table),
    /// Eight by eight the coordinates of a point of the lattice E8 = D8 ∪ (D8 + ½), in half steps: from −16 to 15, all even or all odd,
    /// adding up to a multiple of four. Code i is 2·n\[i\] + c − 16 with one c of 0 or 1 for all and numbers n of four bits whose sum is even. So one bit of the
    /// numbers follows from the others: what is stored are the numbers, with c in the place of the lowest bit of the first.
    Lattice,
}

impl Alphabet {
    /// The levels, where codes are some.
    pub fn table(&self) -> Option<&Table> {
        match self {
            Self::Table(table) => Some(table),
            Self::Even | Self::Lattice => None,
        }
    }

    /// Whether the codes of a row, or of whole groups of one, are of this alphabet; of even steps the range decides.
    pub fn holds(&self, codes: &[i8]) -> bool {
        match self {
            Self::Even => true,
            Self::Table(table) => {
                let mut known = [false; 256];
                table.0.iter().for_each(|&level| known[usize::from(level as u8)] = true);
                codes.iter().all(|&code| known[usize::from(code as u8)])
            }
            Self::Lattice => codes.chunks(EIGHT).all(is_point),
        }
    }

    /// Turns the codes of rows into the signed codes that are stored for them.
    pub fn store(&self, codes: &mut [i8]) {
        match self {
            Self::Even => {}
            Self::Table(table) => {
                let numbers = table.numbers();
                codes.iter_mut().for_each(|code| *code = numbers[usize::from(*code as u8)] as i8 + LEAST);
            }
            Self::Lattice => {
                for point in codes.chunks_mut(EIGHT) {
                    let odd = point.first().map_or(0, |code| code & 1);
                    point.iter_mut().for_each(|code| *code = ((*code + MIDDLE) >> 1) + LEAST);
                    if let Some(first) = point.first_mut() {
                        *first = (*first & !1) | odd;
                    }
                }
            }
        }
    }

    /// Turns the signed codes that are stored for rows into what they stand for.
    pub fn read(&self, codes: &mut [i8]) {
        match self {
            Self::Even => {}
            Self::Table(table) => codes.iter_mut().for_each(|code| *code = table.level(code.wrapping_sub(LEAST) as u8)),
            Self::Lattice => {
                for point in codes.chunks_mut(EIGHT) {
                    let [first, others @ ..] = point else { continue };
                    let odd = *first & 1;
                    *first = (*first & !1) | (others.iter().fold(0, |sum, code| sum ^ code) & 1);
                    point.iter_mut().for_each(|code| *code = 2 * code.wrapping_sub(LEAST) + odd - MIDDLE);
                }
            }
        }
    }
}

/// Whether eight codes are a point of the lattice within what four bits hold.
fn is_point(codes: &[i8]) -> bool {
    let odd = codes.first().map_or(0, |code| code & 1);
    let inside = codes.iter().all(|&code| (-MIDDLE..MIDDLE).contains(&code) && code & 1 == odd);
    codes.len() == EIGHT && inside && codes.iter().map(|&code| i32::from(code)).sum::<i32>() % 4 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels_ascend() {
        assert_eq!(Table::new(LEVELS), Some(Table::USUAL));
        let mut levels = LEVELS;
        levels[3] = levels[4];
        assert_eq!(Table::new(levels), None);
        levels.swap(0, 1);
        assert_eq!(Table::new(levels), None);
    }

    /// All numbers there are of two coordinates, the others whatever `rest` says.
    #[test]
    fn every_stored_number_is_one_point_of_the_lattice() {
        let mut seen = std::collections::BTreeSet::new();
        for stored in 0..1u32 << 16 {
            let nibble = |i: usize| ((if i < 4 { stored >> (4 * i) } else { 0x3c5a >> (4 * (i - 4)) }) & 15) as i8 - 8;
            let mut codes: [i8; 8] = std::array::from_fn(nibble);
            let before = codes;
            Alphabet::Lattice.read(&mut codes);
            assert!(Alphabet::Lattice.holds(&codes), "{codes:?}");
            assert!(seen.insert(codes));
            Alphabet::Lattice.store(&mut codes);
            assert_eq!(codes, before);
        }
    }

    proptest! {
        /// Reading and storing undo each other over all 2³² numbers and all points of the box, of which there are as many.
        #[test]
        fn points_and_what_they_are_stored_as_are_one_to_one(stored in prop::array::uniform8(-8i8..8), point in prop::array::uniform8(-8i8..8), odd: bool) {
            let mut codes = stored;
            Alphabet::Lattice.read(&mut codes);
            prop_assert!(Alphabet::Lattice.holds(&codes));
            Alphabet::Lattice.store(&mut codes);
            prop_assert_eq!(codes, stored);
            // Any point: coordinates of one parity, the last one made to fit.
            let mut codes = point.map(|n| 2 * n + i8::from(odd));
            if codes.iter().map(|&code| i32::from(code)).sum::<i32>() % 4 != 0 {
                codes[7] += if codes[7] < 14 { 2 } else { -2 };
            }
            prop_assert!(Alphabet::Lattice.holds(&codes));
            let point = codes;
            Alphabet::Lattice.store(&mut codes);
            prop_assert!(codes.iter().all(|code| (-8..8).contains(code)));
            Alphabet::Lattice.read(&mut codes);
            prop_assert_eq!(codes, point);
            // A neighbour that adds up to something else, or has a coordinate of the other parity, is none.
            codes[3] += if codes[3] < 14 { 2 } else { -2 };
            prop_assert!(!Alphabet::Lattice.holds(&codes));
            codes[3] ^= 1;
            prop_assert!(!Alphabet::Lattice.holds(&codes));
        }

        #[test]
        fn levels_and_what_they_are_stored_as_are_one_to_one(levels in prop::collection::btree_set(any::<i8>(), 16)) {
            let levels: Vec<i8> = levels.into_iter().collect();
            let table = Table::new(levels[..].try_into().unwrap()).unwrap();
            let alphabet = Alphabet::Table(table);
            let mut codes = levels.clone();
            alphabet.store(&mut codes);
            prop_assert_eq!(&codes, &(-8..8).collect::<Vec<i8>>());
            alphabet.read(&mut codes);
            prop_assert_eq!(&codes, &levels);
            prop_assert!(alphabet.holds(&codes));
            prop_assert!((0..16).all(|number| table.number(table.level(number)) == number));
            prop_assert!((-128..=127i8).all(|code| alphabet.holds(&[code]) == levels.contains(&code)));
        }
    }
}
