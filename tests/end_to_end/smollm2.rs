//! The real model: perplexity, greedy tokens and the memory of a merge.
//!
//! `scripts/fetch_test_material.sh` brings the file; without it these tests say that they skip,
//! and fail in continuous integration.

use std::path::PathBuf;

use serde_json::Value;

use crate::program::{Program, root};

fn model() -> Option<String> {
    let folder = std::env::var_os("TUNESMITH_TEST_MATERIAL")
        .map_or_else(|| root().join("target/test-material"), PathBuf::from);
    let path = folder.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(path.display().to_string());
    }
    assert!(std::env::var_os("CI").is_none(), "`{}` is missing", path.display());
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    {
        eprintln!("SKIPPED: run scripts/fetch_test_material.sh for {}", path.display());
    }
    None
}

fn reference() -> Value {
    let path = root().join("tests/fixtures/smollm2/reference.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn perplexity_of_the_gguf_equals_that_of_transformers() {
    let Some(model) = model() else { return };
    let program = Program::new();
    let text = root().join("tests/fixtures/smollm2/text.txt").display().to_string();
    let arguments = ["evaluate", &model, "--task", "perplexity", "--data", &text, "--json", "-"];
    let scores: Value = serde_json::from_str(&program.run(&arguments)).unwrap();
    let figures = &scores["targets"][0]["tasks"]["perplexity"];
    let expected = &reference()["text_as_gguf_pre_smollm"]["perplexity"][0];
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap();
    assert_eq!(figures["tokens"], expected["tokens"]);
    let ratio = number(figures, "perplexity") / number(expected, "perplexity");
    assert!((ratio - 1.0).abs() < 1e-4, "{figures} and {expected}");
}

#[test]
fn a_merge_streams_its_weights() {
    let Some(model) = model() else { return };
    let program = Program::new();
    let recipe = program.write(
        "recipe.toml",
        &format!(
            "base_model = \"{model}\"\noutput_dir = \"run\"\n[[dataset]]\npath = \"{}\"\n\
             [batch]\nsequence_length = 128\npacking = false\n[train]\nsteps = 2\n\
             [adapter.lora]\nrank = 4\n",
            root().join("recipes/data/identity.jsonl").display()
        ),
    );
    program.run(&["train", &recipe]);
    program.run(&["merge", "run", "--output", "merged"]);
    let report = program.json("merged/merge_report.json");
    assert_eq!(report["within_bound"], true);
    assert_eq!(report["dtype"], "float16");
    let largest = 49_152 * 576 * 4;
    let bound = 2 * largest + 200_000_000;
    let peak = report["peak_memory_bytes"].as_u64().unwrap();
    assert!(peak < bound, "{peak} bytes at the peak, {bound} allowed");
}
