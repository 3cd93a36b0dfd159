//! One line a step in `metrics.jsonl`, and what the process uses of the machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Figures of one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Steps done, this one included.
    pub step: u64,
    /// Passes over the data done, as a fraction.
    pub epoch: f64,
    /// Mean over the step's trained tokens, in nats.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Input tokens, no padding.
    pub tokens: u64,
    /// Predicted tokens that carry loss.
    pub trained_tokens: u64,
    /// `tokens / step_seconds`.
    pub tokens_per_second: f64,
    /// Time of the step, without validation and checkpoint.
    pub step_seconds: f64,
    /// Largest resident set of the process so far; what it took of the GPU, where it computes there.
    pub peak_memory_bytes: u64,
    /// Mean over the validation rows' trained tokens, where they were scored after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

/// The open `metrics.jsonl` of a run.
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens the file with the lines of the first `steps` steps: what an interrupted run wrote
    /// after its last checkpoint is done again.
    pub(crate) fn open(path: &Path, steps: u64) -> io::Result<Self> {
        let kept: Vec<String> = match File::open(path) {
            Ok(file) => BufReader::new(file)
                .lines()
                .map_while(Result::ok)
                .filter(|line| {
                    serde_json::from_str::<StepMetrics>(line).is_ok_and(|m| m.step <= steps)
                })
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let partial = path.with_extension("jsonl.partial");
        let mut text = kept.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        fs::write(&partial, text)?;
        fs::rename(&partial, path)?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Adds the line of one step.
    pub(crate) fn append(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        let mut line = serde_json::to_vec(metrics)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Largest resident set of this process so far, in bytes; 0 where the system does not say.
pub fn peak_resident_bytes() -> u64 {
    status_kib("VmHWM:") * 1024
}

/// Memory that can be had without swapping, in bytes; `None` where the system does not say.
pub fn available_memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    field_kib(&text, "MemAvailable:").map(|kib| kib * 1024)
}

fn status_kib(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    field_kib(&text, field).unwrap_or(0)
}

fn field_kib(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}
