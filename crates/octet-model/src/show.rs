//! The graph as text: every stage's operations, and how they are fused.

use crate::{
    fuse::{FusedStep, Fusion, fuse},
    graph::{BlockGraph, Linear, LinearGroup, Node, PlainNode},
};
use std::{fmt, ops::Range};

/// The embedding, layers that differ in nothing but their number, or the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownStage {
    /// Such as `layers 0-27`.
    pub name: String,
    /// What is computed, in order; an operation of several matrices has a line for each.
    pub operations: Vec<String>,
    /// What is computed in one pass.
    pub steps: Vec<ShownStep>,
}

/// Operations that are computed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownStep {
    /// Which operations of the stage, counted from 0.
    pub operations: Range<usize>,
    /// How.
    pub how: String,
}

impl ShownStage {
    fn of(name: String, nodes: &[PlainNode]) -> Self {
        let operations = nodes.iter().map(Node::to_string).collect();
        let step = |step: FusedStep| ShownStep { how: how(step.fusion, &nodes[step.nodes.clone()]), operations: step.nodes };
        Self { name, operations, steps: fuse(nodes).into_iter().map(step).collect() }
    }
}

impl BlockGraph {
    /// Its stages as text; layers that differ in nothing but their number are one.
    pub fn shown(&self) -> Vec<ShownStage> {
        let mut layers: Vec<(ShownStage, Vec<usize>)> = Vec::new();
        for (layer, nodes) in self.blocks.iter().enumerate() {
            let stage = ShownStage::of(String::new(), nodes);
            match layers.iter_mut().find(|(known, _)| *known == stage) {
                Some((_, same)) => same.push(layer),
                None => layers.push((stage, vec![layer])),
            }
        }
        let named = |(stage, numbers): (ShownStage, Vec<usize>)| {
            let word = if numbers.len() == 1 { "layer" } else { "layers" };
            ShownStage { name: format!("{word} {}", ranges(&numbers)), ..stage }
        };
        let embedding = ShownStage::of("embedding".into(), std::slice::from_ref(&self.embed));
        let head = ShownStage::of("head".into(), &self.head);
        std::iter::once(embedding).chain(layers.into_iter().map(named)).chain([head]).collect()
    }
}

impl fmt::Display for BlockGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for stage in self.shown() {
            writeln!(f, "{}", stage.name)?;
            for (number, operation) in (1..).zip(&stage.operations) {
                writeln!(f, "{number:>4}  {}", operation.replace('\n', "\n      "))?;
            }
            let (operations, steps) = (stage.operations.len(), stage.steps.len());
            if steps == operations {
                continue;
            }
            let s = if steps == 1 { "" } else { "s" };
            writeln!(f, "  fused, {steps} step{s} for {operations} operations:")?;
            for step in &stage.steps {
                let (first, last) = (step.operations.start + 1, step.operations.end);
                let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
                writeln!(f, "{range:>7}  {}", step.how)?;
            }
        }
        Ok(())
    }
}

/// How a step is computed, in words.
fn how(fusion: Fusion, nodes: &[PlainNode]) -> String {
    let group = nodes.iter().find_map(|node| match node {
        Node::Linears(group) => Some(group),
        _ => None,
    });
    match (fusion, group) {
        (Fusion::Products { norm, turn, gate }, Some(group)) => {
            let count: usize = group.linears.iter().map(|linear| linear.parts.len()).sum();
            let products = if count == 1 { "product".into() } else { format!("{count} products of one input") };
            let sum = if group.accumulate { ", added on the way out" } else { "" };
            let way_in = match (norm, turn) {
                (true, true) => "normed and turned on the way in, ",
                (true, false) => "normed on the way in, ",
                (false, true) => "turned on the way in, ",
                (false, false) => "",
            };
            let gate = if gate { ", gated on the way out" } else { "" };
            format!("{way_in}{products}{gate}{sum}")
        }
        (Fusion::Heads, _) if nodes.len() > 1 => "heads normed and turned in one pass".into(),
        (Fusion::AddNorm, _) => "normed and added in one pass".into(),
        _ => nodes.first().map_or(String::new(), |node| node.word().into()),
    }
}

impl PlainNode {
    /// What kind of operation it is.
    fn word(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::Norm { bias: None, .. } => "rmsnorm",
            Self::Norm { .. } => "layernorm",
            Self::Linears(_) => "linear",
            Self::Rope { .. } => "rope",
            Self::Attend { .. } => "attend",
            Self::Gate(_) => "gate",
            Self::Activate(_) => "activate",
            Self::Experts { .. } => "experts",
            Self::Add { .. } => "add",
            Self::Turn(_) => "turn",
            Self::SoftCap(_) => "soft cap",
        }
    }
}

/// Ascending numbers as `0-2, 4`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run.iter().map(usize::to_string).collect(),
    });
    runs.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for PlainNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<9} ", self.word())?;
        match self {
            Self::Embed { table, scale, positions } => {
                write!(f, "-> Hidden: {table}")?;
                scale.map_or(Ok(()), |s| write!(f, " * {s}"))?;
                positions.as_ref().map_or(Ok(()), |p| write!(f, "\n          + {} {:?}", p.name, p.shape))
            }
            Self::Norm { weight, eps, from, to, .. } => write!(f, "{from:?} -> {to:?} ({} wide, eps {eps:e})", weight.shape[0]),
            Self::Linears(group) => show_group(f, group),
            Self::Rope { rope, heads, kv_heads, head_dim } => {
                write!(f, "number {rope} on {heads} query and {kv_heads} key heads of {head_dim}")
            }
            Self::Attend { heads, scale, window, soft_cap } => {
                write!(f, "Q, K, V -> Attended: {heads} heads, scale {scale}")?;
                window.map_or(Ok(()), |w| write!(f, ", window {w}"))?;
                soft_cap.map_or(Ok(()), |c| write!(f, ", soft cap {c}"))
            }
            Self::Gate(function) => write!(f, "{function:?}(Gate) * Up -> Gate"),
            Self::Activate(function) => write!(f, "{function:?}(Up) -> Up"),
            Self::Experts { router, experts, per_token, normalize, activation, .. } => {
                let sum = if *normalize { ", weights sum to 1" } else { "" };
                write!(f, "Normed -> Branch: {per_token} of {} ({activation:?}{sum})", experts.len())?;
                write!(f, "\n          router {router}")?;
                let first = experts.first().into_iter().flat_map(|e| [&e.gate, &e.up, &e.down]);
                first.into_iter().try_for_each(|linear| write!(f, "\n          each {linear}"))
            }
            Self::Add { from } => write!(f, "{from:?} to Hidden"),
            Self::Turn(slot) => write!(f, "{slot:?}, every eight values"),
            Self::SoftCap(cap) => write!(f, "Logits at {cap}"),
        }
    }
}

fn show_group(f: &mut fmt::Formatter<'_>, group: &LinearGroup<Linear>) -> fmt::Result {
    let start = if group.accumulate { format!("{:?} added to ", group.from) } else { format!("{:?} -> ", group.from) };
    write!(f, "{start}")?;
    for (i, linear) in group.linears.iter().enumerate() {
        let slots: Vec<String> = linear.parts.iter().map(|part| format!("{:?}", part.0)).collect();
        let indent = if i == 0 { String::new() } else { format!("\n{:width$}", "", width = 10 + start.len()) };
        write!(f, "{indent}{}: {linear}", slots.join(", "))?;
    }
    Ok(())
}

impl fmt::Display for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Within a block, names are those of its modules.
        let number = self.site.layer.map(|layer| format!(".{layer}."));
        let inside = number.and_then(|number| self.site.module.split_once(&number)).map(|(_, inside)| inside);
        let bias = if self.bias.is_some() { " + bias" } else { "" };
        write!(f, "{} [{}, {}]{bias}", inside.unwrap_or(&self.site.module), self.site.rows, self.site.cols)
    }
}

#[cfg(test)]
mod tests {
    use crate::ArchSpec;

    #[test]
    fn the_graph_of_a_usual_block_before_and_after_fusion() {
        let config = r#"{"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true}"#;
        let text = ArchSpec::from_config(&serde_json::from_str(config).unwrap()).unwrap().graph().to_string();
        let expected = "\
embedding
   1  embed     -> Hidden: model.embed_tokens [151936, 1024]
layers 0-27
   1  rmsnorm   Hidden -> Normed (1024 wide, eps 1e-6)
   2  linear    Normed -> Q: self_attn.q_proj [2048, 1024]
                          K: self_attn.k_proj [1024, 1024]
                          V: self_attn.v_proj [1024, 1024]
   3  rmsnorm   Q -> Q (128 wide, eps 1e-6)
   4  rmsnorm   K -> K (128 wide, eps 1e-6)
   5  rope      number 0 on 16 query and 8 key heads of 128
   6  attend    Q, K, V -> Attended: 16 heads, scale 0.088388346
   7  linear    Attended added to Hidden: self_attn.o_proj [1024, 2048]
   8  rmsnorm   Hidden -> Normed (1024 wide, eps 1e-6)
   9  linear    Normed -> Gate: mlp.gate_proj [3072, 1024]
                          Up: mlp.up_proj [3072, 1024]
  10  gate      Silu(Gate) * Up -> Gate
  11  linear    Gate added to Hidden: mlp.down_proj [1024, 3072]
  fused, 6 steps for 11 operations:
    1-2  normed on the way in, 3 products of one input
    3-5  heads normed and turned in one pass
      6  attend
      7  product, added on the way out
   8-10  normed on the way in, 2 products of one input, gated on the way out
     11  product, added on the way out
head
   1  rmsnorm   Hidden -> Normed (1024 wide, eps 1e-6)
   2  linear    Normed -> Logits: model.embed_tokens [151936, 1024]
  fused, 1 step for 2 operations:
    1-2  normed on the way in, product
";
        assert_eq!(text, expected, "found\n{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn turned_inputs_are_fused_with_their_products() {
        let spec = ArchSpec::from_config(&serde_json::from_str(octet_testkit::TINY_LLAMA).unwrap()).unwrap();
        let layer = |name: &str| format!("model.layers.0.{name}");
        let modules = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"].map(layer);
        let text = spec.with_turned_inputs(modules.into()).graph().to_string();
        let steps: Vec<&str> = text.lines().skip_while(|line| !line.contains("fused, 6 steps for 13 operations")).take(7).collect();
        let found: Vec<&str> =
            steps.iter().skip(1).map(|line| line.trim_start_matches(|c: char| c == ' ' || c == '-' || c.is_ascii_digit())).collect();
        let expected = [
            "normed and turned on the way in, 3 products of one input",
            "rope",
            "attend",
            "turned on the way in, product, added on the way out",
            "normed and turned on the way in, 2 products of one input, gated on the way out",
            "turned on the way in, product, added on the way out",
        ];
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn steps_cover_every_operation_of_every_family() {
        for config in [octet_testkit::TINY_GEMMA3, octet_testkit::TINY_GPT2, octet_testkit::TINY_LLAMA, octet_testkit::TINY_QWEN3_MOE] {
            let graph = ArchSpec::from_config(&serde_json::from_str(config).unwrap()).unwrap().graph();
            for stage in graph.shown() {
                let covered: Vec<usize> = stage.steps.iter().flat_map(|step| step.operations.clone()).collect();
                assert!(covered.into_iter().eq(0..stage.operations.len()), "{stage:?}");
            }
            assert!(graph.to_string().lines().all(|line| line.chars().count() <= 80), "{graph}");
        }
    }
}
