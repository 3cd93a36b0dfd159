//! `tunesmith new`.

use crate::context::{TestContext, expect_status};

#[test]
fn a_new_recipe_loads_and_names_what_the_flags_say() {
    let context = TestContext::new();
    let outcome = context.run(&["new", "a.toml", "--base", "models/x", "--data", "d.jsonl"]);
    expect_status(&outcome, 0);
    let loaded = recipes::recipe::load(&context.path().join("a.toml"), &[]).unwrap();
    assert_eq!(loaded.recipe.base_model, "models/x");
    assert_eq!(loaded.recipe.dataset[0].path, "d.jsonl");
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
}

#[test]
fn an_existing_recipe_is_left_alone() {
    let context = TestContext::new();
    context.write("recipe.toml", "mine");
    let outcome = context.run(&["new"]);
    expect_status(&outcome, 1);
    insta::assert_snapshot!(outcome.stderr, @r#"
    error: `recipe.toml` exists already

    hint: give another name, or delete it first
    "#);
    assert_eq!(std::fs::read_to_string(context.path().join("recipe.toml")).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(context.path()).unwrap().count(), 1);
}

#[test]
fn a_format_that_does_not_exist_writes_nothing() {
    let context = TestContext::new();
    let outcome = context.run(&["new", "--format", "mesages"]);
    expect_status(&outcome, 1);
    insta::assert_snapshot!(outcome.stderr, @r#"
    error: the new recipe:10:10: `dataset[0].format` is "mesages", expected one of "messages", "sharegpt", "alpaca", "completion", "text", "tokens", "fill_in_the_middle"
       |
    10 | format = "mesages"
       |          ^^^^^^^^^

    hint: did you mean "messages"?
    "#);
    assert_eq!(std::fs::read_dir(context.path()).unwrap().count(), 0);
}
