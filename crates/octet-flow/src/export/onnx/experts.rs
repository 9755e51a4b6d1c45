//! A mixture of experts: each expert computes the tokens that were routed to it.

use super::graph::Builder;
use crate::Result;
use octet_formats::onnx::Attribute;
use octet_kernels::ActivationFn;
use octet_model::graph::{Expert, Linear, Slot};

/// How tokens are routed.
#[derive(Clone, Copy)]
pub(super) struct Routing {
    pub per_token: usize,
    /// Whether the chosen shares are divided by their sum.
    pub normalize: bool,
    pub activation: ActivationFn,
}

impl Builder<'_> {
    /// [`Slot::Normed`] to [`Slot::Branch`].
    pub(super) fn experts(&mut self, router: &Linear, experts: &[Expert<Linear>], routing: Routing) -> Result<()> {
        let input = self.slot(Slot::Normed)?;
        let shares = self.shares(&input, router, routing)?;
        let shape = self.op("Shape", &[&input], &[]);
        let mut sum = self.op("ConstantOfShape", &[&shape], &[]);
        for (index, expert) in experts.iter().enumerate() {
            let column = self.cut(&shares, index..index + 1);
            let flat = self.reshape(&column, &[-1]);
            let chosen = self.op("NonZero", &[&flat], &[]);
            let rows = self.reshape(&chosen, &[-1]);
            let [tokens, shares] = [&input, &column].map(|from| self.op("Gather", &[from, &rows], &[]));
            let (gate, up) = (self.affine(&tokens, &expert.gate)?, self.affine(&tokens, &expert.up)?);
            let gate = self.activation(routing.activation, &gate);
            let between = self.op("Mul", &[&gate, &up], &[]);
            let out = self.affine(&between, &expert.down)?;
            let out = self.op("Mul", &[&out, &shares], &[]);
            let places = self.op("Transpose", &[&chosen], &[("perm", Attribute::Ints(vec![1, 0]))]);
            sum = self.op("ScatterND", &[&sum, &places, &out], &[("reduction", Attribute::Text("add".into()))]);
        }
        let width = router.site.cols;
        self.put(Slot::Branch, sum, width);
        Ok(())
    }

    /// The share of every expert in every token `[tokens, experts]`: softmax over all, then the best few.
    fn shares(&mut self, input: &str, router: &Linear, routing: Routing) -> Result<String> {
        let scores = self.affine(input, router)?;
        let all = self.op("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
        let count = self.ints(&[routing.per_token as i64]);
        let [mut best, which] = self.two("TopK", &[&all, &count], &[("axis", Attribute::Int(-1))]);
        if routing.normalize {
            let axis = self.ints(&[-1]);
            let sum = self.op("ReduceSum", &[&best, &axis], &[("keepdims", Attribute::Int(1))]);
            best = self.op("Div", &[&best, &sum], &[]);
        }
        let shape = self.op("Shape", &[&all], &[]);
        let none = self.op("ConstantOfShape", &[&shape], &[]);
        Ok(self.op("ScatterElements", &[&none, &which, &best], &[("axis", Attribute::Int(-1))]))
    }
}
