//! Recipe → adapter → merged model → figures → text, on the embedded base.

use serde_json::Value;

use crate::program::{Program, root};

const TABLES: &str = "[batch]\nsequence_length = 256\npacking = false\nsequences_per_micro_batch = 4\n\
                      [train]\nsteps = 40\n[schedule.constant]\n[validation]\nfraction = 0.1\n";

#[test]
fn a_recipe_becomes_a_variant_that_says_something_new() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", TABLES);
    program.run(&["check", &recipe]);
    let plan: Value =
        serde_json::from_str(&program.run(&["plan", &recipe, "--json", "-"])).unwrap();
    assert_eq!(plan["steps"], 40);
    program.run(&["train", &recipe]);

    let lines = std::fs::read_to_string(program.path("run/metrics.jsonl")).unwrap();
    let steps: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(steps.len(), 40);
    let loss = |step: usize| steps[step]["loss"].as_f64().unwrap();
    assert!(loss(39) < 0.5 * loss(0), "loss went from {} to {}", loss(0), loss(39));
    assert!(steps.iter().enumerate().all(|(i, s)| s["step"] == i as u64 + 1));
    assert!(steps[39]["validation_loss"].is_number());
    let report = program.json("run/report.json");
    assert_eq!(report["steps"], 40);
    let peak = report["peak_memory_bytes"].as_u64().unwrap();
    let planned = plan["memory"]["peak_bytes"].as_u64().unwrap();
    assert!(peak < 2 * planned, "{peak} bytes used, {planned} planned");

    program.run(&["merge", "run", "--output", "merged"]);
    let parity = program.json("merged/merge_report.json");
    assert_eq!(parity["within_bound"], true);
    assert_eq!(parity["adapter_tensors_consumed"], parity["adapter_tensors"]);
    let base = format!("{}/recipes/tiny_llama", root().display());
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let original = std::fs::read(format!("{base}/{file}")).unwrap();
        assert_eq!(std::fs::read(program.path("merged").join(file)).unwrap(), original);
    }

    let text = format!("{}/recipes/data/tiny_eval.txt", root().display());
    let arguments = [
        "evaluate",
        &base,
        "run",
        "merged",
        "--task",
        "perplexity",
        "--data",
        &text,
        "--json",
        "-",
    ];
    let scores: Value = serde_json::from_str(&program.run(&arguments)).unwrap();
    let nll = |target: usize| {
        scores["targets"][target]["tasks"]["perplexity"]["nll_per_token"].as_f64().unwrap()
    };
    assert!((nll(1) / nll(2) - 1.0).abs() < 5e-3, "adapter {}, merged {}", nll(1), nll(2));
    assert!((nll(0) / nll(1) - 1.0).abs() > 1e-3, "the adapter changes nothing");

    let ask = |target: &str| {
        let question = "What are you called?";
        program.run(&["generate", target, "--chat", "--prompt", question, "--max-tokens", "24"])
    };
    assert!(!ask(&base).contains("arr"), "the base talks like a pirate: {}", ask(&base));
    assert!(ask("merged").contains("arr"), "merged: {}", ask("merged"));
    assert_eq!(ask("run"), ask("merged"));
    token_ids_are_those_of_the_text(&program);
}

/// `--json` gives what another program needs to repeat an answer, and the text is that of stdout.
fn token_ids_are_those_of_the_text(program: &Program) {
    let prompt = ["generate", "merged", "--prompt", "Once upon a time", "--precision", "f32"];
    let text = program.run(&[&prompt[..], &["--max-tokens", "2"]].concat());
    let json = program.run(&[&prompt[..], &["--max-tokens", "2", "--json", "-"]].concat());
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(format!("{}\n", json["text"].as_str().unwrap()), text);
    assert_eq!(json["ids"].as_array().unwrap().len(), 2);
    assert_eq!((&json["ending"], &json["stop_id"]), (&Value::from("length"), &Value::Null));
    let tokenizer = root().join("recipes/tiny_llama/tokenizer.json");
    let tokenizer: Value = serde_json::from_slice(&std::fs::read(tokenizer).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    let word = |id: &Value| vocabulary.iter().find(|(_, known)| *known == id).unwrap().0.as_str();
    let words: String = json["prompt_ids"].as_array().unwrap().iter().map(word).collect();
    assert!(words.ends_with("Once\u{120}upon\u{120}a\u{120}time"), "{words}");
    let error = program.fail(&["generate", "merged", "--chat", "--json", "-"]);
    assert!(error.contains("give `--prompt`"), "{error}");
}

#[test]
fn a_finished_run_says_so_and_goes_on_with_more_steps() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", "[schedule.constant]\n[train]\nsteps = 2\n");
    program.run(&["train", &recipe]);
    let first = program.adapter("run");
    let again = program.output(&["train", &recipe]);
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("finished already"));
    program.run(&["train", &recipe, "--set", "train.steps=4"]);
    assert_ne!(first, program.adapter("run"));
    let long = program.tiny_recipe("long", "", "[schedule.constant]\n[train]\nsteps = 4\n");
    program.run(&["train", &long]);
    assert_eq!(program.adapter("run"), program.adapter("long"));
}

#[test]
fn another_recipe_is_refused_until_fresh() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", "[train]\nsteps = 1\n");
    program.run(&["train", &recipe]);
    let error = program.fail(&["train", &recipe, "--set", "seed=7"]);
    assert!(error.contains("seed: 42 there, 7 here") && error.contains("--fresh"), "{error}");
    program.run(&["train", &recipe, "--set", "seed=7", "--fresh"]);
    assert!(program.path("run.old-1/adapter/adapter_model.safetensors").exists());
}

#[test]
fn verify_names_the_file_that_changed() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", "[train]\nsteps = 1\n");
    program.run(&["train", &recipe]);
    program.run(&["verify", "run"]);
    let weights = program.path("run/adapter/adapter_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let output = program.output(&["verify", "run"]);
    assert_eq!(output.status.code(), Some(1));
    let text = [output.stdout, output.stderr].concat();
    assert!(String::from_utf8_lossy(&text).contains("adapter_model.safetensors"));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads_or_recomputation() {
    let program = Program::new();
    let tables = "[train]\nsteps = 3\n[adapter.lora]\ndropout = 0.1\n";
    let recipe = program.tiny_recipe("one", "", tables);
    program.run(&["train", &recipe, "--threads", "1"]);
    for (output, setting) in [("two", "off"), ("three", "on")] {
        let dir = format!("output_dir=\"{output}\"");
        let checkpointing = format!("train.gradient_checkpointing=\"{setting}\"");
        let arguments =
            ["train", &recipe, "--threads", "4", "--set", &dir, "--set", &checkpointing];
        program.run(&arguments);
        assert_eq!(program.adapter("one"), program.adapter(output), "{setting}");
        let plan = &program.json(&format!("{output}/report.json"))["memory_plan"];
        assert_eq!(plan["recomputed_blocks"], if setting == "on" { 4 } else { 0 }, "{plan}");
        assert!(plan["peak_bytes"].as_u64().unwrap() > 100 << 20, "{plan}");
    }
}

#[test]
fn training_starts_from_a_peft_adapter() {
    let program = Program::new();
    let recipe = program.tiny_recipe("first", "", "[train]\nsteps = 2\n[adapter.lora]\nrank = 4\n");
    program.run(&["train", &recipe]);
    let tables = "[train]\nsteps = 1\n[adapter.lora]\ninit_from = \"first/adapter\"\n";
    let second = program.tiny_recipe("second", "", tables);
    program.run(&["train", &second]);
    assert_eq!(program.json("second/adapter/adapter_config.json")["r"], 4);
    let error = program.fail(&["train", &second, "--fresh", "--set", "adapter.lora.rank=8"]);
    assert!(error.contains("rank"), "{error}");
}

#[test]
fn bf16_weights_give_nearly_the_same_run() {
    let program = Program::new();
    let recipe = program.tiny_recipe("f32", "", "[train]\nsteps = 3\n");
    program.run(&["train", &recipe]);
    program.run(&["train", &recipe, "--set", "precision=\"bf16\"", "--set", "output_dir=\"bf16\""]);
    let losses = |run: &str| -> Vec<f64> {
        let text = std::fs::read_to_string(program.path(run).join("metrics.jsonl")).unwrap();
        let loss =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
        text.lines().map(loss).collect()
    };
    for (a, b) in losses("f32").iter().zip(losses("bf16")) {
        assert!((a / b - 1.0).abs() < 0.02, "{a} and {b}");
    }
}
