//! The helper: gives up rights one after the other, then becomes the program that it was given.
//!
//! It is a process of its own with one thread, so nothing here has to be safe between a fork and
//! an exec.

use std::ffi::OsString;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid, getegid, geteuid, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::filter;
use super::policy::{FAULT, FAULT_MARK, Limits, Policy, Stage};

/// First of the user ids that systemd keeps for services without a user of their own; used here
/// where the program runs as root, whose processes no limit counts.
const FIRST_FREE_USER: u32 = 61184;

/// How many there are.
const FREE_USERS: u32 = 4336;

/// Files that a program may open as well.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"];

/// Descriptors that a program may have open.
const OPEN_FILES: u64 = 256;

/// Confines this process and executes the policy's command; returns only where that failed.
pub(super) fn become_program(policy: Option<&OsString>) -> u8 {
    let reason = match policy.and_then(|text| text.to_str()).map(serde_json::from_str::<Policy>) {
        Some(Ok(policy)) => match confine(&policy) {
            Ok(()) if policy.command.is_empty() => return check(&policy),
            Ok(()) => execute(&policy),
            Err(reason) => reason,
        },
        _ => "is started by the program itself".to_owned(),
    };
    report(&reason);
    FAULT
}

#[expect(clippy::print_stderr, reason = "the supervisor reads it; there is no terminal")]
fn report(reason: &str) {
    eprintln!("{FAULT_MARK}{reason}");
}

fn execute(policy: &Policy) -> String {
    close_inherited();
    let (program, arguments) = policy.command.split_first().expect("looked at by the caller");
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&policy.environment);
    format!("cannot execute `{program}`: {}", command.exec())
}

/// What a step needs to say when it fails.
fn step<T>(what: &str, result: Result<T, impl std::fmt::Display>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// Everything but standard input, output and error closes as the command is executed.
///
/// What this program opens does so by itself; what it was started with, a log or a socket of a shell,
/// would reach the model's program past Landlock, which looks at files as they are opened.
fn close_inherited() {
    close_fds::set_fds_cloexec(3, &[]);
}

fn confine(policy: &Policy) -> Result<(), String> {
    let mut processes = policy.limits.processes;
    if policy.is_confined {
        processes = leave_the_user(policy)?;
    }
    // After the change of user, which takes it back.
    let died = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    step("parent-death signal", died)?;
    limit(&policy.limits, policy.is_confined.then_some(processes))?;
    if policy.is_confined {
        step("no new privileges", rustix::thread::set_no_new_privs(true))?;
        restrict_files(policy)?;
        let program = step("seccomp filter", filter::program(policy.stage, std::process::id()))?;
        step("seccomp", seccompiler::apply_filter(&program))?;
    }
    Ok(())
}

/// Becomes a user whose processes are counted apart, and leaves the network.
///
/// Gives the number of processes to set as the limit.
fn leave_the_user(policy: &Policy) -> Result<u64, String> {
    let apart = UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        // The filter refuses sockets anyhow, so a container that allows no name spaces will do.
        let _ = unshare(apart);
        if policy.stage == Stage::Compile {
            // `access` asks for the real user and sees no capability: a toolchain in root's own folder
            // would not find its parts. A compiler is a program of this machine.
            return Ok(policy.limits.processes);
        }
        return become_nobody(policy).map(|()| policy.limits.processes);
    }
    if unshare(UnshareFlags::NEWUSER | apart).is_err() {
        // The limit counts every process of the user.
        return Ok(policy.limits.processes + tasks_of(user));
    }
    let write = |name: &str, text: String| {
        step(name, std::fs::write(Path::new("/proc/self").join(name), text))
    };
    let (user, group) = (user.as_raw(), group.as_raw());
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{user} {user} 1"))?;
    write("gid_map", format!("{group} {group} 1"))?;
    Ok(policy.limits.processes)
}

#[expect(deprecated, reason = "its successor is for flags that this process does not use")]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    rustix::thread::unshare(flags)
}

/// Root becomes a user id that nobody has. It keeps the right to read files of others, as the
/// toolchain may lie in root's own folder; Landlock says which.
fn become_nobody(policy: &Policy) -> Result<(), String> {
    let number = FIRST_FREE_USER + std::process::id() % FREE_USERS;
    give_away(&policy.scratch, number)?;
    let (user, group) = (Uid::from_raw(number), Gid::from_raw(number));
    let own = step("capabilities", rustix::thread::capabilities(None))?.permitted;
    let reading = [CapabilitySet::DAC_READ_SEARCH, CapabilitySet::DAC_OVERRIDE];
    let kept = reading.into_iter().find(|one| own.contains(*one));
    step("keeping capabilities", rustix::thread::set_keep_capabilities(true))?;
    step("groups", rustix::thread::set_thread_groups(&[]))?;
    step("group", rustix::thread::set_thread_res_gid(group, group, group))?;
    step("user", rustix::thread::set_thread_res_uid(user, user, user))?;
    let set = kept.unwrap_or(CapabilitySet::empty());
    let sets = CapabilitySets { effective: set, permitted: set, inheritable: set };
    step("capabilities", rustix::thread::set_capabilities(None, sets))?;
    match kept {
        Some(one) => {
            step("capability", rustix::thread::configure_capability_in_ambient_set(one, true))
        }
        None => Ok(()),
    }
}

/// Gives a folder and what is in it to a user.
fn give_away(folder: &Path, number: u32) -> Result<(), String> {
    step("scratch folder", chown(folder, Some(number), Some(number)))?;
    for entry in step("scratch folder", std::fs::read_dir(folder))?.flatten() {
        step(
            "scratch folder",
            std::os::unix::fs::lchown(entry.path(), Some(number), Some(number)),
        )?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            give_away(&entry.path(), number)?;
        }
    }
    Ok(())
}

/// Processes and threads of a user.
fn tasks_of(user: Uid) -> u64 {
    use std::os::unix::fs::MetadataExt;

    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let own = entries.flatten().filter(|entry| {
        entry.metadata().is_ok_and(|metadata| metadata.uid() == user.as_raw())
            && entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
    });
    own.map(|entry| std::fs::read_dir(entry.path().join("task")).map_or(1, Iterator::count) as u64)
        .sum()
}

fn limit(limits: &Limits, processes: Option<u64>) -> Result<(), String> {
    let seconds = limits.seconds.ceil() as u64 + 1;
    let values = [
        (Resource::Cpu, seconds),
        (Resource::Data, limits.memory_bytes),
        (Resource::Fsize, limits.disk_bytes),
        (Resource::Nofile, OPEN_FILES),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ];
    let processes = processes.map(|count| (Resource::Nproc, count));
    for (resource, value) in values.into_iter().chain(processes) {
        // At the hard limit of processor time there is no signal that says what happened.
        let more = u64::from(resource == Resource::Cpu);
        let both = Rlimit { current: Some(value), maximum: Some(value + more) };
        step("resource limit", setrlimit(resource, both))?;
    }
    Ok(())
}

fn restrict_files(policy: &Policy) -> Result<(), String> {
    // The newest that this program knows; what the kernel lacks is left out, and the filter
    // covers what it must.
    let all = AccessFs::from_all(ABI::V6);
    let made = Ruleset::default()
        .handle_access(all)
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI::V6)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create);
    let mut rules = step("Landlock", made)?;
    let sockets_and_devices = AccessFs::MakeSock | AccessFs::MakeChar | AccessFs::MakeBlock;
    let mut allow = |path: &Path, access| {
        // A folder that this machine does not have needs no rule.
        let Ok(opened) = PathFd::new(path) else { return Ok(()) };
        step("Landlock", (&mut rules).add_rule(PathBeneath::new(opened, access)).map(|_| ()))
    };
    for path in &policy.readable {
        let access = AccessFs::from_read(ABI::V6);
        let file = AccessFs::Execute | AccessFs::ReadFile;
        allow(path, if path.is_dir() { access } else { file })?;
    }
    for device in DEVICES {
        allow(Path::new(device), AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    allow(&policy.scratch, all & !sockets_and_devices)?;
    let status = step("Landlock", rules.restrict_self())?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err("the kernel has no Landlock (Linux 5.13, switched on with `lsm=`)".into());
    }
    Ok(())
}

/// Tries what must fail.
fn check(policy: &Policy) -> u8 {
    let outside = policy.outside.as_deref().unwrap_or(Path::new("/"));
    let is_denied = |result: std::io::Result<()>| {
        result.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    let checks = [
        ("reading outside", is_denied(std::fs::read(outside).map(drop))),
        ("writing outside", is_denied(std::fs::write(outside, "x"))),
        ("making a file outside", is_denied(std::fs::write(outside.with_extension("new"), "x"))),
        ("a socket", is_denied(std::net::UdpSocket::bind("127.0.0.1:0").map(drop))),
        ("a root user", !geteuid().is_root()),
    ];
    let open: Vec<&str> =
        checks.iter().filter(|(_, denied)| !denied).map(|(name, _)| *name).collect();
    let inside = std::fs::write(policy.scratch.join("written"), "x");
    match (open.is_empty(), inside) {
        (true, Ok(())) => 0,
        (true, Err(error)) => {
            report(&format!("the scratch folder cannot be written to: {error}"));
            FAULT
        }
        (false, _) => {
            report(&format!("the kernel still allows {}", open.join(", ")));
            FAULT
        }
    }
}
