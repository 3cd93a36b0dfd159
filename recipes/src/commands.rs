//! One verb, one file: a function that takes values and returns how the program ends.

pub mod adapter;
pub mod check;
pub mod doctor;
pub mod evaluate;
pub mod generate;
pub mod lint;
pub mod merge;
pub mod new;
pub mod plan;
pub mod preview;
pub mod report;
pub mod schema;
pub mod train;
pub mod verify;
