//! Whether every linear can be cut among 2 to 16 servers, and what each of them would hold.

use crate::Result;
use octet_formats::Checkpoint;
use octet_kernels::KvDtype;
use octet_model::{ArchSpec, LinearSite, Role};
use octet_tensor::{Granularity, Matrix, Scheme, WeightSource};
use std::collections::BTreeMap;

/// Numbers of servers looked at.
pub(super) const WAYS: std::ops::RangeInclusive<usize> = 2..=16;

/// A kind of linear: all blocks' `o_proj`, for instance.
pub(super) struct Kind {
    /// Its name, the block left out.
    pub name: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// Whether outputs are cut (else inputs).
    pub by_outputs: bool,
    /// For each number of ways: why one of them cannot be cut, `None` where all can.
    pub ways: BTreeMap<usize, Option<String>>,
}

/// What was found.
pub(super) struct Checked {
    pub kinds: Vec<Kind>,
    /// Groups that servers fuse whose members are represented differently.
    pub uneven: Vec<String>,
    /// Bytes of weights, and those that every server holds whole.
    pub weights: u64,
    pub whole: u64,
    /// Bytes of keys and values a token, in 16 bits.
    pub kv: u64,
    pub kv_heads: usize,
}

impl Checked {
    pub(super) fn of(spec: &ArchSpec, checkpoint: &Checkpoint) -> Result<Self> {
        let (mut kinds, mut places) = (Vec::<Kind>::new(), BTreeMap::<String, usize>::new());
        let (mut weights, mut whole) = (0, 0);
        let mut fused = BTreeMap::<(usize, &'static str), Vec<String>>::new();
        let decoded = checkpoint.decoded();
        for site in spec.linear_sites() {
            let Some(matrix) = checkpoint.matrix(&site.module)? else { continue };
            let (bytes, scheme) = match &matrix {
                Matrix::Quant(matrix) => (matrix.stored_bytes(), Some(matrix.scheme())),
                Matrix::Float(matrix) => (matrix.stored_bytes(), None),
            };
            weights += bytes as u64;
            whole += if site.role == Role::Router { bytes as u64 } else { 0 };
            if let (Some(layer), Some(group)) = (site.layer, fused_in(site.role)) {
                let said = scheme.map(|scheme| scheme.to_string()).or_else(|| decoded.get(&site.module).cloned());
                fused.entry((layer, group)).or_default().push(said.unwrap_or_else(|| "floats".into()));
            }
            if site.role != Role::Router {
                let at = *places.entry(kind_name(&site)).or_insert_with_key(|name| {
                    kinds.push(kind(&site, name.clone()));
                    kinds.len() - 1
                });
                for (ways, why) in &mut kinds[at].ways {
                    if why.is_none() {
                        *why = objection(spec, &site, scheme, *ways);
                    }
                }
            }
        }
        let uneven = fused.into_iter().filter(|(_, all)| all.iter().any(|one| *one != all[0]));
        let uneven = uneven.map(|((layer, group), all)| format!("layer {layer} {group}: {}", all.join(", "))).collect();
        let kv_heads = spec.layers().iter().map(|layer| layer.attention.kv_heads).min().unwrap_or(1);
        let kv = spec.kv_bytes_per_token(KvDtype::F16) as u64;
        Ok(Self { kinds, uneven, weights, whole, kv, kv_heads })
    }

    /// Numbers of ways in which every kind can be cut.
    pub(super) fn possible(&self) -> Vec<usize> {
        WAYS.filter(|ways| self.kinds.iter().all(|kind| kind.ways.get(ways).is_some_and(Option::is_none))).collect()
    }

    /// Bytes of weights that each of `ways` servers holds.
    pub(super) fn share(&self, ways: usize) -> u64 {
        self.whole + (self.weights - self.whole) / ways as u64
    }

    /// Bytes of keys and values a token on each of `ways` servers: heads that do not reach are held by several.
    pub(super) fn kv_share(&self, ways: usize) -> u64 {
        self.kv / ways.min(self.kv_heads).max(1) as u64
    }
}

/// The matrix that vLLM and SGLang make of several.
fn fused_in(role: Role) -> Option<&'static str> {
    match role {
        Role::Q | Role::K | Role::V => Some("qkv_proj"),
        Role::Gate | Role::Up => Some("gate_up_proj"),
        Role::ExpertGate | Role::ExpertUp => Some("experts' gate_up_proj"),
        _ => None,
    }
}

fn kind_name(site: &LinearSite) -> String {
    let parts: Vec<&str> = site.module.split('.').map(|part| if part.parse::<usize>().is_ok() { "*" } else { part }).collect();
    parts.join(".")
}

fn kind(site: &LinearSite, name: String) -> Kind {
    let by_outputs = !matches!(site.role, Role::O | Role::Down | Role::ExpertDown);
    Kind { name, shape: [site.rows, site.cols], by_outputs, ways: WAYS.map(|ways| (ways, None)).collect() }
}

/// Why a linear cannot be cut into so many parts.
fn objection(spec: &ArchSpec, site: &LinearSite, scheme: Option<Scheme>, ways: usize) -> Option<String> {
    // Tables are padded by the servers.
    let attention = &spec.layers().get(site.layer?)?.attention;
    let heads = match site.role {
        Role::Q | Role::O | Role::Qkv => Some((attention.heads, "query heads")),
        Role::K | Role::V => Some((attention.kv_heads, "key heads")),
        _ => None,
    };
    if let Some((count, what)) = heads {
        // Fewer key heads than servers: each is held by several.
        if what == "key heads" && ways > count && ways.is_multiple_of(count.max(1)) {
            return None;
        }
        if !count.is_multiple_of(ways) {
            return Some(format!("{count} {what}"));
        }
    }
    let by_outputs = !matches!(site.role, Role::O | Role::Down | Role::ExpertDown);
    let (cut, what) = if by_outputs { (site.rows, "outputs") } else { (site.cols, "inputs") };
    if !cut.is_multiple_of(ways) {
        return Some(format!("{cut} {what}"));
    }
    let (part, scheme) = (cut / ways, scheme?);
    // Codes of 8 bits and less lie in words of 32 bits, along either axis.
    let words = (32 / scheme.weights.bits.get() as usize).max(1);
    let unit = match scheme.weights.granularity {
        Granularity::Group(size) if !by_outputs => size.get(),
        _ => words,
    };
    (!part.is_multiple_of(unit)).then(|| format!("{part} {what} a server, not a multiple of {unit}"))
}
