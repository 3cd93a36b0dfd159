//! Says what inference programs would refuse, or compute otherwise, before the user tries them.
//!
//! What is looked at are headers and configurations, never the values of weights. An engine is one
//! file in `engines/`, which states where its rules come from; to add one, write the file and
//! name it in [`Engine::ALL`].

mod engines;
mod fix;
mod subject;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use fix::{Fix, fix};
pub use subject::{AdapterFacts, AdapterLayout, BaseFacts, ModelFacts, ModelLayout, Subject};

/// Programs that run models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// llama.cpp.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// Ollama.
    Ollama,
    /// Apple's MLX (`mlx-lm`).
    Mlx,
    /// mistral.rs.
    #[serde(rename = "mistral.rs")]
    MistralRs,
    /// candle (`candle-transformers`).
    Candle,
    /// Groq's hosted LoRA inference.
    Groq,
}

impl Engine {
    /// Every engine by the name that users give it.
    pub const ALL: [(&'static str, Self); 7] = [
        ("vllm", Self::Vllm),
        ("llama.cpp", Self::LlamaCpp),
        ("ollama", Self::Ollama),
        ("mlx", Self::Mlx),
        ("mistral.rs", Self::MistralRs),
        ("candle", Self::Candle),
        ("groq", Self::Groq),
    ];

    /// The engine of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|row| row.0 == name).map(|row| row.1)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|row| row.1 == self).map_or("?", |row| row.0)
    }
}

/// How bad a finding is, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Works with a setting of the engine that is not its default.
    Setting,
    /// Loads, and computes something else than was trained.
    Wrong,
    /// Does not load.
    Refused,
}

/// One thing an engine makes of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found, by key, tensor or file.
    pub what: String,
    /// What to do; what to type where it can be typed.
    pub fix: Option<String>,
}

/// What one engine makes of a target; no findings where it takes it as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineReport {
    /// The engine.
    pub engine: Engine,
    /// Findings, the worst first.
    pub findings: Vec<Finding>,
}

impl EngineReport {
    /// The worst finding; nothing where there is none.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Whether the engine takes the target and computes what was trained.
    pub fn is_usable(&self) -> bool {
        self.worst() < Some(Severity::Wrong)
    }
}

/// Collects findings.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, what: impl Into<String>, fix: Option<&str>) {
        let fix = fix.map(str::to_owned);
        self.0.push(Finding { severity, what: what.into(), fix });
    }

    fn refused(&mut self, what: impl Into<String>, fix: &str) {
        self.add(Severity::Refused, what, Some(fix));
    }

    fn wrong(&mut self, what: impl Into<String>, fix: &str) {
        self.add(Severity::Wrong, what, Some(fix));
    }

    fn setting(&mut self, what: impl Into<String>, fix: &str) {
        self.add(Severity::Setting, what, Some(fix));
    }

    fn note(&mut self, what: impl Into<String>) {
        self.add(Severity::Note, what, None);
    }
}

/// What `engine` makes of `subject`.
pub fn lint(subject: &Subject, engine: Engine) -> EngineReport {
    let mut findings = Findings::default();
    match subject {
        Subject::Adapter(facts) => engines::adapter(engine, facts, &mut findings),
        Subject::Model(facts) => engines::model(engine, facts, &mut findings),
    }
    let mut findings = findings.0;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    EngineReport { engine, findings }
}
