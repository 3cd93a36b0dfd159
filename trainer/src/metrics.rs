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
    /// The loss that spreads tokens over experts, without its factor, where it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_aux_loss: Option<f64>,
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

/// Memory that can be had without swapping, in bytes: of the machine, or of the container that this
/// runs in, whichever is less; `None` where the system does not say.
pub fn available_memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let of_machine = field_kib(&text, "MemAvailable:").map(|kib| kib * 1024)?;
    Some(of_container(Path::new("/sys/fs/cgroup")).map_or(of_machine, |free| free.min(of_machine)))
}

/// What is left under the limits of this process's control groups: its own and those above it, in
/// either version of their files. Inside of a container its own group is the root.
fn of_container(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = |marker: &str| groups.lines().find_map(|line| Some(line.split_once(marker)?.1));
    let left = |root: &Path, own: Option<&str>| {
        let own = root.join(own.unwrap_or_default());
        let folders = own.ancestors().take_while(|folder| folder.starts_with(root));
        folders.filter_map(left_in_group).min()
    };
    let second = left(root, own("0::/"));
    let first = left(&root.join("memory"), own(":memory:/"));
    second.into_iter().chain(first).min()
}

/// What a group may still take: files that the kernel only keeps for later count as free.
fn left_in_group(folder: &Path) -> Option<u64> {
    let number = |names: [&str; 2]| -> Option<u64> {
        let text = names.iter().find_map(|name| fs::read_to_string(folder.join(name)).ok())?;
        text.trim().parse().ok()
    };
    // `max` is no number: there is no limit.
    let limit = number(["memory.max", "memory.limit_in_bytes"])?;
    let used = number(["memory.current", "memory.usage_in_bytes"])?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let value = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
    let kept: u64 = value("total_inactive_file ").or(value("inactive_file ")).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(kept)))
}

fn status_kib(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    field_kib(&text, field).unwrap_or(0)
}

fn field_kib(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_limit_counts_without_the_files_that_it_keeps() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(left_in_group(folder.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "3000000\n");
        assert_eq!(left_in_group(folder.path()), None);
        write("memory.max", "5000000\n");
        assert_eq!(left_in_group(folder.path()), Some(2_000_000));
        write("memory.stat", "anon 2\nfile 9\ninactive_file 500000\nactive_file 9\n");
        assert_eq!(left_in_group(folder.path()), Some(2_500_000));
        write("memory.current", "9000000\n");
        assert_eq!(left_in_group(folder.path()), Some(0));
    }

    #[test]
    fn the_first_versions_files_are_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("memory.limit_in_bytes", "5000000\n");
        write("memory.usage_in_bytes", "3000000\n");
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 400000\n");
        assert_eq!(left_in_group(folder.path()), Some(2_400_000));
    }

    #[test]
    fn this_machine_has_some_memory() {
        assert!(available_memory_bytes().is_none_or(|bytes| bytes > 0));
    }
}
