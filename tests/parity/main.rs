//! Forward passes, losses and gradients against what transformers and PEFT computed
//! (`tests/fixtures/llama`, written by `scripts/make_fixtures.py`).

#![expect(clippy::unwrap_used, reason = "tests")]

mod autodiff;
mod configurations;
mod evaluate;
mod expert_parameters;
mod families;
mod fixture;
mod forward;
mod methods;
mod quantised;
mod smollm2;
mod smollm2_training;
mod starts;
mod training;
