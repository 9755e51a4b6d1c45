//! One tensor that is put in blocks.

use super::solving::{Aim, Solving};
use crate::{BlockJob, Error, Sink, SolverChoice, TensorReport, block_rows::BlockWork};
use octet_tensor::{BlockCode, FloatMatrix, Matrix, Tensor};

impl Solving<'_> {
    /// Solves the tensor into `sink`; decoded to floats where it is needed as a whole.
    pub(super) fn blocks(
        &self,
        code: BlockCode,
        choice: SolverChoice,
        sink: &mut dyn Sink,
        step: &mut dyn FnMut(f64) -> Result<(), Error>,
    ) -> Result<(TensorReport, Option<Matrix>), Error> {
        let Some(site) = &self.line.linear else { return Ok((TensorReport::kept(self.line), None)) };
        let Aim { matrix, hessian, moved } = self.aim(choice, site)?;
        let seen = self.statistics.get(&site.input);
        let importance = seen.map(|seen| seen.importance());
        let module = self.line.name.as_str();
        let job =
            BlockJob { module, shape: (site.rows, site.cols), code, importance: importance.as_deref(), hessian, engine: self.run.engine };
        if choice.needs_hessian() && hessian.is_none() && self.run.options.strict {
            return Err(Error::Unreached { module: module.into() });
        }
        let (error, whole) = BlockWork::new(&job, choice)?.run(&matrix, sink, self.keep, step)?;
        let solver = if hessian.is_some() { choice.to_string() } else { "rtn".into() };
        let report = TensorReport { error, solver: Some(format!("{} {solver}", code.name)), shift: moved, ..TensorReport::kept(self.line) };
        let floats = |rows: octet_tensor::BlockRows| {
            let tensor = Tensor::from_f32(format!("{module}.weight"), vec![site.rows, site.cols], &rows.dequantize())?;
            Ok::<_, Error>(Matrix::Float(FloatMatrix::dense(tensor)?))
        };
        Ok((report, whole.map(floats).transpose()?))
    }
}
