//! `tunesmith evaluate` from outside: tasks by name and file, tables, JSON, samples, refusals.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::context::{TestContext, expect_status, tiny_base};

fn fixture(name: &str) -> String {
    format!("{}/../tests/fixtures/evaluate/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn two_targets_get_figures_errors_and_a_verdict() {
    let context = TestContext::new();
    let (base, data) = (tiny_base(), format!("arc={}", fixture("arc.jsonl")));
    let outcome = context.run(&[
        "-q",
        "evaluate",
        &base,
        &base,
        "--task",
        "arc,perplexity",
        "--data",
        &data,
        "--data",
        &format!("perplexity={base}/README.md"),
        "--limit",
        "8",
        "--json",
        "out.json",
        "--samples",
        "samples.jsonl",
        "--device",
        "cpu",
    ]);
    expect_status(&outcome, 0);
    let figures: Value =
        serde_json::from_slice(&std::fs::read(context.path().join("out.json")).unwrap()).unwrap();
    let arc = &figures["targets"][0]["tasks"]["arc"];
    assert_eq!(arc["items"], 8);
    assert!(arc["acc"].is_number() && arc["acc_norm_standard_error"].is_number(), "{arc}");
    let text = &figures["targets"][1]["tasks"]["perplexity"];
    for name in ["perplexity", "nll_per_token", "tokens", "word_perplexity", "bits_per_byte"] {
        assert!(text[name].is_number(), "{name}: {text}");
    }
    let comparison = &figures["comparisons"][0];
    assert_eq!(comparison["verdict"], "no difference seen");
    assert_eq!(comparison["difference"], 0.0);
    let samples = std::fs::read_to_string(context.path().join("samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 16);
    let sample: Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert_eq!(sample["task"], "arc");
    assert!(sample["prompts"][0].as_str().unwrap().starts_with("Question: "));
}

#[test]
fn a_task_file_of_ones_own_is_shown_as_a_table() {
    let context = TestContext::new();
    context.write(
        "mine.toml",
        "kind = \"stop_rate\"\ndata = \"rows.csv\"\nprompt = \"q\"\nmax_tokens = 4\n",
    );
    context.write("rows.csv", "q\nWhere does the bear live?\nWhat is 2 plus 3?\n");
    let outcome =
        context.run(&["-q", "evaluate", &tiny_base(), "--task", "mine.toml", "--device", "cpu"]);
    expect_status(&outcome, 0);
    let head = outcome.stdout.lines().next().unwrap();
    assert!(head.starts_with("mine ") && head.contains("stop_rate"), "{}", outcome.stdout);
}

#[test]
fn what_is_wrong_with_a_task_is_named() {
    let context = TestContext::new();
    context.write("typo.toml", "kind = \"classification\"\nprompt = \"q\"\nlabel = [\"a\"]\n");
    context.write("broken.toml", "kind = \"perplexity\"\ntext = \n");
    context.write("rows.jsonl", "{\"question\": \"a\"}\n");
    context.write(
        "bad.toml",
        "kind = \"stop_rate\"\nprompt = \"{{ nothing }}\"\ndata = \"rows.jsonl\"\n",
    );
    let base = tiny_base();
    let cases: [(&[&str], &str); 9] = [
        (&["--task", "mmlux"], "`mmlux` is no task"),
        (&["--task", "code"], "`code` is no task"),
        (&["--task", "arc"], "names no `data`"),
        (&["--task", "arc", "--data", "none.jsonl"], "none.jsonl"),
        (&["--task", "perplexity"], "needs `--data`"),
        (&["--task", "typo.toml"], "label"),
        (&["--task", "broken.toml"], "line 2"),
        (&["--task", "bad.toml"], "rows.jsonl:1"),
        (&["--task", "gsm8k", "--data", "rows.jsonl"], "few_shot"),
    ];
    for (arguments, expected) in cases {
        let mut all = vec!["-q", "evaluate", &base, "--device", "cpu"];
        all.extend(arguments);
        let outcome = context.run(&all);
        assert_eq!(outcome.status, 1, "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{arguments:?}: {}", outcome.stderr);
    }
}

#[test]
fn what_was_measured_is_kept_and_samples_are_not() {
    let context = TestContext::new();
    let data = fixture("arc.jsonl");
    let base = tiny_base();
    let run = |more: &[&str]| {
        let mut all = vec![
            "evaluate", &base, "--task", "arc", "--data", &data, "--limit", "4", "--json", "-",
            "--device", "cpu",
        ];
        all.extend(more);
        let outcome = context.run(&all);
        expect_status(&outcome, 0);
        outcome
    };
    let first = run(&[]);
    assert!(!first.stderr.contains("was measured before"), "{}", first.stderr);
    let second = run(&[]);
    assert!(second.stderr.contains("`arc` was measured before"), "{}", second.stderr);
    assert_eq!(first.stdout, second.stdout);
    for more in [&["--no-cache"][..], &["--samples", "s.jsonl"], &["--few-shot", "0"]] {
        assert!(!run(more).stderr.contains("was measured before"), "{more:?}");
    }
    let kept = context.path().join("cache/tunesmith/evaluations");
    for file in std::fs::read_dir(kept).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("Question"), "a prompt is in the cache");
    }
}

#[test]
fn rows_that_stand_in_the_training_data_are_counted() {
    let context = TestContext::new();
    let data = fixture("arc.jsonl");
    let row = std::fs::read_to_string(&data).unwrap().lines().next().unwrap().to_owned();
    context.write("train.jsonl", &(row + "\n"));
    let outcome = context.run(&[
        "-q",
        "evaluate",
        &tiny_base(),
        "--task",
        "arc",
        "--data",
        &data,
        "--limit",
        "6",
        "--training-data",
        "train.jsonl",
        "--json",
        "-",
        "--device",
        "cpu",
    ]);
    expect_status(&outcome, 0);
    let figures: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let arc = &figures["targets"][0]["tasks"]["arc"];
    assert!(arc["in_training_whole"].as_u64().unwrap() >= 1, "{arc}");
    assert_eq!(arc["in_training_13_words"], 0);
}

/// Rows and a task over them that is measured in `parts` parts.
fn long_task(context: &TestContext, parts: usize) {
    let row = |i| format!("{{\"text\": \"{}{i}\"}}", "the bear lives in the cave and ".repeat(6));
    let rows: Vec<String> = (0..256 * parts).map(row).collect();
    context.write("rows.jsonl", &rows.join("\n"));
    context.write("texts.toml", "kind = \"perplexity\"\ndata = \"rows.jsonl\"\ntext = \"text\"\n");
}

/// Figures kept for later, of tasks and of their parts.
fn kept_files(context: &TestContext) -> Vec<PathBuf> {
    let Ok(folder) = std::fs::read_dir(context.path().join("cache/tunesmith/evaluations")) else {
        return Vec::new();
    };
    let files = folder.flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect()
}

/// Evaluates the task until some of its parts are kept, and kills the program; gives their files.
fn kill_in_the_middle(context: &TestContext, arguments: &[&str]) -> Vec<PathBuf> {
    let mut command = context.command(arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while kept_files(context).len() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    kept_files(context)
}

#[test]
fn an_interrupted_task_goes_on_with_the_rows_that_are_left() {
    const PARTS: usize = 8;
    let context = TestContext::new();
    long_task(&context, PARTS);
    let base = tiny_base();
    let arguments = ["evaluate", &base, "--task", "texts.toml", "--json", "-", "--device", "cpu"];
    let run = |more: &[&str]| {
        let outcome = context.run(&[&arguments, more].concat());
        expect_status(&outcome, 0);
        outcome
    };
    let whole = run(&["--no-cache"]);
    assert!(!whole.stderr.contains("measured before"), "{}", whole.stderr);

    let kept = kill_in_the_middle(&context, &arguments);
    assert!(kept.len() < PARTS, "nothing was left to do");
    // A part that cannot be read is measured again; the others are not.
    std::fs::write(&kept[0], &std::fs::read(&kept[0]).unwrap()[..40]).unwrap();
    let resumed = run(&[]);
    assert_eq!(resumed.stdout, whole.stdout);
    let rows = 256 * (kept.len() - 1);
    let line = format!("{rows} of {} rows of `texts` were measured before", 256 * PARTS);
    assert!(resumed.stderr.contains(&line), "{line}\n{}", resumed.stderr);

    // The parts made way for the whole.
    assert_eq!(kept_files(&context).len(), 1);
    let again = run(&[]);
    assert_eq!(again.stdout, whole.stdout);
    assert!(again.stderr.contains("`texts` was measured before"), "{}", again.stderr);
}

#[test]
fn texts_of_perplexity_are_sought_in_the_training_data() {
    let context = TestContext::new();
    let line = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen";
    context.write("held.txt", &format!("{line}\n\nthe bear lives in the cave and sleeps\n"));
    context.write("train.jsonl", &format!("{{\"text\": \"{line} fifteen\"}}\n"));
    let outcome = context.run(&[
        "-q",
        "evaluate",
        &tiny_base(),
        "--task",
        "perplexity",
        "--data",
        "held.txt",
        "--training-data",
        "train.jsonl",
        "--json",
        "-",
        "--device",
        "cpu",
    ]);
    expect_status(&outcome, 0);
    let figures: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let text = &figures["targets"][0]["tasks"]["perplexity"];
    assert_eq!((&text["in_training_13_words"], &text["in_training_whole"]), (&1.into(), &0.into()));
}
