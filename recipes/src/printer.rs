//! The terminal: stdout is data, stderr is progress, warnings and errors.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much goes to stderr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Progress, warnings and errors.
    #[default]
    Normal,
    /// Errors alone.
    Quiet,
}

/// The reader of stdout is gone; not an error of this program.
#[derive(Debug, thiserror::Error)]
#[error("stdout was closed")]
pub struct StdoutClosed;

/// Writes to the terminal; nothing else does.
#[derive(Debug, Default)]
pub struct Printer {
    verbosity: Verbosity,
}

impl Printer {
    /// A printer that says as much as `verbosity` allows.
    pub fn new(verbosity: Verbosity) -> Self {
        Self { verbosity }
    }

    /// Writes a line of results to stdout.
    pub fn data(&mut self, line: &str) -> anyhow::Result<()> {
        self.data_raw(format!("{line}\n").as_bytes())
    }

    /// Writes bytes of results to stdout.
    pub fn data_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
            other => other.context("cannot write to stdout"),
        }
    }

    /// A line about what happens, on stderr.
    pub fn status(&mut self, line: &str) {
        if self.verbosity == Verbosity::Normal {
            write_stderr(line);
        }
    }

    /// A warning; `text` opens with `warning: `.
    pub fn warning_block(&mut self, text: &str) {
        self.status(text);
    }

    /// A warning in one line, without its label.
    pub fn warning(&mut self, message: &str) {
        self.status(&format!("warning: {message}"));
    }

    /// Warnings of what was opened, a line each.
    pub fn warnings(&mut self, messages: &[String]) {
        for message in messages {
            self.warning(message);
        }
    }

    /// An error, shown in any case; `text` opens with `error: `.
    pub fn error_block(&mut self, text: &str) {
        write_stderr(text);
    }

    /// Progress over `total` units: a bar on a terminal, a line now and then elsewhere.
    pub fn progress(&self, label: &str, total: u64) -> Progress {
        Progress::new(label, total, self.verbosity)
    }
}

fn write_stderr(text: &str) {
    let mut stderr = io::stderr().lock();
    let text = if use_colour() { coloured(text) } else { text.to_owned() };
    // Nobody is left to be told that stderr is closed.
    let _ = writeln!(stderr, "{text}");
}

fn use_colour() -> bool {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_colour && io::stderr().is_terminal()
}

/// Colours the labels that open a line; the words alone carry the meaning.
fn coloured(text: &str) -> String {
    const LABELS: &[(&str, &str)] =
        &[("error:", "\u{1b}[1;31m"), ("warning:", "\u{1b}[1;33m"), ("hint:", "\u{1b}[1;36m")];
    let line = |line: &str| {
        let found = LABELS.iter().find_map(|(label, colour)| {
            line.strip_prefix(label).map(|rest| format!("{colour}{label}\u{1b}[0m{rest}"))
        });
        found.unwrap_or_else(|| line.to_owned())
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Progress of one long task.
pub struct Progress {
    label: String,
    total: u64,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
    Nothing,
}

/// Time between two plain lines of progress.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

impl Progress {
    fn new(label: &str, total: u64, verbosity: Verbosity) -> Self {
        let shown = if verbosity == Verbosity::Quiet {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            Shown::Bar(bar(label, total))
        } else {
            Shown::Lines { last: None }
        };
        Self { label: label.to_owned(), total, shown }
    }

    /// Shows that `done` units are done, and `message` beside it.
    pub fn update(&mut self, done: u64, message: &str) {
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(message.to_owned());
            }
            Shown::Lines { last } => {
                let is_due = last.is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
                if is_due || done == self.total {
                    *last = Some(Instant::now());
                    write_stderr(&format!("{} {done}/{} {message}", self.label, self.total));
                }
            }
            Shown::Nothing => {}
        }
    }

    /// Writes a line above the bar.
    pub fn line(&self, line: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| write_stderr(line)),
            Shown::Lines { .. } => write_stderr(line),
            Shown::Nothing => {}
        }
    }

    /// Takes the bar away; what is to stay goes through [`Printer::status`].
    pub fn finish(self) {
        if let Shown::Bar(bar) = self.shown {
            bar.finish_and_clear();
        }
    }
}

fn bar(label: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
    let template = "{prefix} {bar:30} {pos}/{len} {eta_precise} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.set_prefix(label.to_owned());
    bar
}

/// Target of `--json`: a file, or `-` for stdout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonTarget {
    /// Standard output.
    Stdout,
    /// A file, replaced as a whole.
    File(PathBuf),
}

impl FromStr for JsonTarget {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(PathBuf::from(text)) })
    }
}

impl Printer {
    /// Writes `value` as indented JSON to the target.
    pub fn json(
        &mut self,
        target: &JsonTarget,
        value: &impl serde::Serialize,
    ) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
        text.push('\n');
        match target {
            JsonTarget::Stdout => self.data_raw(text.as_bytes()),
            JsonTarget::File(path) => write_atomically(path, text.as_bytes()),
        }
    }
}

/// Replaces the file at `path` by `bytes`: it holds either the old content or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".tunesmith-").tempfile_in(folder)?;
        file.write_all(bytes)?;
        set_usual_permissions(file.as_file())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))
}

/// Temporary files are private; what takes their place is to be as readable as any other file.
#[cfg(unix)]
fn set_usual_permissions(file: &std::fs::File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_usual_permissions(_file: &std::fs::File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_no_other_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomically(&path, b"old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_atomically(Path::new("/nowhere/at/all.json"), b"").unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/at/all.json"));
    }

    #[test]
    fn colour_is_on_labels_alone() {
        assert_eq!(coloured("hint: try\n x"), "\u{1b}[1;36mhint:\u{1b}[0m try\n x");
    }
}
