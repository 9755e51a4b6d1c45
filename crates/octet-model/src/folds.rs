//! Where a positive factor of each channel may move: out of what makes a value, into what reads it, with the block
//! computing the same as before (SmoothQuant, arXiv 2211.10438, section 4; AWQ, arXiv 2306.00978, section 3.2).

use crate::{
    error::Place,
    graph::{BlockGraph, Expert, Linear, Node, Param, PlainNode, Slot},
    load::nodes_at,
    sites::{InputSite, LinearSite},
};
use octet_kernels::ActivationFn;
use std::ops::Range;

/// What makes a value, channel by channel.
#[derive(Clone, Debug, PartialEq)]
pub enum Maker {
    /// A norm: its weight, and its bias where it has one.
    Norm {
        /// Weight.
        weight: Param,
        /// Bias.
        bias: Option<Param>,
    },
    /// Rows of a weight matrix, with their part of its bias.
    Rows {
        /// The matrix.
        site: LinearSite,
        /// One row a channel.
        rows: Range<usize>,
        /// The bias of the whole matrix.
        bias: Option<Param>,
    },
}

/// A value whose channels may be divided by factors where they are made and multiplied by them where they are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Fold {
    /// What is divided.
    pub maker: Maker,
    /// Channels made.
    pub channels: usize,
    /// The power in which the maker's factors arrive at the readers (2 behind a squared ReLU).
    pub power: i32,
    /// The linears whose columns are multiplied: everything that reads the value.
    pub readers: Vec<LinearSite>,
    /// Their distinct inputs.
    pub inputs: Vec<InputSite>,
    /// Query heads, where attention stands between and several of them share a channel.
    heads: Option<usize>,
}

impl Fold {
    /// The channel that column `column` of readers with `columns` columns reads: with grouped queries the heads of a group
    /// read the channels of the one value head they share.
    pub fn channel(&self, column: usize, columns: usize) -> usize {
        let Some(heads) = self.heads else { return column };
        let width = (columns / heads.max(1)).max(1);
        let shared = (heads * width / self.channels.max(1)).max(1);
        column / width / shared * width + column % width
    }

    /// Channels of a head, where attention stands between: they may be mixed with each other, not only multiplied.
    pub fn head_width(&self) -> Option<usize> {
        let (heads, reader) = (self.heads?, self.readers.first()?);
        Some(reader.cols / heads.max(1))
    }
}

/// Where factors may move in a part of the model, and where they may not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Folds {
    /// Where they may, in the order in which the values are made.
    pub folds: Vec<Fold>,
    /// Inputs of linears where they may not, with the reason.
    pub refused: Vec<(InputSite, &'static str)>,
}

/// Why no factor goes through.
const RESIDUAL: &str = "it is the residual stream, which other blocks read as well";
const NORMED: &str = "a norm stands behind it, which forgets factors";
const ADDED: &str = "it is added to the residual stream";
const TURNED: &str = "positions turn its channels in pairs";
const GATED: &str = "its values pass through the activation of a gate";
const ACTIVATED: &str = "its values pass through an activation that does not keep factors";
const MIXED: &str = "its channels are mixed by a rotation";
const TIED: &str = "its matrix is the embedding as well";

impl BlockGraph {
    /// Where factors of channels may move within `place`.
    pub fn folds(&self, place: Place) -> Folds {
        let mut walk = Walk { makers: vec![], slots: [Err(RESIDUAL); Slot::COUNT], refused: vec![] };
        nodes_at(self, place).iter().for_each(|node| walk.node(node));
        let mut folds = Folds { folds: vec![], refused: walk.refused };
        for Made { fold, blocked } in walk.makers {
            match blocked {
                Some(reason) => folds.refused.extend(fold.inputs.iter().map(|input| (*input, reason))),
                None if !fold.readers.is_empty() => folds.folds.push(fold),
                None => {}
            }
        }
        folds
    }
}

/// A value that was made, and whether something reads it that factors must not reach.
struct Made {
    fold: Fold,
    blocked: Option<&'static str>,
}

/// A block, node by node: for every slot which value is in it, or why its value keeps no factors.
struct Walk {
    makers: Vec<Made>,
    slots: [Result<usize, &'static str>; Slot::COUNT],
    refused: Vec<(InputSite, &'static str)>,
}

impl Walk {
    fn node(&mut self, node: &PlainNode) {
        match node {
            Node::Norm { weight, bias, from, to, .. } => {
                self.block(*from, NORMED);
                // The norm of a head is shared by all heads, which then are turned.
                let whole = (from != to).then(|| Maker::Norm { weight: weight.clone(), bias: bias.clone() });
                let made = whole.map(|maker| self.made(maker, weight.shape.iter().product())).ok_or(TURNED);
                self.set(*to, made);
            }
            Node::Linears(group) => {
                self.read(group.from, group.input, &group.linears.iter().collect::<Vec<_>>());
                for linear in &group.linears {
                    for (to, rows) in &linear.parts {
                        let made = if group.accumulate || *to == Slot::Hidden { Err(RESIDUAL) } else { Ok(self.rows(linear, rows)) };
                        self.set(*to, made);
                    }
                }
            }
            Node::Rope { .. } => [Slot::Q, Slot::K].into_iter().for_each(|slot| self.block(slot, TURNED)),
            Node::Attend { heads, .. } => {
                [Slot::Q, Slot::K].into_iter().for_each(|slot| self.block(slot, TURNED));
                let values = self.slots[Slot::V as usize];
                if let Ok(made) = values {
                    self.makers[made].fold.heads = Some(*heads);
                }
                self.set(Slot::Attended, values);
            }
            Node::Gate(_) => {
                self.block(Slot::Gate, GATED);
                self.set(Slot::Gate, self.slots[Slot::Up as usize]);
            }
            Node::Activate(function) => match function {
                ActivationFn::Relu => {}
                ActivationFn::Relu2 => {
                    if let Ok(made) = self.slots[Slot::Up as usize] {
                        self.makers[made].fold.power *= 2;
                    }
                }
                _ => self.block(Slot::Up, ACTIVATED),
            },
            Node::Experts { router, experts, .. } => self.experts(router, experts),
            Node::Add { from } => self.block(*from, ADDED),
            Node::Turn(slot) => self.block(*slot, MIXED),
            Node::Embed { .. } | Node::SoftCap(_) => {}
        }
    }

    fn experts(&mut self, router: &Linear, experts: &[Expert<Linear>]) {
        self.read(Slot::Normed, router.site.input, &[router]);
        for expert in experts {
            self.read(Slot::Normed, expert.gate.site.input, &[&expert.gate, &expert.up]);
        }
        for expert in experts {
            let rows = 0..expert.up.site.rows;
            let made = self.rows(&expert.up, &rows);
            self.set(Slot::Gate, Ok(made));
            self.read(Slot::Gate, expert.down.site.input, &[&expert.down]);
        }
        self.set(Slot::Gate, Err(GATED));
        self.set(Slot::Branch, Err(ADDED));
    }

    fn rows(&mut self, linear: &Linear, rows: &Range<usize>) -> usize {
        let (site, rows, bias) = (linear.site.clone(), rows.clone(), linear.bias.clone());
        let channels = rows.len();
        self.made(Maker::Rows { site, rows, bias }, channels)
    }

    fn made(&mut self, maker: Maker, channels: usize) -> usize {
        let fold = Fold { maker, channels, power: 1, readers: vec![], inputs: vec![], heads: None };
        self.makers.push(Made { fold, blocked: None });
        self.makers.len() - 1
    }

    fn read(&mut self, from: Slot, input: InputSite, linears: &[&Linear]) {
        match self.slots[from as usize] {
            Err(reason) => self.refused.push((input, reason)),
            Ok(made) => {
                let made = &mut self.makers[made];
                made.fold.inputs.push(input);
                made.fold.readers.extend(linears.iter().map(|linear| linear.site.clone()));
                if linears.iter().any(|linear| linear.tied) {
                    made.blocked = Some(TIED);
                }
            }
        }
    }

    /// What is in `slot` is read by something that factors must not reach.
    fn block(&mut self, slot: Slot, reason: &'static str) {
        if let Ok(made) = self.slots[slot as usize] {
            self.makers[made].blocked.get_or_insert(reason);
        }
        if slot != Slot::Hidden {
            self.slots[slot as usize] = Err(reason);
        }
    }

    fn set(&mut self, slot: Slot, value: Result<usize, &'static str>) {
        self.slots[slot as usize] = value;
    }
}
