//! In which order the linears of a stage can be solved when each shall see what the already solved ones leave it.

use crate::{
    error::Place,
    fuse::uses,
    graph::{BlockGraph, Linear, Node, PlainNode, Slot},
    load::nodes_at,
    sites::InputSite,
};

/// Linears whose inputs become known together.
///
/// To see the inputs: run the nodes from `start` up to `node` (not included) on the residual stream as it was before node
/// `start`, then [show](crate::Stage::show) the node. Nothing but the residual stream is alive before node `start`.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// First node to run.
    pub start: usize,
    /// The node whose linears read the inputs.
    pub node: usize,
    /// The distinct inputs, in order.
    pub inputs: Vec<InputSite>,
    /// Modules of the linears that read them, in order.
    pub modules: Vec<String>,
    /// Whether what the linears give is added to the residual stream as it is.
    pub into_stream: bool,
}

impl BlockGraph {
    /// The phases of a stage, in order: for most blocks q/k/v, o, gate/up, down. The embedding has none.
    pub fn phases(&self, place: Place) -> Vec<Phase> {
        let nodes = nodes_at(self, place);
        let starts = starts(nodes);
        let mut phases = vec![];
        for (index, node) in nodes.iter().enumerate() {
            let start = starts.iter().rev().copied().find(|&start| start <= index).unwrap_or(0);
            let mut add = |linears: Vec<&Linear>, stream| phases.push(phase((start, index), &linears, stream));
            match node {
                Node::Linears(group) => {
                    let stream = group.accumulate && group.linears.iter().flat_map(|l| &l.parts).all(|(to, _)| *to == Slot::Hidden);
                    add(group.linears.iter().collect(), stream);
                }
                Node::Experts { router, experts, .. } => {
                    add(std::iter::once(router).chain(experts.iter().flat_map(|e| [&e.gate, &e.up])).collect(), false);
                    add(experts.iter().map(|e| &e.down).collect(), false);
                }
                _ => {}
            }
        }
        phases
    }

    /// Number of nodes of a stage.
    pub fn node_count(&self, place: Place) -> usize {
        nodes_at(self, place).len()
    }
}

fn phase((start, node): (usize, usize), linears: &[&Linear], into_stream: bool) -> Phase {
    let mut inputs: Vec<InputSite> = vec![];
    for linear in linears {
        if !inputs.contains(&linear.site.input) {
            inputs.push(linear.site.input);
        }
    }
    let modules = linears.iter().map(|linear| linear.site.module.clone()).collect();
    Phase { start, node, inputs, modules, into_stream }
}

/// The nodes before which no slot but the residual stream is read again.
fn starts(nodes: &[PlainNode]) -> Vec<usize> {
    let mut alive = [false; Slot::COUNT];
    alive[Slot::Hidden as usize] = true;
    let mut starts = vec![];
    for (index, node) in nodes.iter().enumerate().rev() {
        let (reads, writes) = uses(node);
        writes.iter().for_each(|slot| alive[*slot as usize] = false);
        reads.iter().for_each(|slot| alive[*slot as usize] = true);
        alive[Slot::Hidden as usize] = true;
        if alive.iter().filter(|alive| **alive).count() == 1 {
            starts.push(index);
        }
    }
    starts.reverse();
    starts
}
