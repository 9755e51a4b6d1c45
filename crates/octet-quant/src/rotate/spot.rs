//! Places where a rotation can be folded into weights without changing what the model computes.

use super::{
    so8::{BlockRotation, EIGHT},
    source::Turns,
};
use crate::Error;
use octet_model::{
    BlockGraph, LinearSite, Maker, Place,
    graph::{Linear, Node, Param},
};
use octet_tensor::WeightSource;
use std::fmt;

/// Which values are turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Where {
    /// The values of attention, head by head: out of v, into o; query heads that share a value head share its rotation.
    Heads,
    /// The residual stream: one rotation for the whole model.
    Residual,
    /// The inputs of linears, at run time.
    Inputs,
}

impl Where {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Heads, Self::Residual, Self::Inputs];

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Residual => "residual",
            Self::Inputs => "inputs",
        }
    }
}

/// How a matrix takes part in a rotation.
#[derive(Clone, Debug)]
pub(super) enum Member {
    /// Its inputs are turned: eight of them by the block that `blocks` has for them.
    Reads { site: LinearSite, norm: Option<Param>, blocks: Vec<usize> },
    /// Its outputs are turned, from row `first` on.
    Writes { site: LinearSite, bias: Option<Param>, first: usize },
}

impl Member {
    pub(super) fn site(&self) -> &LinearSite {
        match self {
            Self::Reads { site, .. } | Self::Writes { site, .. } => site,
        }
    }
}

/// A place for one rotation.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    /// What is turned, in words.
    pub(super) label: String,
    /// Blocks of eight.
    pub(super) blocks: usize,
    pub(super) members: Vec<Member>,
    norms: Vec<Param>,
    /// Whether what is read is turned at run time, and not where it is made.
    at_run_time: bool,
}

impl Spot {
    /// What `rotation` does to weights, which are read for those of norms.
    pub(super) fn turns(&self, rotation: &BlockRotation, source: &dyn WeightSource) -> Result<Turns, Error> {
        let mut turns = Turns::default();
        for member in &self.members {
            match member {
                Member::Reads { site, norm, blocks } => {
                    let scale = norm.as_ref().map(|norm| weights(norm, source)).transpose()?;
                    turns.columns(site, scale.as_deref(), BlockRotation(blocks.iter().map(|&block| rotation.0[block]).collect()));
                }
                Member::Writes { site, bias, first } => turns.rows(site, bias.as_ref(), *first, rotation.clone()),
            }
        }
        self.norms.iter().for_each(|norm| turns.ones(norm));
        if self.at_run_time {
            turns.at_run_time(self.members.iter().map(|member| member.site().module.clone()));
        }
        Ok(turns)
    }
}

fn weights(norm: &Param, source: &dyn WeightSource) -> Result<Vec<f32>, Error> {
    let mut values = octet_model::load::tensor(source, norm)?.to_f32()?;
    if norm.plus_one {
        values.iter_mut().for_each(|value| *value += 1.0);
    }
    Ok(values)
}

/// The spots of a kind in a model.
///
/// # Errors
/// Why there are none, as the end of a sentence that begins with what is turned.
pub(super) fn spots(graph: &BlockGraph, which: Where) -> Result<Vec<Spot>, String> {
    match which {
        Where::Heads => heads(graph),
        Where::Residual => residual(graph).map(|spot| vec![spot]),
        Where::Inputs => inputs(graph),
    }
}

fn heads(graph: &BlockGraph) -> Result<Vec<Spot>, String> {
    let mut spots = vec![];
    for layer in 0..graph.blocks.len() {
        for fold in graph.folds(Place::Layer(layer)).folds {
            let (Some(width), Maker::Rows { site, rows, bias }) = (fold.head_width(), &fold.maker) else { continue };
            if !width.is_multiple_of(EIGHT) {
                return Err(format!("cannot be turned: they have {width} values, and rotations come in blocks of eight"));
            }
            let reads = |site: &LinearSite| {
                let blocks = (0..site.cols / EIGHT).map(|block| fold.channel(EIGHT * block, site.cols) / EIGHT).collect();
                Member::Reads { site: site.clone(), norm: None, blocks }
            };
            let writes = Member::Writes { site: site.clone(), bias: bias.clone(), first: rows.start };
            let members = std::iter::once(writes).chain(fold.readers.iter().map(reads)).collect();
            spots.push(Spot {
                label: format!("layer {layer} heads"),
                blocks: rows.len() / EIGHT,
                members,
                norms: vec![],
                at_run_time: false,
            });
        }
    }
    if spots.is_empty() { Err("cannot be turned: no linear reads just the values of attention".into()) } else { Ok(spots) }
}

fn inputs(graph: &BlockGraph) -> Result<Vec<Spot>, String> {
    let mut spots = vec![];
    for node in graph.blocks.iter().flatten() {
        let Node::Linears(group) = node else { continue };
        let Some(blocks) = group.linears.first().map(|linear| linear.site.cols).filter(|cols| cols.is_multiple_of(EIGHT)) else { continue };
        let reads = |linear: &Linear| Member::Reads { site: linear.site.clone(), norm: None, blocks: (0..blocks / EIGHT).collect() };
        let (members, norms) = (group.linears.iter().map(reads).collect(), vec![]);
        spots.push(Spot { label: group.input.to_string(), blocks: blocks / EIGHT, members, norms, at_run_time: true });
    }
    if spots.is_empty() { Err("cannot be turned: no linear of a block has inputs that come in eights".into()) } else { Ok(spots) }
}

fn residual(graph: &BlockGraph) -> Result<Spot, String> {
    let stream = graph.stream().map_err(|why| format!("cannot be turned: {why}"))?;
    let width = stream.embedding.cols;
    if !width.is_multiple_of(EIGHT) {
        return Err(format!("cannot be turned: it has {width} values, and rotations come in blocks of eight"));
    }
    if stream.tied {
        return Err(
            "cannot be turned: embedding and head are one matrix, so that the final norm's weights have nowhere to go; give the model a head of its own first, or turn its heads only"
                .into(),
        );
    }
    let blocks: Vec<usize> = (0..width / EIGHT).collect();
    let reads = |site: &LinearSite, norm| Member::Reads { site: site.clone(), norm, blocks: blocks.clone() };
    let mut members = vec![reads(&stream.embedding, None)];
    for group in &stream.reads {
        members.extend(group.readers.iter().map(|site| reads(site, Some(group.norm.clone()))));
    }
    members.extend(stream.writes.iter().map(|(site, bias)| Member::Writes { site: site.clone(), bias: bias.clone(), first: 0 }));
    let norms = stream.reads.into_iter().map(|group| group.norm).collect();
    Ok(Spot { label: "residual stream".into(), blocks: blocks.len(), members, norms, at_run_time: false })
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heads => "heads",
            Self::Residual => "the residual stream",
            Self::Inputs => "inputs",
        })
    }
}
