//! Scalar mathematics on logits: log-sum-exp and the Kullback-Leibler divergence.

/// ln Σ exp(logits), without overflow; NaN where a logit is NaN.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return f64::from(max);
    }
    let sum: f64 = logits.iter().map(|&v| f64::from((v - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// How far one next-token distribution is from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// KL(p ‖ q) in nats, never negative.
    pub kl: f64,
    /// Whether both put the same token first.
    pub same_top: bool,
}

/// KL(softmax(p) ‖ softmax(q)) in nats over one position's logits, and whether their top tokens agree.
///
/// A logit that is not finite makes the divergence infinite.
pub fn kl_divergence(p: &[f32], q: &[f32]) -> Divergence {
    kl_divergence_from(p, log_sum_exp(p), q, log_sum_exp(q))
}

/// As [`kl_divergence`], for callers that have the [`log_sum_exp`] of both already.
pub fn kl_divergence_from(p: &[f32], lp: f64, q: &[f32], lq: f64) -> Divergence {
    let same_top = argmax(p) == argmax(q);
    if !lp.is_finite() || !lq.is_finite() {
        return Divergence { kl: f64::INFINITY, same_top: false };
    }
    let shift = lq - lp;
    let kl: f64 = p.iter().zip(q).map(|(&a, &b)| (f64::from(a) - lp).exp() * (f64::from(a) - f64::from(b) + shift)).sum();
    Divergence { kl: if kl.is_nan() { f64::INFINITY } else { kl.max(0.0) }, same_top }
}

fn argmax(values: &[f32]) -> usize {
    values.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_known_divergence() {
        let d = kl_divergence(&[0.5f32.ln(), 0.5f32.ln()], &[0.25f32.ln(), 0.75f32.ln()]);
        assert!((d.kl - (0.5 * 2f64.ln() + 0.5 * (0.5f64 / 0.75).ln())).abs() < 1e-6);
        assert!(!kl_divergence(&[1.0, 0.0], &[f32::NAN, 0.0]).kl.is_finite());
    }

    proptest! {
        #[test]
        fn zero_on_itself_and_blind_to_shifts(p in prop::collection::vec(-20f32..20.0, 2..50), shift in -5f32..5.0) {
            let q: Vec<f32> = p.iter().map(|v| v + shift).collect();
            prop_assert!(kl_divergence(&p, &q).kl < 1e-5);
            prop_assert!(kl_divergence(&p, &p).same_top);
        }
    }
}
