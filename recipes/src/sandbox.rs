//! Runs programs that a model wrote: no network, no writing outside a scratch folder, no reading
//! outside system and toolchain folders, limits on time, memory, processes, output and disk.
//!
//! The program starts itself again as a helper ([`HELPER`]), which gives up rights one after the
//! other and then becomes the interpreter or compiler (`confine.rs`); `supervise.rs` watches it
//! from outside. Three layers, each enough for its part where another is weak:
//!
//! - Landlock: which files are read, written and executed.
//! - seccomp (`filter.rs`): no socket, no signal to another process, no new process group (so that
//!   killing the group kills all), no call that Landlock does not see.
//! - Resource limits, under a user of their own: a user namespace, or an unused user id for root.
//!
//! Where Landlock or seccomp is missing, code tasks are refused.

#[cfg(target_os = "linux")]
mod confine;
#[cfg(target_os = "linux")]
mod filter;
mod languages;
mod policy;
#[cfg(target_os = "linux")]
mod runner;
#[cfg(target_os = "linux")]
mod supervise;

use std::ffi::OsString;

use trainer::evaluate::{CodeRunner, EvaluateError};

/// First argument of the program when it starts itself to run something confined.
pub(crate) const HELPER: &str = "--run-confined";

/// Whether programs run in the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// In the sandbox, or not at all.
    Sandbox,
    /// With the rights of the user; limits on time and size alone.
    None,
}

/// Becomes the helper where the program was started as one; returns only if it was not, or with the
/// helper's exit code if it failed.
pub(crate) fn helper(arguments: &[OsString]) -> Option<u8> {
    if arguments.get(1).is_none_or(|argument| argument != HELPER) {
        return None;
    }
    #[cfg(target_os = "linux")]
    return Some(confine::become_program(arguments.get(2)));
    #[cfg(not(target_os = "linux"))]
    Some(policy::FAULT)
}

/// What runs programs on this machine; refused where nothing confines them.
pub(crate) fn runner(isolation: Isolation) -> Result<Box<dyn CodeRunner>, EvaluateError> {
    #[cfg(target_os = "linux")]
    return Ok(Box::new(runner::Runner::new(isolation)?));
    #[cfg(not(target_os = "linux"))]
    {
        let _ = isolation;
        Err(EvaluateError::Model(
            "code tasks run programs under Landlock and seccomp, which Linux alone has".into(),
        ))
    }
}
