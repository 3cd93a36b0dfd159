//! Scores of a model on text.

mod perplexity;

pub use perplexity::{Perplexity, perplexity, windows};
