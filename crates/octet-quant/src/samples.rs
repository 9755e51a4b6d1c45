//! The windows of a text that calibration runs on.

/// Windows of tokens, drawn from a text by a seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    tokens: Vec<u32>,
    /// Where each window ends.
    ends: Vec<usize>,
}

impl Samples {
    /// Cuts `ids` into windows of `length` tokens (the last may be shorter) and draws `count` of them by `seed`, in the
    /// text's order; all of them where there are no more.
    pub fn draw(ids: &[u32], count: usize, length: usize, seed: u64) -> Self {
        let windows: Vec<&[u32]> = ids.chunks(length.max(1)).filter(|window| window.len() > 1).collect();
        let mut chosen: Vec<usize> = (0..windows.len()).collect();
        if windows.len() > count {
            // A shorter window is the last choice: it tells less.
            let whole = ids.len() / length.max(1);
            if whole >= count {
                chosen.truncate(whole);
            }
            let mut random = SplitMix(seed);
            for i in 0..count {
                let other = i + random.below(chosen.len() - i);
                chosen.swap(i, other);
            }
            chosen.truncate(count);
            chosen.sort_unstable();
        }
        let mut samples = Self { tokens: vec![], ends: vec![] };
        for index in chosen {
            samples.push(windows[index]);
        }
        samples
    }

    /// All tokens, window after window.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The windows, in order.
    pub fn windows(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.tokens[start..end])
    }

    /// Every `step`th window aside: the others, and those. What is made of the others has not seen them. Neither part is empty
    /// where there are two windows; of one both parts are that one.
    pub fn held_out(&self, step: usize) -> (Self, Self) {
        if self.len() < 2 {
            return (self.clone(), self.clone());
        }
        let step = step.clamp(2, self.len());
        let (mut others, mut held) = (Self { tokens: vec![], ends: vec![] }, Self { tokens: vec![], ends: vec![] });
        for (index, window) in self.windows().enumerate() {
            let part = if index % step == step - 1 { &mut held } else { &mut others };
            part.push(window);
        }
        (others, held)
    }

    fn push(&mut self, window: &[u32]) {
        self.tokens.extend_from_slice(window);
        self.ends.push(self.tokens.len());
    }

    /// Tokens of each window, in order.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.windows().map(<[u32]>::len)
    }

    /// How many different tokens occur.
    pub fn distinct(&self) -> usize {
        let mut tokens = self.tokens.clone();
        tokens.sort_unstable();
        tokens.dedup();
        tokens.len()
    }
}

/// SplitMix64 (Steele et al. 2014).
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The bias of a 128-bit product is far below what any sample could show.
        ((u128::from(z ^ (z >> 31)) * limit.max(1) as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_drawn_by_the_seed_without_repetition() {
        let ids: Vec<u32> = (0..1005).collect();
        let drawn = Samples::draw(&ids, 10, 10, 7);
        assert_eq!(drawn, Samples::draw(&ids, 10, 10, 7));
        assert_ne!(drawn, Samples::draw(&ids, 10, 10, 8));
        assert_eq!((drawn.len(), drawn.tokens().len(), drawn.distinct()), (10, 100, 100));
        assert!(drawn.tokens().is_sorted() && drawn.lengths().all(|length| length == 10));
    }

    #[test]
    fn little_text_is_taken_whole() {
        let ids: Vec<u32> = (0..25).collect();
        let drawn = Samples::draw(&ids, 64, 10, 0);
        assert_eq!((drawn.tokens(), drawn.lengths().collect::<Vec<_>>()), (&ids[..], vec![10, 10, 5]));
        assert!(Samples::draw(&ids[..1], 64, 10, 0).is_empty());
        assert_eq!(Samples::draw(&ids, 2, 10, 0).tokens().len(), 20);
    }

    #[test]
    fn held_out_windows_and_the_others_are_all() {
        let ids: Vec<u32> = (0..95).collect();
        for (count, held, others) in [(10, vec![3, 7], 8), (3, vec![2], 2), (2, vec![1], 1)] {
            let all = Samples::draw(&ids[..count * 10 - 5], 64, 10, 0);
            let (rest, aside) = all.held_out(4);
            assert_eq!((rest.len(), aside.windows().map(|w| w[0] / 10).collect::<Vec<_>>()), (others, held));
            let mut tokens = [rest.tokens(), aside.tokens()].concat();
            tokens.sort_unstable();
            assert_eq!(tokens, all.tokens());
        }
        let one = Samples::draw(&ids[..5], 64, 10, 0);
        assert_eq!(one.held_out(4), (one.clone(), one.clone()));
    }
}
