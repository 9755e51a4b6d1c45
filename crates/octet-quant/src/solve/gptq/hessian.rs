//! What solvers need of an input's second moments, made once and shared by every matrix that reads the input.

use crate::{Error, statistics::FLOOR};
use octet_kernels::{Engine, Factor, InputMoments, RowPanels, SymmetricMatrix};

/// In which order the inputs of a row are rounded, and what that means for its groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActOrder {
    /// As they come.
    Off,
    /// Those with the largest second moments first, groups and storage as they come.
    #[default]
    Static,
    /// Those with the largest second moments first, and groups formed in that order: a reader needs [`Hessian::g_idx`].
    Dynamic,
}

/// How a [`Hessian`] is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HessianOptions {
    /// What is added to the diagonal, as a share of its mean; ten and a hundred times that if the factorisation fails.
    pub damping: f64,
    /// The order of rounding.
    pub act_order: ActOrder,
    /// Whether eight inputs from a multiple of eight on stay together, in any order.
    pub eights: bool,
}

impl Default for HessianOptions {
    fn default() -> Self {
        Self { damping: 0.01, act_order: ActOrder::Static, eights: false }
    }
}

/// How often the damping is raised tenfold before a matrix is given up.
const RAISES: i32 = 2;

/// Second moments of a linear input, H = mean of x·xᵀ, scaled to a mean diagonal of 1, with the factor of the damped matrix.
#[derive(Debug)]
pub struct Hessian {
    matrix: SymmetricMatrix,
    /// The input at each place of the matrix, where that is not its number.
    columns: Option<Vec<u32>>,
    importance: Vec<f32>,
    factor: Option<Factor>,
    damping: f64,
    raised: bool,
    /// What moments were multiplied by.
    unit: f64,
    dead: Vec<u32>,
    tokens: usize,
}

impl Hessian {
    /// Prepares what was seen of the input `name` (used in errors).
    ///
    /// An input that was always zero is left to itself: it is rounded to nearest and makes nothing good.
    ///
    /// # Errors
    /// If the moments are not finite, which means that an activation was not.
    pub fn new(engine: &Engine, name: &str, moments: &InputMoments, options: HessianOptions) -> Result<Self, Error> {
        let diagonal = moments.second.diagonal();
        let size = diagonal.len();
        let mean = diagonal.iter().map(|&v| f64::from(v)).sum::<f64>() / size.max(1) as f64;
        if !mean.is_finite() {
            let inputs = diagonal.iter().filter(|v| !v.is_finite()).count();
            return Err(Error::Activations { input: name.into(), count: inputs, total: size });
        }
        let unit = if mean > 0.0 { 1.0 / mean } else { 1.0 };
        let dead: Vec<u32> = (0..size as u32).filter(|&i| diagonal[i as usize] == 0.0).collect();
        let importance: Vec<f32> = match mean > 0.0 {
            true => diagonal.iter().map(|&v| (f64::from(v) * unit).max(FLOOR) as f32).collect(),
            false => vec![1.0; size],
        };
        let second = |r: usize, c: usize| match r == c && diagonal[r] == 0.0 {
            true => 1.0,
            false => (f64::from(moments.second.at(r, c)) * unit) as f32,
        };
        let mut descending: Vec<u32> = (0..size as u32).collect();
        descending.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]).then(a.cmp(&b)));
        let mut out = Self {
            matrix: SymmetricMatrix::from_lower(engine, size, &second),
            columns: None,
            importance,
            factor: None,
            damping: 0.0,
            raised: false,
            unit,
            dead,
            tokens: moments.tokens,
        };
        let last_to_first: Vec<u32> = match options.act_order {
            ActOrder::Static if options.eights => eights_last_to_first(&diagonal),
            ActOrder::Static => descending.iter().rev().copied().collect(),
            ActOrder::Off | ActOrder::Dynamic => (0..size as u32).rev().collect(),
        };
        let grouped = (options.act_order == ActOrder::Dynamic).then(|| out.matrix.permuted(engine, &descending));
        for raise in 0..=RAISES {
            out.damping = options.damping * 10f64.powi(raise);
            out.raised = raise > 0;
            out.factor = Factor::new(engine, grouped.as_ref().unwrap_or(&out.matrix), &last_to_first, out.damping as f32);
            if out.factor.is_some() {
                break;
            }
        }
        if let (Some(grouped), true) = (grouped, out.factor.is_some()) {
            out.importance = descending.iter().map(|&i| out.importance[i as usize]).collect();
            (out.matrix, out.columns) = (grouped, Some(descending));
        }
        Ok(out)
    }

    /// `rows` · (H + λ·I)⁻¹ with H in the unit of the moments it was made of, places being inputs; `None` where the damped matrix is
    /// not positive definite.
    pub(crate) fn solve(&self, engine: &Engine, rows: &RowPanels) -> Option<RowPanels> {
        let factor = self.factor.as_ref()?;
        let order: Vec<u32> = match &self.columns {
            None => factor.order().to_vec(),
            Some(columns) => factor.order().iter().map(|&place| columns[place as usize]).collect(),
        };
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &input)| back[input as usize] = place as u32);
        let mut solved = rows.reordered(&order);
        factor.solve_rows(engine, &mut solved);
        let mut solved = solved.reordered(&back);
        solved.multiply(self.unit as f32);
        Some(solved)
    }

    /// Bytes a Hessian of `size` inputs takes.
    pub fn bytes(size: usize) -> usize {
        2 * SymmetricMatrix::bytes(size)
    }

    /// Inputs.
    pub fn size(&self) -> usize {
        self.matrix.size()
    }

    /// Tokens it was gathered from.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Inputs that were zero in every token.
    pub fn dead(&self) -> &[u32] {
        &self.dead
    }

    /// What was added to the diagonal, as a share of its mean.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Whether more than the damping asked for was needed.
    pub fn is_damping_raised(&self) -> bool {
        self.raised
    }

    /// Whether the damped matrix is positive definite; if not, solvers use its diagonal only.
    pub fn is_positive_definite(&self) -> bool {
        self.factor.is_some()
    }

    /// The group of every input where groups are not runs of inputs ([`ActOrder::Dynamic`]).
    pub fn g_idx(&self, group: usize) -> Option<Vec<u32>> {
        let columns = self.columns.as_ref()?;
        let mut groups = vec![0; columns.len()];
        for (place, &input) in columns.iter().enumerate() {
            groups[input as usize] = (place / group.max(1)) as u32;
        }
        Some(groups)
    }

    /// The undamped matrix; place p is input `columns()[p]`.
    pub(in crate::solve) fn matrix(&self) -> &SymmetricMatrix {
        &self.matrix
    }

    pub(in crate::solve) fn columns(&self) -> Option<&[u32]> {
        self.columns.as_deref()
    }

    /// Mean square of every place, mean 1 and no less than a thousandth.
    pub(in crate::solve) fn importance(&self) -> &[f32] {
        &self.importance
    }

    pub(in crate::solve) fn factor(&self) -> Option<&Factor> {
        self.factor.as_ref()
    }

    /// Whether eight inputs from a multiple of eight on are rounded one after the other ([`HessianOptions::eights`]).
    pub(in crate::solve) fn keeps_eights(&self) -> bool {
        let together = |eight: &[u32]| eight.len() == 8 && eight.iter().all(|input| input / 8 == eight[0] / 8);
        self.columns.is_none() && self.factor.as_ref().is_some_and(|factor| factor.order().chunks(8).all(together))
    }
}

/// Inputs eight by eight, those eights last that are the most active.
fn eights_last_to_first(diagonal: &[f32]) -> Vec<u32> {
    let active = |eight: &usize| diagonal[8 * eight..].iter().take(8).map(|&v| f64::from(v)).sum::<f64>();
    let mut eights: Vec<usize> = (0..diagonal.len().div_ceil(8)).collect();
    eights.sort_by(|a, b| active(a).total_cmp(&active(b)).then(b.cmp(a)));
    eights.into_iter().flat_map(|eight| (8 * eight..diagonal.len().min(8 * eight + 8)).rev()).map(|input| input as u32).collect()
}
