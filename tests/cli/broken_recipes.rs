//! What is said about broken recipes, word by word.

use recipes::recipe::Draft;

use crate::context::{TestContext, expect_status};

/// A recipe that is complete, for tests that add something wrong.
const TOP: &str = r#"base_model = "m"
output_dir = "r"
dataset = [{ path = "d" }]"#;

/// Everything that is wrong with a recipe; `@top` stands for a complete one.
fn said(recipe: &str, overrides: &[&str]) -> String {
    let overrides: Vec<_> = overrides.iter().map(|text| (*text).to_owned()).collect();
    let draft = Draft::parse("recipe.toml", &recipe.replace("@top", TOP), &overrides);
    assert!(draft.recipe().is_none());
    draft.findings().to_string()
}

#[test]
fn a_syntax_error_points_at_its_place() {
    let recipe = "base_model = \n[[dataset]\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:1:14: string values must be quoted, expected literal string
      |
    1 | base_model = 
      |              ^

    error: recipe.toml:2:11: unclosed array table, expected `]`
      |
    2 | [[dataset]
      |           ^
    "#);
}

#[test]
fn a_key_written_twice() {
    let recipe = r#"base_model = "a"
base_model = "b"
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:2:1: duplicate key
      |
    2 | base_model = "b"
      | ^^^^^^^^^^
    "#);
}

#[test]
fn an_empty_recipe_lacks_everything_at_once() {
    let recipe = "";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml: the top level lacks `base_model`

    hint: write `base_model = "models/name"` at the top: a folder, a `.gguf` file or a hub id

    error: recipe.toml: the top level lacks `output_dir`

    hint: write `output_dir = "runs/name"` at the top

    error: recipe.toml: the top level lacks `dataset`

    hint: write `[[dataset]]` and below it `path = "data/train.jsonl"`
    "#);
}

#[test]
fn unknown_keys_are_all_reported() {
    let recipe = "@top\nsede = 1\n[adapter.lora]\nrnak = 2\n[train]\nlearning_rate = 1e-4\n[batch]\nzzz = 1\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:1: unknown key `sede` in the top level
      |
    4 | sede = 1
      | ^^^^

    hint: did you mean `seed`?

    error: recipe.toml:6:1: unknown key `rnak` in `[adapter.lora]`
      |
    6 | rnak = 2
      | ^^^^

    hint: did you mean `rank`?

    error: recipe.toml:8:1: unknown key `learning_rate` in `[train]`
      |
    8 | learning_rate = 1e-4
      | ^^^^^^^^^^^^^

    hint: `learning_rate` belongs in `[optimizer.adamw]` or `[optimizer.adamw_8bit]`

    error: recipe.toml:10:1: unknown key `zzz` in `[batch]`
       |
    10 | zzz = 1
       | ^^^

    hint: known keys: `sequence_length`, `packing`, `on_overlong`, `sequences_per_micro_batch`, `micro_batches_per_step`, `shuffle`
    "#);
}

#[test]
fn names_of_other_programs_are_translated() {
    let recipe = "@top\nlr = 1e-4\nnum_train_epochs = 3\n[adapter.lora]\nlora_alpha = 2\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:1: unknown key `lr` in the top level
      |
    4 | lr = 1e-4
      | ^^

    hint: a recipe says `optimizer.adamw.learning_rate`

    error: recipe.toml:5:1: unknown key `num_train_epochs` in the top level
      |
    5 | num_train_epochs = 3
      | ^^^^^^^^^^^^^^^^

    hint: a recipe says `train.epochs`

    error: recipe.toml:7:1: unknown key `lora_alpha` in `[adapter.lora]`
      |
    7 | lora_alpha = 2
      | ^^^^^^^^^^

    hint: a recipe says `adapter.lora.alpha`
    "#);
}

#[test]
fn wrong_types_say_what_stands_there() {
    let recipe = r#"@top
seed = "many"
deterministic = 1
[batch]
sequence_length = 1.5
shuffle = "yes"
[optimizer.adamw]
betas = 0.9
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:8: `seed` is the string "many", expected a whole number
      |
    4 | seed = "many"
      |        ^^^^^^

    error: recipe.toml:5:17: `deterministic` is the whole number 1, expected `true` or `false`
      |
    5 | deterministic = 1
      |                 ^

    error: recipe.toml:7:19: `batch.sequence_length` is the number 1.5, expected a whole number
      |
    7 | sequence_length = 1.5
      |                   ^^^

    error: recipe.toml:8:11: `batch.shuffle` is the string "yes", expected `true` or `false`
      |
    8 | shuffle = "yes"
      |           ^^^^^

    error: recipe.toml:10:9: `optimizer.adamw.betas` is the number 0.9, expected a list of numbers
       |
    10 | betas = 0.9
       |         ^^^
    "#);
}

#[test]
fn unknown_words_list_the_known_ones() {
    let recipe = r#"@top
precision = "fp32"
[batch]
on_overlong = "truncat"
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:13: `precision` is "fp32", expected one of "auto", "f32", "bf16"
      |
    4 | precision = "fp32"
      |             ^^^^^^

    hint: did you mean "f32"?

    error: recipe.toml:6:15: `batch.on_overlong` is "truncat", expected one of "error", "drop", "truncate", "split"
      |
    6 | on_overlong = "truncat"
      |               ^^^^^^^^^

    hint: did you mean "truncate"?
    "#);
}

#[test]
fn what_comes_later_is_refused_by_name() {
    let recipe = r#"@top
precision = "f16"
deterministic = true
[adapter.vera]
rank = 4
[objective.dpo]
beta = 0.1
[optimizer.lion]
[schedule.warmup_stable_decay]
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:13: `precision = "f16"` is not available yet
      |
    4 | precision = "f16"
      |             ^^^^^

    hint: use "auto", "f32" or "bf16"

    error: recipe.toml:6:10: `[adapter.vera]` is not available yet
      |
    6 | [adapter.vera]
      |          ^^^^

    hint: use `[adapter.lora]`

    error: recipe.toml:8:12: `[objective.dpo]` is not available yet
      |
    8 | [objective.dpo]
      |            ^^^

    hint: use `[objective.sft]`

    error: recipe.toml:10:12: `[optimizer.lion]` is not available yet
       |
    10 | [optimizer.lion]
       |            ^^^^

    hint: use `[optimizer.adamw]`

    error: recipe.toml:11:11: `[schedule.warmup_stable_decay]` is not available yet
       |
    11 | [schedule.warmup_stable_decay]
       |           ^^^^^^^^^^^^^^^^^^^

    hint: use `[schedule.linear]`
    "#);
}

#[test]
fn formats_that_come_later_are_refused_by_name() {
    let recipe = r#"base_model = "m"
output_dir = "r"
[[dataset]]
path = "d"
format = "preference"
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:10: `dataset.format = "preference"` is not available yet
      |
    5 | format = "preference"
      |          ^^^^^^^^^^^^

    hint: use "messages" with the chosen answers
    "#);
}

#[test]
fn two_variants_of_one_table() {
    let recipe = "@top\n[schedule.cosine]\n[schedule.linear]\nwarmup_steps = 3\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:11: `[schedule]` takes one variant, found `[schedule.cosine]` and `[schedule.linear]`
      |
    5 | [schedule.linear]
      |           ^^^^^^

    hint: keep one of them and delete the others
    "#);
}

#[test]
fn a_variant_that_does_not_exist() {
    let recipe = "@top\n[optimizer.adam]\nlearning_rate = 1e-4\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:12: `[optimizer.adam]` does not exist; `[optimizer]` has `[optimizer.adamw]` or `[optimizer.adamw_8bit]`
      |
    4 | [optimizer.adam]
      |            ^^^^
    "#);
}

#[test]
fn a_table_without_its_variant() {
    let recipe = "@top\n[adapter]\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:1: `[adapter]` names no variant
      |
    4 | [adapter]
      | ^^^^^^^^^

    hint: write `[adapter.lora]` or `[adapter.dora]`
    "#);
}

#[test]
fn keys_of_a_variant_one_level_too_high() {
    let recipe = "@top\n[adapter]\nrank = 8\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:1: `[adapter.rank]` does not exist; `[adapter]` has `[adapter.lora]` or `[adapter.dora]`
      |
    5 | rank = 8
      | ^^^^

    hint: `rank` belongs in `[adapter.lora]` or `[adapter.dora]`
    "#);
}

#[test]
fn epochs_and_steps_exclude_each_other() {
    let recipe = "@top\n[train]\nepochs = 1\nsteps = 5\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:6:9: `train.steps` and `train.epochs` both say how long the run is
      |
    6 | steps = 5
      |         ^

    hint: delete one of them
    "#);
}

#[test]
fn zeroes_where_nothing_would_happen() {
    let recipe = "@top\n[train]\nepochs = 0\n[adapter.lora]\nrank = 0\n[batch]\nsequence_length = 1\nsequences_per_micro_batch = 0\n[optimizer.adamw]\nlearning_rate = 0\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:10: `train.epochs` is 0, but it must be a whole number from 1 to 1048576
      |
    5 | epochs = 0
      |          ^

    error: recipe.toml:7:8: `adapter.lora.rank` is 0, but it must be a whole number from 1 to 65536
      |
    7 | rank = 0
      |        ^

    error: recipe.toml:9:19: `batch.sequence_length` is 1, but it must be a whole number from 2 to 4194304
      |
    9 | sequence_length = 1
      |                   ^

    error: recipe.toml:10:29: `batch.sequences_per_micro_batch` is 0, but it must be a whole number from 1 to 1048576
       |
    10 | sequences_per_micro_batch = 0
       |                             ^

    error: recipe.toml:12:17: `optimizer.adamw.learning_rate` is 0, but it must be a number above 0
       |
    12 | learning_rate = 0
       |                 ^
    "#);
}

#[test]
fn numbers_without_a_meaning() {
    let recipe = "@top\n[adapter.lora]\ndropout = 1.0\nalpha = nan\n[optimizer.adamw]\nlearning_rate = -1e-4\nbetas = [0.9, 1.0]\nepsilon = 0.0\nweight_decay = inf\n[train]\nmax_gradient_norm = -1\n[schedule.cosine]\nfinal_ratio = 1.5\nwarmup_steps = -1\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:11: `adapter.lora.dropout` is 1, but it must be at least 0 and below 1
      |
    5 | dropout = 1.0
      |           ^^^

    error: recipe.toml:6:9: `adapter.lora.alpha` is NaN, but it must be a number of at least 0
      |
    6 | alpha = nan
      |         ^^^

    error: recipe.toml:8:17: `optimizer.adamw.learning_rate` is -0.0001, but it must be a number above 0
      |
    8 | learning_rate = -1e-4
      |                 ^^^^^

    error: recipe.toml:9:15: `optimizer.adamw.betas[1]` is 1, but it must be at least 0 and below 1
      |
    9 | betas = [0.9, 1.0]
      |               ^^^

    error: recipe.toml:10:11: `optimizer.adamw.epsilon` is 0, but it must be a number above 0
       |
    10 | epsilon = 0.0
       |           ^^^

    error: recipe.toml:11:16: `optimizer.adamw.weight_decay` is inf, but it must be a number of at least 0
       |
    11 | weight_decay = inf
       |                ^^^

    error: recipe.toml:13:21: `train.max_gradient_norm` is -1, but it must be a number of at least 0
       |
    13 | max_gradient_norm = -1
       |                     ^^

    error: recipe.toml:15:15: `schedule.cosine.final_ratio` is 1.5, but it must be from 0 to 1
       |
    15 | final_ratio = 1.5
       |               ^^^

    error: recipe.toml:16:16: `schedule.cosine.warmup_steps` is -1, but it must be a whole number from 0 to 1099511627776
       |
    16 | warmup_steps = -1
       |                ^^
    "#);
}

#[test]
fn betas_are_two() {
    let recipe = "@top\n[optimizer.adamw]\nbetas = [0.9]\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:9: `optimizer.adamw.betas` is a list of 1, expected a list of 2
      |
    5 | betas = [0.9]
      |         ^^^^^
    "#);
}

#[test]
fn numbers_beyond_64_bits() {
    let recipe = "@top\nseed = 99999999999999999999\n[adapter.lora]\nrank = 1000000000\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:8: the number `99999999999999999999` is too large
      |
    4 | seed = 99999999999999999999
      |        ^^^^^^^^^^^^^^^^^^^^

    error: recipe.toml:6:8: `adapter.lora.rank` is 1000000000, but it must be a whole number from 1 to 65536
      |
    6 | rank = 1000000000
      |        ^^^^^^^^^^
    "#);
}

#[test]
fn validation_by_path_and_fraction() {
    let recipe = r#"@top
[validation]
path = "v.jsonl"
fraction = 0.1
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:6:12: `validation.path` and `validation.fraction` both say which rows are held back
      |
    6 | fraction = 0.1
      |            ^^^

    hint: delete one of them
    "#);
}

#[test]
fn validation_without_rows() {
    let recipe = "@top\n[validation]\nevery_steps = 10\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:2: `[validation]` names no rows
      |
    4 | [validation]
      |  ^^^^^^^^^^

    hint: write `fraction = 0.02` or `path = "data/validation.jsonl"`
    "#);
}

#[test]
fn validation_of_everything() {
    let recipe = r#"@top
[validation]
fraction = 1.0
format = "text"
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:12: `validation.fraction` is 1, but it must be above 0 and below 1
      |
    5 | fraction = 1.0
      |            ^^^

    error: recipe.toml:6:10: `validation.format` is the format of `validation.path`, which is absent
      |
    6 | format = "text"
      |          ^^^^^^

    hint: delete it: held-back rows have the format of their dataset
    "#);
}

#[test]
fn an_empty_list_of_datasets() {
    let recipe = r#"base_model = "m"
output_dir = "r"
dataset = []
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:3:11: `dataset` is an empty list: there is nothing to train on
      |
    3 | dataset = []
      |           ^^

    hint: write `[[dataset]]` and below it `path = "data/train.jsonl"`
    "#);
}

#[test]
fn one_bracket_too_few() {
    let recipe = r#"base_model = "m"
output_dir = "r"
[dataset]
path = "d"
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:3:1: `dataset` is a table, expected a list of tables `[[...]]`
      |
    3 | [dataset]
      | ^^^^^^^^^

    hint: write the table's name in double brackets
    "#);
}

#[test]
fn a_dataset_without_a_path() {
    let recipe = r#"base_model = "m"
output_dir = "r"
[[dataset]]
format = "text"
[[dataset]]
path = ""
weight = 0
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:3:1: `[[dataset]]` lacks `path`
      |
    3 | [[dataset]]
      | ^^^^^^^^^^^

    hint: write `path = "data/train.jsonl"`

    error: recipe.toml:6:8: `dataset[1].path` is empty, but it must be a name or path
      |
    6 | path = ""
      |        ^^

    error: recipe.toml:7:10: `dataset[1].weight` is 0, but it must be a number above 0
      |
    7 | weight = 0
      |          ^
    "#);
}

#[test]
fn target_modules_by_a_word() {
    let recipe = r#"@top
[adapter.lora]
target_modules = "q_proj"
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:18: `target_modules` is the word "q_proj"; the only word is "all-linear"
      |
    5 | target_modules = "q_proj"
      |                  ^^^^^^^^

    hint: write names of modules as a list: `["q_proj", "v_proj"]`
    "#);
}

#[test]
fn target_modules_of_numbers() {
    let recipe = r#"@top
[adapter.lora]
target_modules = [1, ""]
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:19: `adapter.lora.target_modules[0]` is the whole number 1, expected a string
      |
    5 | target_modules = [1, ""]
      |                   ^

    error: recipe.toml:5:22: `adapter.lora.target_modules[1]` is empty, but it must be a name or path
      |
    5 | target_modules = [1, ""]
      |                      ^^
    "#);
}

#[test]
fn target_modules_of_nothing() {
    let recipe = "@top\n[adapter.lora]\ntarget_modules = []\n";
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:5:18: `target_modules` is an empty list: nothing would be trained
      |
    5 | target_modules = []
      |                  ^^

    hint: write "all-linear", or names of modules
    "#);
}

#[test]
fn the_run_in_the_base_models_folder() {
    let recipe = r#"base_model = "models/m"
output_dir = "./models/m/"
[[dataset]]
path = "d"
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:2:14: `output_dir` is the folder of the base model
      |
    2 | output_dir = "./models/m/"
      |              ^^^^^^^^^^^^^

    hint: give the run a folder of its own, such as "runs/name"
    "#);
}

#[test]
fn overrides_are_pointed_at_on_the_command_line() {
    let recipe = "@top\n";
    insta::assert_snapshot!(said(recipe, &["adapter.lora.rnak=2", "seed", "train.steps=many", "dataset.7.path=x", "seed.x=1", "a b=1", "optimizer.adamw.betas=[0.9"]), @r#"
    error: --set: unknown key `rnak` in `[adapter.lora]`
     |
     | adapter.lora.rnak=2
     |              ^^^^

    hint: did you mean `rank`?

    error: --set: an override needs the form `key.path=value`
     |
     | seed
     | ^^^^

    hint: for example `--set train.steps=20`

    error: --set: `train.steps` is the string "many", expected a whole number
     |
     | train.steps=many
     |             ^^^^

    error: --set: no element `7`: the list has 1, counted from 0
     |
     | dataset.7.path=x
     |         ^

    hint: use a number from 0 to 1; 1 adds an element

    error: --set: `seed` is a table, expected a whole number
     |
     | seed.x=1
     | ^^^^

    error: --set: `a b` is not a key path
     |
     | a b=1
     | ^^^^^

    hint: keys are joined with dots, elements of a list are numbers: `--set dataset.0.path=data.jsonl`

    error: --set: unclosed array, expected `]`
     |
     | optimizer.adamw.betas=[0.9
     |                           ^
    "#);
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let recipe = r#"@top
precision = "\u001b[31mred"
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:4:13: `precision` is " [31mred", expected one of "auto", "f32", "bf16"
      |
    4 | precision = "\u001b[31mred"
      |             ^^^^^^^^^^^^^^^
    "#);
}

#[test]
fn a_long_line_is_shown_around_its_caret() {
    let recipe = r#"base_model = "m"
output_dir = "r"
dataset = [{ path = "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd", formt = "text", columns = { a = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb" } }]
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:3:175: unknown key `formt` in `[[dataset]]`
      |
    3 | ddddddddddddddddddddddddddddddddddddddddddddddd", formt = "text", columns = { a = "bbbbbbbbbbbbbbbbb
      |                                                   ^^^^^

    hint: did you mean `format`?
    "#);
}

#[test]
fn carets_count_characters() {
    let recipe = r#"base_model = "m"
output_dir = "r"
dataset = [{ path = "äöü", formt = "text" }]
"#;
    insta::assert_snapshot!(said(recipe, &[]), @r#"
    error: recipe.toml:3:28: unknown key `formt` in `[[dataset]]`
      |
    3 | dataset = [{ path = "äöü", formt = "text" }]
      |                            ^^^^^

    hint: did you mean `format`?
    "#);
}

#[test]
fn the_program_ends_with_1_and_says_how_many_errors_there_are() {
    let context = TestContext::new();
    let outcome = context.check("seed = 1\nsede = 2\n", &[]);
    expect_status(&outcome, 1);
    assert_eq!(outcome.stdout, "");
    let last = outcome.stderr.lines().last().unwrap();
    assert_eq!(last, "error: 4 errors, nothing was run");
}

#[test]
fn a_recipe_that_is_no_file_is_named() {
    let context = TestContext::new();
    let outcome = context.run(&["check", "nowhere.toml"]);
    expect_status(&outcome, 1);
    insta::assert_snapshot!(outcome.stderr, @r#"
    error: cannot read the recipe `nowhere.toml`: No such file or directory (os error 2)

    hint: `tunesmith new RECIPE` writes a recipe to start from
    "#);
    std::fs::create_dir(context.path().join("folder")).unwrap();
    expect_status(&context.run(&["check", "folder"]), 1);
    std::fs::write(context.path().join("latin1.toml"), b"a = 1\nb = \"\xe4\"\n").unwrap();
    let outcome = context.run(&["check", "latin1.toml"]);
    expect_status(&outcome, 1);
    assert!(outcome.stderr.contains("line 2 is not UTF-8 text"), "{}", outcome.stderr);
    std::fs::write(context.path().join("long.toml"), "#".repeat(2_000_000)).unwrap();
    expect_status(&context.run(&["check", "long.toml"]), 1);
}

#[test]
fn an_override_takes_the_place_of_what_excludes_it() {
    let recipe = format!("{TOP}\n[train]\nepochs = 3\n[schedule.cosine]\nwarmup_steps = 9\n");
    let overrides = ["train.steps=7", "schedule.linear.warmup_steps=2", "base_model=models/x y"];
    let overrides = overrides.map(str::to_owned);
    let recipe = Draft::parse("recipe.toml", &recipe, &overrides).finish().unwrap().recipe;
    assert_eq!(recipe.train.steps.map(u64::from), Some(7));
    assert_eq!(recipe.train.epochs, None);
    assert_eq!(recipe.base_model, "models/x y");
    assert!(matches!(recipe.schedule, trainer::ScheduleConfig::Linear(_)));
}

#[test]
fn poor_choices_are_warned_about_and_run() {
    let recipe = format!(
        "{TOP}\n[adapter.lora]\nalpha = 0\ndropout = 0.9\ntarget_modules = [\"q_proj\"]\n\
         [batch]\nsequences_per_micro_batch = 64\n[optimizer.adamw]\nlearning_rate = 0.1\n\
         [schedule.constant]\nwarmup_steps = 5\n[train]\nsteps = 5\n"
    );
    let warnings = Draft::parse("recipe.toml", &recipe, &[]).finish().unwrap().warnings;
    insta::assert_snapshot!(warnings, @r#"
    warning: recipe.toml:5:9: `alpha` is 0, so the adapter changes nothing and nothing is learned
      |
    5 | alpha = 0
      |         ^

    hint: delete the key; the default is 32

    warning: recipe.toml:6:11: `dropout` of 0.9 zeroes most of what the adapter reads
      |
    6 | dropout = 0.9
      |           ^^^

    hint: 0 to 0.1 is usual

    warning: recipe.toml:7:18: only attention layers are adapted, which learns less than adapting every linear layer, at the same number of parameters too
      |
    7 | target_modules = ["q_proj"]
      |                  ^^^^^^^^^^

    hint: set `target_modules = "all-linear"` and a smaller `rank` if memory is short

    warning: recipe.toml:9:29: a step takes 64 sequences; above 32, LoRA learns less from the same data
      |
    9 | sequences_per_micro_batch = 64
      |                             ^^

    hint: lower `sequences_per_micro_batch` or `micro_batches_per_step`

    warning: recipe.toml:11:17: the learning rate 1e-1 is unusually high for LoRA
       |
    11 | learning_rate = 0.1
       |                 ^^^

    hint: above 1e-3 runs often diverge; 1e-4 to 5e-4 is usual

    warning: recipe.toml:13:16: the warm-up of 5 steps is as long as the run of 5: the learning rate never gets past it
       |
    13 | warmup_steps = 5
       |                ^

    hint: about a tenth of the steps is usual
    "#);
}
