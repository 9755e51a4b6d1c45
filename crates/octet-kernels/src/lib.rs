//! Every hot loop of octet: matrix products over packed weights, attention, norms and the element-wise operations
//! between them, on the best instruction set of this CPU and a resident pool of threads.
//!
//! How it is held together: an algorithm is written once, over the sixteen lanes of `simd::Simd`, and each
//! instruction set is one file of `simd/` that says what those lanes are. Scalar is the specification: products of
//! integers are equal to it bit for bit, everything in floating point within a stated tolerance. A value of an
//! instruction set's type exists only where the CPU was seen to have it, so kernels are safe code; `unsafe` is left to
//! the lanes themselves, to writes of several threads into one output, and to the pool.
//!
//! What does not live here: names of models, files, and any choice of a scale.

mod attention;
mod counters;
mod eights;
mod elementwise;
mod engine;
mod isa;
mod lattice;
pub mod limits;
mod linalg;
mod logits;
mod matmul;
mod memory;
mod norm;
mod parallel;
mod pool;
mod quick;
mod rope;
mod search;
mod simd;
mod training;

pub use attention::{AppendJob, AttentionJob, KvCache, KvDtype};
pub use eights::EIGHT;
pub use elementwise::ActivationFn;
pub use engine::{Engine, EngineError};
pub use isa::{Isa, UnknownIsa};
pub use linalg::{CrossGram, CrossMoments, Factor, Gram, InputMoments, Rounding, RowGrids, RowPanels, ScaleEquations, SymmetricMatrix};
pub use logits::LogitSums;
pub use matmul::{Gated, LAYOUT, MatmulJob, PackedLinear, Source};
pub use norm::Norm;
pub use quick::{GroupedRow, QUICK, ScaleFit};
pub use rope::Heads;
pub use search::{CANDIDATES, Candidate, Candidates, CodeMoments, EncodeError};
pub use training::{AttentionGradient, AttentionShape, Likeness, MatrixView, NormGradient};
