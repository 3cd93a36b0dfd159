//! Adapters in other formats, several adapters, a merge taken back, and bases that do not fit.

use std::fs;

use serde_json::Value;

use crate::program::{Program, root};

/// A program with two finished runs, `one` and `two`.
fn two_runs() -> Program {
    let program = Program::new();
    for (name, tables) in [("one", "rank = 4"), ("two", "rank = 2\nalpha = 8.0")] {
        let tables = format!("[train]\nsteps = 4\n[adapter.lora]\n{tables}");
        let recipe = program.tiny_recipe(name, "", &tables);
        program.run(&["train", &recipe]);
    }
    program
}

fn weights(program: &Program, folder: &str) -> Vec<u8> {
    fs::read(program.path(folder).join("adapter_model.safetensors")).unwrap()
}

fn nll(program: &Program, target: &str) -> f64 {
    let text = root().join("recipes/data/tiny_eval.txt").display().to_string();
    let arguments = ["evaluate", target, "--task", "perplexity", "--data", &text, "--json", "-"];
    let scores: Value = serde_json::from_str(&program.run(&arguments)).unwrap();
    scores["targets"][0]["tasks"]["perplexity"]["nll_per_token"].as_f64().unwrap()
}

#[test]
fn formats_of_other_programs_hold_the_same_adapter() {
    let program = two_runs();
    let base = format!("{}/recipes/tiny_llama", root().display());
    let convert = |from: &str, to: &str, output: &str| {
        let arguments = ["adapter", "convert", from, "--to", to, "--output", output];
        program.run(&[&arguments[..], &["--base", &base]].concat());
    };
    let original = weights(&program, "one/adapter");
    convert("one", "mlx", "mlx");
    convert("mlx", "peft", "of_mlx");
    assert!(weights(&program, "of_mlx") == original);
    convert("one", "gguf", "lora.gguf");
    convert("lora.gguf", "peft", "of_gguf");
    assert!(weights(&program, "of_gguf") == original);
    program.run(&["merge", "of_gguf", "--output", "merged"]);
    let again = ["adapter", "convert", "one", "--to", "gguf", "--output", "lora.gguf"];
    assert!(program.fail(&again).contains("`lora.gguf` exists"));
    let nameless = ["adapter", "convert", "lora.gguf", "--to", "peft", "--output", "x"];
    assert!(program.fail(&nameless).contains("--base"));
}

#[test]
fn a_sum_of_adapters_is_one_adapter_or_one_merge() {
    let program = two_runs();
    let factors = ["--weights", "0.7,-0.4"];
    let combine = ["adapter", "combine", "one", "two", "--method", "cat", "--output", "sum"];
    program.run(&[&combine[..], &factors].concat());
    program.run(&["merge", "sum", "--output", "of_sum", "--dtype", "f32"]);
    let both = ["merge", "one", "two", "--output", "of_both", "--dtype", "f32"];
    program.run(&[&both[..], &factors].concat());
    let bytes = |folder: &str| fs::read(program.path(folder).join("model.safetensors")).unwrap();
    assert!(bytes("of_sum") == bytes("of_both"));
    assert_eq!(
        program.json("of_both/merge_report.json")["weights"],
        serde_json::json!([0.7, -0.4])
    );

    let svd = ["adapter", "combine", "one", "two", "--method", "svd", "--output", "cut"];
    program.run(&[&svd[..], &["--rank", "3"]].concat());
    assert_eq!(program.json("cut/adapter_config.json")["r"], 3);
    let ties = ["adapter", "combine", "one", "two", "--method", "ties", "--output", "x"];
    let stderr = program.fail(&[&ties[..], &["--density", "0.5"]].concat());
    assert!(stderr.contains("different ranks") && stderr.contains("--method cat"), "{stderr}");
    assert!(!program.path("x").exists());
}

#[test]
fn a_merge_is_taken_back() {
    let program = two_runs();
    let base = format!("{}/recipes/tiny_llama", root().display());
    program.run(&["merge", "one", "--output", "merged", "--dtype", "f32"]);
    program.run(&["adapter", "unmerge", "merged", "one", "--output", "back"]);
    let (before, merged, after) =
        (nll(&program, &base), nll(&program, "merged"), nll(&program, "back"));
    assert!((before - merged).abs() > 1e-4, "training changed nothing");
    assert!((before - after).abs() < 1e-5, "{before} {after}");
}

#[test]
fn another_base_and_another_vocabulary_are_refused() {
    let program = two_runs();
    let copy = |name: &str, change: &dyn Fn(&mut Vec<u8>), file: &str| {
        fs::create_dir(program.path(name)).unwrap();
        for entry in fs::read_dir(root().join("recipes/tiny_llama")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            if path.ends_with(file) {
                change(&mut bytes);
            }
            fs::write(program.path(name).join(path.file_name().unwrap()), bytes).unwrap();
        }
    };
    copy("other", &|bytes| *bytes.last_mut().unwrap() ^= 1, "model.safetensors");
    let merge = ["merge", "one", "--output", "merged", "--base"];
    let stderr = program.fail(&[&merge[..], &["other"]].concat());
    assert!(stderr.contains("is not what the adapter was trained on"), "{stderr}");
    assert!(stderr.contains("tunesmith.lock") && stderr.contains("--allow-other-base"), "{stderr}");
    assert!(!program.path("merged").exists());
    program.run(&[&merge[..], &["other", "--allow-other-base"]].concat());

    let swap = |bytes: &mut Vec<u8>| {
        let mut json: Value = serde_json::from_slice(bytes).unwrap();
        let words = json["model"]["vocab"].as_object_mut().unwrap();
        let (x, y) = (words["a"].clone(), words["b"].clone());
        words.insert("a".to_owned(), y);
        words.insert("b".to_owned(), x);
        *bytes = json.to_string().into_bytes();
    };
    copy("swapped", &swap, "tokenizer.json");
    let stderr = program.fail(&["merge", "one", "--output", "m", "--base", "swapped"]);
    assert!(stderr.contains("another vocabulary") && stderr.contains("`a`"), "{stderr}");
}

#[test]
fn dora_trains_resumes_merges_and_is_refused_where_it_has_no_form() {
    let program = Program::new();
    let tables = "[train]\nsteps = 6\n[checkpoint]\nevery_steps = 3\n[adapter.dora]\nrank = 4\n\
                  dropout = 0.1\nlora_plus_ratio = 4.0";
    let recipe = program.tiny_recipe("dora", "", tables);
    program.run(&["train", &recipe]);
    assert_eq!(program.json("dora/adapter/adapter_config.json")["use_dora"], true);
    assert!(program.json("dora/adapter/adapter_config.json").get("lora_plus_ratio").is_none());
    let whole = program.adapter("dora");
    fs::remove_dir_all(program.path("dora/adapter")).unwrap();
    fs::remove_dir_all(program.path("dora/checkpoints/step-000006")).unwrap();
    program.run(&["train", &recipe]);
    assert_eq!(program.adapter("dora"), whole);
    for threads in ["1", "3"] {
        fs::remove_dir_all(program.path("dora")).unwrap();
        program.run(&["train", &recipe, "--threads", threads]);
        assert_eq!(program.adapter("dora"), whole, "{threads} threads");
    }

    program.run(&["merge", "dora", "--output", "merged", "--dtype", "f32"]);
    let report = program.json("merged/merge_report.json");
    assert_eq!(report["adapter_tensors"], report["adapter_tensors_consumed"]);
    assert!((nll(&program, "dora") - nll(&program, "merged")).abs() < 1e-5);
    program.run(&["merge", "dora", "--output", "gguf", "--quantize", "q8_0"]);

    let stderr = program.fail(&["merge", "dora", "--output", "x", "--weights", "0.5"]);
    assert!(stderr.contains("adapter 1 is DoRA"), "{stderr}");
    let to_gguf = ["adapter", "convert", "dora", "--to", "gguf", "--output", "x.gguf"];
    let stderr = program.fail(&to_gguf);
    assert!(stderr.contains("`use_dora`") && stderr.contains("tunesmith merge"), "{stderr}");
    let other = "[train]\nsteps = 1\n[adapter.lora]\ninit_from = \"dora/adapter\"";
    let stderr = program.fail(&["train", &program.tiny_recipe("other", "", other)]);
    assert!(stderr.contains("the adapter belongs to `[adapter.dora]`"), "{stderr}");
}

#[test]
fn an_adapter_that_begins_as_a_part_of_the_base_fits_the_whole_base() {
    let program = Program::new();
    let tables = "[train]\nsteps = 4\n[checkpoint]\nevery_steps = 2\n[adapter.lora]\nrank = 4\n\
                  init = \"pissa\"";
    let recipe = program.tiny_recipe("pissa", "", tables);
    program.run(&["train", &recipe]);
    let config = program.json("pissa/adapter/adapter_config.json");
    assert_eq!((&config["r"], &config["init_lora_weights"]), (&8.into(), &true.into()));
    let whole = program.adapter("pissa");
    fs::remove_dir_all(program.path("pissa/adapter")).unwrap();
    fs::remove_dir_all(program.path("pissa/checkpoints/step-000004")).unwrap();
    program.run(&["train", &recipe]);
    assert_eq!(program.adapter("pissa"), whole);
    program.run(&["merge", "pissa", "--output", "merged", "--dtype", "f32"]);
    assert!((nll(&program, "pissa") - nll(&program, "merged")).abs() < 1e-5);

    for (init, said) in [
        ("init = \"eva\"", "init = \"eva\"` is not available yet"),
        ("init = \"olora\"\npissa_iterations = 4", "`pissa_iterations` is about"),
        ("init = \"orthogonal\"\nrank = 3", "needs an even one"),
        ("init = \"pissa\"\nrank = 4096", "has rank 4096, its weight"),
    ] {
        let tables = format!("[train]\nsteps = 1\n[adapter.lora]\n{init}");
        let stderr = program.fail(&["train", &program.tiny_recipe("x", "", &tables)]);
        assert!(stderr.contains(said), "{init}: {stderr}");
    }
    let quantised = "quantize_base = \"int8\"";
    let recipe = program.tiny_recipe("x", quantised, "[adapter.lora]\ninit = \"pissa\"");
    let stderr = program.fail(&["train", &recipe]);
    assert!(stderr.contains("takes a part out of the base"), "{stderr}");
}

#[test]
fn a_merged_adapter_is_extracted_again() {
    let program = two_runs();
    let base = format!("{}/recipes/tiny_llama", root().display());
    program.run(&["merge", "one", "--output", "tuned", "--dtype", "f32"]);
    let extract = |model: &str, output: &str| {
        ["adapter", "extract", model, "--base", &base, "--rank", "4", "--output", output]
            .map(str::to_owned)
    };
    let arguments = extract("tuned", "again");
    program.run(&arguments.each_ref().map(String::as_str));
    let report = program.json("again/extract_report.json");
    assert!(report["relative_error"].as_f64().unwrap() < 1e-3, "{report}");
    assert_eq!(report["left_out"], serde_json::json!([]));
    assert!((nll(&program, "again") - nll(&program, "tuned")).abs() < 1e-4);
    let arguments = extract(&base, "none");
    let stderr = program.fail(&arguments.each_ref().map(String::as_str));
    assert!(stderr.contains("no tensor differs from the base's"), "{stderr}");
    assert!(!program.path("none").exists());
}

#[test]
fn lint_says_what_engines_make_of_a_target() {
    let program = two_runs();
    let combine = ["adapter", "combine", "one", "two", "--method", "cat", "--output", "sum"];
    program.run(&[&combine[..], &["--weights", "0.7,-0.4"]].concat());
    let plain = program.run(&["lint", "sum", "--for", "vllm,mistral.rs"]);
    assert_eq!(plain, "vllm        takes it as it is\nmistral.rs  takes it as it is\n");
    let recipe = program.tiny_recipe(
        "mixed",
        "",
        "[train]\nsteps = 2\n[adapter.lora]\nrank = 4\nuse_rslora = true\nrank_pattern = { v_proj = 2 }",
    );
    program.run(&["train", &recipe]);
    let refused = |arguments: &[&str]| {
        let output = program.output(arguments);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stdout).unwrap()
    };
    let stdout = refused(&["lint", "mixed", "--for", "ollama"]);
    assert!(stdout.contains("would compute something else"), "{stdout}");
    assert!(stdout.contains("`use_rslora` is ignored") && stdout.contains("--fix"), "{stdout}");
    let fix = ["lint", "mixed", "--for", "ollama,vllm", "--fix", "--output", "fixed"];
    assert!(
        program
            .run(&fix)
            .starts_with("ollama      takes it as it is\nvllm        takes it as it is")
    );
    let (before, after) = (nll(&program, "mixed"), nll(&program, "fixed"));
    assert!((before - after).abs() < 1e-6, "{before} {after}");
    program.run(&["merge", "one", "--output", "merged", "--format", "gguf"]);
    let stdout = refused(&["lint", "merged", "--for", "llama.cpp,mlx", "--json", "-"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["engines"][1]["findings"][0]["severity"], "refused");
    assert!(program.fail(&["lint", "one", "--for", "tgi"]).contains("the engines are vllm"));
}

#[test]
fn whole_models_are_mixed() {
    let program = two_runs();
    let base = format!("{}/recipes/tiny_llama", root().display());
    for name in ["one", "two"] {
        program.run(&["merge", name, "--output", &format!("{name}_merged"), "--dtype", "f32"]);
    }
    let models = ["merge", "one_merged", "two_merged"];
    // The sum of the changes is the merge of the sum of the adapters.
    let sum = ["--method", "task_arithmetic", "--base", &base, "--weights", "0.7,-0.4"];
    program.run(&[&models[..], &sum, &["--output", "mixed"]].concat());
    program.run(&[
        "merge",
        "one",
        "two",
        "--weights",
        "0.7,-0.4",
        "--output",
        "summed",
        "--dtype",
        "f32",
    ]);
    let (mixed, summed) = (nll(&program, "mixed"), nll(&program, "summed"));
    assert!((mixed - summed).abs() < 1e-5, "{mixed} {summed}");
    let report = program.json("mixed/merge_report.json");
    assert_eq!(
        (&report["mix"]["method"], &report["within_bound"]),
        (&"task_arithmetic".into(), &true.into())
    );
    let card = fs::read_to_string(program.path("mixed/README.md")).unwrap();
    assert!(
        card.contains(
            "`one_merged` and `two_merged` merged by `task_arithmetic` over `tiny_llama`."
        )
    );
    assert!(card.contains("- merge\n"), "{card}");

    let slerp = ["--method", "slerp", "--t", "0", "--output", "arc", "--format", "gguf"];
    program.run(&[&models[..], &slerp].concat());
    let (first, arc) = (nll(&program, "one_merged"), nll(&program, "arc"));
    assert!((first - arc).abs() < 1e-5, "{first} {arc}");
    let ties = ["--method", "ties", "--base", &base, "--density", "0.4", "--output"];
    program.run(&[&models[..], &ties, &["ties_a", "--threads", "1"]].concat());
    program.run(&[&models[..], &ties, &["ties_b"]].concat());
    let bytes = |folder: &str| fs::read(program.path(folder).join("model.safetensors")).unwrap();
    assert!(bytes("ties_a") == bytes("ties_b"));
    let stderr = program.fail(&[&models[..], &["--method", "ties", "--output", "x"]].concat());
    assert!(stderr.contains("needs the base") && stderr.contains("--base"), "{stderr}");
    let adapters = ["merge", "one", "two", "--method", "slerp", "--output", "x"];
    assert!(program.fail(&adapters).contains("tunesmith adapter combine"));
}
