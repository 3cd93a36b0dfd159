//! `tunesmith doctor`: what this machine offers.

use clap::Args;

use crate::cli::JsonArgs;
use crate::diagnostics::ExitStatus;
use crate::machine::Machine;
use crate::printer::Printer;

/// Flags of `tunesmith doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Where the facts go.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Prints the facts.
pub fn doctor(arguments: &DoctorArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    crate::matrix_library::choose()?;
    let machine = Machine::look();
    if let Some(target) = &arguments.json.json {
        printer.json(target, &machine)?;
        return Ok(ExitStatus::Success);
    }
    for (name, value) in lines(&machine) {
        printer.data(&format!("{name:17} {value}"))?;
    }
    Ok(ExitStatus::Success)
}

fn lines(machine: &Machine) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map_or_else(unknown, |path| path.display().to_string())
    };
    let mut lines = vec![
        ("tunesmith", format!("{} ({})", env!("CARGO_PKG_VERSION"), machine.platform)),
        ("processor", machine.processor.clone().unwrap_or_else(unknown)),
        ("threads", machine.threads.to_string()),
        ("instruction sets", machine.instruction_sets.join(" ")),
        ("simd", machine.simd.to_owned()),
        (
            "memory",
            format!("{} free of {}", gib(machine.free_memory_bytes), gib(machine.memory_bytes)),
        ),
        (
            "disk",
            machine.free_disk_bytes.map_or_else(unknown, |free| format!("{} free", gib(free))),
        ),
        ("gpu", machine.gpu.clone()),
        ("cache", path(&machine.cache)),
        ("downloaded models", path(&machine.hub_cache)),
    ];
    lines.extend(machine.gpu_kernels.iter().map(|line| ("gpu kernel", line.clone())));
    lines.extend(machine.matrix_libraries.iter().map(|library| {
        let mark = if library.in_use { ", in use" } else { "" };
        let text = match (library.gflops_per_second, &library.missing) {
            (Some(rate), _) => format!("{}: {rate} GFLOP/s{mark}", library.name),
            (None, why) => {
                format!("{}: no ({})", library.name, why.as_deref().unwrap_or("unknown"))
            }
        };
        ("matrix library", text)
    }));
    lines.extend(
        machine.variables.iter().map(|(name, value)| ("variable", format!("{name}={value}"))),
    );
    lines
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1_u32 << 30))
}
