//! What a person sees: progress with an estimate of the time left, sizes and durations in words.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    path::Path,
    time::{Duration, Instant},
};

/// One progress line: a bar on a terminal, a plain line now and then without one. Always on stderr.
pub(crate) struct Progress {
    bar: ProgressBar,
    plain: bool,
    stage: String,
    started: Instant,
    said: Option<Instant>,
}

/// Without a terminal a stage says something at most this often.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// A progress line, hidden until something starts.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { bar, plain: !std::io::stderr().is_terminal(), stage: String::new(), started: Instant::now(), said: None }
    }

    /// Shows `done` of `total` of a stage; the bar restarts when the stage changes.
    pub(crate) fn update(&mut self, stage: &str, done: u64, total: u64, detail: &str) {
        if self.stage != stage {
            self.finish();
            self.stage = stage.to_string();
            self.started = Instant::now();
            self.said = None;
            if !self.plain {
                self.bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
                self.bar.set_style(style());
                self.bar.set_prefix(stage.to_string());
            }
        }
        if self.plain {
            self.update_plain(done, total, detail);
        } else {
            self.bar.set_length(total);
            self.bar.set_position(done);
            self.bar.set_message(detail.to_string());
        }
    }

    /// Clears the line.
    pub(crate) fn finish(&mut self) {
        self.bar.finish_and_clear();
        self.stage.clear();
    }

    fn update_plain(&mut self, done: u64, total: u64, detail: &str) {
        let elapsed = self.started.elapsed();
        let due = self.said.map_or(elapsed > Duration::from_secs(1), |said| said.elapsed() >= PLAIN_EVERY);
        if !due || done == 0 {
            return;
        }
        self.said = Some(Instant::now());
        let left = elapsed.mul_f64((total.saturating_sub(done)) as f64 / done as f64);
        let percent = 100 * done / total.max(1);
        note(&fitting(&format!("{}: {percent} %, {} left  {detail}", self.stage, duration(left))));
    }
}

fn style() -> ProgressStyle {
    // The template is a constant of ours; the default stands in should it ever fail to parse.
    ProgressStyle::with_template("{prefix:>11} [{bar:24}] {percent:>3} %  {eta:>4} left  {wide_msg}")
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
}

/// Columns of a terminal that lines are made for.
pub(crate) const WIDTH: usize = 80;

/// A line cut at a word so that it fits a terminal.
fn fitting(line: &str) -> String {
    let mut out = String::new();
    for word in line.split(' ') {
        if out.chars().count() + 1 + word.chars().count() > WIDTH {
            break;
        }
        out.push_str(if out.is_empty() { "" } else { " " });
        out.push_str(word);
    }
    out
}

/// What a word says of a verdict, for those who see colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Open,
}

/// A word in the colour of its tone, where stdout is a terminal and nobody asked for none (<https://no-color.org>).
pub(crate) fn paint(word: &str, tone: Tone) -> String {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    painted(word, tone, std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb)
}

fn painted(word: &str, tone: Tone, colours: bool) -> String {
    let code = match tone {
        Tone::Good => 32,
        Tone::Bad => 31,
        Tone::Open => 33,
    };
    if colours { format!("\u{1b}[1;{code}m{word}\u{1b}[0m") } else { word.into() }
}

/// A line for people, on stderr.
#[allow(clippy::print_stderr, reason = "the one place that writes notes for people")]
pub(crate) fn note(line: &str) {
    eprintln!("{line}");
}

/// A line of a result, on stdout; a closed pipe (as `head` leaves) is not an error.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Text of a result without a line end, shown at once.
pub(crate) fn stream(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Bytes in the largest decimal unit that keeps the number above one, as in `4.2 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let (unit, divisor) = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)].into_iter().find(|u| count as f64 >= u.1).unwrap_or(("B", 1.0));
    let value = count as f64 / divisor;
    let places = usize::from(divisor > 1.0 && value < 100.0);
    format!("{value:.places$} {unit}")
}

/// A path as one would type it here: relative where it lies below the working folder.
pub(crate) fn path(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let relative = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf)).unwrap_or_else(|| path.to_path_buf());
    let plain = relative.is_relative() && !relative.starts_with(".") && !relative.starts_with("..");
    if plain { format!("./{}", relative.display()) } else { relative.display().to_string() }
}

/// A duration as a person would say it, as in `850 ms`, `12.3 s` or `4 min 05 s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s => format!("{} min {:02} s", (s / 60.0) as u64, (s % 60.0) as u64),
    }
}

/// Rows as columns of equal width: the first left-aligned, the others right-aligned.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut all: Vec<Vec<String>> = vec![header.iter().map(|h| (*h).to_string()).collect()];
    all.extend(rows.iter().cloned());
    let widths: Vec<usize> =
        (0..header.len()).map(|c| all.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let padded = cells.map(|(c, (cell, &width))| if c == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!([bytes(12), bytes(4_200_000), bytes(1_503_000_000), bytes(250_000)], ["12 B", "4.2 MB", "1.5 GB", "250 kB"]);
        assert_eq!(duration(Duration::from_millis(245_300)), "4 min 05 s");
        assert_eq!(duration(Duration::from_millis(850)), "850 ms");
    }

    #[test]
    fn lines_end_at_a_word_and_colours_only_where_they_are_seen() {
        let long = fitting(&"progress ".repeat(20));
        assert!(long.chars().count() <= WIDTH && long.ends_with("progress"), "{long}");
        assert_eq!(fitting("a  b"), "a  b");
        assert_eq!(painted("REFUSED", Tone::Bad, false), "REFUSED");
        assert_eq!(painted("ACCEPTED", Tone::Good, true), "\u{1b}[1;32mACCEPTED\u{1b}[0m");
        // Tests have no terminal.
        assert_eq!(paint("FAIL", Tone::Bad), "FAIL");
    }

    #[test]
    fn tables_line_up() {
        let text = table(&["a", "long"], &[vec!["xyz".into(), "1".into()]]);
        assert_eq!(text, "a    long\nxyz     1");
    }
}
