//! The plan as a table for people.

use super::{Action, Line, Plan};
use crate::Forecast;
use std::fmt;

/// A row of the table: tensors that differ in nothing but numbers in their names.
struct Row {
    cells: [String; 6],
    count: usize,
    stored: u64,
    bytes: u64,
}

const HEADERS: [&str; 8] = ["tensor", "count", "role", "shape", "stored", "becomes", "MB", "why"];

impl Plan {
    /// The plan as an aligned table: one row for each distinct kind of tensor, or one for each tensor when `verbose`.
    pub fn table(&self, verbose: bool) -> String {
        let mut rows: Vec<Row> = Vec::new();
        for line in &self.lines {
            let cells = cells(line, verbose);
            match rows.iter_mut().find(|row| !verbose && row.cells == cells) {
                Some(row) => {
                    row.count += 1;
                    row.stored += line.stored_bytes;
                    row.bytes += line.bytes;
                }
                None => rows.push(Row { cells, count: 1, stored: line.stored_bytes, bytes: line.bytes }),
            }
        }
        let text = self.rotations.iter().fold(align(rows), |text, step| text + &format!("before    {step}\n"));
        let text = self.scalings.iter().fold(text, |text, step| text + &format!("{step}\n"));
        self.distill.iter().fold(text, |text, step| text + &format!("after     {step}\n"))
    }
}

fn cells(line: &Line, verbose: bool) -> [String; 6] {
    let shape: Vec<String> = line.shape.iter().map(usize::to_string).collect();
    let (becomes, why) = match &line.action {
        Action::Quantize { scheme, scale_dtype, solver } => (format!("{scheme} {solver}, {scale_dtype} scales"), String::new()),
        Action::Blocks { code, solver } => (format!("{} {solver}", code.name), String::new()),
        Action::Keep { dtype, reason } => (dtype.to_string(), reason.clone()),
        Action::Drop { reason } => ("nothing".into(), reason.clone()),
    };
    let name = if verbose { line.name.clone() } else { without_numbers(&line.name) };
    [name, line.role().into(), shape.join(" x "), line.stored.to_string(), becomes, why]
}

/// The name with numbers between dots replaced: layers (and experts) of a kind then have one name.
fn without_numbers(name: &str) -> String {
    let part = |part: &'_ str| if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) { "*".into() } else { part.to_string() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn align(rows: Vec<Row>) -> String {
    let mut lines = vec![HEADERS.map(String::from)];
    lines.extend(rows.into_iter().map(|Row { cells: [name, role, shape, stored, becomes, why], count, stored: from, bytes }| {
        [name, count.to_string(), role, shape, stored, becomes, format!("{} -> {}", megabytes(from), megabytes(bytes)), why]
    }));
    let widths: [usize; 8] = std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(widths) {
            row += &format!("{cell:<width$}  ");
        }
        text += row.trim_end();
        text.push('\n');
    }
    text
}

fn megabytes(bytes: u64) -> String {
    let mb = bytes as f64 / 1e6;
    if mb >= 100.0 { format!("{mb:.0}") } else { format!("{mb:.2}") }
}

/// The summary table.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table(false))
    }
}

/// One figure a line.
impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = self.stored_bytes as f64 / self.artefact_bytes.max(1) as f64;
        writeln!(f, "weights   {} MB -> {} MB ({ratio:.2}x smaller)", megabytes(self.stored_bytes), megabytes(self.artefact_bytes))?;
        writeln!(f, "bits      {:.3} a weight of the linears, {:.3} of everything", self.linear_bits, self.all_bits)?;
        writeln!(f, "memory    {} MB of buffers while quantizing", megabytes(self.buffer_bytes))?;
        if let Some(seconds) = self.seconds {
            writeln!(f, "time      {seconds:.1} s of solving, by this machine's measured rate")?;
        }
        Ok(())
    }
}
