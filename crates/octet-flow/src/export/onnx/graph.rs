//! The nodes of the block graph as operators.

use super::{experts::Routing, weights::Weights};
use crate::{
    Error, Progress, Result,
    export::{
        ExportRun,
        convert::{Conversion, Job, told},
        source::{TURNED, cannot},
    },
};
use octet_formats::onnx::{Attribute, Data, Dim, Elem, Graph};
use octet_kernels::ActivationFn;
use octet_model::graph::{Linear, Node, Param, PlainNode, Slot};
use octet_tensor::WeightSource;
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

/// Puts a graph together; values of slots are `[batch · tokens, width]`.
pub(super) struct Builder<'a> {
    pub(super) job: Job<'a>,
    pub(super) plan: &'a Conversion,
    pub(super) run: &'a ExportRun<'a>,
    pub(super) graph: Graph,
    pub(super) data: Data,
    /// The name of what is in every slot.
    pub(super) slots: BTreeMap<Slot, String>,
    widths: BTreeMap<Slot, usize>,
    /// Queries and keys that were turned already: `[batch, heads, tokens, width of a head]`.
    pub(super) heads: BTreeMap<Slot, String>,
    constants: HashMap<Vec<u8>, String>,
    pub(super) weights: HashMap<String, Weights>,
    /// Masks by window, and cosines and sines by rotary embedding.
    pub(super) masks: HashMap<Option<usize>, String>,
    pub(super) turns: HashMap<usize, [String; 2]>,
    values: usize,
    at: PathBuf,
}

impl<'a> Builder<'a> {
    pub(super) fn new(job: Job<'a>, plan: &'a Conversion, run: &'a ExportRun<'a>, at: &Path) -> Result<Self> {
        Ok(Self {
            job,
            plan,
            run,
            graph: Graph::default(),
            data: Data::create(at)?,
            slots: BTreeMap::new(),
            widths: BTreeMap::new(),
            heads: BTreeMap::new(),
            constants: HashMap::new(),
            weights: HashMap::new(),
            masks: HashMap::new(),
            turns: HashMap::new(),
            values: 0,
            at: at.into(),
        })
    }

    /// Adds an operator with one output and gives the output's name.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.op_of("", op, inputs, attributes)
    }

    pub(super) fn op_of(&mut self, domain: &str, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.values += 1;
        let name = format!("v{}", self.values);
        self.graph.node(domain, op, inputs, &[&name], attributes);
        name
    }

    /// Adds an operator with two outputs.
    pub(super) fn two(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> [String; 2] {
        self.values += 2;
        let names = [self.values - 1, self.values].map(|n| format!("v{n}"));
        self.graph.node("", op, inputs, &names.each_ref().map(String::as_str), attributes);
        names
    }

    fn constant(&mut self, elem: Elem, dims: &[usize], bytes: Vec<u8>) -> String {
        let key = [&[elem as u8, dims.len() as u8][..], &bytes].concat();
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = format!("c{}", self.constants.len());
        self.graph.constant(&name, elem, dims, &bytes);
        self.constants.insert(key, name.clone());
        name
    }

    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        self.constant(Elem::I64, &[values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub(super) fn int(&mut self, value: i64) -> String {
        self.constant(Elem::I64, &[], value.to_le_bytes().to_vec())
    }

    pub(super) fn number(&mut self, value: f32) -> String {
        self.constant(Elem::F32, &[], value.to_le_bytes().to_vec())
    }

    pub(super) fn numbers(&mut self, values: &[f32]) -> String {
        self.constant(Elem::F32, &[values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub(super) fn cast(&mut self, value: &str, to: Elem) -> String {
        self.op("Cast", &[value], &[("to", Attribute::Int(to as i64))])
    }

    pub(super) fn reshape(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[value, &shape], &[])
    }

    /// Elements `range` of the last axis.
    pub(super) fn cut(&mut self, value: &str, range: std::ops::Range<usize>) -> String {
        let [from, to, axis] = [self.ints(&[range.start as i64]), self.ints(&[range.end as i64]), self.ints(&[-1])];
        self.op("Slice", &[value, &from, &to, &axis], &[])
    }

    pub(super) fn slot(&self, slot: Slot) -> Result<String> {
        self.slots.get(&slot).cloned().ok_or_else(|| Error::Internal(format!("{slot:?} is read before it is written")))
    }

    /// A norm's weight, a bias or positions as floats.
    fn param(&mut self, param: &Param) -> Result<Vec<f32>> {
        let missing = || octet_tensor::Error::Missing { name: param.name.clone() };
        let mut values = self.job.source.checkpoint.tensor(&param.name)?.ok_or_else(missing)?.to_f32()?;
        if param.plus_one {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(values)
    }

    /// The whole model's bytes.
    pub(super) fn build(mut self, progress: Progress<'_>) -> Result<Vec<u8>> {
        let (job, plan) = (self.job, self.plan);
        let graph = job.source.spec.graph();
        self.declare();
        let mut told = told(plan, progress);
        for planned in &plan.matrices {
            let weights = self.write(planned)?;
            self.weights.insert(planned.site.module.clone(), weights);
            told(planned);
        }
        self.node(&graph.embed, 0)?;
        for (layer, nodes) in graph.blocks.iter().enumerate() {
            nodes.iter().try_for_each(|node| self.node(node, layer))?;
        }
        graph.head.iter().try_for_each(|node| self.node(node, 0))?;
        let logits = self.slot(Slot::Logits)?;
        let batch = self.op("Shape", &["input_ids"], &[]);
        let vocab = self.ints(&[job.source.spec.vocab_size() as i64]);
        let shape = self.op("Concat", &[&batch, &vocab], &[("axis", Attribute::Int(0))]);
        self.graph.node("", "Reshape", &[&logits, &shape], &["logits"], &[]);
        let Self { graph, data, weights, run, at, .. } = self;
        data.finish()?;
        super::check::weights(job, plan, run, &weights, &at)?;
        let metadata = [("octet_version", env!("CARGO_PKG_VERSION").to_string()), ("family", job.source.spec.family().to_string())];
        Ok(graph.model(job.source.input.name(), &metadata))
    }

    fn declare(&mut self) {
        let (batch, tokens) = (Dim::Named("batch_size"), Dim::Named("sequence_length"));
        self.graph.input("input_ids", Elem::I64, &[batch, tokens]);
        self.graph.input("attention_mask", Elem::I64, &[batch, Dim::Named("total_sequence_length")]);
        self.graph.input("position_ids", Elem::I64, &[batch, tokens]);
        self.graph.output("logits", Elem::F32, &[batch, tokens, Dim::Fixed(self.job.source.spec.vocab_size())]);
        for (i, layer) in self.job.source.spec.layers().iter().enumerate() {
            let of = |length| [batch, Dim::Fixed(layer.attention.kv_heads), Dim::Named(length), Dim::Fixed(layer.attention.head_dim)];
            for what in ["key", "value"] {
                self.graph.input(&format!("past_key_values.{i}.{what}"), Elem::F32, &of("past_sequence_length"));
                self.graph.output(&format!("present.{i}.{what}"), Elem::F32, &of("total_sequence_length"));
            }
        }
    }

    fn node(&mut self, node: &PlainNode, layer: usize) -> Result<()> {
        match node {
            Node::Embed { table, scale, positions } => self.embed(table, *scale, positions.as_ref())?,
            Node::Norm { weight, bias, eps, from, to } => self.norm(weight, bias.as_ref(), *eps, *from, *to)?,
            Node::Linears(group) => {
                let input = self.slot(group.from)?;
                for linear in &group.linears {
                    self.linear(&input, linear, group.accumulate)?;
                }
            }
            &Node::Rope { rope, heads, kv_heads, head_dim } => self.turn(rope, heads, kv_heads, head_dim)?,
            &Node::Attend { heads, scale, window, soft_cap } => self.attend(layer, heads, scale, window, soft_cap)?,
            Node::Gate(f) => {
                let (gate, up) = (self.slot(Slot::Gate)?, self.slot(Slot::Up)?);
                let gate = self.activation(*f, &gate);
                let product = self.op("Mul", &[&gate, &up], &[]);
                self.slots.insert(Slot::Gate, product);
            }
            Node::Activate(f) => {
                let up = self.slot(Slot::Up)?;
                let activated = self.activation(*f, &up);
                self.slots.insert(Slot::Up, activated);
            }
            Node::Add { from } => {
                let (hidden, more) = (self.slot(Slot::Hidden)?, self.slot(*from)?);
                let sum = self.op("Add", &[&hidden, &more], &[]);
                self.slots.insert(Slot::Hidden, sum);
            }
            Node::Turn(_) => return Err(cannot("onnx", TURNED)),
            Node::SoftCap(cap) => {
                let logits = self.slot(Slot::Logits)?;
                let capped = self.capped(&logits, *cap);
                self.slots.insert(Slot::Logits, capped);
            }
            &Node::Experts { ref router, ref experts, per_token, normalize, activation, .. } => {
                self.experts(router, experts, Routing { per_token, normalize, activation })?;
            }
        }
        Ok(())
    }

    /// c·tanh(x / c).
    pub(super) fn capped(&mut self, value: &str, cap: f32) -> String {
        let cap = self.number(cap);
        let divided = self.op("Div", &[value, &cap], &[]);
        let tanh = self.op("Tanh", &[&divided], &[]);
        self.op("Mul", &[&tanh, &cap], &[])
    }

    fn embed(&mut self, table: &Linear, scale: Option<f32>, positions: Option<&Param>) -> Result<()> {
        let ids = self.reshape("input_ids", &[-1]);
        let mut rows = self.look_up(&table.site.module, table.site.cols, &ids)?;
        if let Some(scale) = scale {
            let scale = self.number(scale);
            rows = self.op("Mul", &[&rows, &scale], &[]);
        }
        if let Some(param) = positions {
            let values = self.param(param)?;
            values.chunks(1 << 16).try_for_each(|run| self.data.append(&run.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()))?;
            let at = self.data.end()?;
            self.graph.external(&param.name, Elem::F32, &param.shape, &at);
            let places = self.reshape("position_ids", &[-1]);
            let learned = self.op("Gather", &[&param.name, &places], &[]);
            rows = self.op("Add", &[&rows, &learned], &[]);
        }
        self.slots.insert(Slot::Hidden, rows);
        self.widths.insert(Slot::Hidden, table.site.cols);
        Ok(())
    }

    fn norm(&mut self, weight: &Param, bias: Option<&Param>, eps: f32, from: Slot, to: Slot) -> Result<()> {
        let (mut value, values) = (self.slot(from)?, self.param(weight)?);
        let width = self.widths.get(&from).copied().unwrap_or(values.len());
        let heads = width != values.len();
        if heads {
            value = self.reshape(&value, &[-1, values.len() as i64]);
        }
        let weight = self.numbers(&values);
        let mut normed = match bias.map(|bias| self.param(bias)).transpose()? {
            Some(bias) => {
                let bias = self.numbers(&bias);
                self.op(
                    "LayerNormalization",
                    &[&value, &weight, &bias],
                    &[("epsilon", Attribute::Float(eps)), ("axis", Attribute::Int(-1))],
                )
            }
            None => {
                let square = self.op("Mul", &[&value, &value], &[]);
                let axis = self.ints(&[-1]);
                let mean = self.op("ReduceMean", &[&square, &axis], &[("keepdims", Attribute::Int(1))]);
                let eps = self.number(eps);
                let sum = self.op("Add", &[&mean, &eps], &[]);
                let root = self.op("Sqrt", &[&sum], &[]);
                let divided = self.op("Div", &[&value, &root], &[]);
                self.op("Mul", &[&divided, &weight], &[])
            }
        };
        if heads {
            normed = self.reshape(&normed, &[-1, width as i64]);
        }
        self.slots.insert(to, normed);
        self.widths.insert(to, width);
        Ok(())
    }

    /// The product with a linear's matrix, and its bias.
    pub(super) fn affine(&mut self, input: &str, linear: &Linear) -> Result<String> {
        let out = self.product(input, &linear.site.module)?;
        let Some(bias) = &linear.bias else { return Ok(out) };
        let bias = self.param(bias)?;
        let bias = self.numbers(&bias);
        Ok(self.op("Add", &[&out, &bias], &[]))
    }

    /// Fills a slot.
    pub(super) fn put(&mut self, slot: Slot, value: String, width: usize) {
        self.slots.insert(slot, value);
        self.widths.insert(slot, width);
    }

    fn linear(&mut self, input: &str, linear: &Linear, accumulate: bool) -> Result<()> {
        let out = self.affine(input, linear)?;
        for (slot, rows) in &linear.parts {
            let mut part = if linear.parts.len() == 1 { out.clone() } else { self.cut(&out, rows.clone()) };
            if accumulate {
                let before = self.slot(*slot)?;
                part = self.op("Add", &[&before, &part], &[]);
            }
            self.put(*slot, part, rows.len());
        }
        Ok(())
    }

    pub(super) fn activation(&mut self, f: ActivationFn, x: &str) -> String {
        match f {
            ActivationFn::Silu => {
                let sigmoid = self.op("Sigmoid", &[x], &[]);
                self.op("Mul", &[x, &sigmoid], &[])
            }
            ActivationFn::Gelu => self.op("Gelu", &[x], &[]),
            ActivationFn::GeluTanh => self.op("Gelu", &[x], &[("approximate", Attribute::Text("tanh".into()))]),
            ActivationFn::Relu => self.op("Relu", &[x], &[]),
            ActivationFn::Relu2 => {
                let relu = self.op("Relu", &[x], &[]);
                self.op("Mul", &[&relu, &relu], &[])
            }
        }
    }
}
