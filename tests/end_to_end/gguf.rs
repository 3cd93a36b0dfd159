//! Merging to GGUF: files that load, equal the folder, and do not depend on threads.

use serde_json::Value;

use crate::program::{Program, root};

/// A program with a finished run, `run`.
fn trained() -> Program {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", "[train]\nsteps = 6\n[adapter.lora]\nrank = 4");
    program.run(&["train", &recipe]);
    program
}

fn perplexity(program: &Program, target: &str) -> f64 {
    let text = root().join("README.md").display().to_string();
    let arguments = ["evaluate", target, "--task", "perplexity", "--data", &text, "--json", "-"];
    let scores: Value = serde_json::from_str(&program.run(&arguments)).unwrap();
    scores["targets"][0]["tasks"]["perplexity"]["perplexity"].as_f64().unwrap()
}

#[test]
fn a_gguf_file_is_the_merged_folder_in_one_file() {
    let program = trained();
    program.run(&["merge", "run", "--output", "folder"]);
    program.run(&["merge", "run", "--output", "one", "--format", "gguf"]);
    let report = program.json("one/merge_report.json");
    assert_eq!(report["files"], serde_json::json!(["model-f16.gguf"]));
    assert_eq!((&report["dtype"], &report["within_bound"]), (&"F16".into(), &true.into()));
    assert!(report.get("quantised").is_none());
    let (folder, one) = (perplexity(&program, "folder"), perplexity(&program, "one"));
    assert!((folder / one - 1.0).abs() < 1e-6, "{folder} {one}");
    let generated = |target: &str| {
        let arguments = ["generate", target, "--prompt", "ahoy", "--max-tokens", "12"];
        program.run(&[&arguments[..], &["--temperature", "0"]].concat())
    };
    assert_eq!(generated("folder"), generated("one/model-f16.gguf"));
}

#[test]
fn quantised_files_are_measured_and_the_same_on_any_number_of_threads() {
    let program = trained();
    program.run(&["merge", "run", "--output", "a/m", "--quantize", "Q4_K_M", "--threads", "1"]);
    program.run(&["merge", "run", "--output", "b/m", "--quantize", "Q4_K_M", "--threads", "3"]);
    // The folders have one name: it stands in the file.
    let bytes = |folder: &str| std::fs::read(program.path(folder).join("m/model-Q4_K_M.gguf"));
    assert!(bytes("a").unwrap() == bytes("b").unwrap(), "the threads show in the file");
    let report = program.json("a/m/merge_report.json");
    assert_eq!(report["dtype"], "Q4_K_M");
    let quantised = &report["quantised"];
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&quantised["parity"]["mean_kl"]) > 0.0);
    let ratio = number(&quantised["perplexity"]) / number(&quantised["perplexity_unquantised"]);
    assert!((ratio - 1.0).abs() < 0.5, "{quantised}");
    assert!(number(&report["parity"]["max_absolute_error"]) < 1e-3);
    let down = report["tensors"].as_array().unwrap().iter();
    let down = down.clone().find(|t| t["name"] == "model.layers.1.mlp.down_proj.weight").unwrap();
    // Rows of 352 are not whole blocks of 256.
    assert_eq!(down["dtype"], "Q5_0");
    assert!(number(&down["relative_rounding_error"]) < 0.1, "{down}");
    assert!(perplexity(&program, "a/m").is_finite());
    let text = |name: &str| std::fs::read_to_string(program.path(name)).unwrap();
    assert!(text("a/m/README.md").contains("llama-cli"));
    let modelfile = text("a/m/Modelfile");
    assert!(modelfile.starts_with("FROM ./model-Q4_K_M.gguf\nTEMPLATE "), "{modelfile}");
    assert!(modelfile.contains(".Messages") && modelfile.contains("PARAMETER stop"));
}

#[test]
fn unknown_types_and_contradictions_are_refused() {
    let program = Program::new();
    let stderr = program.fail(&["merge", "run", "--output", "x", "--quantize", "q3_k"]);
    assert!(stderr.contains("q4_k_m, q4_k_s, q4_1"), "{stderr}");
    let both = ["merge", "run", "--output", "x", "--quantize", "f16", "--dtype", "bf16"];
    assert!(program.fail(&both).contains("cannot be used with"));
    assert!(!program.path("x").exists());
}

#[test]
fn quantising_can_weigh_what_matters() {
    let program = Program::new();
    let tables = "[train]\nsteps = 6\n[adapter.lora]\nrank = 4\n[validation]\nfraction = 0.2";
    let recipe = program.tiny_recipe("run", "", tables);
    program.run(&["train", &recipe]);
    let merge = |output: &str, more: &[&str]| {
        let arguments = ["merge", "run", "--quantize", "q4_0", "--output", output];
        program.run(&[&arguments[..], more].concat());
        program.json(&format!("{output}/merge_report.json"))
    };
    let weighed = merge("weighed", &["--importance"]);
    assert_eq!(weighed["importance"]["text"], "validation data of the run");
    assert!(weighed["importance"]["tokens"].as_u64().unwrap() > 100);
    assert_eq!(weighed["importance"]["modules"], 29);
    let text = root().join("recipes/data/tiny_eval.txt").display().to_string();
    let of_file = merge("of_file", &["--importance", &text]);
    assert_eq!(of_file["importance"]["text"], "a text file");
    let kl = of_file["quantised"]["parity"]["mean_kl"].as_f64().unwrap();
    assert!(kl > 0.0 && kl < 0.1, "{kl}");
    merge("plain", &[]);
    let bytes = |folder: &str| std::fs::read(program.path(folder).join("model-q4_0.gguf"));
    assert_eq!(bytes("weighed").unwrap().len(), bytes("plain").unwrap().len());
    assert!(bytes("weighed").unwrap() != bytes("plain").unwrap());
    let nothing = ["merge", "run", "--quantize", "f16", "--importance", "--output", "x"];
    assert!(program.fail(&nothing).contains("nothing is quantised"));
}
