//! Which representation each group of tensors gets: the least loss within a budget of bytes.
//!
//! The multiple-choice knapsack (Sinha and Zoltners, Operations Research 27, 1979): alternatives that are no better than a
//! smaller one fall away; walking the lower convex hulls of all groups by falling gain a byte is the Lagrangian solution
//! for every multiplier at once; branch and bound with that walk as its bound closes the gap that single steps leave.

mod bound;

use bound::{Hulls, Search};

/// One way to represent a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// Bytes it takes.
    pub bytes: u64,
    /// What it costs in quality, in whatever unit adds up over groups.
    pub loss: f64,
}

/// A budget that no allocation can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no allocation fits into {budget} bytes; the smallest possible takes {least}")]
pub struct OverBudget {
    /// The budget in bytes.
    pub budget: u64,
    /// Bytes of the smallest allocation.
    pub least: u64,
}

/// Chooses an alternative for every group, such that their losses add up to the least that `budget` bytes allow.
///
/// The result is exact where branch and bound ends within its number of steps, which it does for models of some dozens of
/// groups; beyond that it is the best found, no worse than the Lagrangian solution. Losses that are not finite are never
/// chosen where a finite one fits.
///
/// # Errors
/// If even the smallest alternatives together take more than `budget`.
pub fn allocate(groups: &[Vec<Alternative>], budget: u64) -> Result<Vec<usize>, OverBudget> {
    let hulls = Hulls::new(groups);
    let least = hulls.least();
    if least > budget {
        return Err(OverBudget { budget, least });
    }
    Ok(Search::new(&hulls, budget).run())
}

/// Bytes of the smallest allocation.
pub fn least_bytes(groups: &[Vec<Alternative>]) -> u64 {
    groups.iter().filter_map(|group| group.iter().map(|a| a.bytes).min()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(groups: &[Vec<Alternative>], chosen: &[usize]) -> (u64, f64) {
        let picks = groups.iter().zip(chosen).map(|(group, &i)| group[i]);
        picks.fold((0, 0.0), |(bytes, loss), a| (bytes + a.bytes, loss + a.loss))
    }

    /// The least loss within the budget, by trying everything.
    fn brute(groups: &[Vec<Alternative>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = groups.split_first() else { return Some(0.0) };
        let fits = first.iter().filter(|a| a.bytes <= budget);
        fits.filter_map(|a| brute(rest, budget - a.bytes).map(|loss| loss + a.loss)).min_by(f64::total_cmp)
    }

    #[test]
    fn a_known_knapsack() {
        let a = |bytes, loss| Alternative { bytes, loss };
        let groups = [vec![a(2, 10.0), a(4, 3.0), a(8, 0.0)], vec![a(2, 6.0), a(4, 5.0), a(5, 0.0)]];
        // The hull walk takes (2 -> 4) of the first, then cannot pay (2 -> 5) of the second from 8 bytes; nor need it.
        assert_eq!(allocate(&groups, 9).unwrap(), [1, 2]);
        assert_eq!(allocate(&groups, 7).unwrap(), [1, 0], "2 + 5 bytes lose 10, 4 + 2 lose 9");
        assert_eq!(allocate(&groups, 6).unwrap(), [1, 0]);
        let error = allocate(&groups, 3).unwrap_err();
        assert_eq!((error.least, least_bytes(&groups)), (4, 4));
        assert_eq!(error.to_string(), "no allocation fits into 3 bytes; the smallest possible takes 4");
        assert_eq!(allocate(&[], 0), Ok(vec![]));
    }

    #[test]
    fn what_is_not_finite_is_the_last_resort() {
        let a = |bytes, loss| Alternative { bytes, loss };
        let groups = [vec![a(1, f64::NAN), a(3, 2.0)], vec![a(1, f64::INFINITY), a(2, 1.0)]];
        assert_eq!(allocate(&groups, 5).unwrap(), [1, 1]);
        assert_eq!(allocate(&groups, 2).unwrap(), [0, 0]);
    }

    fn instances() -> impl Strategy<Value = Vec<Vec<Alternative>>> {
        let one = (1u64..40, 0u32..1000).prop_map(|(bytes, loss)| Alternative { bytes, loss: f64::from(loss) / 64.0 });
        prop::collection::vec(prop::collection::vec(one, 1..5), 1..6)
    }

    proptest! {
        #[test]
        fn no_allocation_is_better(groups in instances(), share in 0.0f64..1.2) {
            let least = least_bytes(&groups);
            let most: u64 = groups.iter().map(|g| g.iter().map(|a| a.bytes).max().unwrap()).sum();
            let budget = (least as f64 + share * (most - least) as f64) as u64;
            let chosen = allocate(&groups, budget).unwrap();
            let (bytes, loss) = total(&groups, &chosen);
            prop_assert!(bytes <= budget);
            prop_assert_eq!(loss, brute(&groups, budget).unwrap());
            if least > 0 {
                prop_assert_eq!(allocate(&groups, least - 1).unwrap_err().least, least);
            }
        }

        #[test]
        fn a_larger_budget_never_loses_more(groups in instances(), a in 0u64..80, b in 0u64..80) {
            let least = least_bytes(&groups);
            let loss = |budget| total(&groups, &allocate(&groups, budget).unwrap()).1;
            prop_assert!(loss(least + a.max(b)) <= loss(least + a.min(b)));
        }
    }

    #[test]
    fn a_model_of_many_blocks_is_allocated_close_to_its_bound() {
        // 28 blocks of four groups with smoothly falling losses, as sensitivities look.
        let groups: Vec<Vec<Alternative>> = (0..112u32)
            .map(|g| {
                let weight = 1.0 + f64::from(g * 7 % 13);
                let size = 1000 + u64::from(g % 4) * 700;
                let of = |bits: u32| Alternative { bytes: size * u64::from(bits), loss: weight * 4f64.powi(-(bits as i32)) };
                (2..=8).map(of).collect()
            })
            .collect();
        let budget = groups.iter().map(|g| g[2].bytes + g[0].bytes / 7).sum();
        let (bytes, loss) = total(&groups, &allocate(&groups, budget).unwrap());
        let uniform: f64 = groups.iter().map(|g| g[2].loss).sum();
        assert!(bytes <= budget && budget - bytes < 4000, "{bytes} of {budget}");
        assert!(loss < 0.8 * uniform, "{loss} against {uniform}");
    }
}
