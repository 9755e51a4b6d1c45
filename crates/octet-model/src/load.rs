//! From described nodes to loaded ones: names and shapes checked, weights packed, small tensors as f32.

use crate::{
    error::{LoadError, Place},
    graph::{BlockGraph, Linear, Node, Param, PlainNode, Slot},
    spec::ArchSpec,
};
use octet_kernels::{Engine, PackedLinear};
use octet_tensor::{Activations, Error, FloatMatrix, Matrix, Tensor, WeightSource};
use std::{collections::BTreeSet, ops::Range, sync::Arc};

/// Buffers of other frameworks that checkpoints carry along and that no forward pass reads.
const BUFFERS: &[&str] = &[".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];

/// A weight matrix ready to run, part by part.
pub(crate) struct LoadedLinear {
    pub(crate) parts: Vec<LoadedPart>,
}

/// Rows of a weight matrix that write one slot.
pub(crate) struct LoadedPart {
    pub(crate) weights: Arc<PackedLinear>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) to: Slot,
}

/// A node ready to run.
pub(crate) type LoadedNode = Node<LoadedLinear, Vec<f32>>;

/// What turns descriptions into weights.
pub(crate) struct Loader<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) source: &'a dyn WeightSource,
    /// Activations of quantized linears; `None`: as stored.
    pub(crate) activations: Option<Activations>,
    /// The embedding's matrix, for a tied head.
    pub(crate) embedding: Option<Arc<PackedLinear>>,
}

impl Loader<'_> {
    pub(crate) fn nodes(&self, nodes: &[PlainNode]) -> Result<Vec<LoadedNode>, LoadError> {
        let load = |node: &PlainNode| node.try_map(&mut |linear| self.linear(linear), &mut |param| self.param(param));
        nodes.iter().map(load).collect()
    }

    /// Loads the weights of `linear` again, leaving biases as they are.
    pub(crate) fn refill(&self, loaded: &mut LoadedLinear, linear: &Linear) -> Result<(), LoadError> {
        let matrix = matrix(self.source, linear)?;
        for (part, (_, rows)) in loaded.parts.iter_mut().zip(&linear.parts) {
            part.weights = self.part(&matrix, linear, rows)?;
        }
        Ok(())
    }

    /// Some rows of a matrix, packed.
    fn part(&self, matrix: &Matrix, linear: &Linear, rows: &Range<usize>) -> Result<Arc<PackedLinear>, LoadError> {
        let whole = *rows == (0..matrix.rows());
        let part = if whole { Some(matrix.clone()) } else { matrix.slice_rows(rows.clone()) };
        let part = part.ok_or_else(|| shape_error(&linear.site.module, linear, [matrix.rows(), matrix.cols()]))?;
        Ok(Arc::new(PackedLinear::pack(self.engine, &part, self.activations)?))
    }

    fn linear(&self, linear: &Linear) -> Result<LoadedLinear, LoadError> {
        if let (true, Some(shared)) = (linear.tied, &self.embedding) {
            let parts = linear.parts.iter().map(|(to, _)| LoadedPart { weights: Arc::clone(shared), bias: None, to: *to });
            return Ok(LoadedLinear { parts: parts.collect() });
        }
        let matrix = matrix(self.source, linear)?;
        let bias = linear.bias.as_ref().map(|bias| self.param(bias)).transpose()?;
        let mut parts = Vec::with_capacity(linear.parts.len());
        for (to, rows) in &linear.parts {
            let weights = self.part(&matrix, linear, rows)?;
            parts.push(LoadedPart { weights, bias: bias.as_ref().map(|b| b[rows.clone()].to_vec()), to: *to });
        }
        Ok(LoadedLinear { parts })
    }

    fn param(&self, param: &Param) -> Result<Vec<f32>, LoadError> {
        let mut values = tensor(self.source, param)?.to_f32()?;
        if param.plus_one {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        Ok(values)
    }
}

/// The matrix `[rows, cols]` of a linear, however it is stored.
///
/// # Errors
/// If it is missing or misshapen.
pub fn matrix(source: &dyn WeightSource, linear: &Linear) -> Result<Matrix, LoadError> {
    let site = &linear.site;
    let name = || format!("{}.weight", site.module);
    let matrix = match source.matrix(&site.module)? {
        // What a file format decodes it hands out as [outputs, inputs] already.
        Some(Matrix::Float(float)) if site.transposed && float.dense_bytes().is_some() => {
            let tensor = source.tensor(&name())?.ok_or_else(|| Error::Missing { name: name() })?;
            if tensor.shape() != [site.cols, site.rows] {
                return Err(tensor.wrong_shape(format!("[{}, {}] (inputs, outputs)", site.cols, site.rows)).into());
            }
            Matrix::Float(FloatMatrix::transposed(tensor)?)
        }
        Some(matrix) => matrix,
        None => return Err(Error::Missing { name: name() }.into()),
    };
    let found = [matrix.rows(), matrix.cols()];
    if found == [site.rows, site.cols] { Ok(matrix) } else { Err(shape_error(&name(), linear, found).into()) }
}

/// A norm, bias or table of positions in the shape the model needs.
///
/// # Errors
/// If it is missing or misshapen.
pub fn tensor(source: &dyn WeightSource, param: &Param) -> Result<Tensor, LoadError> {
    let tensor = source.tensor(&param.name)?.ok_or_else(|| Error::Missing { name: param.name.clone() })?;
    if tensor.shape() == param.shape { Ok(tensor) } else { Err(tensor.wrong_shape(format!("{:?}", param.shape)).into()) }
}

fn shape_error(name: &str, linear: &Linear, found: [usize; 2]) -> Error {
    let expected = format!("[{}, {}]", linear.site.rows, linear.site.cols);
    Error::Shape { name: name.into(), expected, found: found.into() }
}

impl ArchSpec {
    /// Settles what only the checkpoint can tell: whether its names have the usual prefix (checkpoints of the bare model
    /// have none), and whether a head that the config calls tied has weights of its own after all, which then count.
    ///
    /// # Errors
    /// If the embedding or head cannot be read.
    pub fn settle(&mut self, source: &dyn WeightSource) -> Result<(), LoadError> {
        let usual = self.names.root;
        let has = |root: &str| source.matrix(&format!("{root}{}", self.names.embedding)).map(|m| m.is_some());
        self.root = if !has(usual)? && has("")? { "" } else { usual };
        if self.head.tied
            && let Some(head) = source.matrix(self.head_module())?
        {
            let embedding = source.matrix(&self.outer(self.names.embedding))?;
            self.head.tied = embedding.is_some_and(|embedding| same_bytes(&embedding, &head));
        }
        self.check_turned()
    }

    /// Checks that a checkpoint holds every tensor the model needs in the shape it needs, and none in its blocks that it
    /// has no use for; names and shapes are looked at, not the weights.
    ///
    /// # Errors
    /// If it does not; the tensor is named with what was expected and what was found.
    pub fn check(&self, source: &dyn WeightSource) -> Result<(), LoadError> {
        let graph = self.graph();
        for node in graph.nodes() {
            for linear in node.linears() {
                if !linear.tied {
                    matrix(source, linear)?;
                }
                linear.bias.as_ref().map(|bias| tensor(source, bias)).transpose()?;
            }
            for param in node.params() {
                tensor(source, param)?;
            }
        }
        refuse_unexpected(self, &graph, source)
    }
}

fn same_bytes(a: &Matrix, b: &Matrix) -> bool {
    let (Matrix::Float(a), Matrix::Float(b)) = (a, b) else { return false };
    match (a.dense_bytes(), b.dense_bytes()) {
        (Some((dtype_a, a)), Some((dtype_b, b))) => dtype_a == dtype_b && *a == *b,
        _ => false,
    }
}

/// Refuses a checkpoint with tensors in its blocks that the graph does not use (a bias or a norm the config does not
/// speak of would otherwise be dropped in silence).
pub(crate) fn refuse_unexpected(spec: &ArchSpec, graph: &BlockGraph, source: &dyn WeightSource) -> Result<(), LoadError> {
    let others: BTreeSet<String> = graph.other_tensors().into_iter().map(|(name, _)| name).collect();
    let modules: BTreeSet<String> = graph.linear_sites().into_iter().map(|site| site.module).collect();
    let layers = format!("{}.", spec.outer(spec.names.layers));
    for name in source.names() {
        let Some(rest) = name.strip_prefix(&layers) else { continue };
        let index = rest.split('.').next().and_then(|index| index.parse::<usize>().ok());
        if index.is_none_or(|index| index >= spec.layers.len()) || BUFFERS.iter().any(|buffer| name.ends_with(buffer)) {
            continue;
        }
        // What belongs to a matrix may be named `module.part` or, in some formats, `module.weight.part`.
        let mut ends = name.rmatch_indices('.').map(|(at, _)| (&name[..at], &name[at + 1..]));
        let weight = ends.any(|(module, what)| modules.contains(module) && what != "bias");
        if !weight && !others.contains(&name) {
            return Err(LoadError::Unexpected { name, family: spec.family });
        }
    }
    Ok(())
}

/// The nodes of one place of the graph.
pub(crate) fn nodes_at(graph: &BlockGraph, place: Place) -> &[PlainNode] {
    match place {
        Place::Embedding => std::slice::from_ref(&graph.embed),
        Place::Layer(layer) => graph.blocks.get(layer).map_or(&[], Vec::as_slice),
        Place::Head => &graph.head,
    }
}
