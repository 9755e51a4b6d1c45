//! What every tensor of a model is called in GGUF files.

use super::{Renamed, TranslateError};
use crate::{
    families::{GgufRow, Names},
    spec::{ArchSpec, Mlp},
};

/// Every tensor that a model needs.
pub(super) fn tensors(row: &GgufRow, spec: &ArchSpec) -> Result<Vec<Renamed>, TranslateError> {
    let graph = spec.graph();
    let mut all = vec![];
    for node in graph.nodes() {
        for linear in node.linears().into_iter().filter(|linear| !linear.tied) {
            let transposed = linear.site.transposed;
            all.push(Renamed { transposed, ..renamed(row, spec, &linear.site.module, "weight")? });
            if linear.bias.is_some() {
                all.push(renamed(row, spec, &linear.site.module, "bias")?);
            }
        }
        for param in node.params() {
            let (module, what) = param.name.rsplit_once('.').unwrap_or((&param.name, ""));
            all.push(Renamed { plus_one: param.plus_one, ..renamed(row, spec, module, what)? });
        }
    }
    Ok(all)
}

fn renamed(row: &GgufRow, spec: &ArchSpec, module: &str, what: &str) -> Result<Renamed, TranslateError> {
    let names = spec.names;
    let plain = |tensor: String| Renamed {
        name: format!("{module}.{what}"),
        tensor: format!("{tensor}.{what}"),
        paired_heads: None,
        plus_one: false,
        transposed: false,
        part: None,
    };
    let inner = module.strip_prefix(spec.root).unwrap_or(module);
    let outer = [(names.embedding, "token_embd"), (names.positions, "position_embd"), (names.final_norm, "output_norm")];
    if let Some((_, tensor)) = outer.iter().find(|(name, _)| !name.is_empty() && *name == inner) {
        return Ok(plain((*tensor).into()));
    }
    if module == names.head {
        return Ok(plain("output".into()));
    }
    let in_block = inner.strip_prefix(names.layers).and_then(|rest| rest.strip_prefix('.')?.split_once('.'));
    let Some((block, own)) = in_block else { return Err(TranslateError::Missing { tensor: module.into() }) };
    if let Some((index, last)) = own.strip_prefix(names.experts).and_then(|rest| rest.strip_prefix('.')?.split_once('.')) {
        let stacks = [(names.gate, "ffn_gate_exps"), (names.up, "ffn_up_exps"), (names.down, "ffn_down_exps")];
        let stack = stacks.iter().find(|(name, _)| name.rsplit('.').next() == Some(last));
        let part = index.parse::<usize>().ok().zip(experts(spec, block));
        if let (Some((_, tensor)), Some(part)) = (stack, part) {
            return Ok(Renamed { part: Some(part), ..plain(format!("blk.{block}.{tensor}")) });
        }
    }
    let Some((_, tensor)) = modules(names).into_iter().find(|(name, _)| !name.is_empty() && *name == own) else {
        return Err(TranslateError::Missing { tensor: module.into() });
    };
    let attention = spec.layers.first().map(|layer| &layer.attention);
    let paired_heads = match (row.paired, attention) {
        (true, Some(attention)) if own == names.q => Some(attention.heads),
        (true, Some(attention)) if own == names.k => Some(attention.kv_heads),
        _ => None,
    };
    Ok(Renamed { paired_heads, ..plain(format!("blk.{block}.{tensor}")) })
}

/// Modules of a block and their tensors.
fn modules(names: &Names) -> [(&'static str, &'static str); 16] {
    [
        (names.attention_norm, "attn_norm"),
        (names.attention_post_norm, "post_attention_norm"),
        (names.mlp_norm, "ffn_norm"),
        (names.mlp_post_norm, "post_ffw_norm"),
        (names.q, "attn_q"),
        (names.k, "attn_k"),
        (names.v, "attn_v"),
        (names.qkv, "attn_qkv"),
        (names.q_norm, "attn_q_norm"),
        (names.k_norm, "attn_k_norm"),
        (names.out, "attn_output"),
        (names.gate, "ffn_gate"),
        (names.up, "ffn_up"),
        (names.gate_up, "ffn_up"),
        (names.down, "ffn_down"),
        (names.router, "ffn_gate_inp"),
    ]
}

/// How many experts a block has.
fn experts(spec: &ArchSpec, block: &str) -> Option<usize> {
    match spec.layers.get(block.parse::<usize>().ok()?)?.mlp {
        Mlp::Experts { count, .. } => Some(count),
        _ => None,
    }
}
