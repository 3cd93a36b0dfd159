//! `tunesmith report`: what stands on the page, what does not, and what it is refused for.

use serde_json::json;

use crate::context::{TestContext, expect_status, tiny_base, tiny_recipe};

const LOCK: &str = "format = 1\n[program]\nversion = \"0.1.0\"\nsha256 = \"ab\"\n[environment]\n\
                    platform = \"linux x86_64\"\n[[file]]\nrole = \"data\"\npath = \"/home/me/train.jsonl\"\n\
                    bytes = 9\nsha256 = \"cd\"\n";

const CARD: &str = "---\nlicense: apache-2.0\n---\n";

/// A finished run as the program writes one, with figures of our own.
fn write_run(context: &TestContext, name: &str) {
    let recipe = "base_model = \"/home/me/no_such_base\"\noutput_dir = \"run\"\n[[dataset]]\n\
                  path = \"/home/me/train.jsonl\"\n";
    let file = |part: &str, text: &str| context.write(&format!("{name}/{part}"), text);
    file("recipe.toml", recipe);
    file("tunesmith.lock", LOCK);
    file("adapter/README.md", CARD);
    let step = |step: u64, loss: f64| {
        let mut line = json!({
            "step": step, "epoch": 0.5, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 0.5,
            "tokens": 100, "trained_tokens": 40, "tokens_per_second": 50.0, "step_seconds": 2.0,
            "peak_memory_bytes": 1_u64 << 30,
        });
        if step == 2 {
            line["validation_loss"] = json!(2.5);
        }
        line.to_string()
    };
    let lines = [step(1, 3.0), step(2, 2.0), "{\"step\": 3, \"lo".to_owned()];
    file("metrics.jsonl", &lines.join("\n"));
    let scores = |accuracy: f64| json!({ "arc": { "acc": accuracy, "acc_standard_error": 0.05, "items": 40, "timed_out": 2 } });
    let report = json!({
        "steps": 2, "planned_steps": 4, "tokens": 200, "trained_tokens": 80, "final_loss": 2.0,
        "final_validation_loss": 2.5, "seconds": 4.5, "seconds_to_first_step": 0.5,
        "peak_memory_bytes": 1_u64 << 30, "device": "cpu",
        "data": [{
            "path": "/home/me/train.jsonl", "role": "training", "format": "messages", "rows": 10,
            "examples": 9, "tokens": 100, "trained_tokens": 40, "median_length": 11, "longest": 20,
            "empty": 1, "truncated": 0,
        }],
        "evaluation": {
            "best": "arc", "chosen_step": 2,
            "scores": [{ "step": 0, "tasks": scores(0.25) }, { "step": 2, "tasks": scores(0.5) }],
            "against_before_training": [{
                "task": "arc", "metric": "acc", "difference": 0.25, "interval": [0.1, 0.4],
                "verdict": "better", "items": 40,
            }],
            "contamination": { "arc": { "in_training_13_words": 3, "in_training_whole": 1 } },
        },
    });
    file("report.json", &report.to_string());
}

/// The words of a page, a line for each text between two tags.
fn words(page: &str) -> String {
    let body = page.split("<body>").nth(1).unwrap();
    let texts =
        body.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| text.trim());
    texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
}

fn page(context: &TestContext, arguments: &[&str], output: &str) -> String {
    let outcome = context.run(&[&["report"], arguments].concat());
    expect_status(&outcome, 0);
    assert_eq!(outcome.stdout.trim(), output);
    std::fs::read_to_string(context.path().join(output)).unwrap()
}

#[test]
fn a_run_is_told_on_one_page() {
    let context = TestContext::new();
    write_run(&context, "run");
    let page = page(&context, &["run"], "run/report.html");
    insta::assert_snapshot!(words(&page));
}

#[test]
fn runs_and_evaluations_stand_side_by_side() {
    let context = TestContext::new();
    write_run(&context, "one");
    write_run(&context, "two");
    let target = |name: &str, value: f64| {
        json!({ "target": name, "tasks": { "gsm8k": {
            "exact_match": value, "exact_match_standard_error": 0.1, "items": 20, "no_answer": 4,
        } } })
    };
    let figures = json!({
        "targets": [target("base", 0.2), target("two", 0.1)],
        "comparisons": [{
            "task": "gsm8k", "metric": "exact_match", "baseline": "base", "target": "two",
            "difference": -0.1, "interval": [-0.3, null], "verdict": "no difference seen", "items": 20,
        }],
    });
    context.write("figures.json", &figures.to_string());
    let arguments = ["one", "two", "--evaluation", "figures.json", "--output", "page.html"];
    let words = words(&page(&context, &arguments, "page.html"));
    let (head, _) = words.split_once("Run one").unwrap();
    insta::assert_snapshot!(head);
}

#[test]
fn a_page_loads_nothing_and_holds_rows_only_where_they_are_asked_for() {
    let context = TestContext::new();
    write_run(&context, "run");
    let sample = json!({ "target": "run", "task": "arc", "item": 0, "prompt": "<script>alert(1)</script>",
        "generated": "a \"secret\" & more" });
    context.write("samples.jsonl", &format!("{sample}\n"));
    let plain = page(&context, &["run"], "run/report.html");
    assert!(!plain.contains("secret"), "{plain}");
    let arguments = ["run", "--samples", "samples.jsonl", "-o", "with.html"];
    let with_samples = page(&context, &arguments, "with.html");
    assert!(with_samples.contains("&lt;script&gt;alert(1)"), "{with_samples}");
    assert!(with_samples.contains("a &quot;secret&quot; &amp; more"), "{with_samples}");
    for page in [plain, with_samples] {
        for forbidden in [
            "<script",
            "http://",
            "https://",
            "src=",
            "url(",
            "@import",
            "/home/me",
            "home&#x2f;me",
        ] {
            assert!(!page.contains(forbidden), "{forbidden}: {page}");
        }
        assert!(page.contains("default-src 'none'"));
    }
}

#[test]
fn a_real_run_is_told_with_its_plan() {
    let context = TestContext::new();
    context.write("data.jsonl", crate::context::CONVERSATIONS);
    context.write("held.txt", "the bear lives in the cave and sleeps in the forest every day\n");
    let more = "[train]\nsteps = 3\n[evaluate]\n[[evaluate.task]]\nname = \"perplexity\"\n\
                data = \"held.txt\"\nsequence_length = 8\n";
    context.write("recipe.toml", &tiny_recipe(more));
    expect_status(&context.run(&["-q", "train", "recipe.toml", "--device", "cpu"]), 0);
    let words = words(&page(&context, &["run"], "run/report.html"));
    for expected in [
        "Finished after 3 steps",
        "Plan and measurement\nplanned\nmeasured\nsteps\n3\n3\npeak memory",
        "After training against before",
        "Items that stand in the training data",
    ] {
        assert!(words.contains(expected), "{expected}\n{words}");
    }
    assert!(!words.contains("Where does the bear live"), "{words}");
}

#[test]
fn what_is_no_run_and_no_evaluation_is_named() {
    let context = TestContext::new();
    write_run(&context, "run");
    context.write("broken.json", "{\"targets\": 3}");
    context.write("broken.jsonl", "{}\nno\n");
    let base = tiny_base();
    let cases: [(&[&str], &str); 6] = [
        (&["nowhere"], "nowhere"),
        (&[&base], "has no `tunesmith.lock`"),
        (&["run", "run"], "--output FILE.html"),
        (&["run", "--evaluation", "broken.json"], "`broken.json` is no evaluation"),
        (&["run", "--samples", "broken.jsonl"], "`broken.jsonl`:2: is no sample"),
        (&["run", "--samples", "none.jsonl"], "`none.jsonl` cannot be read"),
    ];
    for (arguments, expected) in cases {
        let outcome = context.run(&[&["report"], arguments].concat());
        assert_eq!(outcome.status, 1, "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{arguments:?}: {}", outcome.stderr);
        assert!(!context.path().join("run/report.html").exists(), "{arguments:?}");
    }
}
