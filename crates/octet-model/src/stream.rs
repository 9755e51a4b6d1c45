//! Who reads and who writes the residual stream: what has to turn with it where it is turned (QuaRot, arXiv 2404.00456,
//! section 3.1; SpinQuant, arXiv 2405.16406).

use crate::{
    graph::{BlockGraph, Linear, Node, Param, PlainNode, Slot},
    sites::LinearSite,
};

/// A norm of the residual stream with the linears that read what it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamReaders {
    /// The norm's weight.
    pub norm: Param,
    /// The linears.
    pub readers: Vec<LinearSite>,
}

/// Everything that reads or writes the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// The table whose rows it begins with.
    pub embedding: LinearSite,
    /// Norms with their readers, in order.
    pub reads: Vec<StreamReaders>,
    /// Linears that add to it, with their biases.
    pub writes: Vec<(LinearSite, Option<Param>)>,
    /// Whether the embedding's matrix is the head as well.
    pub tied: bool,
}

const POSITIONS: &str = "learned positions are added to it";
const MEAN: &str = "its norms subtract a mean, which does not turn with it";
const BEHIND: &str = "norms stand between linears and the stream they add to, and their weights do not turn with it";
const UNNORMED: &str = "linears read it without a norm";

impl BlockGraph {
    /// Everything that reads or writes the residual stream.
    ///
    /// # Errors
    /// Why it cannot be turned without changing what the model computes.
    pub fn stream(&self) -> Result<Stream, &'static str> {
        let Node::Embed { table, positions: None, .. } = &self.embed else { return Err(POSITIONS) };
        let mut stream = Stream { embedding: table.site.clone(), reads: vec![], writes: vec![], tied: false };
        for node in self.blocks.iter().flatten().chain(&self.head) {
            stream.node(node)?;
        }
        Ok(stream)
    }
}

impl Stream {
    fn node(&mut self, node: &PlainNode) -> Result<(), &'static str> {
        match node {
            Node::Norm { bias: Some(_), from: Slot::Hidden, .. } => return Err(MEAN),
            Node::Norm { weight, from: Slot::Hidden, .. } => self.reads.push(StreamReaders { norm: weight.clone(), readers: vec![] }),
            Node::Norm { from: Slot::Branch, .. } => return Err(BEHIND),
            Node::Linears(group) => {
                match group.from {
                    Slot::Hidden => return Err(UNNORMED),
                    Slot::Normed => self.read(&group.linears.iter().collect::<Vec<_>>()),
                    _ => {}
                }
                let writes = |linear: &&Linear| linear.parts.iter().any(|(to, _)| matches!(to, Slot::Hidden | Slot::Branch));
                self.writes.extend(group.linears.iter().filter(writes).map(|linear| (linear.site.clone(), linear.bias.clone())));
            }
            Node::Experts { router, experts, .. } => {
                self.read(&std::iter::once(router).chain(experts.iter().flat_map(|e| [&e.gate, &e.up])).collect::<Vec<_>>());
                self.writes.extend(experts.iter().map(|e| (e.down.site.clone(), e.down.bias.clone())));
            }
            _ => {}
        }
        Ok(())
    }

    fn read(&mut self, linears: &[&Linear]) {
        self.tied |= linears.iter().any(|linear| linear.tied);
        if let Some(last) = self.reads.last_mut() {
            last.readers.extend(linears.iter().map(|linear| linear.site.clone()));
        }
    }
}
