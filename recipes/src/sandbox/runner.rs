//! Programs of a task, one sandbox each.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use sha2::{Digest, Sha256};
use trainer::evaluate::{CodeRunner, EvaluateError, Program, ProgramEnd, ProgramOutcome};

use super::Isolation;
use super::languages::Toolchain;
use super::policy::{Limits, Policy, Stage};
use super::supervise::{self, End, Finished};

/// Processes and threads of a program, or of a compiler.
const PROCESSES: u64 = 64;

/// Standard output and error that are read, each.
const OUTPUT_BYTES: u64 = 1 << 20;

/// What a program may write.
const DISK_BYTES: u64 = 64 << 20;

/// What a compiler may write and hold.
const COMPILER_DISK_BYTES: u64 = 1 << 30;
const COMPILER_MEMORY_BYTES: u64 = 4 << 30;

/// Characters of what a program said that are kept for reading.
const KEPT_CHARACTERS: usize = 1000;

/// Runs programs in sandboxes.
#[derive(Debug)]
pub(super) struct Runner {
    isolation: Isolation,
    toolchains: Mutex<HashMap<String, Toolchain>>,
}

impl Runner {
    /// Checks that this machine can confine a program.
    pub(super) fn new(isolation: Isolation) -> Result<Self, EvaluateError> {
        if isolation == Isolation::Sandbox {
            check().map_err(|problem| {
                EvaluateError::Model(format!(
                    "this machine cannot run programs of a model safely: {problem}; Landlock and \
                     seccomp are needed (`--unsafe-execution` runs them with your own rights)"
                ))
            })?;
        }
        Ok(Self { isolation, toolchains: Mutex::default() })
    }

    fn toolchain(&self, language: &str) -> Result<Toolchain, EvaluateError> {
        let mut known = self.toolchains.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(found) = known.get(language) {
            return Ok(found.clone());
        }
        let found = Toolchain::find(language)?;
        known.insert(language.to_owned(), found.clone());
        Ok(found)
    }

    fn attempt(&self, toolchain: &Toolchain, program: &Program) -> Result<ProgramOutcome, String> {
        let folder = tempfile::Builder::new().prefix("tunesmith-code-").tempdir();
        let folder = folder.map_err(|error| format!("cannot make a scratch folder: {error}"))?;
        let marker = marker(program.source);
        let finish =
            toolchain.language.finish.as_ref().map(|text| text.replace("{marker}", &marker));
        let source = format!("{}{}", program.source, finish.as_deref().unwrap_or_default());
        let file = folder.path().join(&toolchain.language.file);
        std::fs::write(file, source).map_err(|error| format!("cannot write a program: {error}"))?;
        if !toolchain.language.compile.is_empty() {
            let made = self.stage(toolchain, program, (Stage::Compile, folder.path()))?;
            if made.end != End::Exited(0) {
                return Ok(outcome(ProgramEnd::NotCompiled, &made));
            }
        }
        let finished = self.stage(toolchain, program, (Stage::Run, folder.path()))?;
        let is_through = finish.is_none() || contains(&finished.stdout, marker.as_bytes());
        let end = match finished.end {
            End::Exited(0) if is_through => ProgramEnd::Passed,
            End::Exited(_) => ProgramEnd::Failed,
            End::Time => ProgramEnd::TimedOut,
            End::Memory => ProgramEnd::OutOfMemory,
            End::Output => ProgramEnd::OutputTooLong,
            End::Disk => ProgramEnd::DiskFull,
        };
        Ok(outcome(end, &finished))
    }

    fn stage(
        &self,
        toolchain: &Toolchain,
        program: &Program,
        (stage, scratch): (Stage, &Path),
    ) -> Result<Finished, String> {
        let compiler = Limits {
            seconds: toolchain.language.seconds,
            memory_bytes: COMPILER_MEMORY_BYTES,
            processes: PROCESSES,
            output_bytes: OUTPUT_BYTES,
            disk_bytes: COMPILER_DISK_BYTES,
        };
        let own = Limits {
            seconds: program.timeout_seconds,
            memory_bytes: program.memory_bytes,
            disk_bytes: DISK_BYTES,
            ..compiler
        };
        let (template, limits) = match stage {
            Stage::Compile => (&toolchain.language.compile, compiler),
            Stage::Run => (&toolchain.language.run, own),
        };
        // The compiled program lies in the folder and counts.
        let limits =
            Limits { disk_bytes: limits.disk_bytes + supervise::bytes_of(scratch), ..limits };
        supervise::run(&Policy {
            command: toolchain.command(template, scratch),
            environment: toolchain.environment(scratch),
            scratch: scratch.to_owned(),
            readable: toolchain.readable(),
            limits,
            stage,
            is_confined: self.isolation == Isolation::Sandbox,
            outside: None,
        })
    }
}

impl CodeRunner for Runner {
    fn describe(&self, language: &str) -> Result<String, EvaluateError> {
        self.toolchain(language).map(|toolchain| toolchain.version)
    }

    fn run(&self, program: &Program) -> Result<ProgramOutcome, EvaluateError> {
        let toolchain = self.toolchain(program.language)?;
        let fault = |detail| ProgramOutcome { end: ProgramEnd::SandboxFailed, detail };
        Ok(self.attempt(&toolchain, program).unwrap_or_else(fault))
    }
}

/// A text that a program does not hold by chance.
fn marker(source: &str) -> String {
    let hash = Sha256::digest(source);
    hash.iter().take(16).fold("finished-".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn contains(text: &[u8], sought: &[u8]) -> bool {
    text.windows(sought.len()).any(|window| window == sought)
}

/// The end with the last of what the program complained about.
fn outcome(end: ProgramEnd, finished: &Finished) -> ProgramOutcome {
    let text = String::from_utf8_lossy(&finished.stderr);
    let skipped = text.chars().count().saturating_sub(KEPT_CHARACTERS);
    ProgramOutcome { end, detail: text.chars().skip(skipped).collect::<String>().trim().to_owned() }
}

/// Confines the helper itself, which then tries what must fail.
fn check() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (scratch, outside) = (folder.path().join("scratch"), folder.path().join("outside"));
    std::fs::create_dir(&scratch).map_err(|error| error.to_string())?;
    std::fs::write(&outside, "kept").map_err(|error| error.to_string())?;
    let finished = supervise::run(&Policy {
        command: Vec::new(),
        environment: [].into(),
        scratch,
        readable: Vec::new(),
        limits: Limits {
            seconds: 20.0,
            memory_bytes: 1 << 30,
            processes: PROCESSES,
            output_bytes: OUTPUT_BYTES,
            disk_bytes: DISK_BYTES,
        },
        stage: Stage::Run,
        is_confined: true,
        outside: Some(outside),
    })?;
    match finished.end {
        End::Exited(0) => Ok(()),
        end => Err(format!("the check of the sandbox ended with {end:?}")),
    }
}
