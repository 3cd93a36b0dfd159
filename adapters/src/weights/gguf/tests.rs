//! The GGUF reader against files of other programs, and against broken ones.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{test_writer::GgufWriter, *};
use crate::weights::{ModelFiles, Network, StoredDtype};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/gguf").join(name)
}

fn open(path: &Path) -> Result<ModelFiles, WeightsError> {
    ModelFiles::open(path.to_str().unwrap(), Network::Offline)
}

/// The tokenizer that `DeepSeek` ships, where `scripts/fetch_test_material.sh` fetched it.
#[test]
fn real_tokenizers_are_recognised_by_their_words() {
    let folder = std::env::var_os("TUNESMITH_TEST_MATERIAL")
        .map_or_else(|| root().join("target/test-material"), PathBuf::from);
    for (name, pre) in
        [("deepseek_v3", "deepseek-v3"), ("llama3_1", "llama-bpe"), ("qwen3", "qwen2")]
    {
        let Ok(bytes) = std::fs::read(folder.join(name).join("tokenizer.json")) else { continue };
        let tokenizer: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(super::tokenizer::pre_tokenizer::recognise(&tokenizer), Some(pre), "{name}");
    }
}

fn open_written(writer: &GgufWriter) -> Result<ModelFiles, WeightsError> {
    let dir = tempfile::tempdir().unwrap();
    open(&writer.write(dir.path()))
}

fn problem(writer: &GgufWriter) -> String {
    match open_written(writer) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect()
}

fn tokenizer_of(model: &ModelFiles) -> tokenizers::Tokenizer {
    let bytes = model.side_file("tokenizer.json").unwrap().unwrap();
    tokenizers::Tokenizer::from_bytes(bytes).unwrap()
}

fn json_file(model: &ModelFiles, name: &str) -> Value {
    serde_json::from_slice(&model.side_file(name).unwrap().unwrap()).unwrap()
}

fn assert_ids(model: &ModelFiles, fixture_name: &str) {
    let cases: Vec<Value> =
        serde_json::from_slice(&std::fs::read(fixture(fixture_name)).unwrap()).unwrap();
    let tokenizer = tokenizer_of(model);
    assert!(cases.len() > 10);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let encoding = tokenizer.encode(text, true).unwrap();
        assert_eq!(json!(encoding.get_ids()), case["ids"], "{text:?}");
        let normal = !text.contains('<');
        let decoded = tokenizer.decode(encoding.get_ids(), true).unwrap();
        assert!(!normal || decoded == text, "{text:?} came back as {decoded:?}");
    }
}

#[test]
fn every_type_decodes_to_the_values_of_the_gguf_package() {
    let bytes = std::fs::read(fixture("blocks.safetensors")).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let names = StoredDtype::all_names();
    for name in names.split(", ") {
        let stored = file.tensor(&format!("{name}.bytes")).unwrap().data();
        let expected = file.tensor(&format!("{name}.values")).unwrap();
        let expected = floats(expected.data());
        let id = (0..64).find(|&id| StoredDtype::from_ggml(id).is_some_and(|d| d.name() == name));
        let dtype = StoredDtype::from_ggml(id.unwrap()).unwrap();
        let mut values = vec![0.0; expected.len()];
        blocks::decode(dtype, stored, &mut values);
        assert!(values.iter().any(|&value| value != 0.0));
        for (index, (found, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{name}[{index}]: {found}, {expected}");
        }
    }
}

#[test]
fn a_llama_has_the_tensors_that_transformers_reads() {
    let model = open(&fixture("tiny_llama.gguf")).unwrap();
    let bytes = std::fs::read(fixture("tiny_llama.safetensors")).unwrap();
    let expected = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<&String> = model.weights().entries().keys().collect();
    names.sort();
    let mut expected_names = expected.names();
    expected_names.sort_unstable();
    assert_eq!(names, expected_names);
    for (name, tensor) in expected.tensors() {
        let expected: Vec<f32> = floats(tensor.data());
        let rows = tensor.shape()[0];
        let values = model.weights().read_rows_f32(&name, 0..rows).unwrap();
        assert!(values == expected, "{name} differs");
        let entry = &model.weights().entries()[&name];
        assert_eq!(entry.shape[1..], tensor.shape()[1..], "{name}");
        let tail = model.weights().read_rows_f32(&name, rows - 3..rows).unwrap();
        assert_eq!(tail[..], expected[(rows - 3) * entry.columns()..], "{name}");
    }
    assert!(model.is_quantised());
}

#[test]
fn a_llama_has_the_configuration_of_its_metadata() {
    let model = open(&fixture("tiny_llama.gguf")).unwrap();
    let config = model.config();
    for (key, value) in [
        ("model_type", json!("llama")),
        ("hidden_size", json!(32)),
        ("intermediate_size", json!(64)),
        ("num_hidden_layers", json!(2)),
        ("num_attention_heads", json!(4)),
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(8)),
        ("rope_theta", json!(50_000.0)),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 2.0})),
        ("rms_norm_eps", json!(1e-5)),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("tie_word_embeddings", json!(true)),
        ("torch_dtype", json!("float16")),
        ("max_position_embeddings", json!(128)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!(2)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let embedding = &model.weights().entries()["model.embed_tokens.weight"];
    assert_eq!(config["vocab_size"], json!(embedding.shape[0]));
}

#[test]
fn a_sentencepiece_vocabulary_gives_the_ids_of_its_scores() {
    let model = open(&fixture("tiny_llama.gguf")).unwrap();
    assert_ids(&model, "tiny_llama_ids.json");
    let config = json_file(&model, "tokenizer_config.json");
    assert_eq!(config["add_bos_token"], json!(true));
    assert!(config["chat_template"].as_str().unwrap().starts_with("{% for m"));
}

#[test]
fn smollm2_gives_the_ids_of_llama_cpp() {
    let folder = std::env::var_os("TUNESMITH_TEST_MATERIAL")
        .map_or_else(|| root().join("target/test-material"), PathBuf::from);
    let path = folder.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.is_file() {
        let missing = format!("no `{}`; run scripts/fetch_test_material.sh", path.display());
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        #[expect(clippy::print_stderr, reason = "a skip is never silent")]
        {
            eprintln!("SKIPPED: {missing}");
        }
        return;
    }
    let model = open(&path).unwrap();
    assert_ids(&model, "smollm2_ids.json");
    assert_eq!(model.weights().entries().len(), 272);
    assert_eq!(json_file(&model, "generation_config.json")["eos_token_id"], json!(2));
}

#[test]
fn digits_are_words_of_their_own_where_the_file_says_smollm() {
    let ids = |pre: &str, text: &str| {
        let model = open_written(&GgufWriter::llama().string("tokenizer.ggml.pre", pre)).unwrap();
        tokenizer_of(&model).encode(text, true).unwrap().get_ids().to_vec()
    };
    assert_eq!(ids("smollm", "12 a12"), [2, 3, 7, 2, 3]);
    assert_eq!(ids("gpt-2", "12 a12"), [4, 7, 4]);
    assert_eq!(ids("default", "12 a12"), [4, 7, 4]);
    // Llama 3's vocabulary is used with a BOS and finds control tokens in the text.
    assert_eq!(ids("llama-bpe", "a</s>12"), [0, 5, 1, 4]);
    // Qwen composes characters; the plain added token is found whole.
    assert_eq!(ids("qwen2", "e\u{301}"), [11]);
    assert_eq!(ids("qwen2", "a\u{e9}"), [5, 8]);
    assert_eq!(ids("qwen2", "12"), [2, 3]);
}

#[test]
fn unknown_ways_to_split_text_are_refused_by_name() {
    let model = open_written(&GgufWriter::llama().string("tokenizer.ggml.pre", "klingon")).unwrap();
    let error = model.side_file("tokenizer.json").unwrap_err().to_string();
    assert!(error.contains("`klingon`") && error.contains("smollm"), "{error}");
    let model = open_written(&GgufWriter::llama()).unwrap();
    let error = model.side_file("tokenizer.json").unwrap_err().to_string();
    assert!(error.contains("missing metadata `tokenizer.ggml.pre`"), "{error}");
}

#[test]
fn llama_3_scaling_is_read_from_its_factors() {
    let pairs = |factor: f32| -> Vec<u8> {
        [1.0_f32, factor].iter().flat_map(|value| value.to_le_bytes()).collect()
    };
    let model = |factor| {
        let base = GgufWriter::llama().f32("llama.rope.freq_base", 500_000_000.0);
        open_written(&base.tensor("rope_freqs.weight", &[2], 0, pairs(factor)))
    };
    let config = model(32.0).unwrap().config().clone();
    assert_eq!(config["rope_scaling"]["rope_type"], json!("llama3"));
    assert_eq!(config["rope_scaling"]["factor"], json!(32.0));
    assert!(model(0.5).is_err());
}

#[test]
fn raw_bytes_are_given_only_in_hf_order() {
    let model = open_written(&GgufWriter::llama()).unwrap();
    let weights = model.weights();
    assert_eq!(weights.raw("model.norm.weight").unwrap().len(), 64);
    assert_eq!(weights.raw("model.layers.0.self_attn.q_proj.weight"), None);
    let rows = weights.read_rows_f32("model.layers.0.self_attn.k_proj.weight", 1..3).unwrap();
    let firsts: Vec<f32> = rows.into_iter().step_by(16).collect();
    assert_eq!(firsts, [2.0 * 16.0, 16.0]);
    assert!(weights.read_rows_f32("model.norm.weight", 3..17).is_err());
    assert!(weights.read_f32("lm_head.weight").is_err());
}

#[test]
fn files_that_would_be_another_model_are_refused() {
    let llama = GgufWriter::llama;
    let q2_k = || llama().tensor("blk.0.ffn_up.weight", &[1, 256], 10, vec![0; 84]);
    for (writer, part) in [
        (llama().u32("llama.expert_count", 8), "`llama.expert_used_count`: missing"),
        (llama().u32("llama.expert_shared_count", 1), "llama.expert_shared_count"),
        (llama().f32("llama.logit_scale", 2.0), "llama.logit_scale"),
        (llama().u32("llama.rope.dimension_count", 2), "llama.rope.dimension_count"),
        (llama().string("llama.rope.scaling.type", "ntk"), "`ntk` is not supported"),
        (llama().string("llama.rope.scaling.type", "longrope"), "`longrope` is not supported"),
        (llama().string("llama.rope.scaling.type", "yarn"), "`llama.rope.scaling.factor`: missing"),
        (llama().u32("split.count", 3), "3 files"),
        (
            llama().string("general.type", "adapter"),
            "`adapter` is not supported (supported: model)",
        ),
        (llama().counting("blk.0.ffn_gate_exps.weight", &[2, 2, 2]), "ffn_gate_exps"),
        (q2_k(), "`Q2_K` is not supported (supported: F32, F16"),
        (llama().tensor("blk.0.ffn_up.weight", &[1, 32], 2, vec![0; 17]), "ends beyond the file"),
        (llama().tensor("blk.0.ffn_up.weight", &[1, 16], 2, vec![0; 18]), "not whole Q4_0 blocks"),
        (llama().counting("blk.0.attn_q.bias", &[6]), "not whole heads of 4"),
        (llama().counting("output_norm.weight", &[16]), "listed twice"),
        (llama().u32("llama.block_count", 2), "given twice"),
        (llama().string("llama.attention.key_length", "x"), "expected a non-negative integer"),
        (
            GgufWriter::default().string("general.architecture", "rwkv6"),
            "`rwkv6` is not supported (supported: llama, ",
        ),
        (GgufWriter::default(), "`general.architecture`: missing"),
    ] {
        let found = problem(&writer);
        assert!(found.contains(part), "{found}\nshould contain {part}");
    }
}

#[test]
fn other_versions_and_other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let refusal = |edit: fn(&mut Vec<u8>)| {
        let mut bytes = GgufWriter::llama().bytes();
        edit(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        open(&path).err().unwrap().to_string()
    };
    assert!(refusal(|bytes| bytes[4] = 1).contains("GGUF version `1` is not supported"));
    assert!(refusal(|bytes| bytes[4..8].reverse()).contains("big-endian file"));
    assert!(refusal(|bytes| bytes[0] = b'Z').contains("expected `GGUF`, found `ZGUF`"));
    assert!(refusal(|bytes| bytes.truncate(3)).contains("expected `GGUF`"));
    assert!(refusal(|bytes| bytes[8..16].fill(0xFF)).contains("claims 18446744073709551615"));
    assert!(refusal(|bytes| bytes.truncate(bytes.len() - 600)).contains("ends beyond"));
    assert!(open(&path).err().unwrap().hint().unwrap().contains("download"));
}

#[test]
fn merges_of_unknown_parts_and_double_tokens_are_damage() {
    let error = |writer: GgufWriter| {
        let model = open_written(&writer.string("tokenizer.ggml.pre", "gpt-2")).unwrap();
        model.side_file("tokenizer.json").unwrap_err().to_string()
    };
    let base = || GgufWriter::default().string("general.architecture", "llama");
    let sized = |writer: GgufWriter| {
        writer
            .u32("llama.block_count", 1)
            .u32("llama.context_length", 8)
            .u32("llama.embedding_length", 4)
            .u32("llama.feed_forward_length", 4)
            .u32("llama.attention.head_count", 1)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-6)
            .counting("token_embd.weight", &[3, 4])
            .string("tokenizer.ggml.model", "gpt2")
    };
    let with = |tokens: &[&str], merges: &[&str]| {
        let writer = sized(base()).strings("tokenizer.ggml.tokens", tokens);
        error(writer.strings("tokenizer.ggml.merges", merges))
    };
    assert!(with(&["a", "b"], &["a b"]).contains("`ab` is not in the vocabulary"));
    assert!(with(&["a", "a"], &[]).contains("both token 0 and token 1"));
    assert!(with(&["a", "b"], &["ab"]).contains("no pair"));
    let out_of_range = sized(base())
        .strings("tokenizer.ggml.tokens", &["a"])
        .u32("tokenizer.ggml.eos_token_id", 7);
    assert!(error(out_of_range).contains("7, but there are 1 tokens"));
    let prefix = sized(base()).strings("tokenizer.ggml.tokens", &["a"]);
    assert!(error(prefix.bool("tokenizer.ggml.add_space_prefix", 1)).contains("add_space_prefix"));
}
