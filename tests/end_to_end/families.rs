//! Bases other than Llama, and bases whose context a recipe extends.

use serde_json::{Value, json};

use crate::program::{Program, root};

/// A tiny model of the fixtures with a tokenizer of its 64 tokens, and a recipe over rows of ids.
fn recipe_over(program: &Program, family: &str, files: &[&str], tables: &str) -> String {
    let source = root().join("tests/fixtures/families").join(family);
    let base = program.path("base");
    std::fs::create_dir(&base).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(name), base.join(name)).unwrap();
    }
    let letter = |id: u32| char::from_u32(u32::from('!') + id).unwrap().to_string();
    let vocabulary: serde_json::Map<String, Value> =
        (0..64).map(|id| (letter(id), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "post_processor": null, "decoder": {"type": "ByteLevel",
            "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "byte_fallback": false, "vocab": vocabulary, "merges": []},
    });
    for name in files {
        std::fs::write(base.join(name), tokenizer.to_string()).unwrap();
    }
    let row = json!({"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]});
    program.write("rows.jsonl", &format!("{row}\n"));
    program.write(
        "run.toml",
        &format!(
            "base_model = \"base\"\noutput_dir = \"run\"\n[[dataset]]\npath = \"rows.jsonl\"\n\
             format = \"tokens\"\n{tables}\n"
        ),
    )
}

#[test]
fn learned_positions_end_where_the_table_ends() {
    let program = Program::new();
    let recipe =
        recipe_over(&program, "gpt2", &["tokenizer.json"], "[batch]\nsequence_length = 49");
    let message = program.fail(&["check", &recipe]);
    assert!(message.contains("49 positions") && message.contains("has learned 48"), "{message}");
    program.run(&["check", &recipe, "--set", "batch.sequence_length=48"]);
    let generate = |letters: usize| {
        let prompt = "%".repeat(letters);
        program.output(&["generate", "base", "--prompt", &prompt, "--max-tokens", "8"])
    };
    let stderr = String::from_utf8(generate(48).stderr).unwrap();
    assert!(stderr.contains("49 positions") && stderr.contains("learned 48"), "{stderr}");
    assert!(generate(47).status.success());
}

/// Elements of all tensors of a file, and of those of experts.
fn elements(path: &std::path::Path) -> (u64, u64) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (mut all, mut experts) = (0, 0);
    for (name, entry) in header.as_object().unwrap() {
        let Some(shape) = entry["shape"].as_array() else { continue };
        let count: u64 = shape.iter().map(|size| size.as_u64().unwrap()).product();
        all += count;
        experts += if name.contains(".experts.") { count } else { 0 };
    }
    (all, experts)
}

#[test]
fn plan_counts_parameters_of_all_of_a_token_and_of_the_adapter() {
    let program = Program::new();
    let tables = "[batch]\nsequence_length = 16\n[adapter.lora]\nrank = 2\n\
                  target_modules = [\"q_proj\", \"o_proj\"]\n[train]\nrouter_aux_loss_coef = 0.01\n\
                  steps = 2";
    let recipe = recipe_over(&program, "mixtral", &["tokenizer.json"], tables);
    let plan: Value =
        serde_json::from_str(&program.run(&["plan", &recipe, "--json", "-"])).unwrap();
    let (all, experts) = elements(&program.path("base/model.safetensors"));
    assert_eq!(plan["base_parameters"], all);
    // Two of four experts.
    assert_eq!(plan["active_parameters"], all - experts / 2);
    // Two layers, 32 in and out.
    assert_eq!(plan["trained_parameters"], 2 * 2 * 2 * (32 + 32));
    program.run(&["train", &recipe]);
    let lines = std::fs::read_to_string(program.path("run/metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    // An even load costs as much as a token has experts.
    assert!((1.5..4.0).contains(&first["router_aux_loss"].as_f64().unwrap()), "{first}");
}

#[test]
fn keys_for_other_families_are_refused_by_name() {
    let program = Program::new();
    let tables = "[train]\nrouter_aux_loss_coef = 0.01";
    let recipe = recipe_over(&program, "gpt2", &["tokenizer.json"], tables);
    let message = program.fail(&["check", &recipe, "--set", "batch.sequence_length=48"]);
    assert!(message.contains("router_aux_loss_coef") && message.contains("gpt2"), "{message}");
    let scaling = ["--set", "rope_scaling.rope_type=\"yarn\"", "--set", "rope_scaling.factor=2.0"];
    let message = program.fail(&[&["check", recipe.as_str()][..], &scaling].concat());
    assert!(message.contains("rope_scaling") && message.contains("learned"), "{message}");
}

#[test]
fn a_tokenizer_in_sentencepiece_alone_is_refused_with_the_way_to_convert_it() {
    let program = Program::new();
    let recipe = recipe_over(&program, "mistral", &["tokenizer.model"], "");
    let message = program.fail(&["check", &recipe]);
    assert!(message.contains("`tokenizer.model`"), "{message}");
    assert!(message.contains("AutoTokenizer.from_pretrained(\"base\")"), "{message}");
}

#[test]
fn a_longer_context_is_trained_merged_and_said() {
    let program = Program::new();
    let tables = "[rope_scaling]\nrope_type = \"yarn\"\nfactor = 4.0\n\
                  [train]\nsteps = 4\n[checkpoint]\nevery_steps = 2\n[adapter.lora]\nrank = 4";
    let recipe = program.tiny_recipe("run", "", tables);
    program.run(&["train", &recipe]);
    let base: Value = serde_json::from_slice(
        &std::fs::read(root().join("recipes/tiny_llama/config.json")).unwrap(),
    )
    .unwrap();
    let positions = base["max_position_embeddings"].as_u64().unwrap();
    for (adapter, merged) in [("run", "one"), ("run/checkpoints/step-000002", "two")] {
        program.run(&["merge", adapter, "--output", merged]);
        let config = program.json(&format!("{merged}/config.json"));
        assert_eq!(config["max_position_embeddings"], 4 * positions);
        let new = config["rope_parameters"]["rope_type"] == "yarn";
        assert!(new || config["rope_scaling"]["rope_type"] == "yarn", "{config}");
        assert_eq!(program.json(&format!("{merged}/merge_report.json"))["within_bound"], true);
    }
    let said =
        |target: &str| program.run(&["generate", target, "--prompt", "ahoy", "--max-tokens", "16"]);
    assert_eq!(said("run"), said("one"));

    // What is made of the adapter is for the longer context, too.
    let combine = ["adapter", "combine", "run", "--method", "cat", "--output", "again"];
    program.run(&combine);
    program.run(&["merge", "again", "--output", "three"]);
    assert_eq!(program.json("three/config.json"), program.json("one/config.json"));
    let convert = ["adapter", "convert", "run", "--to", "gguf", "--output", "x.gguf"];
    assert!(program.fail(&convert).contains("longer context"));
    let plain = program.tiny_recipe("plain", "", "[train]\nsteps = 2\n[adapter.lora]\nrank = 4");
    program.run(&["train", &plain]);
    let both = ["merge", "run", "plain", "--output", "x"];
    assert!(program.fail(&both).contains("contexts of other lengths"));
}
