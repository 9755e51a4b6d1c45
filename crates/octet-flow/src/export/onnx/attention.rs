//! Rotary embeddings, masks and attention over a cache.

use super::graph::Builder;
use crate::Result;
use octet_formats::onnx::{Attribute, Elem};
use octet_model::graph::Slot;

/// What a masked score becomes.
const MASKED: f32 = -3.0e38;

fn axis(n: i64) -> [(&'static str, Attribute); 1] {
    [("axis", Attribute::Int(n))]
}

impl Builder<'_> {
    /// The number of tokens with the past, as a scalar.
    fn total(&mut self) -> String {
        let shape = self.op("Shape", &["attention_mask"], &[]);
        let one = self.int(1);
        self.op("Gather", &[&shape, &one], &[])
    }

    /// What is in a slot as `[batch, heads, tokens, width of a head]`.
    fn by_head(&mut self, slot: Slot, heads: usize, head_dim: usize) -> Result<String> {
        let value = self.slot(slot)?;
        let batch = self.op("Shape", &["input_ids"], &[]);
        let rest = self.ints(&[heads as i64, head_dim as i64]);
        let shape = self.op("Concat", &[&batch, &rest], &axis(0));
        let split = self.op("Reshape", &[&value, &shape], &[]);
        Ok(self.op("Transpose", &[&split], &[("perm", Attribute::Ints(vec![0, 2, 1, 3]))]))
    }

    /// Cosines and sines `[batch, 1, tokens, dims / 2]` of a rotary embedding.
    fn turns(&mut self, rope: usize) -> [String; 2] {
        if let Some(known) = self.turns.get(&rope) {
            return known.clone();
        }
        let source = self.job.source;
        let rotary = &source.spec.ropes()[rope];
        let factor = rotary.attention_factor();
        let short = self.numbers(&rotary.frequencies(1));
        let mut frequencies = short;
        if let Some(original) = rotary.switches_at() {
            let long = self.numbers(&rotary.frequencies(original + 1));
            let (total, limit) = (self.total(), self.int(original as i64));
            let beyond = self.op("Greater", &[&total, &limit], &[]);
            frequencies = self.op("Where", &[&beyond, &long, &frequencies], &[]);
        }
        let places = self.cast("position_ids", Elem::F32);
        let axes = self.ints(&[1, 3]);
        let places = self.op("Unsqueeze", &[&places, &axes], &[]);
        let angles = self.op("Mul", &[&places, &frequencies], &[]);
        let both = ["Cos", "Sin"].map(|op| {
            let plain = self.op(op, &[&angles], &[]);
            if factor == 1.0 {
                return plain;
            }
            let factor = self.number(factor);
            self.op("Mul", &[&plain, &factor], &[])
        });
        self.turns.insert(rope, both.clone());
        both
    }

    /// Turns queries and keys: dimensions i and i + dims / 2 of a head by the same angle.
    pub(super) fn turn(&mut self, rope: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Result<()> {
        let [cos, sin] = self.turns(rope);
        let dims = self.job.source.spec.ropes()[rope].dims;
        for (slot, count) in [(Slot::Q, heads), (Slot::K, kv_heads)] {
            let value = self.by_head(slot, count, head_dim)?;
            let (low, high) = (self.cut(&value, 0..dims / 2), self.cut(&value, dims / 2..dims));
            let mut times = |a: &str, b: &str| self.op("Mul", &[a, b], &[]);
            let [low_cos, high_sin, high_cos, low_sin] = [times(&low, &cos), times(&high, &sin), times(&high, &cos), times(&low, &sin)];
            let first = self.op("Sub", &[&low_cos, &high_sin], &[]);
            let second = self.op("Add", &[&high_cos, &low_sin], &[]);
            let mut parts = vec![first, second];
            if dims < head_dim {
                parts.push(self.cut(&value, dims..head_dim));
            }
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let turned = self.op("Concat", &parts, &axis(-1));
            self.heads.insert(slot, turned);
        }
        Ok(())
    }

    /// What is added to scores `[batch, 1, 1, tokens, total]`: nothing where a query sees a key.
    fn mask(&mut self, window: Option<usize>) -> String {
        if let Some(known) = self.masks.get(&window) {
            return known.clone();
        }
        let total = self.total();
        let shape = self.op("Shape", &["input_ids"], &[]);
        let (zero, one) = (self.int(0), self.int(1));
        let tokens = self.op("Gather", &[&shape, &one], &[]);
        let past = self.op("Sub", &[&total, &tokens], &[]);
        let keys = self.op("Range", &[&zero, &total, &one], &[]);
        let queries = self.op("Range", &[&past, &total, &one], &[]);
        let column = self.ints(&[1]);
        let queries = self.op("Unsqueeze", &[&queries, &column], &[]);
        let mut seen = self.op("LessOrEqual", &[&keys, &queries], &[]);
        if let Some(window) = window {
            let window = self.int(window as i64);
            let edge = self.op("Sub", &[&queries, &window], &[]);
            let inside = self.op("Greater", &[&keys, &edge], &[]);
            seen = self.op("And", &[&seen, &inside], &[]);
        }
        let real = self.op("Greater", &["attention_mask", &zero], &[]);
        let real = self.op("Unsqueeze", &[&real, &column], &[]);
        let seen = self.op("And", &[&seen, &real], &[]);
        let (nothing, masked) = (self.number(0.0), self.number(MASKED));
        let mask = self.op("Where", &[&seen, &nothing, &masked], &[]);
        let axes = self.ints(&[1, 2]);
        let mask = self.op("Unsqueeze", &[&mask, &axes], &[]);
        self.masks.insert(window, mask.clone());
        mask
    }

    pub(super) fn attend(&mut self, layer: usize, heads: usize, scale: f32, window: Option<usize>, soft_cap: Option<f32>) -> Result<()> {
        let attention = &self.job.source.spec.layers()[layer].attention;
        let (kv_heads, head_dim) = (attention.kv_heads, attention.head_dim);
        let queries = match self.heads.remove(&Slot::Q) {
            Some(turned) => turned,
            None => self.by_head(Slot::Q, heads, head_dim)?,
        };
        let keys = match self.heads.remove(&Slot::K) {
            Some(turned) => turned,
            None => self.by_head(Slot::K, kv_heads, head_dim)?,
        };
        let values = self.by_head(Slot::V, kv_heads, head_dim)?;
        let [keys, values] = [("key", keys), ("value", values)].map(|(what, new)| {
            let name = format!("present.{layer}.{what}");
            self.graph.node("", "Concat", &[&format!("past_key_values.{layer}.{what}"), &new], &[&name], &axis(2));
            let axes = self.ints(&[2]);
            self.op("Unsqueeze", &[&name, &axes], &[])
        });
        // Query heads that share a key head lie beside each other.
        let queries = self.reshape(&queries, &[0, kv_heads as i64, (heads / kv_heads.max(1)) as i64, -1, head_dim as i64]);
        let keys = self.op("Transpose", &[&keys], &[("perm", Attribute::Ints(vec![0, 1, 2, 4, 3]))]);
        let scores = self.op("MatMul", &[&queries, &keys], &[]);
        let scale = self.number(scale);
        let mut scores = self.op("Mul", &[&scores, &scale], &[]);
        if let Some(cap) = soft_cap {
            scores = self.capped(&scores, cap);
        }
        let mask = self.mask(window);
        let scores = self.op("Add", &[&scores, &mask], &[]);
        let shares = self.op("Softmax", &[&scores], &axis(-1));
        let attended = self.op("MatMul", &[&shares, &values], &[]);
        let attended = self.reshape(&attended, &[0, heads as i64, -1, head_dim as i64]);
        let attended = self.op("Transpose", &[&attended], &[("perm", Attribute::Ints(vec![0, 2, 1, 3]))]);
        let attended = self.reshape(&attended, &[-1, (heads * head_dim) as i64]);
        self.slots.insert(Slot::Attended, attended);
        Ok(())
    }
}
