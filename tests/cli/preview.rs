//! `tunesmith preview`.

use crate::context::{CONVERSATIONS, TestContext, expect_status, tiny_recipe};

#[test]
fn tokens_that_carry_loss_are_marked_without_colour() {
    let context = TestContext::new();
    context.write("data.jsonl", CONVERSATIONS);
    context.write("recipe.toml", &tiny_recipe(""));
    let outcome = context.run(&["preview", "recipe.toml", "--rows", "1"]);
    expect_status(&outcome, 0);
    insta::assert_snapshot!(outcome.stdout, @r#"
    row 1: 2 examples, 42 tokens, 10 of them carry loss (*)
    --- example data.jsonl:1: 22 tokens, 7 carry loss
    position       id  loss  text
           0        1        "<|im_start|>"
           1      284        "user"
           2      201        "\n"
           3      482        "Where"
           4      401        " does"
           5      286        " the"
           6      722        " bear"
           7      675        " live"
           8       33        "?"
           9        2        "<|im_end|>"
          10      201        "\n"
          11        1        "<|im_start|>"
          12      282        "assistant"
          13      201        "\n"
          14       43  *     "I"
          15       80  *     "n"
          16      286  *     " the"
          17      306  *     " ca"
          18      409  *     "ve"
          19       16  *     "."
          20        2  *     "<|im_end|>"
          21      201        "\n"
    --- example data.jsonl:2: 20 tokens, 3 carry loss
    position       id  loss  text
           0        1        "<|im_start|>"
           1      284        "user"
           2      201        "\n"
           3      313        "What"
           4      283        " is"
           5      223        " "
           6       20        "2"
           7      312        " plus"
           8      223        " "
           9       21        "3"
          10       33        "?"
          11        2        "<|im_end|>"
          12      201        "\n"
          13        1        "<|im_start|>"
          14      282        "assistant"
          15      201        "\n"
          16       23  *     "5"
          17       16  *     "."
          18        2  *     "<|im_end|>"
          19      201        "\n"

    1 of 1 rows shown; an epoch has 1 steps

    path                 data.jsonl
    role                 training
    format               messages
    files                1
    skipped files        0
    rows                 2
    empty                0
    dropped overlong     0
    truncated            0
    split                0
    untrained            0
    held back            0
    kept                 2
    examples             2
    tokens               42
    trained tokens       10
    masked tokens        32
    cut tokens           0
    turns without end    0
    longest              22
    median length        20
    p95 length           22
    "#);
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
