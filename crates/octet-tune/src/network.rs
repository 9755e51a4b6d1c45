//! The graph of a model with its parameters numbered.

use crate::TuneError;
use octet_model::{
    ArchSpec, LinearSite,
    graph::{Linear, Node, Param, PlainNode, Slot},
    load,
};
use octet_tensor::WeightSource;
use std::{cell::RefCell, collections::BTreeMap, ops::Range};

/// A linear whose matrix and bias are parameters, by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainLinear {
    /// The matrix.
    pub weight: usize,
    /// Its bias.
    pub bias: Option<usize>,
    /// Rows of the matrix and the slot they write.
    pub parts: Vec<(Slot, Range<usize>)>,
}

/// A node whose tensors are parameters, by their numbers.
pub type TrainNode = Node<TrainLinear, usize>;

/// Something that can be learnt.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The module of a matrix, the name of any other tensor.
    pub name: String,
    /// Its rows and columns; of a vector one row.
    pub shape: [usize; 2],
    /// What it is.
    pub kind: ParamKind,
}

/// What a parameter is.
#[derive(Clone, Debug)]
pub enum ParamKind {
    /// The weights of a linear or an embedding.
    Matrix(Box<LinearSite>),
    /// A norm's weight, a bias, learned positions; 1 is added to what is stored where it says so.
    Small {
        /// Whether 1 is added.
        plus_one: bool,
    },
}

/// What a model computes, ready to be trained.
pub struct Network {
    spec: ArchSpec,
    parameters: Vec<Parameter>,
    pub(crate) embed: TrainNode,
    pub(crate) blocks: Vec<Vec<TrainNode>>,
    pub(crate) head: Vec<TrainNode>,
}

/// Parameters while they are being numbered.
#[derive(Default)]
struct Numbers {
    known: BTreeMap<String, usize>,
    all: Vec<Parameter>,
}

impl Numbers {
    fn number(&mut self, parameter: Parameter) -> usize {
        if let Some(&known) = self.known.get(&parameter.name) {
            return known;
        }
        self.known.insert(parameter.name.clone(), self.all.len());
        self.all.push(parameter);
        self.all.len() - 1
    }

    fn small(&mut self, param: &Param) -> usize {
        let (cols, rows) = (param.shape.last().copied().unwrap_or(1), param.shape.iter().rev().skip(1).product());
        let kind = ParamKind::Small { plus_one: param.plus_one };
        self.number(Parameter { name: param.name.clone(), shape: [rows, cols], kind })
    }

    fn linear(&mut self, linear: &Linear) -> TrainLinear {
        let kind = ParamKind::Matrix(Box::new(linear.site.clone()));
        let parameter = Parameter { name: linear.site.module.clone(), shape: [linear.site.rows, linear.site.cols], kind };
        let weight = self.number(parameter);
        TrainLinear { weight, bias: linear.bias.as_ref().map(|bias| self.small(bias)), parts: linear.parts.clone() }
    }
}

impl Network {
    /// The network of a model; a head that is the embedding's matrix shares its parameter.
    ///
    /// # Errors
    /// If it has a node without a gradient (a mixture of experts).
    pub fn new(spec: &ArchSpec) -> Result<Self, TuneError> {
        let graph = spec.graph();
        let numbers = RefCell::new(Numbers::default());
        let node = |node: &PlainNode| -> Result<TrainNode, TuneError> {
            if let Node::Experts { layer, .. } = node {
                return Err(TuneError::Untrainable { what: format!("the mixture of experts of block {layer}") });
            }
            node.try_map(&mut |linear| Ok(numbers.borrow_mut().linear(linear)), &mut |param| Ok(numbers.borrow_mut().small(param)))
        };
        let embed = node(&graph.embed)?;
        let blocks = graph.blocks.iter().map(|nodes| nodes.iter().map(node).collect()).collect::<Result<_, _>>()?;
        let head = graph.head.iter().map(node).collect::<Result<_, _>>()?;
        Ok(Self { spec: spec.clone(), parameters: numbers.into_inner().all, embed, blocks, head })
    }

    /// What can be learnt, by number.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What the model computes.
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    /// The number of a parameter.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.parameters.iter().position(|parameter| parameter.name == name)
    }

    /// The values of all parameters as `source` has them, decoded where they are quantized.
    ///
    /// # Errors
    /// If one is missing, misshapen or unreadable.
    pub fn values(&self, source: &dyn WeightSource) -> Result<Vec<Vec<f32>>, TuneError> {
        let mut values = vec![vec![]; self.parameters.len()];
        let graph = self.spec.graph();
        let mut set = |name: &str, read: &mut dyn FnMut() -> Result<Vec<f32>, TuneError>| -> Result<(), TuneError> {
            match self.number(name) {
                Some(at) if values[at].is_empty() => values[at] = read()?,
                _ => {}
            }
            Ok(())
        };
        for node in graph.nodes() {
            let biases = node.linears().into_iter().filter_map(|linear| linear.bias.as_ref());
            for param in node.params().into_iter().chain(biases) {
                set(&param.name, &mut || {
                    let mut values = load::tensor(source, param)?.to_f32()?;
                    if param.plus_one {
                        values.iter_mut().for_each(|value| *value += 1.0);
                    }
                    Ok(values)
                })?;
            }
            for linear in node.linears() {
                set(&linear.site.module, &mut || {
                    let mut values = vec![0.0; linear.site.rows * linear.site.cols];
                    load::matrix(source, linear)?.read_rows_f32(0..linear.site.rows, &mut values)?;
                    Ok(values)
                })?;
            }
        }
        Ok(values)
    }
}
