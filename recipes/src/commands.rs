//! One verb, one file: a function that takes values and returns how the program ends.

pub mod check;
pub mod doctor;
pub mod new;
pub mod preview;
pub mod schema;
pub mod verify;
