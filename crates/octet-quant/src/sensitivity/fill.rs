//! Losses that were not measured, from those that were.

use super::GroupLosses;

/// An error or loss below this is none.
const TINY: f64 = 1e-12;

/// Which of a group's options to measure, `most` of them at most: spread evenly over the errors they leave.
pub(super) fn anchors(errors: &[f64], most: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..errors.len()).filter(|&i| errors[i] > TINY).collect();
    order.sort_by(|&a, &b| errors[a].total_cmp(&errors[b]));
    if order.len() <= most {
        return order;
    }
    if most <= 1 {
        // One in the middle: where the schemes are that most groups end with.
        return order.get(order.len() / 2).copied().into_iter().take(most).collect();
    }
    (0..most).map(|i| order[i * (order.len() - 1) / (most - 1)]).collect()
}

/// Gives every option of `group` a loss from its measured ones: on the line through the two measured neighbours in logarithms
/// of error and loss, in proportion to the error beyond the last.
pub(super) fn from_anchors(group: &mut GroupLosses) {
    let mut known: Vec<(f64, f64)> =
        group.options.iter().filter(|o| o.measured && o.error > TINY).map(|o| (o.error.ln(), o.loss.max(TINY).ln())).collect();
    known.sort_by(|a, b| a.0.total_cmp(&b.0));
    for option in group.options.iter_mut().filter(|option| !option.measured) {
        option.loss = if option.error > TINY { at(&known, option.error.ln()).exp() } else { 0.0 };
    }
}

fn at(known: &[(f64, f64)], x: f64) -> f64 {
    let (Some(first), Some(last)) = (known.first(), known.last()) else { return f64::INFINITY };
    let next = known.partition_point(|point| point.0 <= x);
    match (known.get(next.wrapping_sub(1)), known.get(next)) {
        (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0).max(TINY),
        (Some(_), None) => last.1 + x - last.0,
        _ => first.1 + x - first.0,
    }
}

/// Gives groups without any measurement losses by those of the same kind: loss over error, interpolated over the blocks
/// between them in logarithms.
pub(super) fn from_others(groups: &mut [GroupLosses]) {
    let ratio = |group: &GroupLosses| {
        let known: Vec<f64> = group.options.iter().filter(|o| o.measured && o.error > TINY).map(|o| o.loss.max(TINY) / o.error).collect();
        (!known.is_empty()).then(|| known.iter().map(|v| v.ln()).sum::<f64>() / known.len() as f64)
    };
    let known: Vec<(String, f64, f64)> =
        groups.iter().filter_map(|g| Some((g.group.kind.clone(), g.group.layer.unwrap_or(0) as f64, ratio(g)?))).collect();
    let all = known.iter().map(|(_, _, ratio)| ratio).sum::<f64>() / known.len().max(1) as f64;
    for group in groups.iter_mut().filter(|group| ratio(group).is_none()) {
        let layer = group.group.layer.unwrap_or(0) as f64;
        let same: Vec<(f64, f64)> = known.iter().filter(|(kind, _, _)| *kind == group.group.kind).map(|(_, l, r)| (*l, *r)).collect();
        let next = same.partition_point(|point| point.0 <= layer);
        let ratio = match (same.get(next.wrapping_sub(1)), same.get(next)) {
            (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (layer - a.0) / (b.0 - a.0).max(TINY),
            (Some(one), None) | (None, Some(one)) => one.1,
            (None, None) => all,
        };
        for option in &mut group.options {
            option.loss = ratio.exp() * option.error;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensitivity::{FusedGroup, OptionLoss};

    fn group(layer: usize, options: &[(f64, Option<f64>)]) -> GroupLosses {
        let group = FusedGroup { name: format!("{layer}"), modules: vec![], layer: Some(layer), kind: "o".into(), weights: 1 };
        let option = |&(error, loss): &(f64, Option<f64>)| OptionLoss {
            scheme: None,
            bytes: 1,
            error,
            loss: loss.unwrap_or(0.0),
            measured: loss.is_some(),
        };
        GroupLosses { group, options: options.iter().map(option).collect() }
    }

    #[test]
    fn anchors_span_the_errors() {
        let errors = [0.04, 0.0, 0.01, 0.16, 0.64, 0.0025];
        assert_eq!(anchors(&errors, 9), [5, 2, 0, 3, 4]);
        assert_eq!(anchors(&errors, 3), [5, 0, 4]);
        assert_eq!(anchors(&errors, 1), [0]);
        assert_eq!(anchors(&errors, 0), [] as [usize; 0]);
    }

    #[test]
    fn between_anchors_a_power_law_and_beyond_them_proportional() {
        let mut group = group(0, &[(0.01, Some(0.002)), (0.02, None), (0.04, Some(0.032)), (0.08, None), (0.005, None), (0.0, None)]);
        from_anchors(&mut group);
        let losses: Vec<f64> = group.options.iter().map(|o| o.loss).collect();
        for (found, expected) in losses.iter().zip([0.002, 0.008, 0.032, 0.064, 0.001, 0.0]) {
            assert!((found - expected).abs() < 1e-9, "{losses:?}");
        }
    }

    #[test]
    fn a_block_that_was_not_measured_lies_between_its_neighbours() {
        let mut groups = [group(0, &[(0.1, Some(0.1))]), group(1, &[(0.1, None), (0.2, None)]), group(2, &[(0.1, Some(0.4))])];
        from_others(&mut groups);
        assert!((groups[1].options[0].loss - 0.2).abs() < 1e-9 && (groups[1].options[1].loss - 0.4).abs() < 1e-9);
        assert_eq!(groups[2].options[0].loss, 0.4);
    }
}
