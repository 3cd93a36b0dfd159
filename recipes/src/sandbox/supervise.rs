//! Starts a confined program, watches it from outside, ends it and everything that it started.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::HELPER;
use super::policy::{FAULT, FAULT_MARK, Limits, Policy};

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(5);

/// Between two looks at memory and disk, which cost more.
const LOOK: Duration = Duration::from_millis(50);

/// Files of a scratch folder at most.
const FILES: u64 = 4096;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with this code; a signal counts as -1.
    Exited(i32),
    /// It took too long.
    Time,
    /// It took too much memory.
    Memory,
    /// It wrote too much.
    Output,
    /// It filled its folder.
    Disk,
}

/// What a program left.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) end: End,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Runs a command under a policy; an error is a fault of the sandbox, not of the program.
pub(super) fn run(policy: &Policy) -> Result<Finished, String> {
    let text = serde_json::to_string(policy).map_err(|error| error.to_string())?;
    let mut child = Command::new("/proc/self/exe")
        .args([HELPER, &text])
        .current_dir(&policy.scratch)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot start the sandbox: {error}"))?;
    let is_full = Arc::new(AtomicBool::new(false));
    let most = policy.limits.output_bytes;
    let stdout = child.stdout.take().map(|pipe| collect(pipe, most, &is_full));
    let stderr = child.stderr.take().map(|pipe| collect(pipe, most, &is_full));
    let watched = watch(&child, policy, &is_full);
    let status = end(&mut child);
    let text = |pipe: Option<Receiver<Vec<u8>>>| {
        // A pipe that stays open belongs to a process that left the group, without a sandbox.
        let rest = pipe.and_then(|pipe| pipe.recv_timeout(Duration::from_secs(2)).ok());
        rest.unwrap_or_default()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    let end = watched?.map_or_else(|| ended(status), Ok)?;
    if end == End::Exited(i32::from(FAULT)) && stderr.starts_with(FAULT_MARK.as_bytes()) {
        return Err(String::from_utf8_lossy(&stderr).trim().to_owned());
    }
    Ok(Finished { end, stdout, stderr })
}

/// Reads a pipe to its end and keeps the beginning.
fn collect(
    mut pipe: impl Read + Send + 'static,
    most: u64,
    is_full: &Arc<AtomicBool>,
) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    let is_full = Arc::clone(is_full);
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let whole = pipe.by_ref().take(most).read_to_end(&mut kept);
        if whole.is_ok_and(|length| length as u64 == most) {
            is_full.store(true, Ordering::Relaxed);
        }
        // Closing the pipe would end the program by a signal before it is known why.
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        let _ = sender.send(kept);
    });
    receiver
}

/// Waits until the program ends (`None`) or has used up something. It is not reaped, so that its
/// number stays its own until its group is ended.
fn watch(child: &Child, policy: &Policy, is_full: &AtomicBool) -> Result<Option<End>, String> {
    let (start, limits) = (Instant::now(), &policy.limits);
    let leader = Pid::from_child(child);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let mut looked = start;
    loop {
        match waitid(WaitId::Pid(leader), options) {
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Ok(Some(_)) => {
                return Ok(is_over(&policy.scratch, limits).then_some(End::Disk));
            }
            Err(error) => return Err(format!("cannot wait for a program: {error}")),
        }
        if is_full.load(Ordering::Relaxed) {
            return Ok(Some(End::Output));
        }
        if start.elapsed().as_secs_f64() > limits.seconds {
            return Ok(Some(End::Time));
        }
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            if memory_of_group(child.id()) > limits.memory_bytes {
                return Ok(Some(End::Memory));
            }
            if is_over(&policy.scratch, limits) {
                return Ok(Some(End::Disk));
            }
        }
        std::thread::sleep(TICK);
    }
}

/// Kills the whole group, then takes the leader's status.
fn end(child: &mut Child) -> Option<ExitStatus> {
    // Fails where nothing but the dead leader is left, which is as good.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    child.wait().ok()
}

/// What a status says that the watch did not see.
fn ended(status: Option<ExitStatus>) -> Result<End, String> {
    let status = status.ok_or("a program's status is lost")?;
    if let Some(code) = status.code() {
        return Ok(End::Exited(code));
    }
    Ok(match status.signal() {
        Some(libc::SIGXCPU) => End::Time,
        Some(libc::SIGXFSZ) => End::Disk,
        _ => End::Exited(-1),
    })
}

/// Resident bytes of a process group.
fn memory_of_group(group: u32) -> u64 {
    let page = rustix::param::page_size() as u64;
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let pages = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.parse::<u32>().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in parentheses may hold anything; fields are counted after it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let belongs = fields.get(2)?.parse::<u32>().ok()? == group;
        belongs.then(|| fields.get(21)?.parse::<u64>().ok()).flatten()
    });
    pages.sum::<u64>().saturating_mul(page)
}

fn is_over(scratch: &Path, limits: &Limits) -> bool {
    let (mut bytes, mut files) = (0, 0);
    measure(scratch, &mut bytes, &mut files);
    bytes > limits.disk_bytes || files > FILES
}

/// Bytes of a folder before a program runs in it.
pub(super) fn bytes_of(scratch: &Path) -> u64 {
    let (mut bytes, mut files) = (0, 0);
    measure(scratch, &mut bytes, &mut files);
    bytes
}

/// Adds up allocated bytes and files of a folder; stops where there are too many.
fn measure(folder: &Path, bytes: &mut u64, files: &mut u64) {
    use std::os::unix::fs::MetadataExt;

    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        *files += 1;
        *bytes += metadata.blocks() * 512;
        if *files > FILES {
            return;
        }
        if metadata.is_dir() {
            measure(&entry.path(), bytes, files);
        }
    }
}
