//! `tunesmith preview`.

use crate::context::{CONVERSATIONS, TestContext, expect_status, tiny_recipe};

#[test]
fn tokens_that_carry_loss_are_marked_without_colour() {
    let context = TestContext::new();
    let rows = "{\"prompt\": \"2 plus 3 is\", \"completion\": \" 5.\"}\n";
    context.write("data.jsonl", rows);
    context.write("recipe.toml", &tiny_recipe(""));
    let outcome = context.run(&["preview", "recipe.toml", "--rows", "1"]);
    expect_status(&outcome, 0);
    let (row, counts) = outcome.stdout.split_once("\n\n").unwrap();
    assert!(row.starts_with("row 1: 1 examples, "), "{row}");
    let marked = row.lines().filter(|line| line.contains("  *     \""));
    let marked: String = marked.map(|line| line.split('"').nth(1).unwrap()).collect();
    assert!(marked.starts_with(" 5."), "{row}");
    for count in ["rows                 1", "truncated            0", "untrained            0"] {
        assert!(counts.contains(count), "{count}:\n{counts}");
    }
}

#[test]
fn rows_and_counts_come_as_json_too() {
    let context = TestContext::new();
    context.write("data.jsonl", CONVERSATIONS);
    context.write("recipe.toml", &tiny_recipe("packing = false\n"));
    let arguments = ["preview", "recipe.toml", "--rows", "9", "--json", "rows.json"];
    let outcome = context.run(&arguments);
    expect_status(&outcome, 0);
    assert_eq!(outcome.stdout, "");
    let text = std::fs::read_to_string(context.path().join("rows.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["rows"].as_array().unwrap().len(), 2);
    assert_eq!(report["rows_per_epoch"], 2);
    assert_eq!(report["counts"][0]["rows"], 2);
    let tokens = report["rows"][0]["segments"][0]["tokens"].as_array().unwrap();
    let trained = tokens.iter().filter(|token| token["trained"] == true);
    let text: String = trained.map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(text, "In the cave.<|im_end|>");
}

#[test]
fn a_base_that_is_missing_ends_in_an_error() {
    let context = TestContext::new();
    context.write(
        "recipe.toml",
        "base_model = \"m\"\noutput_dir = \"r\"\ndataset = [{ path = \"d\" }]",
    );
    let outcome = context.run(&["preview", "recipe.toml"]);
    expect_status(&outcome, 1);
    insta::assert_snapshot!(outcome.stderr, @r#"
    error: base model `m` not found: no such file or folder, and not a hub id `org/name`

    hint: name a folder with `config.json` and `*.safetensors`, a `.gguf` file, or a hub id such as `meta-llama/Llama-2-7b-hf`
    "#);
}
