//! From an [`ArchSpec`] to its [`BlockGraph`].

use crate::{
    graph::{BlockGraph, Expert, Linear, LinearGroup, Node, Param, PlainNode, Slot},
    sites::{InputKind, InputSite, LinearSite, Role},
    spec::{ArchSpec, LayerSpec, Mlp, Norm, NormPlacement, Position},
};
use octet_kernels::ActivationFn;

impl ArchSpec {
    /// The graph of the model.
    pub fn graph(&self) -> BlockGraph {
        let blocks = self.layers.iter().enumerate().map(|(index, layer)| BlockBuilder { spec: self, index, layer }.nodes()).collect();
        BlockGraph { embed: self.embed_node(), blocks, head: self.head_nodes() }
    }

    pub(crate) fn outer(&self, module: &str) -> String {
        format!("{}{module}", self.root)
    }

    /// Name of the head's module when it has its own.
    pub(crate) fn head_module(&self) -> &'static str {
        self.names.head
    }

    fn embed_node(&self) -> PlainNode {
        let kind = if self.head.tied { InputKind::Head } else { InputKind::Tokens };
        let site = LinearSite {
            module: self.outer(self.names.embedding),
            rows: self.vocab,
            cols: self.hidden,
            role: Role::Embedding,
            layer: None,
            input: InputSite { layer: None, kind },
            transposed: false,
        };
        let positions = self.embedding.learned_positions.map(|count| Param {
            name: format!("{}.weight", self.outer(self.names.positions)),
            shape: vec![count, self.hidden],
            plus_one: false,
        });
        Node::Embed {
            table: Linear { parts: vec![(Slot::Hidden, 0..site.rows)], site, bias: None, tied: false },
            scale: self.embedding.scale,
            positions,
        }
    }

    fn head_nodes(&self) -> Vec<PlainNode> {
        let input = InputSite { layer: None, kind: InputKind::Head };
        let site = LinearSite {
            module: if self.head.tied { self.outer(self.names.embedding) } else { self.names.head.into() },
            rows: self.vocab,
            cols: self.hidden,
            role: if self.head.tied { Role::Embedding } else { Role::Head },
            layer: None,
            input,
            transposed: false,
        };
        let linear = Linear { parts: vec![(Slot::Logits, 0..self.vocab)], site, bias: None, tied: self.head.tied };
        let norm = norm_node(self.norm, &self.outer(self.names.final_norm), self.hidden, Slot::Hidden, Slot::Normed);
        let group = LinearGroup { input, from: Slot::Normed, linears: vec![linear], accumulate: false };
        let cap = self.head.soft_cap.map(Node::SoftCap);
        [norm, Node::Linears(group)].into_iter().chain(cap).collect()
    }
}

fn norm_node(norm: Norm, module: &str, width: usize, from: Slot, to: Slot) -> PlainNode {
    let param = |what: &str, plus_one| Param { name: format!("{module}.{what}"), shape: vec![width], plus_one };
    match norm {
        Norm::Rms { eps, plus_one } => Node::Norm { weight: param("weight", plus_one), bias: None, eps, from, to },
        Norm::Layer { eps } => Node::Norm { weight: param("weight", false), bias: Some(param("bias", false)), eps, from, to },
    }
}

struct BlockBuilder<'a> {
    spec: &'a ArchSpec,
    index: usize,
    layer: &'a LayerSpec,
}

impl BlockBuilder<'_> {
    fn nodes(&self) -> Vec<PlainNode> {
        let names = self.spec.names;
        let mut nodes = vec![self.norm(names.attention_norm, Slot::Hidden, Slot::Normed)];
        self.attention(&mut nodes);
        self.join(&mut nodes, names.attention_post_norm);
        nodes.push(self.norm(names.mlp_norm, Slot::Hidden, Slot::Normed));
        self.mlp(&mut nodes);
        self.join(&mut nodes, names.mlp_post_norm);
        self.spec.turned_nodes(nodes)
    }

    fn attention(&self, nodes: &mut Vec<PlainNode>) {
        let (a, names, hidden) = (&self.layer.attention, self.spec.names, self.spec.hidden);
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let linears = if a.fused {
            let parts = vec![(Slot::Q, 0..q), (Slot::K, q..q + kv), (Slot::V, q + kv..q + 2 * kv)];
            vec![self.linear(names.qkv, Role::Qkv, hidden, parts, a.qkv_bias, InputKind::Attention)]
        } else {
            [(names.q, Role::Q, Slot::Q, q), (names.k, Role::K, Slot::K, kv), (names.v, Role::V, Slot::V, kv)]
                .map(|(name, role, slot, rows)| self.linear(name, role, hidden, vec![(slot, 0..rows)], a.qkv_bias, InputKind::Attention))
                .into()
        };
        nodes.push(self.group(InputKind::Attention, Slot::Normed, linears, false));
        if let Some(norm) = a.qk_norm {
            for (name, slot) in [(names.q_norm, Slot::Q), (names.k_norm, Slot::K)] {
                nodes.push(norm_node(norm, &self.module(name), a.head_dim, slot, slot));
            }
        }
        if let Position::Rope(rope) = a.position {
            nodes.push(Node::Rope { rope, heads: a.heads, kv_heads: a.kv_heads, head_dim: a.head_dim });
        }
        nodes.push(Node::Attend { heads: a.heads, scale: a.scale, window: a.window, soft_cap: a.soft_cap });
        nodes.push(self.closing(names.out, Role::O, q, a.out_bias, InputKind::AttentionOut, Slot::Attended));
    }

    fn mlp(&self, nodes: &mut Vec<PlainNode>) {
        let (names, hidden) = (self.spec.names, self.spec.hidden);
        match self.layer.mlp {
            Mlp::Gated { intermediate: width, activation, bias, fused } => {
                let linears = if fused {
                    let parts = vec![(Slot::Gate, 0..width), (Slot::Up, width..2 * width)];
                    vec![self.linear(names.gate_up, Role::GateUp, hidden, parts, bias, InputKind::Mlp)]
                } else {
                    [(names.gate, Role::Gate, Slot::Gate), (names.up, Role::Up, Slot::Up)]
                        .map(|(name, role, slot)| self.linear(name, role, hidden, vec![(slot, 0..width)], bias, InputKind::Mlp))
                        .into()
                };
                nodes.push(self.group(InputKind::Mlp, Slot::Normed, linears, false));
                nodes.push(Node::Gate(activation));
                nodes.push(self.closing(names.down, Role::Down, width, bias, InputKind::MlpDown, Slot::Gate));
            }
            Mlp::Plain { intermediate: width, activation, bias } => {
                let up = self.linear(names.up, Role::Up, hidden, vec![(Slot::Up, 0..width)], bias, InputKind::Mlp);
                nodes.push(self.group(InputKind::Mlp, Slot::Normed, vec![up], false));
                nodes.push(Node::Activate(activation));
                nodes.push(self.closing(names.down, Role::Down, width, bias, InputKind::MlpDown, Slot::Up));
            }
            Mlp::Experts { count, per_token, intermediate, activation, normalize } => {
                nodes.push(self.experts(count, per_token, intermediate, activation, normalize));
            }
        }
    }

    fn experts(&self, count: usize, per_token: usize, width: usize, activation: ActivationFn, normalize: bool) -> PlainNode {
        let (names, hidden) = (self.spec.names, self.spec.hidden);
        let router = self.linear(names.router, Role::Router, hidden, vec![(Slot::Logits, 0..count)], false, InputKind::Mlp);
        let linear = |index: usize, name: &str, role, (rows, cols), slot, input| {
            let own = name.rsplit('.').next().unwrap_or(name);
            self.linear(&format!("{}.{index}.{own}", names.experts), role, cols, vec![(slot, 0..rows)], false, input)
        };
        let expert = |i: usize| Expert {
            gate: linear(i, names.gate, Role::ExpertGate, (width, hidden), Slot::Gate, InputKind::Expert(i)),
            up: linear(i, names.up, Role::ExpertUp, (width, hidden), Slot::Up, InputKind::Expert(i)),
            down: linear(i, names.down, Role::ExpertDown, (hidden, width), Slot::Branch, InputKind::ExpertDown(i)),
        };
        Node::Experts { router, experts: (0..count).map(expert).collect(), layer: self.index, per_token, normalize, activation }
    }

    /// The last linear of a part: straight into the residual stream where nothing stands between.
    fn closing(&self, name: &str, role: Role, cols: usize, bias: bool, input: InputKind, from: Slot) -> PlainNode {
        let direct = self.layer.norms == NormPlacement::Before;
        let to = if direct { Slot::Hidden } else { Slot::Branch };
        let linear = self.linear(name, role, cols, vec![(to, 0..self.spec.hidden)], bias, input);
        self.group(input, from, vec![linear], direct)
    }

    /// What stands between the last linear of a part and the residual stream.
    fn join(&self, nodes: &mut Vec<PlainNode>, post_norm: &str) {
        if self.layer.norms == NormPlacement::BeforeAndAfter {
            nodes.push(self.norm(post_norm, Slot::Branch, Slot::Normed));
            nodes.push(Node::Add { from: Slot::Normed });
        } else if matches!(nodes.last(), Some(Node::Experts { .. })) {
            nodes.push(Node::Add { from: Slot::Branch });
        }
    }

    fn norm(&self, name: &str, from: Slot, to: Slot) -> PlainNode {
        norm_node(self.spec.norm, &self.module(name), self.spec.hidden, from, to)
    }

    fn group(&self, kind: InputKind, from: Slot, linears: Vec<Linear>, accumulate: bool) -> PlainNode {
        Node::Linears(LinearGroup { input: self.input(kind), from, linears, accumulate })
    }

    fn linear(
        &self,
        name: &str,
        role: Role,
        cols: usize,
        parts: Vec<(Slot, std::ops::Range<usize>)>,
        bias: bool,
        input: InputKind,
    ) -> Linear {
        let module = self.module(name);
        let rows = parts.last().map_or(0, |(_, range)| range.end);
        let bias = bias.then(|| Param { name: format!("{module}.bias"), shape: vec![rows], plus_one: false });
        let (layer, input, transposed) = (Some(self.index), self.input(input), self.spec.transposed);
        Linear { site: LinearSite { module, rows, cols, role, layer, input, transposed }, bias, parts, tied: false }
    }

    fn input(&self, kind: InputKind) -> InputSite {
        InputSite { layer: Some(self.index), kind }
    }

    fn module(&self, name: &str) -> String {
        format!("{}.{}.{name}", self.spec.outer(self.spec.names.layers), self.index)
    }
}
