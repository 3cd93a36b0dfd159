//! Turns panics inside the tokenizers crate into errors.
//!
//! That crate checks less than its files can get wrong, and a broken `tokenizer.json` is a user's
//! problem with a user's message, not a crash.

use std::any::Any;
use std::cell::Cell;
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is about to be reported as an error.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; an error or a panic comes back as a message.
pub(crate) fn caught<T, E: Display>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    // What `work` borrows is not used again after a panic: callers drop it or only read it.
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(payload) => Err(message(payload.as_ref())),
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it failed without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        let result: Result<(), String> = caught(|| -> Result<(), String> { panic!("at {}", 3) });
        assert_eq!(result, Err("at 3".to_owned()));
        assert_eq!(caught(|| Ok::<_, String>(4)), Ok(4));
    }
}
