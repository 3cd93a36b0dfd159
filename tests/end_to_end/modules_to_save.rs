//! Modules that are trained as a whole: resumed to the byte, merged, and refused where a format
//! holds updates alone.

use std::fs;

use serde_json::Value;

use crate::program::{Program, root};

const TABLES: &str = "[train]\nsteps = 10\n[checkpoint]\nevery_steps = 2\n[adapter.lora]\nrank = 4\n\
                      modules_to_save = [\"lm_head\", \"embed_tokens\", \"norm\"]\n";

fn config(program: &Program, file: &str) -> Value {
    serde_json::from_slice(&fs::read(program.path(file)).unwrap()).unwrap()
}

fn nll(program: &Program, target: &str) -> f64 {
    let text = root().join("recipes/data/tiny_eval.txt").display().to_string();
    let arguments = ["evaluate", target, "--task", "perplexity", "--data", &text, "--json", "-"];
    let scores: Value = serde_json::from_str(&program.run(&arguments)).unwrap();
    scores["targets"][0]["tasks"]["perplexity"]["nll_per_token"].as_f64().unwrap()
}

#[test]
fn a_run_with_whole_modules_resumes_merges_and_says_what_it_trained() {
    let program = Program::new();
    let recipe = program.tiny_recipe("whole", "", TABLES);
    let start = std::time::Instant::now();
    program.run(&["train", &recipe]);
    let whole = start.elapsed();
    let again = ["train", &recipe, "--set", "output_dir=\"killed\""];
    let mut child = program.spawn(&again);
    std::thread::sleep(whole.mul_f64(0.6));
    child.kill().unwrap();
    child.wait().unwrap();
    program.run(&again);
    assert_eq!(program.adapter("whole"), program.adapter("killed"));

    let adapter = config(&program, "whole/adapter/adapter_config.json");
    assert_eq!(adapter["modules_to_save"], serde_json::json!(["lm_head", "embed_tokens", "norm"]));
    let card = fs::read_to_string(program.path("whole/adapter/README.md")).unwrap();
    assert!(card.contains("trained as a whole") && card.contains("`lm_head`"), "{card}");
    let plan: Value =
        serde_json::from_str(&program.run(&["plan", &recipe, "--json", "-"])).unwrap();
    assert!(plan["trained_whole_parameters"].as_u64() > Some(0), "{plan}");

    program.run(&["merge", "whole", "--output", "merged", "--dtype", "f32"]);
    let (adapted, merged) = (nll(&program, "whole"), nll(&program, "merged"));
    assert!((adapted - merged).abs() < 1e-4, "{adapted} {merged}");
    let report = config(&program, "merged/merge_report.json");
    assert_eq!(report["adapter_tensors"], report["adapter_tensors_consumed"]);
    // Embedding and head were one matrix, and are two now.
    assert_eq!(config(&program, "merged/config.json")["tie_word_embeddings"], false);

    // A second run goes on from the first.
    let from = "adapter.lora={init_from=\"whole/adapter\"}";
    program.run(&["train", &recipe, "--set", "output_dir=\"second\"", "--set", from]);
    assert_ne!(program.adapter("whole"), program.adapter("second"));
}

#[test]
fn formats_of_updates_alone_refuse_whole_modules() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", &TABLES.replace("steps = 10", "steps = 2"));
    program.run(&["train", &recipe]);
    let convert = |to: &str, output: &str| {
        program.fail(&["adapter", "convert", "run", "--to", to, "--output", output])
    };
    for (to, output) in [("gguf", "lora.gguf"), ("mlx", "mlx")] {
        let error = convert(to, output);
        assert!(error.contains("lm_head.weight") && error.contains("tunesmith merge"), "{error}");
        assert!(!program.path(output).exists());
    }
    let error = program.fail(&["merge", "run", "--weights", "0.5", "--output", "half"]);
    assert!(error.contains("lm_head"), "{error}");
    for (entry, expected) in [("\"mlp\"", "no module that can be"), ("\"nothing\"", "`nothing`")] {
        let key = format!("adapter.lora.modules_to_save=[{entry}]");
        let error = program.fail(&["check", &recipe, "--set", &key]);
        assert!(error.contains(expected) && error.contains("lm_head"), "{error}");
    }
}
