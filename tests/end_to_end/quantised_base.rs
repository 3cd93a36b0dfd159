//! `quantize_base`, and matrix libraries: what a recipe's result depends on, and what it does not.

use serde_json::Value;

use crate::program::{Program, root};

fn losses(program: &Program, run: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(program.path(run).join("metrics.jsonl")).unwrap();
    let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
    text.lines().map(loss).collect()
}

#[test]
fn a_quantised_base_trains_close_to_its_original_in_less_memory() {
    let program = Program::new();
    let steps = "[train]\nsteps = 4\n";
    program.run(&["train", &program.tiny_recipe("wide", "precision = \"f32\"", steps)]);
    let base_bytes = |recipe: &str| {
        program.run(&["plan", recipe, "--json", "plan.json"]);
        program.json("plan.json")["memory"]["base_bytes"].as_u64().unwrap()
    };
    let wide = base_bytes("wide.toml");
    for (kind, share) in [("int8", 0.05), ("nf4", 0.2)] {
        let extra = format!("precision = \"f32\"\nquantize_base = \"{kind}\"");
        let recipe = program.tiny_recipe(kind, &extra, steps);
        program.run(&["train", &recipe]);
        for (a, b) in losses(&program, "wide").iter().zip(losses(&program, kind)) {
            assert!((a / b - 1.0).abs() < share, "{kind}: {b}, {a} without");
            assert!(a.to_bits() != b.to_bits(), "{kind} changed nothing");
        }
        assert!(base_bytes(&recipe) < wide, "{kind}");
    }
}

#[test]
fn a_quantised_file_is_not_quantised_again() {
    let program = Program::new();
    let gguf = root().join("tests/fixtures/gguf/tiny_llama.gguf");
    let data = program.write("rows.jsonl", "{\"input_ids\": [1, 2, 3], \"labels\": [1, 2, 3]}\n");
    let recipe = program.write(
        "twice.toml",
        &format!(
            "base_model = \"{}\"\noutput_dir = \"run\"\nquantize_base = \"int8\"\n\
             [[dataset]]\npath = \"{data}\"\nformat = \"tokens\"\n\
             [batch]\nsequence_length = 32\n[train]\nsteps = 1\n",
            gguf.display()
        ),
    );
    for command in ["check", "plan", "train"] {
        let error = program.fail(&[command, &recipe]);
        assert!(
            error.contains("quantised already") && error.contains("tiny_llama.gguf"),
            "{error}"
        );
        assert!(error.contains("quantize_base = \"none\""), "{error}");
    }
    assert!(!program.path("run/adapter").exists());
}

#[test]
fn the_number_of_threads_changes_no_byte_with_any_matrix_library() {
    let program = Program::new();
    let doctor = program.run(&["doctor", "--json", "-"]);
    let facts: Value = serde_json::from_str(&doctor).unwrap();
    for library in facts["matrix_libraries"].as_array().unwrap() {
        if library["missing"].is_string() {
            continue;
        }
        let name = library["name"].as_str().unwrap();
        assert!(library["gflops_per_second"].as_f64().unwrap() > 0.0);
        let adapters = ["1", "2", "3"].map(|threads| {
            let output = format!("{name}{threads}");
            let recipe = program.tiny_recipe(&output, "", "[train]\nsteps = 2\n");
            let mut command = program.command(&["train", &recipe, "--threads", threads]);
            let done = command.env("TUNESMITH_MATMUL", name).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            program.adapter(&output)
        });
        assert!(adapters[0] == adapters[1] && adapters[0] == adapters[2], "{name}");
    }
}
