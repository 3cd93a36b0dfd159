//! Broken inputs end in exit code 1 and a message that names the place; never in a panic.

use std::fs;

use crate::program::{Program, root};

/// A copy of the embedded base that a test may break.
fn base(program: &Program) -> String {
    let target = program.path("base");
    fs::create_dir(&target).unwrap();
    for entry in fs::read_dir(root().join("recipes/tiny_llama")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, target.join(path.file_name().unwrap())).unwrap();
    }
    target.display().to_string()
}

fn recipe_over(program: &Program, base: &str, data: &str) -> String {
    let text = format!(
        "base_model = \"{base}\"\noutput_dir = \"run\"\n[[dataset]]\npath = \"{data}\"\n\
         [train]\nsteps = 1\n"
    );
    program.write("recipe.toml", &text)
}

fn chats() -> String {
    root().join("recipes/data/tiny_pirate.jsonl").display().to_string()
}

#[track_caller]
fn assert_names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in:\n{error}");
    }
}

#[test]
fn recipes_that_name_nothing_usable() {
    let program = Program::new();
    assert_names(&program.fail(&["train", "missing.toml"]), &["missing.toml"]);
    let recipe = recipe_over(&program, "no/such/model/here", &chats());
    assert_names(&program.fail(&["train", &recipe]), &["no/such/model/here"]);
    let base = base(&program);
    let recipe = recipe_over(&program, &base, "no-such-file.jsonl");
    assert_names(&program.fail(&["train", &recipe]), &["no-such-file.jsonl"]);
    assert!(!program.path("run/adapter").exists());
    let recipe = recipe_over(&program, &base, &chats());
    let error =
        program.fail(&["train", &recipe, "--set", "adapter.lora.target_modules=[\"qproj\"]"]);
    assert_names(&error, &["qproj", "q_proj"]);
    let error = program.fail(&["train", &recipe, "--set", "output_dir=\"/proc/nowhere/run\""]);
    assert_names(&error, &["/proc/nowhere"]);
    let error = program.fail(&["train", &recipe, "--device", "cuda:9"]);
    assert_names(&error, &["cuda:9", "cpu"]);
}

#[test]
fn data_rows_that_cannot_be_read() {
    let program = Program::new();
    let base = base(&program);
    let good = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, \
                {\"role\": \"assistant\", \"content\": \"SECRET\"}]}";
    let cases = [
        ("syntax", format!("{good}\n{{\"messages\": [\n")),
        ("type", format!("{good}\n{{\"messages\": 7}}\n")),
        ("role", format!("{good}\n{{\"messages\": [{{\"content\": \"SECRET\"}}]}}\n")),
        (
            "untrained",
            format!(
                "{good}\n{{\"messages\": [{{\"role\": \"user\", \"content\": \"SECRET\"}}]}}\n"
            ),
        ),
    ];
    for (name, rows) in cases {
        let data = program.write(&format!("{name}.jsonl"), &rows);
        let error = program.fail(&["train", &recipe_over(&program, &base, &data)]);
        assert_names(&error, &[&format!("{name}.jsonl:2")]);
        assert!(!error.contains("SECRET"), "a row was shown:\n{error}");
    }
    let data = program.write("empty.jsonl", "");
    assert_names(&program.fail(&["train", &recipe_over(&program, &base, &data)]), &["empty.jsonl"]);
    fs::write(program.path("bytes.jsonl"), b"{\"text\": \"\xff\xfe\"}\n").unwrap();
    let data = program.path("bytes.jsonl").display().to_string();
    assert_names(&program.fail(&["train", &recipe_over(&program, &base, &data)]), &["bytes.jsonl"]);
    fs::write(program.path("lies.parquet"), b"PAR1 this is no table PAR1").unwrap();
    let data = program.path("lies.parquet").display().to_string();
    assert_names(
        &program.fail(&["train", &recipe_over(&program, &base, &data)]),
        &["lies.parquet"],
    );
    let long = format!("{{\"text\": \"{}\"}}\n", "word ".repeat(4000));
    let data = program.write("long.jsonl", &long);
    let error = program.fail(&["train", &recipe_over(&program, &base, &data)]);
    assert_names(&error, &["long.jsonl:1", "on_overlong"]);
}

#[test]
fn a_forced_path_that_is_not_there_is_refused() {
    let program = Program::new();
    let mut command = program.command(&["doctor"]);
    let output = command.env("TUNESMITH_MATMUL", "cublas").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_names(&String::from_utf8_lossy(&output.stderr), &["TUNESMITH_MATMUL=cublas", "builtin"]);
    let output = program.command(&["doctor"]).env("TUNESMITH_SIMD", "sse9").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_names(&String::from_utf8_lossy(&output.stderr), &["TUNESMITH_SIMD=sse9", "none"]);
}

#[test]
fn results_do_not_depend_on_the_instruction_set_of_our_own_loops() {
    let program = Program::new();
    let recipe = program.tiny_recipe("wide", "", "[train]\nsteps = 2\n");
    program.run(&["train", &recipe]);
    let arguments = ["train", &recipe, "--set", "output_dir=\"scalar\""];
    let output = program.command(&arguments).env("TUNESMITH_SIMD", "none").output().unwrap();
    assert!(output.status.success());
    assert_eq!(program.adapter("wide"), program.adapter("scalar"));
}

#[test]
fn tokens_outside_the_vocabulary() {
    let program = Program::new();
    let base = base(&program);
    let rows = "{\"input_ids\": [1, 2, 99999], \"labels\": [1, 2, 99999]}\n";
    let data = program.write("tokens.jsonl", rows);
    let error = program.fail(&["train", &recipe_over(&program, &base, &data)]);
    assert_names(&error, &["tokens.jsonl:1", "input_ids", "vocabulary"]);
}

#[test]
fn base_models_that_are_damaged() {
    let program = Program::new();
    let base = base(&program);
    let recipe = recipe_over(&program, &base, &chats());
    let model = program.path("base/model.safetensors");
    let whole = fs::read(&model).unwrap();
    fs::write(&model, &whole[..whole.len() - 100]).unwrap();
    assert_names(&program.fail(&["train", &recipe]), &["model.safetensors"]);
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&model, lying).unwrap();
    assert_names(&program.fail(&["train", &recipe]), &["model.safetensors"]);
    fs::write(&model, &whole).unwrap();

    let config = program.path("base/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["num_hidden_layers"] = 9.into();
    fs::write(&config, value.to_string()).unwrap();
    assert_names(&program.fail(&["train", &recipe]), &["model.layers.4", "missing"]);
    value["num_hidden_layers"] = 4.into();
    value["model_type"] = "mamba".into();
    fs::write(&config, value.to_string()).unwrap();
    assert_names(&program.fail(&["train", &recipe]), &["mamba", "llama"]);
    value["model_type"] = "llama".into();
    value["hidden_act"] = "relu".into();
    fs::write(&config, value.to_string()).unwrap();
    assert_names(&program.fail(&["train", &recipe]), &["hidden_act", "relu"]);
    fs::write(&config, &text).unwrap();

    fs::write(program.path("base/tokenizer.json"), "{}").unwrap();
    assert_names(&program.fail(&["train", &recipe]), &["tokenizer"]);
    fs::remove_file(program.path("base/tokenizer.json")).unwrap();
    assert_names(&program.fail(&["train", &recipe]), &["tokenizer.json"]);
    fs::remove_file(&config).unwrap();
    assert_names(&program.fail(&["train", &recipe]), &["config.json"]);
    fs::write(program.path("lies.gguf"), b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff")
        .unwrap();
    let recipe = recipe_over(&program, "lies.gguf", &chats());
    assert_names(&program.fail(&["train", &recipe]), &["lies.gguf"]);
}

#[test]
fn adapters_and_merges_that_cannot_be() {
    let program = Program::new();
    let base = base(&program);
    let recipe = recipe_over(&program, &base, &chats());
    program.run(&["train", &recipe, "--set", "train.steps=2"]);
    assert_names(&program.fail(&["merge", "nowhere", "--output", "m"]), &["nowhere"]);

    fs::create_dir(program.path("full")).unwrap();
    program.write("full/file", "kept");
    assert_names(&program.fail(&["merge", "run", "--output", "full"]), &["full"]);
    assert_eq!(fs::read_to_string(program.path("full/file")).unwrap(), "kept");

    let moved = program.path("moved");
    fs::rename(program.path("base"), &moved).unwrap();
    assert_names(&program.fail(&["merge", "run", "--output", "m"]), &["--base"]);
    program.run(&["merge", "run", "--output", "m", "--base", moved.to_str().unwrap()]);

    let weights = program.path("run/adapter/adapter_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let mut broken = whole.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &broken).unwrap();
    let base = moved.to_str().unwrap();
    let error = program.fail(&["merge", "run", "--output", "n", "--base", base]);
    assert_names(&error, &["lora_"]);
    assert!(!program.path("n").exists());
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    program.fail(&["merge", "run", "--output", "n", "--base", base]);
    program.fail(&[
        "evaluate",
        "run",
        "--task",
        "perplexity",
        "--data",
        "none.txt",
        "--base",
        base,
    ]);
    assert!(!program.path("n").exists());
}

#[test]
fn a_full_disk_leaves_nothing_under_a_final_name() {
    let program = Program::new();
    let base = base(&program);
    let recipe = recipe_over(&program, &base, &chats());
    program.run(&["train", &recipe, "--set", "train.steps=1"]);
    // A file-size limit fails writes as a full disk does; SIGXFSZ is ignored by the program.
    let script = format!(
        "trap '' XFSZ; ulimit -f 512; exec {} merge run --output merged",
        env!("CARGO_BIN_EXE_tunesmith")
    );
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(program.folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!program.path("merged").exists());
}

#[test]
fn a_loss_that_is_no_number_names_the_rows_and_not_their_text() {
    let program = Program::new();
    let base = base(&program);
    let row = |text: &str| format!("{{\"text\": \"{text}\"}}\n");
    let data = program.write("rows.jsonl", &["alpha beta", "gamma", "delta"].map(row).concat());
    let recipe = recipe_over(&program, &base, &data);
    let flags =
        ["optimizer.adamw.learning_rate=1e30", "batch.packing=false", "batch.shuffle=false"];
    let flags = flags.iter().flat_map(|flag| ["--set", flag]);
    let steps = ["batch.sequences_per_micro_batch=1", "batch.micro_batches_per_step=1"];
    let steps = steps.iter().flat_map(|flag| ["--set", flag]);
    let arguments = ["train", &recipe, "--set", "train.steps=3"];
    let error = program.fail(&arguments.into_iter().chain(flags).chain(steps).collect::<Vec<_>>());
    assert_names(&error, &["the loss of step 2", "rows.jsonl:2\n", "learning_rate"]);
    assert!(!error.contains("gamma") && !error.contains("rows.jsonl:1"), "{error}");
    assert!(!program.path("run/adapter").exists());
}
