//! `tunesmith verify`.

use std::collections::BTreeMap;

use recipes::provenance::{Lock, Role};

use crate::context::{TestContext, expect_status};

/// A run folder whose lock was written by the tested program, as far as its hash goes.
fn run_folder(context: &TestContext) {
    context.write("data.jsonl", "a\n");
    context.write("run/recipe.toml", "seed = 1\n");
    let run = context.path().join("run");
    let facts = BTreeMap::from([("matrix_library".to_owned(), "another".to_owned())]);
    let mut lock = Lock::of_this_program(facts).unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_tunesmith"));
    lock.program.sha256 = recipes::provenance::lock::hash_file(program).unwrap().1;
    lock.add_of_run(Role::Recipe, &run, &["recipe.toml"]).unwrap();
    lock.add_files(Role::Data, &[context.path().join("data.jsonl")]).unwrap();
    lock.write(&run).unwrap();
}

#[test]
fn an_untouched_run_verifies_and_another_environment_is_a_warning() {
    let context = TestContext::new();
    run_folder(&context);
    let outcome = context.run(&["verify", "run"]);
    expect_status(&outcome, 0);
    assert!(outcome.stderr.starts_with("warning: matrix_library was `another` and is"));
    assert!(outcome.stderr.ends_with("2 files are as the run left them\n"), "{}", outcome.stderr);
}

#[test]
fn changes_are_named_and_end_in_1() {
    let context = TestContext::new();
    run_folder(&context);
    context.write("data.jsonl", "b\n");
    std::fs::remove_file(context.path().join("run/recipe.toml")).unwrap();
    let outcome = context.run(&["verify", "run", "--quiet"]);
    expect_status(&outcome, 1);
    insta::assert_snapshot!(outcome.stderr, @r#"
    error: recipe `recipe.toml` is missing
    error: data `[DIR]/data.jsonl` has the same length and other content
    "#);
    let outcome = context.run(&["verify", "run", "--json", "-"]);
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["differences"][1]["change"], "content");
}

#[test]
fn a_folder_without_a_lock_is_no_run() {
    let context = TestContext::new();
    let outcome = context.run(&["verify", "."]);
    expect_status(&outcome, 1);
    insta::assert_snapshot!(outcome.stderr, @r#"
    error: `.` has no `tunesmith.lock`

    hint: give the folder of a run: the `output_dir` of its recipe
    "#);
}
