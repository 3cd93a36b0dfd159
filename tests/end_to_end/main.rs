//! The built binary on the real path: train, interrupt, resume, merge, evaluate, generate, verify.

#![expect(clippy::unwrap_used, reason = "tests")]

mod adapters;
mod broken;
#[cfg(target_os = "linux")]
mod code;
mod evaluated;
mod families;
mod gguf;
mod interrupted;
mod modules_to_save;
mod program;
mod quantised_base;
mod smollm2;
mod whole_path;
