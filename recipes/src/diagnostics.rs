//! How the program ends: exit codes, error chains with hints, and what a panic looks like.

use std::error::Error;
use std::process::ExitCode;

use crate::printer::{Printer, StdoutClosed};
use crate::provenance::ProvenanceError;
use crate::recipe::RecipeError;

/// What the program says to the one who started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done: 0.
    Success,
    /// Something the user can fix: 1.
    Failure,
    /// A fault of the program or the machine: 2.
    Fault,
    /// Stopped by a signal, checkpoint written: 130.
    Interrupted,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(match status {
            ExitStatus::Success => 0,
            ExitStatus::Failure => 1,
            ExitStatus::Fault => 2,
            ExitStatus::Interrupted => 130,
        })
    }
}

/// An error that is not the user's: ends in [`ExitStatus::Fault`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// An error with the next thing to type, for places that have no error type of their own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct UserError {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl UserError {
    /// An error that says what to do.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }
}

/// Shows an error and says how the program ends.
pub fn report(error: &anyhow::Error, printer: &mut Printer) -> ExitStatus {
    if error.is::<StdoutClosed>() {
        // The reader of our output has seen enough, as in `tunesmith schema | head`.
        return ExitStatus::Success;
    }
    match error.downcast_ref::<RecipeError>() {
        Some(RecipeError::Invalid(findings)) => {
            printer.error_block(&findings.to_string());
            if findings.len() > 1 {
                printer
                    .error_block(&format!("\nerror: {} errors, nothing was run", findings.len()));
            }
        }
        _ => printer.error_block(&rendered(error)),
    }
    if error.chain().any(<dyn Error>::is::<Fault>) {
        ExitStatus::Fault
    } else {
        ExitStatus::Failure
    }
}

/// The chain in one line, then its hint after a blank line.
fn rendered(error: &anyhow::Error) -> String {
    let (message, hint) = message_and_hint(error);
    let hint = hint.map_or(String::new(), |hint| format!("\n\nhint: {hint}"));
    format!("error: {message}{hint}")
}

/// The chain in one line, and the first hint in it.
pub(crate) fn message_and_hint(error: &anyhow::Error) -> (String, Option<String>) {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let message = cause.to_string();
        // Many errors repeat their source in their own message.
        if last.is_empty() {
            text.push_str(&message);
        } else if !last.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        last = message;
    }
    (text, error.chain().find_map(hint))
}

/// The next thing to type, of every error type that knows one.
fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    let own = error.downcast_ref().map(|error: &UserError| error.hint.clone());
    let recipe = || error.downcast_ref().map(RecipeError::hint);
    let provenance = || error.downcast_ref().map(ProvenanceError::hint);
    let dataset = || error.downcast_ref().map(datasets::DatasetError::hint);
    let adapter = || error.downcast_ref().map(adapters::AdapterError::hint);
    let weights = || error.downcast_ref().map(adapters::weights::WeightsError::hint);
    let load = || error.downcast_ref().map(trainer::LoadError::hint);
    let training = || error.downcast_ref().map(trainer::TrainerError::hint);
    let evaluation = || error.downcast_ref().map(trainer::evaluate::EvaluateError::hint);
    let merge = || error.downcast_ref().map(adapters::merge::MergeError::hint);
    let combine = || error.downcast_ref().map(adapters::combine::CombineError::hint);
    let mix = || error.downcast_ref().map(adapters::mix::MixError::hint);
    own.or_else(recipe)
        .or_else(provenance)
        .or_else(dataset)
        .or_else(adapter)
        .or_else(weights)
        .or_else(load)
        .or_else(training)
        .or_else(evaluation)
        .or_else(merge)
        .or_else(combine)
        .or_else(mix)
        .flatten()
}

/// Turns any panic into one paragraph: a backtrace says nothing to a user.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        let place = panic.location().map_or_else(
            || "an unknown place".into(),
            |place| format!("{}:{}", place.file(), place.line()),
        );
        Printer::default().error_block(&format!(
            "error: this is a bug in tunesmith {}: {message} (at {place}). Nothing under a final \
             name was left half-written. Please report it with the command and the recipe.",
            env!("CARGO_PKG_VERSION"),
        ));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_follow_their_error_and_hints_come_last() {
        let error = anyhow::Error::new(UserError::new("no such file", "check the path"))
            .context("cannot read `a.toml`");
        assert_eq!(
            rendered(&error),
            "error: cannot read `a.toml`: no such file\n\nhint: check the path"
        );
    }

    #[test]
    fn a_message_that_holds_its_cause_is_not_repeated() {
        let inner = UserError { message: "disk full".into(), hint: None };
        let error = Err::<(), _>(inner).context("cannot write: disk full").unwrap_err();
        assert_eq!(rendered(&error), "error: cannot write: disk full");
    }

    #[test]
    fn a_fault_is_not_the_users() {
        let error = anyhow::Error::new(Fault("lost".into())).context("while saving");
        assert_eq!(report(&error, &mut Printer::default()), ExitStatus::Fault);
    }
}
