//! The application: the recipe format, the `tunesmith` program, and where its results come from.
//!
//! [`main`] parses the command line ([`cli`]) and hands over to one function per verb
//! (`commands/`). Errors reach the terminal in `diagnostics.rs` alone, and only `printer.rs`
//! writes to it.

mod allocator;
mod base_format;
pub mod cli;
pub mod commands;
#[cfg(any(test, feature = "cuda"))]
mod cuda_device;
#[cfg(any(test, feature = "cuda"))]
mod cuda_files;
#[cfg(any(test, feature = "cuda"))]
mod cuda_kernels;
pub mod device;
pub mod diagnostics;
pub mod machine;
mod matrix_library;
mod memory;
mod modelfile;
pub mod named;
pub mod printer;
pub mod provenance;
pub mod recipe;
mod report;
pub mod run_folder;
mod sandbox;
pub mod target;

use std::ffi::OsString;
use std::process::ExitCode;

pub use diagnostics::ExitStatus;

/// Runs the program with `arguments`, the first of which is its name.
///
/// A panic anywhere below is a bug: it is reported as one, without a backtrace, and ends in
/// [`ExitStatus::Fault`].
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    diagnostics::install_panic_hook();
    let arguments: Vec<_> = arguments.into_iter().collect();
    // Before anything starts a thread.
    if let Some(code) = sandbox::helper(&arguments) {
        return ExitCode::from(code);
    }
    let run = std::panic::AssertUnwindSafe(|| cli::parse_and_run(arguments));
    std::panic::catch_unwind(run).unwrap_or(ExitStatus::Fault).into()
}
