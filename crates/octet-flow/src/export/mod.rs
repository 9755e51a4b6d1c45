//! The export job: a model in another format, re-opened, judged against the model it came from, and only then given its name.
//!
//! Every format is a [`Format`] that makes itself ready for a model ([`Format::prepare`], where everything it cannot hold is
//! refused) and an [`Export`] that writes. What follows the writing is the same for all of them.

mod archive;
mod card;
mod checkpoint;
mod convert;
mod deploy;
mod format;
mod gguf;
mod onnx;
mod source;

pub use card::Facts;
pub use checkpoint::Layout;
pub use format::Format;
pub use source::Source;

use crate::{
    Calibration, Error, JudgeSettings, Original, Progress, Result,
    judge::{judge_export, same_text},
};
use octet_eval::Report;
use octet_formats::{Checkpoint, Folder, staging::Staging};
use octet_kernels::Engine;
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    thread::{self, JoinHandle},
    time::Instant,
};

/// How an export is carried out.
#[derive(Clone, Copy)]
pub struct ExportRun<'a> {
    /// What flows through the model, where that is to be measured.
    pub calibration: Option<&'a Calibration>,
    /// Threads and kernels.
    pub engine: &'a Engine,
    /// Set it to stop.
    pub cancel: &'a AtomicBool,
}

/// Where an export goes.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The file or folder.
    pub target: &'a Path,
    /// Whether what is there is replaced.
    pub force: bool,
    /// Whether what servers need is written too: into `deploy/`, or for a file into the folder `<name>-deploy` beside it.
    pub deploy: bool,
}

/// A format made ready for one model.
pub trait Export {
    /// Whether it is one file instead of a folder.
    fn is_file(&self) -> bool {
        false
    }

    /// Whether what flows through the model can change the result.
    fn wants_calibration(&self) -> bool {
        false
    }

    /// What a person should know: what is converted, what other readers do otherwise.
    fn notes(&self) -> &[String];

    /// Writes the file, or into the (empty) folder, at `path`.
    ///
    /// # Errors
    /// If weights cannot be read or solved, or the disk fails.
    fn write(&self, path: &Path, run: &ExportRun<'_>, progress: Progress<'_>) -> Result<()>;

    /// Opens what was written with octet's own reader; `None` where octet does not read the format, and has checked it otherwise.
    ///
    /// # Errors
    /// If it cannot be read.
    fn reopen(&self, path: &Path) -> Result<Option<Folder>>;
}

/// An export that was written and waits for its verdict.
pub struct Exported {
    staging: Staging,
    path: PathBuf,
    is_file: bool,
    /// The same, opened by octet's own reader.
    pub folder: Option<Folder>,
    /// What reading, converting and writing the tensors took.
    pub took: Took,
    deploy: Deploy,
    seal: Option<JoinHandle<Result<String>>>,
}

/// What it took to bring a model's tensors into another format.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Took {
    /// Bytes of the tensors that were read.
    pub bytes_read: u64,
    /// Seconds until all was converted and written, and where the format has no reader here, checked.
    pub seconds: f64,
}

impl Took {
    /// MB (10⁶ bytes) of the model a second.
    pub fn mb_s(&self) -> f64 {
        self.bytes_read as f64 / 1e6 / self.seconds
    }
}

/// Where a hand-over to servers is written.
enum Deploy {
    No,
    Inside,
    Beside(Staging),
}

impl Exported {
    /// Writes `export` of `source` beside its place and opens it again: text must become the same tokens.
    ///
    /// # Errors
    /// If the target exists (without `force`) or touches the input, the export fails, or what was written cannot be read or
    /// tokenizes text otherwise.
    pub fn write(source: &Source, export: &dyn Export, place: Place<'_>, run: &ExportRun<'_>, progress: Progress<'_>) -> Result<Self> {
        let Place { target, force, deploy } = place;
        // Reading a model once more for its card takes as long as half of writing: it goes on beside that.
        let seal = (deploy || !export.is_file()).then(|| source.input.clone()).map(|input| thread::spawn(move || card::seal(&input)));
        let inputs: Vec<&Path> = source.input.path().into_iter().collect();
        let deploy = match (deploy, export.is_file()) {
            (false, _) => Deploy::No,
            (true, false) => Deploy::Inside,
            (true, true) => Deploy::Beside(Staging::begin(&beside(target), force, &inputs)?),
        };
        let (staging, path) = match export.is_file() {
            true => {
                let staging = Staging::begin_file(target, force, &inputs)?;
                let path = staging.path().join(target.file_name().unwrap_or_default());
                (staging, path)
            }
            false => {
                let staging = Staging::begin(target, force, &inputs)?;
                let path = staging.path();
                (staging, path)
            }
        };
        let started = Instant::now();
        export.write(&path, run, progress)?;
        let bytes_read = source.checkpoint.entries().iter().map(|entry| entry.bytes as u64).sum();
        let took = Took { bytes_read, seconds: started.elapsed().as_secs_f64() };
        let folder = export.reopen(&path)?;
        if let Some(folder) = &folder {
            let failed = |what| Error::Export { target: target.display().to_string(), what };
            same_text(source, folder).map_err(failed)?;
        }
        Ok(Self { staging, path, is_file: export.is_file(), folder, took, deploy, seal })
    }

    /// Writes the model card, and what servers need where that was asked for. A single file has a card only beside the latter.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn describe(&mut self, source: &Source, facts: Facts<'_>) -> Result<()> {
        let Some(seal) = self.seal.take() else { return Ok(()) };
        let seal = seal.join().map_err(|_| Error::Internal("the thread that reads the model for its card panicked".into()))??;
        let written = self.folder.as_ref().map(Checkpoint::open).transpose()?;
        let (written, bytes) = (written.as_ref(), self.bytes()?);
        if !self.is_file {
            card::write(source, facts, bytes, (written, &seal), &self.path)?;
        }
        match &self.deploy {
            Deploy::No => Ok(()),
            Deploy::Inside => deploy::write(source, facts.format, "..", written, &self.path.join("deploy")),
            Deploy::Beside(staging) => {
                let name = self.path.file_name().unwrap_or_default().to_string_lossy();
                deploy::write(source, facts.format, &name, written, &staging.path())?;
                card::write(source, facts, bytes, (written, &seal), &staging.path().join("card"))
            }
        }
    }

    /// Judges it against the model it came from: perplexity, divergence, tokens and prompts. `None` where octet does not read the format.
    ///
    /// # Errors
    /// If a model cannot run, or `cancel` is set.
    pub fn judge(
        &self,
        original: &mut Original,
        label: &str,
        settings: &JudgeSettings,
        run: &ExportRun<'_>,
        progress: Progress<'_>,
    ) -> Result<Option<Report>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        judge_export(original, folder, label, settings, run.engine, run.cancel, progress).map(Some)
    }

    /// Bytes of all its files.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn bytes(&self) -> Result<u64> {
        if self.is_file {
            return Ok(std::fs::metadata(&self.path).map_err(Error::read(&self.path))?.len());
        }
        crate::artefact::folder_bytes(&self.path)
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn commit(self) -> Result<PathBuf> {
        // What is mapped would keep the old file's pages.
        drop(self.folder);
        let path = if self.is_file { self.staging.commit_file()? } else { self.staging.commit()? };
        if let Deploy::Beside(staging) = self.deploy {
            staging.commit()?;
        }
        Ok(path)
    }
}

/// The folder of a hand-over beside a file.
fn beside(target: &Path) -> PathBuf {
    let stem = target.file_stem().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!("{stem}-deploy"))
}
