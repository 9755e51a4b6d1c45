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

/// What the codes of a matrix can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alphabet {
    /// Whole numbers within the scheme's range; they are stored as they are.
    Even,
    /// Levels; their numbers are stored.
    Table(Table),
}

impl Alphabet {
    /// The levels, where codes are some.
    pub fn table(&self) -> Option<&Table> {
        match self {
            Self::Table(table) => Some(table),
            Self::Even => None,
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
        }
    }

    /// Turns the codes of rows into the signed codes that are stored for them.
    pub fn store(&self, codes: &mut [i8]) {
        if let Self::Table(table) = self {
            let numbers = table.numbers();
            codes.iter_mut().for_each(|code| *code = numbers[usize::from(*code as u8)] as i8 + LEAST);
        }
    }

    /// Turns the signed codes that are stored for rows into what they stand for.
    pub fn read(&self, codes: &mut [i8]) {
        if let Self::Table(table) = self {
            codes.iter_mut().for_each(|code| *code = table.level(code.wrapping_sub(LEAST) as u8));
        }
    }
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

    proptest! {
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
