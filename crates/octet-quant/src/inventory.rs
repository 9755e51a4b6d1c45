//! What a checkpoint holds, as plain data for the plan.

use crate::Error;
use octet_model::{LinearSite, Role};
use octet_tensor::{Dtype, WeightSource};
use std::collections::BTreeSet;

/// A weight matrix of the model and how it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// What it is for in the model.
    pub linear: LinearSite,
    /// The type its elements are stored in.
    pub dtype: Dtype,
    /// Bytes it takes where it is stored, block scales included.
    pub bytes: u64,
}

/// Any other tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct OtherTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type its elements are stored in.
    pub dtype: Dtype,
    /// Why it is left out, `None` if it is kept.
    pub redundant: Option<&'static str>,
}

/// Whether a tensor is no parameter: GPT-2's causal masks (a bias of one dimension is a real one) and rotary frequencies,
/// which old checkpoints carry along.
fn is_buffer(name: &str, shape: &[usize]) -> bool {
    let mask = name.ends_with(".attn.bias") && shape.len() == 4;
    mask || name.ends_with(".attn.masked_bias") || name.ends_with(".rotary_emb.inv_freq")
}

/// Everything a checkpoint holds: what a [`crate::Plan`] is made from, beside the recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// Weight matrices, in the model's order.
    pub sites: Vec<Site>,
    /// Everything else, by name.
    pub others: Vec<OtherTensor>,
}

impl Inventory {
    /// Looks up the model's weight matrices in a checkpoint; every stored name that is not one of theirs is an other tensor.
    ///
    /// # Errors
    /// If a matrix is missing, has another shape than the model needs, or is quantized already.
    pub fn new(linears: &[LinearSite], source: &dyn WeightSource) -> Result<Self, Error> {
        let sites = linears.iter().map(|linear| site(linear, source)).collect::<Result<Vec<_>, _>>()?;
        let taken: BTreeSet<String> =
            linears.iter().flat_map(|s| [s.module.clone() + ".weight", s.module.clone() + ".weight_scale_inv"]).collect();
        let has_head = linears.iter().any(|s| s.role == Role::Head);
        let mut others = Vec::new();
        for name in source.names().into_iter().filter(|name| !taken.contains(name)) {
            let Some(tensor) = source.tensor(&name)? else { continue };
            let redundant = if !has_head && name.ends_with("lm_head.weight") {
                Some("the embedding it repeats serves as head")
            } else {
                is_buffer(&name, tensor.shape()).then_some("a buffer that readers make themselves")
            };
            others.push(OtherTensor { name, shape: tensor.shape().to_vec(), dtype: tensor.dtype(), redundant });
        }
        Ok(Self { sites, others })
    }

    /// Whether one tensor serves as embedding and as head.
    pub fn is_tied(&self) -> bool {
        self.sites.iter().any(|site| crate::recipe::is_tied(&site.linear))
    }
}

fn site(linear: &LinearSite, source: &dyn WeightSource) -> Result<Site, Error> {
    let matrix = crate::rows::matrix(source, linear)?;
    Ok(Site { linear: linear.clone(), dtype: matrix.dtype(), bytes: matrix.stored_bytes() as u64 })
}
