//! A folder to run the program in, and what it said.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A temporary folder that is the current one of every run.
pub(crate) struct TestContext {
    folder: tempfile::TempDir,
}

/// What a run of the program left behind.
pub(crate) struct Outcome {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl TestContext {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Runs `tunesmith` with `arguments`.
    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(arguments, &[])
    }

    /// Runs `tunesmith` with `arguments` and environment variables.
    pub(crate) fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
        let output = self.command(arguments).envs(variables.iter().copied()).output().unwrap();
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replace(&self.path().display().to_string(), "[DIR]")
        };
        Outcome {
            status: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// `tunesmith` with `arguments`, not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env("XDG_CACHE_HOME", self.path().join("cache"))
            .env("HF_HUB_CACHE", self.path().join("hub"))
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("TUNESMITH_CACHE")
            .stdin(Stdio::null());
        command
    }

    /// Checks a recipe and returns what is said about it.
    pub(crate) fn check(&self, recipe: &str, arguments: &[&str]) -> Outcome {
        self.write("recipe.toml", recipe);
        let mut all = vec!["check", "recipe.toml"];
        all.extend(arguments);
        let outcome = self.run(&all);
        assert!(!outcome.stderr.contains("this is a bug"), "{}", outcome.stderr);
        outcome
    }
}

/// Fails with everything a run said where it did not end as it should.
#[track_caller]
pub(crate) fn expect_status(outcome: &Outcome, status: i32) {
    assert_eq!(
        outcome.status, status,
        "\n--- stdout\n{}\n--- stderr\n{}",
        outcome.stdout, outcome.stderr
    );
}

/// The base model that comes with the program.
pub(crate) fn tiny_base() -> String {
    format!("{}/tiny_llama", env!("CARGO_MANIFEST_DIR"))
}

/// A recipe over the tiny base and `data.jsonl`, with `more` at its end.
pub(crate) fn tiny_recipe(more: &str) -> String {
    let base = tiny_base();
    format!(
        "base_model = \"{base}\"\noutput_dir = \"run\"\n\n[[dataset]]\npath = \"data.jsonl\"\n\n\
         [batch]\nsequence_length = 64\nshuffle = false\n{more}"
    )
}

/// Two conversations in the tiny base's words.
pub(crate) const CONVERSATIONS: &str = r#"{"messages": [{"role": "user", "content": "Where does the bear live?"}, {"role": "assistant", "content": "In the cave."}]}
{"messages": [{"role": "user", "content": "What is 2 plus 3?"}, {"role": "assistant", "content": "5."}]}
"#;
