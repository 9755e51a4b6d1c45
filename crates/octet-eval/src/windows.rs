//! Evaluation text cut into windows as the WikiText protocol does it: joined text, no overlap, a stated context.

use crate::{Result, score::blocks_of, stats::GOOD_BLOCKS};
use octet_runtime::{TextModel, Tokenizer};

/// Longest window unless asked otherwise.
pub const DEFAULT_CONTEXT: usize = 2048;

/// A last piece of text shorter than this is left out.
const SHORTEST: usize = 32;

/// Windows of one text, ready to be scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// Token ids of each window, the beginning-of-sequence token in front where the tokenizer adds one; every token but
    /// the first is predicted.
    pub windows: Vec<Vec<u32>>,
    /// Bytes of text that the predicted tokens of each window stand for.
    pub bytes: Vec<usize>,
    /// Tokens of a full window.
    pub context: usize,
    /// The token in front of each window.
    pub bos: Option<u32>,
}

impl Windows {
    /// Cuts `ids` into windows of `context` tokens; `None` for [`usual_context`].
    ///
    /// # Errors
    /// If the ids cannot be decoded (to count bytes).
    pub fn of(model: &TextModel, ids: &[u32], context: Option<usize>) -> Result<Self> {
        let context = context.map_or_else(|| usual_context(ids.len(), model.context()), |asked| asked.min(model.context()));
        Self::cut(&model.tokenizer, ids, context, model.tokenizer.leading_bos())
    }

    /// Windows of pieces of text that were cut before, each by itself; a piece that leaves nothing to predict is left out.
    ///
    /// # Errors
    /// If the ids cannot be decoded (to count bytes).
    pub fn of_pieces<'a>(model: &TextModel, pieces: impl IntoIterator<Item = &'a [u32]>) -> Result<Self> {
        let (tokenizer, bos) = (&model.tokenizer, model.tokenizer.leading_bos());
        let cut = |piece: &&[u32]| bos.into_iter().chain(piece.iter().copied()).take(model.context()).collect::<Vec<u32>>();
        let windows: Vec<Vec<u32>> = pieces.into_iter().map(|piece| cut(&piece)).filter(|window| window.len() > 1).collect();
        Self::counted(tokenizer, windows, bos)
    }

    fn counted(tokenizer: &Tokenizer, windows: Vec<Vec<u32>>, bos: Option<u32>) -> Result<Self> {
        let bytes = windows.iter().map(|w| Ok(tokenizer.decode(&w[1..])?.len())).collect::<Result<_>>()?;
        let context = windows.iter().map(Vec::len).max().unwrap_or(0);
        Ok(Self { windows, bytes, context, bos })
    }

    fn cut(tokenizer: &Tokenizer, ids: &[u32], context: usize, bos: Option<u32>) -> Result<Self> {
        Ok(Self { context, ..Self::counted(tokenizer, cut(ids, context, bos), bos)? })
    }

    /// Predicted tokens in all.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(|w| w.len() - 1).sum()
    }

    /// Blocks of text that an interval rests on: see [`crate::score::BLOCK`].
    pub fn blocks(&self) -> usize {
        self.windows.iter().map(|window| blocks_of(window.len().saturating_sub(1))).sum()
    }

    /// Every second window, the first of all among them or not.
    pub fn every_second(&self, first: bool) -> Self {
        let from = usize::from(!first);
        let windows = self.windows.iter().skip(from).step_by(2).cloned().collect();
        Self { windows, bytes: self.bytes.iter().skip(from).step_by(2).copied().collect(), ..*self }
    }

    /// The first `count` windows.
    pub fn first(&self, count: usize) -> Self {
        let count = count.min(self.windows.len());
        Self { windows: self.windows[..count].to_vec(), bytes: self.bytes[..count].to_vec(), ..*self }
    }
}

/// Tokens of a window where none are asked for: min(2048, the model's context), and fewer (in steps of 64, not below 256)
/// where `tokens` of text would otherwise give less than the 100 windows that a bootstrap interval needs to be exact.
pub fn usual_context(tokens: usize, limit: usize) -> usize {
    let enough_windows = (tokens / GOOD_BLOCKS / 64 * 64).max(256);
    DEFAULT_CONTEXT.min(enough_windows).min(limit)
}

fn cut(ids: &[u32], context: usize, bos: Option<u32>) -> Vec<Vec<u32>> {
    let body = context.saturating_sub(usize::from(bos.is_some())).max(2);
    let long_enough = |chunk: &&[u32]| chunk.len() >= SHORTEST.min(body) || (ids.len() < SHORTEST && chunk.len() > 1);
    ids.chunks(body).filter(long_enough).map(|chunk| bos.into_iter().chain(chunk.iter().copied()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap_and_carry_their_bos() {
        let ids: Vec<u32> = (10..200).collect();
        let plain = cut(&ids, 50, None);
        assert_eq!(plain.iter().map(Vec::len).collect::<Vec<_>>(), [50, 50, 50, 40]);
        assert_eq!(plain.concat(), ids);
        let marked = cut(&ids, 50, Some(1));
        assert!(marked.iter().all(|w| w[0] == 1 && w.len() <= 50));
        assert_eq!(marked.iter().flat_map(|w| w[1..].to_vec()).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn short_texts_get_shorter_windows() {
        let cases = [(1_000_000, 8192, 2048), (50_195, 2048, 448), (102_400, 2048, 1024), (20_000, 2048, 256), (1_000_000, 512, 512)];
        for (tokens, limit, context) in cases {
            assert_eq!(usual_context(tokens, limit), context, "{tokens} tokens, {limit}");
        }
    }

    #[test]
    fn every_second_window_and_the_others_are_all() {
        for count in 0..6 {
            let windows: Vec<Vec<u32>> = (0..count).map(|i| vec![i; 3]).collect();
            let all = Windows { windows, bytes: (0..count as usize).collect(), context: 3, bos: None };
            let (even, odd) = (all.every_second(true), all.every_second(false));
            assert_eq!(even.windows.len(), count.div_ceil(2) as usize);
            assert!(even.bytes.iter().all(|b| b % 2 == 0) && odd.bytes.iter().all(|b| b % 2 == 1));
            assert_eq!(even.tokens() + odd.tokens(), all.tokens());
        }
    }

    #[test]
    fn a_stub_is_left_out_but_a_short_text_is_not() {
        let ids: Vec<u32> = (0..120).collect();
        assert_eq!(cut(&ids, 100, None).len(), 1);
        assert_eq!(cut(&ids[..20], 100, None), [ids[..20].to_vec()]);
        assert!(cut(&ids[..1], 100, None).is_empty());
    }
}
