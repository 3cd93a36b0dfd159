//! `tunesmith check`: what a recipe names.

use crate::context::{CONVERSATIONS, Outcome, TestContext, expect_status, tiny_base, tiny_recipe};

/// What was said, without the folder of this checkout.
fn said(outcome: &Outcome) -> String {
    outcome.stderr.replace(&tiny_base(), "[BASE]")
}

#[test]
fn a_recipe_that_can_run_is_said_to_be_ready_and_leaves_nothing_behind() {
    let context = TestContext::new();
    context.write("data.jsonl", CONVERSATIONS);
    let outcome = context.check(&tiny_recipe(""), &[]);
    expect_status(&outcome, 0);
    assert_eq!(outcome.stdout, "");
    insta::assert_snapshot!(said(&outcome), @r#"
    base     [BASE], 0.9 M parameters
    adapter  LoRA on 28 layers, 0.15 M parameters
    dataset  data.jsonl: messages, files: 1, rows read: 2, examples: 2
    output   run
    `recipe.toml` is ready to run
    "#);
    let mut files: Vec<_> = std::fs::read_dir(context.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["data.jsonl", "recipe.toml"]);
}

#[test]
fn everything_that_is_missing_is_said_at_once() {
    let context = TestContext::new();
    context.write("file", "");
    let recipe = "base_model = \"models/none\"\noutput_dir = \"file/run\"\nsede = 1\n\
                  [[dataset]]\npath = \"none.jsonl\"\n";
    let outcome = context.check(recipe, &[]);
    expect_status(&outcome, 1);
    insta::assert_snapshot!(said(&outcome), @r#"
    error: recipe.toml:1:14: base model `models/none` is no local file or folder, is not in the hub cache `[DIR]/hub`, and `--offline` forbids downloading
      |
    1 | base_model = "models/none"
      |              ^^^^^^^^^^^^^

    hint: run once without `--offline` and `HF_HUB_OFFLINE`, or fetch it beforehand: `hf download models/none`

    error: recipe.toml:2:14: the run cannot be written to `file/run`: `[DIR]/file` is a file
      |
    2 | output_dir = "file/run"
      |              ^^^^^^^^^^

    hint: choose a folder that can be written to

    error: recipe.toml:3:1: unknown key `sede` in the top level
      |
    3 | sede = 1
      | ^^^^

    hint: did you mean `seed`?

    error: recipe.toml:5:8: `none.jsonl` does not exist
      |
    5 | path = "none.jsonl"
      |        ^^^^^^^^^^^^

    hint: paths are relative to the current folder

    error: 4 errors, nothing was run
    "#);
}

#[test]
fn a_hub_id_that_is_not_here_yet_is_no_error() {
    let context = TestContext::new();
    context.write("data.jsonl", CONVERSATIONS);
    let recipe = "base_model = \"some-org/some-model\"\noutput_dir = \"run\"\n\
                  [[dataset]]\npath = \"data.jsonl\"\n";
    context.write("recipe.toml", recipe);
    let outcome = context.run_with(&["check", "recipe.toml"], &[("HF_HUB_OFFLINE", "0")]);
    expect_status(&outcome, 0);
    assert!(outcome.stderr.contains("to be downloaded by the run"), "{}", outcome.stderr);
    let arguments = ["check", "recipe.toml", "--offline"];
    let outcome = context.run_with(&arguments, &[("HF_HUB_OFFLINE", "0")]);
    expect_status(&outcome, 1);
    assert!(outcome.stderr.contains("recipe.toml:1:14: base model `some-org/some-model`"));
}

#[test]
fn targets_that_the_base_lacks_point_at_the_adapter() {
    let context = TestContext::new();
    context.write("data.jsonl", CONVERSATIONS);
    let more = "\n[adapter.lora]\ntarget_modules = [\"w_pack\", \"up_proj\"]\n";
    let outcome = context.check(&tiny_recipe(more), &[]);
    expect_status(&outcome, 1);
    insta::assert_snapshot!(said(&outcome), @r#"
    error: recipe.toml:12:18: `target_modules` entry `w_pack` matches no linear layer; the model has: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj
       |
    12 | target_modules = ["w_pack", "up_proj"]
       |                  ^^^^^^^^^^^^^^^^^^^^^
    "#);
}

#[test]
fn a_rank_above_the_layers_own_is_warned_about() {
    let context = TestContext::new();
    context.write("data.jsonl", CONVERSATIONS);
    let outcome = context.check(&tiny_recipe("\n[adapter.lora]\nrank = 200\n"), &[]);
    expect_status(&outcome, 0);
    assert!(outcome.stderr.contains("warning: recipe.toml:12:8: rank 200"), "{}", outcome.stderr);
}

#[test]
fn a_row_that_cannot_be_read_is_named_by_file_and_line() {
    let context = TestContext::new();
    context.write("data.jsonl", &format!("{CONVERSATIONS}{{\"messages\": 7}}\n"));
    let outcome = context.check(&tiny_recipe(""), &[]);
    expect_status(&outcome, 1);
    assert!(outcome.stderr.contains("data.jsonl:3"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("recipe.toml:5:8"), "{}", outcome.stderr);
}

#[test]
fn findings_come_as_json_too() {
    let context = TestContext::new();
    let outcome = context.check("seed = 1\nsede = 2\n", &["--json", "-", "--quiet"]);
    expect_status(&outcome, 1);
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let unknown = &report["errors"][0];
    assert_eq!(unknown["message"], "unknown key `sede` in the top level");
    assert_eq!((&unknown["line"], &unknown["column"]), (&2.into(), &1.into()));
    assert_eq!(unknown["hint"], "did you mean `seed`?");
}

#[test]
fn weights_that_do_not_fit_their_config_are_found_without_reading_them() {
    let context = TestContext::new();
    context.write("data.jsonl", CONVERSATIONS);
    let base = context.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for entry in std::fs::read_dir(tiny_base()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    let config = std::fs::read_to_string(base.join("config.json")).unwrap();
    let config = config.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5");
    std::fs::write(base.join("config.json"), config).unwrap();
    let recipe = tiny_recipe("").replace(&tiny_base(), "base");
    let outcome = context.check(&recipe, &[]);
    expect_status(&outcome, 1);
    let expected = "`model.layers.4.self_attn.q_proj.weight` is missing";
    assert!(outcome.stderr.contains(expected), "{}", outcome.stderr);
    std::fs::remove_file(base.join("tokenizer.json")).unwrap();
    let outcome = context.check(&recipe, &[]);
    expect_status(&outcome, 1);
    assert!(outcome.stderr.contains("tokenizer.json"), "{}", outcome.stderr);
}
