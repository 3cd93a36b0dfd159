//! Languages as data (`languages.toml`), and their toolchains on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde::Deserialize;
use trainer::evaluate::EvaluateError;

/// A language's table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Language {
    find: String,
    #[serde(default)]
    locate: Vec<String>,
    version: Vec<String>,
    pub(super) file: String,
    #[serde(default)]
    pub(super) compile: Vec<String>,
    pub(super) run: Vec<String>,
    /// Time that compiling may take.
    #[serde(default)]
    pub(super) seconds: f64,
    #[serde(default)]
    readable: Vec<PathBuf>,
    #[serde(default)]
    pub(super) finish: Option<String>,
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
}

static LANGUAGES: LazyLock<BTreeMap<String, Language>> =
    LazyLock::new(|| toml::from_str(include_str!("languages.toml")).expect("a test reads it"));

/// Folders and files of the system that compilers and interpreters read.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/nix/store",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
];

/// The names of all languages, for messages.
pub(crate) fn names() -> String {
    LANGUAGES.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// A language's compiler or interpreter on this machine.
#[derive(Debug, Clone)]
pub(super) struct Toolchain {
    pub(super) language: &'static Language,
    /// Folder that it lies in.
    root: String,
    /// First line of what it says about itself.
    pub(super) version: String,
}

impl Toolchain {
    /// Finds a language's toolchain and asks for its version.
    pub(super) fn find(name: &str) -> Result<Self, EvaluateError> {
        let language = LANGUAGES.get(name).ok_or_else(|| {
            let problem = format!("= `{name}` is not known; languages are {}", names());
            EvaluateError::definition("language", problem)
        })?;
        let missing = |problem: String| {
            EvaluateError::Model(format!(
                "code tasks in `{name}` need `{}`: {problem}",
                language.find
            ))
        };
        let program = in_path(&language.find)
            .ok_or_else(|| missing("it is not in PATH; install it".to_owned()))?;
        let version = said(&program, &language.version).map_err(missing)?;
        let root = match language.locate.as_slice() {
            [] => "/usr".to_owned(),
            arguments => said(&program, arguments).map_err(missing)?,
        };
        Ok(Self { language, root, version })
    }

    /// What it reads besides its scratch folder.
    pub(super) fn readable(&self) -> Vec<PathBuf> {
        let system = SYSTEM.iter().map(PathBuf::from);
        let own = self.language.readable.iter().cloned();
        system.chain(own).chain([PathBuf::from(&self.root)]).collect()
    }

    /// The variables of a program.
    pub(super) fn environment(&self, scratch: &Path) -> BTreeMap<String, String> {
        let folder = scratch.display().to_string();
        let path = format!("{}/bin:/usr/local/bin:/usr/bin:/bin", self.root);
        let mut variables: BTreeMap<String, String> =
            [("PATH", path.as_str()), ("HOME", &folder), ("TMPDIR", &folder), ("LANG", "C.UTF-8")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        let own = self.language.environment.iter();
        variables
            .extend(own.map(|(name, value)| (name.clone(), value.replace("{scratch}", &folder))));
        variables
    }

    /// A command of the table for a scratch folder.
    pub(super) fn command(&self, template: &[String], scratch: &Path) -> Vec<String> {
        let (file, output) = (scratch.join(&self.language.file), scratch.join("program.out"));
        let fill = |part: &String| {
            part.replace("{root}", &self.root)
                .replace("{file}", &file.display().to_string())
                .replace("{output}", &output.display().to_string())
        };
        template.iter().map(fill).collect()
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// First line that a program of this machine prints.
fn said(program: &Path, arguments: &[String]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("it does not start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default().trim().to_owned();
    if !output.status.success() || line.is_empty() {
        return Err(format!("`{} {}` fails", program.display(), arguments.join(" ")));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_can_be_run_and_compiled_ones_have_time_for_it() {
        for (name, language) in LANGUAGES.iter() {
            let uses =
                |commands: &[String], part: &str| commands.iter().any(|one| one.contains(part));
            if language.compile.is_empty() {
                assert!(uses(&language.run, "{file}"), "{name}");
                assert!(language.finish.as_ref().is_some_and(|text| text.contains("{marker}")));
            } else {
                assert!(uses(&language.compile, "{file}") && uses(&language.run, "{output}"));
                assert!(language.seconds > 0.0, "{name}");
            }
        }
        assert_eq!(names(), "c, cpp, go, javascript, python, rust");
    }

    #[test]
    fn unknown_languages_and_missing_toolchains_are_named() {
        let error = Toolchain::find("cobol").unwrap_err().to_string();
        assert!(error.contains("`cobol`") && error.contains("python"), "{error}");
    }
}
