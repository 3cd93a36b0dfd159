//! `[evaluate]` in a recipe: scores on the way, the best weights, an early end, all of it again
//! after a kill.

use serde_json::{Value, json};

use crate::program::{Program, root};

fn tables(more: &str) -> String {
    format!(
        "[train]\nsteps = 12\n[checkpoint]\nevery_steps = 5\n[adapter.lora]\ndropout = 0.05\n\
         [evaluate]\nevery_steps = 4\n{more}\n[[evaluate.task]]\nname = \"loss\"\n\
         data = \"{0}/recipes/data/tiny_pirate.jsonl\"\nlimit = 8\n\
         [[evaluate.task]]\nname = \"perplexity\"\ndata = \"{0}/recipes/data/tiny_eval.txt\"\n\
         sequence_length = 32\n",
        root().display()
    )
}

fn steps(report: &Value) -> Vec<u64> {
    let scores = report["evaluation"]["scores"].as_array().unwrap();
    scores.iter().map(|score| score["step"].as_u64().unwrap()).collect()
}

/// Every file of the scores, by name.
fn scores(program: &Program, run: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(program.path(run).join("evaluations")).unwrap().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_run_is_scored_and_compared_with_its_start() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", &tables(""));
    program.run(&["train", &recipe]);
    let report = program.json("run/report.json");
    assert_eq!(steps(&report), [0, 4, 8, 12]);
    let last = &report["evaluation"]["scores"][3]["tasks"];
    assert!(last["loss"]["loss_per_token"].is_number(), "{report}");
    assert!(last["perplexity"]["word_perplexity"].is_number(), "{report}");
    let verdicts = report["evaluation"]["against_before_training"].as_array().unwrap();
    let loss = verdicts.iter().find(|verdict| verdict["task"] == "loss").unwrap();
    assert_eq!(loss["verdict"], "better", "{loss}");
    assert_eq!(report["evaluation"]["chosen_step"], 12);
    assert!(!program.path("run/best").exists());
    let card = std::fs::read_to_string(program.path("run/adapter/README.md")).unwrap();
    assert!(card.contains("loss_per_token against before training"), "{card}");
    let lock = std::fs::read_to_string(program.path("run/tunesmith.lock")).unwrap();
    assert!(lock.contains("tiny_eval.txt"), "{lock}");
    // The same figures as the command gives for the finished adapter.
    let data = format!("{}/recipes/data/tiny_eval.txt", root().display());
    let arguments = ["evaluate", "run", "--task", "perplexity", "--data", &data];
    let more = ["--sequence-length", "32", "--json", "figures.json", "--device", "cpu"];
    program.run(&[&arguments[..], &more[..]].concat());
    let figures = program.json("figures.json");
    let by_command = &figures["targets"][0]["tasks"]["perplexity"];
    for name in ["perplexity", "word_perplexity", "bits_per_byte"] {
        assert_eq!(last["perplexity"][name], by_command[name], "{name}");
    }
}

#[test]
fn the_best_weights_become_the_adapter_and_patience_ends_a_run() {
    let program = Program::new();
    // A learning rate that spoils what was reached: the score gets worse.
    let text = tables("best = \"perplexity\"\npatience = 2").replace("steps = 12", "steps = 40");
    let recipe = program.tiny_recipe("run", "", &text);
    let rate = "optimizer.adamw.learning_rate=0.02";
    let arguments = ["train", &recipe, "--set", rate];
    program.run(&arguments);
    let report = program.json("run/report.json");
    let evaluation = &report["evaluation"];
    let values: Vec<f64> = evaluation["scores"]
        .as_array()
        .unwrap()
        .iter()
        .skip(1)
        .map(|score| score["tasks"]["perplexity"]["perplexity"].as_f64().unwrap())
        .collect();
    let best = (0..values.len()).min_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap();
    let step = 4 * (best as u64 + 1);
    assert_eq!(evaluation["chosen_step"], step, "{values:?}");
    assert_eq!(report["steps"], step + 8, "two scores after the best: {values:?}");
    assert_eq!(report["planned_steps"], 40);
    let file = "adapter_model.safetensors";
    let best = program.path("run/best").join(format!("step-{step:06}")).join(file);
    let adapter = std::fs::read(program.path("run/adapter").join(file)).unwrap();
    assert_eq!(std::fs::read(best).unwrap(), adapter);
    // The run is over: the same command changes nothing.
    let before = std::fs::read(program.path("run/report.json")).unwrap();
    let again = program.output(&arguments);
    let stderr = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && stderr.contains("finished already"), "{stderr}");
    assert_eq!(std::fs::read(program.path("run/report.json")).unwrap(), before);
}

#[test]
fn a_run_killed_at_any_moment_is_scored_as_if_it_was_not() {
    let program = Program::new();
    let recipe = program.tiny_recipe("whole", "", &tables("best = \"loss\""));
    let start = std::time::Instant::now();
    program.run(&["train", &recipe]);
    let whole = start.elapsed();
    let expected = scores(&program, "whole");
    for (index, share) in [0.15, 0.35, 0.5, 0.65, 0.8, 0.95].into_iter().enumerate() {
        let output = format!("killed-{index}");
        let dir = format!("output_dir=\"{output}\"");
        let arguments = ["train", &recipe, "--set", &dir];
        let mut child = program.spawn(&arguments);
        std::thread::sleep(whole.mul_f64(share));
        child.kill().unwrap();
        child.wait().unwrap();
        program.run(&arguments);
        assert_eq!(program.adapter("whole"), program.adapter(&output), "killed at {share}");
        assert!(scores(&program, &output) == expected, "killed at {share}");
    }
}

#[test]
fn what_is_wrong_with_the_tasks_is_said_before_training() {
    let program = Program::new();
    let cases = [
        (tables("best = \"arc\""), "names no task of the recipe"),
        (tables("patience = 2"), "`evaluate.patience` needs `evaluate.best`"),
        (tables("best = \"perplexity.nonsense\""), "is no figure of its task"),
        (tables("").replace("tiny_eval.txt", "no_such.txt"), "no_such.txt"),
        ("[evaluate]\n[[evaluate.task]]\nname = \"arcc\"\n".to_owned(), "`arcc` is no task"),
        ("[evaluate]\ntask = []\n".to_owned(), "nothing to score"),
    ];
    for (index, (tables, expected)) in cases.into_iter().enumerate() {
        let recipe = program.tiny_recipe(&format!("run-{index}"), "", &tables);
        let error = program.fail(&["train", &recipe]);
        assert!(error.contains(expected), "{expected}: {error}");
        let metrics = program.path(&format!("run-{index}/metrics.jsonl"));
        let lines = std::fs::read_to_string(metrics).unwrap_or_default();
        assert_eq!(lines.lines().count(), 0, "{expected}");
    }
}

/// Texts of a source file, cut in three with tokens that the tiny base has no other use for.
#[test]
fn code_is_trained_to_be_filled_in() {
    let program = Program::new();
    program.write("code.rs", &"fn add(a: u32, b: u32) -> u32 { a + b }\n".repeat(40));
    let base = root().join("recipes/tiny_llama").display().to_string();
    let recipe = |sentinels: &str| {
        format!(
            "base_model = \"{base}\"\noutput_dir = \"run\"\n[[dataset]]\npath = \"code.rs\"\n\
             format = \"fill_in_the_middle\"\n{sentinels}\n[batch]\nsequence_length = 96\n\
             on_overlong = \"split\"\n[train]\nsteps = 2\n"
        )
    };
    let refused = program.write("none.toml", &recipe(""));
    let error = program.fail(&["check", &refused]);
    assert!(
        error.contains("no fill-in-the-middle tokens") && error.contains("sentinels"),
        "{error}"
    );
    let tokenizer: Value =
        serde_json::from_slice(&std::fs::read(format!("{base}/tokenizer.json")).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let names: Vec<&str> =
        added.iter().rev().take(3).map(|token| token["content"].as_str().unwrap()).collect();
    let [prefix, suffix, middle] = names[..] else { panic!("{names:?}") };
    let keys = format!(
        "fill_in_the_middle = {{ rate = 1.0, sentinels = {{ prefix = {}, suffix = {}, middle = {} }} }}",
        json!(prefix),
        json!(suffix),
        json!(middle)
    );
    let named = program.write("named.toml", &recipe(&keys));
    program.run(&["train", &named]);
    let report = program.json("run/report.json");
    assert!(report["data"][0]["split"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["data"][0]["cut_tokens"], 0);
    let preview = program.run(&["preview", &named, "--rows", "1"]);
    assert!(preview.contains(prefix) && preview.contains(middle), "{preview}");
}

/// Base, adapter, merged folder and GGUF file of one recipe: the adapter and the merged folder agree.
#[test]
fn base_adapter_merged_and_gguf_stand_side_by_side() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", "[train]\nsteps = 12\n");
    program.run(&["train", &recipe]);
    program.run(&["merge", "run", "--output", "merged", "--dtype", "f32"]);
    program.run(&["merge", "run", "--output", "gguf", "--quantize", "q8_0"]);
    let base = root().join("recipes/tiny_llama").display().to_string();
    let data = format!("loss={}/recipes/data/tiny_pirate.jsonl", root().display());
    let arguments = ["evaluate", "run", "merged", "gguf", &base, "--task", "loss,forgetting"];
    let more = ["--data", &data, "--limit", "30", "--json", "out.json", "--device", "cpu"];
    program.run(&[&arguments[..], &more[..]].concat());
    let figures = program.json("out.json");
    let loss = |target: usize| {
        figures["targets"][target]["tasks"]["loss"]["loss_per_token"].as_f64().unwrap()
    };
    assert!((loss(0) - loss(1)).abs() < 1e-4, "{} {}", loss(0), loss(1));
    assert!((loss(0) - loss(2)).abs() < 0.1, "{} {}", loss(0), loss(2));
    let verdict = |target: &str, task: &str| {
        let all = figures["comparisons"].as_array().unwrap().iter();
        let mut of_task = all.filter(|one| one["target"] == target && one["task"] == task);
        let one = of_task.next().unwrap().clone();
        assert_eq!(one["interval"].as_array().unwrap().len(), 2);
        one["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(verdict(&base, "loss"), "worse");
    assert_eq!(verdict("merged", "forgetting"), "no difference seen");
    let forgetting = &figures["targets"][0]["tasks"]["forgetting"];
    assert!(forgetting["bits_per_byte"].is_number() && forgetting["acc"].is_number());
    assert_eq!(forgetting["texts"], 20);
}
