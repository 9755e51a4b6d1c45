//! `octet bench --memory-budget`: all models are held together, with every cache that is measured, and refused before any is
//! loaded where that is too much.

use super::bench::{MOST_STEPS, options};
use crate::{args::Bench, budget::Size, resolve};
use anyhow::{Result, bail};
use octet_eval::bench::BenchOptions;
use octet_kernels::KvDtype;
use octet_runtime::MemoryNeeds;

/// Refuses what is forecast to take more than the budget, if there is one.
pub(super) fn check(args: &Bench, threads: usize) -> Result<()> {
    let Some(Size(budget)) = args.memory.memory_budget else { return Ok(()) };
    let needs: Vec<MemoryNeeds> =
        args.models.iter().map(|name| Ok(MemoryNeeds::of(&resolve::resolve(name)?, None, threads)?)).collect::<Result<_>>()?;
    let longest = needs.iter().map(MemoryNeeds::longest).min().unwrap_or(0);
    let tokens = tokens(&options(args, longest)?, longest);
    let taken: Vec<Taken> = needs.iter().map(|needs| Taken::of(needs, &tokens, args.cache.kv.into())).collect();
    // The limit of decoding is a read of as many bytes as a step reads.
    let read = taken.iter().map(|t| t.weights + t.kv).max().unwrap_or(0);
    let base = taken.iter().map(|t| t.base).max().unwrap_or(0);
    let sum = |part: fn(&Taken) -> u64| taken.iter().map(part).sum::<u64>();
    let (weights, kv, buffers) = (sum(|t| t.weights), sum(|t| t.kv), sum(|t| t.buffers));
    let total = weights + kv + buffers + base + read;
    if total <= budget {
        return Ok(());
    }
    let remedy = if weights + base > budget {
        "give fewer models, models of fewer bits or a larger budget"
    } else {
        "give shorter prompts and contexts (--prefill, --context), smaller batches (--batch) or a larger budget"
    };
    let [total, weights, kv, buffers, base, read, budget] = [total, weights, kv, buffers, base, read, budget].map(Size);
    bail!(
        "timing {} needs {total} (weights {weights}, keys and values of {} sequences {kv}, buffers {buffers}, the read that decoding is held against {read}, program and \
         tokenizer {base}), more than the --memory-budget of {budget}; {remedy}",
        args.models.join(", "),
        tokens.len(),
    );
}

/// The most tokens that each sequence of the largest batch ever holds.
fn tokens(options: &BenchOptions, longest: usize) -> Vec<usize> {
    let decode = options.decode.iter().map(|&(context, batch)| (context + options.steps.unwrap_or(MOST_STEPS), batch));
    let phases: Vec<(usize, usize)> = options.prefill.iter().map(|&tokens| (tokens, 1)).chain(decode).collect();
    let most = phases.iter().map(|(_, batch)| *batch).max().unwrap_or(0);
    let of = |sequence: usize| phases.iter().filter(|(_, batch)| *batch > sequence).map(|(tokens, _)| *tokens.min(&longest)).max();
    (0..most).filter_map(of).collect()
}

/// Bytes one model takes.
struct Taken {
    weights: u64,
    kv: u64,
    buffers: u64,
    base: u64,
}

impl Taken {
    fn of(needs: &MemoryNeeds, tokens: &[usize], kv: KvDtype) -> Self {
        let longest = needs.at(tokens.iter().copied().max().unwrap_or(1), kv);
        let kv = tokens.iter().map(|&tokens| needs.at(tokens, kv).kv).sum();
        Self { weights: longest.weights, kv, buffers: longest.buffers, base: longest.base }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sequences_hold_what_their_longest_phase_does() {
        let phases = |prefill: &[usize], decode: &[(usize, usize)], steps| {
            let options = BenchOptions {
                prefill: prefill.to_vec(),
                decode: decode.to_vec(),
                steps,
                rounds: 1,
                repetition: Duration::ZERO,
                budget: Duration::ZERO,
            };
            tokens(&options, 2048)
        };
        assert_eq!(phases(&[128, 512], &[(0, 1), (2000, 1), (0, 3)], Some(4)), [2004, 4, 4]);
        assert_eq!(phases(&[600], &[(0, 2)], None), [600, MOST_STEPS]);
        assert_eq!(phases(&[], &[(2047, 1)], None), [2048]);
    }
}
