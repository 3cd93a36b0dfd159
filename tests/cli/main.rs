//! Drives the `tunesmith` program from outside: help, messages, exit codes, shipped recipes.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod context;

mod broken_recipes;
mod check;
mod doctor;
mod evaluate;
mod help;
mod new;
mod preview;
mod recipe_fuzz;
mod recipe_round_trip;
mod report;
mod schema;
mod shipped_recipes;
mod verify;
