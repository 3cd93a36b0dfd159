//! Runs the binary in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// Root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A scratch folder and the program in it.
pub(crate) struct Program {
    pub(crate) folder: TempDir,
}

impl Program {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("TUNESMITH_CACHE", self.path("cache"))
            .env("HF_HUB_OFFLINE", "1")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs to exit code 0 and gives stdout.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "tunesmith {}\n{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs to exit code 1 and gives stderr.
    pub(crate) fn fail(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "tunesmith {}\n{stderr}", arguments.join(" "));
        assert!(stderr.contains("error"), "{stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
        stderr
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    /// A short recipe over the embedded base and data; `extra` comes before the first table.
    pub(crate) fn tiny_recipe(&self, output: &str, extra: &str, tables: &str) -> String {
        let root = root();
        self.write(
            &format!("{output}.toml"),
            &format!(
                "base_model = \"{0}/recipes/tiny_llama\"\noutput_dir = \"{output}\"\n{extra}\n\
                 [[dataset]]\npath = \"{0}/recipes/data/tiny_pirate.jsonl\"\n\
                 [optimizer.adamw]\nlearning_rate = 2e-3\n{tables}\n",
                root.display()
            ),
        )
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// The two files of a finished adapter.
    pub(crate) fn adapter(&self, run: &str) -> [Vec<u8>; 2] {
        ["adapter_config.json", "adapter_model.safetensors"]
            .map(|name| std::fs::read(self.path(run).join("adapter").join(name)).unwrap())
    }
}
