//! A mixture of experts: the router's choice, then each expert over the rows that chose it.

use crate::{
    graph::{Expert, Slot},
    load::{LoadedLinear, LoadedPart},
    sites::{InputKind, InputSite},
    stage::Pass,
};
use octet_kernels::{ActivationFn, Gated, MatmulJob, Source};
use smallvec::SmallVec;

/// Who goes where; kept between passes so that its buffers are reused.
#[derive(Default)]
pub(crate) struct Routes {
    /// Expert, row, weight; sorted by expert and row.
    chosen: Vec<(usize, usize, f32)>,
    order: Vec<usize>,
    input: Vec<f32>,
}

/// A mixture of experts, loaded.
pub(crate) struct Mixture<'a> {
    pub(crate) router: &'a LoadedLinear,
    pub(crate) experts: &'a [Expert<LoadedLinear>],
    pub(crate) layer: usize,
    pub(crate) per_token: usize,
    pub(crate) normalize: bool,
    pub(crate) activation: ActivationFn,
}

impl Mixture<'_> {
    /// Computes the mixture of [`Slot::Normed`] into [`Slot::Branch`].
    pub(crate) fn run(&self, pass: &mut Pass<'_, '_, '_>) {
        let (x, rows) = (pass.ws.take(Slot::Normed), pass.ws.rows());
        let mut routes = std::mem::take(&mut pass.ws.routes);
        self.tap(pass, InputKind::Mlp, &x, rows);
        let mut scores = pass.ws.take_sized(Slot::Logits, rows * self.experts.len());
        product(pass, &x, rows, &mut [(self.router.parts.as_slice(), &mut scores)]);
        self.choose(&mut scores, &mut routes);
        pass.ws.put(Slot::Logits, scores);

        let width = x.len() / rows.max(1);
        let mut sum = pass.ws.take(Slot::Branch);
        sum.clear();
        sum.resize(x.len(), 0.0);
        let chosen = std::mem::take(&mut routes.chosen);
        for run in chosen.chunk_by(|a, b| a.0 == b.0) {
            routes.input.clear();
            run.iter().for_each(|&(_, row, _)| routes.input.extend_from_slice(&x[row * width..(row + 1) * width]));
            let out = self.expert(pass, run[0].0, &routes.input, run.len());
            for (&(_, row, weight), values) in run.iter().zip(out.chunks_exact(width)) {
                sum[row * width..(row + 1) * width].iter_mut().zip(values).for_each(|(s, v)| *s += weight * v);
            }
            pass.ws.put(Slot::Q, out);
        }
        routes.chosen = chosen;
        pass.ws.routes = routes;
        pass.ws.put(Slot::Branch, sum);
        pass.ws.put(Slot::Normed, x);
    }

    /// One expert over `rows` rows; the result comes in a borrowed slot's buffer.
    fn expert(&self, pass: &mut Pass<'_, '_, '_>, index: usize, x: &[f32], rows: usize) -> Vec<f32> {
        let expert = &self.experts[index];
        self.tap(pass, InputKind::Expert(index), x, rows);
        let width = |linear: &LoadedLinear| linear.parts.iter().map(|p| p.weights.rows()).sum::<usize>();
        let mut gate = pass.ws.take_sized(Slot::Gate, rows * width(&expert.gate));
        match (&pass.tap, expert.gate.parts.first(), expert.up.parts.first()) {
            (None, Some(g), Some(u)) => {
                let (g, u) = ((&*g.weights, g.bias.as_deref()), (&*u.weights, u.bias.as_deref()));
                pass.engine.gated(Source::rows(x), rows, Gated { function: self.activation, gate: g, up: u, out: &mut gate });
            }
            _ => {
                let mut up = pass.ws.take_sized(Slot::Up, rows * width(&expert.up));
                product(pass, x, rows, &mut [(&expert.gate.parts, &mut gate), (&expert.up.parts, &mut up)]);
                pass.engine.gate(self.activation, &mut gate, &up);
                pass.ws.put(Slot::Up, up);
            }
        }
        self.tap(pass, InputKind::ExpertDown(index), &gate, rows);
        let mut out = pass.ws.take_sized(Slot::Q, rows * width(&expert.down));
        product(pass, &gate, rows, &mut [(&expert.down.parts, &mut out)]);
        pass.ws.put(Slot::Gate, gate);
        out
    }

    /// Softmax over all experts, then the best few of each row (of equals, the earlier).
    fn choose(&self, scores: &mut [f32], routes: &mut Routes) {
        let Routes { chosen, order, .. } = routes;
        chosen.clear();
        for (row, scores) in scores.chunks_exact_mut(self.experts.len()).enumerate() {
            softmax(scores);
            order.clear();
            order.extend(0..scores.len());
            order.sort_unstable_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            order.truncate(self.per_token);
            let sum: f32 = if self.normalize { order.iter().map(|&e| scores[e]).sum() } else { 1.0 };
            chosen.extend(order.iter().map(|&expert| (expert, row, scores[expert] / sum)));
        }
        chosen.sort_unstable_by_key(|&(expert, row, _)| (expert, row));
    }

    fn tap(&self, pass: &mut Pass<'_, '_, '_>, kind: InputKind, x: &[f32], rows: usize) {
        if let Some(tap) = &mut pass.tap {
            tap.input(InputSite { layer: Some(self.layer), kind }, x, rows);
        }
    }
}

/// Products of the same input with several linears of one part each.
fn product(pass: &Pass<'_, '_, '_>, x: &[f32], rows: usize, outputs: &mut [(&[LoadedPart], &mut Vec<f32>)]) {
    let mut jobs: SmallVec<[MatmulJob<'_>; 2]> = outputs
        .iter_mut()
        .filter_map(|(parts, out)| {
            let part = parts.first()?;
            Some(MatmulJob { weights: &part.weights, bias: part.bias.as_deref(), out: out.as_mut_slice(), accumulate: false })
        })
        .collect();
    pass.engine.matmul(x, rows, &mut jobs);
}

fn softmax(scores: &mut [f32]) {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - top).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}
