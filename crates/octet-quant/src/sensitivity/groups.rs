//! Which linears get one scheme together, and which schemes a group may have.

use crate::{
    Inventory, Site,
    plan::{misfit, would_take},
    recipe::role_name,
};
use octet_model::{InputKind, InputSite, Role};
use octet_tensor::Scheme;
use serde::{Deserialize, Serialize};

/// Linears that are given one scheme together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FusedGroup {
    /// What it is called, such as `layer 3 q, k, v`.
    pub name: String,
    /// Module paths of its linears.
    pub modules: Vec<String>,
    /// The block; `None` for embedding and head.
    pub layer: Option<usize>,
    /// Its roles, such as `q, k, v`.
    pub kind: String,
    /// Weights of all its linears.
    pub weights: u64,
}

/// The schemes that groups choose from.
#[derive(Clone, Debug, PartialEq)]
pub struct Menu {
    /// The schemes; staying as it is is always possible.
    pub schemes: Vec<Scheme>,
    /// Whether the result must be loadable by other readers (see [`crate::Recipe::portable`]).
    pub portable: bool,
}

impl Menu {
    /// Bits and group sizes that pay for themselves somewhere: 2 to 8 bits, exact activations.
    pub const USUAL: [&str; 25] = [
        "w2a16-g32-asym",
        "w2a16-g64-asym",
        "w3a16-g32",
        "w3a16-g64",
        "w3a16-g128",
        "w3a16-g256",
        "w4ta16-g32",
        "w4ta16-g64",
        "w4ta16-g128",
        "w4ta16-g256",
        "w4a16-g32",
        "w4a16-g64",
        "w4a16-g128",
        "w4a16-g256",
        "w5a16-g32",
        "w5a16-g64",
        "w5a16-g128",
        "w6a16-g64",
        "w6a16-g128",
        "w6a16-pc",
        "w7a16-g64",
        "w7a16-g128",
        "w7a16-pc",
        "w8a16-g128",
        "w8a16-pc",
    ];

    /// The usual schemes; for other readers without zero points, which transformers cannot load packed.
    pub fn usual(portable: bool) -> Self {
        let plain = |text: &'static str| text.strip_suffix("-asym").filter(|_| portable).unwrap_or(text);
        Self { schemes: Self::USUAL.iter().filter_map(|text| plain(text).parse().ok()).collect(), portable }
    }

    /// The schemes that every linear of a group can take, with the bytes the group then takes.
    pub(super) fn of(&self, sites: &[&Site]) -> Vec<(Scheme, u64)> {
        let fits = |scheme: &&Scheme| sites.iter().all(|site| misfit(site, scheme.weights, self.portable).is_none());
        let bytes = |scheme: Scheme| sites.iter().map(|site| would_take(site, Some(scheme))).sum();
        self.schemes.iter().filter(fits).map(|&scheme| (scheme, bytes(scheme))).collect()
    }
}

/// The groups among the sites that `wanted` names, in the model's order; routers are in none.
pub(crate) fn groups<'a>(inventory: &'a Inventory, wanted: &dyn Fn(&Site) -> bool) -> Vec<(FusedGroup, Vec<&'a Site>)> {
    let mut found: Vec<(InputSite, Role, Vec<&Site>)> = vec![];
    for site in inventory.sites.iter().filter(|site| site.linear.role != Role::Router && wanted(site)) {
        let outside = |role: Role| matches!(role, Role::Embedding | Role::Head);
        let (input, role) = (together(site.linear.input), site.linear.role);
        let known = found.iter_mut().find(|(known, first, _)| *known == input && !outside(*first) && !outside(role));
        match known {
            Some((_, _, sites)) => sites.push(site),
            None => found.push((input, role, vec![site])),
        }
    }
    found.into_iter().map(|(_, _, sites)| (describe(&sites), sites)).collect()
}

/// All experts of a block are alike: too many to tell apart, each seen by few tokens.
fn together(input: InputSite) -> InputSite {
    let kind = match input.kind {
        InputKind::Expert(_) => InputKind::Expert(0),
        InputKind::ExpertDown(_) => InputKind::ExpertDown(0),
        kind => kind,
    };
    InputSite { kind, ..input }
}

fn describe(sites: &[&Site]) -> FusedGroup {
    let mut roles: Vec<&str> = vec![];
    for site in sites {
        let role = role_name(site.linear.role);
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    let (layer, kind) = (sites.first().and_then(|site| site.linear.layer), roles.join(", "));
    FusedGroup {
        name: layer.map_or_else(|| kind.clone(), |layer| format!("layer {layer} {kind}")),
        modules: sites.iter().map(|site| site.linear.module.clone()).collect(),
        layer,
        kind,
        weights: sites.iter().map(|site| (site.linear.rows * site.linear.cols) as u64).sum(),
    }
}
