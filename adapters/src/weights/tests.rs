//! Folders of every kind, and files broken at random places.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::weights::gguf::test_writer::GgufWriter;

fn open(path: &Path) -> Result<ModelFiles, WeightsError> {
    ModelFiles::open(path.to_str().unwrap(), Network::Offline)
}

fn problem(path: &Path) -> WeightsError {
    open(path).err().unwrap()
}

/// A safetensors file: tensors of (name, dtype, shape, data).
fn safetensors(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, content) in tensors {
        let start = data.len();
        data.extend(content);
        let info = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), info);
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn small_file() -> Vec<u8> {
    let halves: Vec<u8> =
        (0..6).flat_map(|i| half::bf16::from_f32(i as f32).to_le_bytes()).collect();
    safetensors(&[
        ("a.weight", "F32", &[2, 3], bytes_of(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
        ("b.weight", "BF16", &[6], halves),
    ])
}

/// Name and content.
type File<'a> = (&'a str, &'a [u8]);

fn folder(files: &[File]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

const CONFIG: File = ("config.json", b"{\"model_type\": \"llama\"}");

#[test]
fn a_single_file_is_read() {
    let dir = folder(&[CONFIG, ("model.safetensors", &small_file())]);
    let model = open(dir.path()).unwrap();
    let weights = model.weights();
    assert_eq!(model.config()["model_type"], json!("llama"));
    assert_eq!(weights.entries()["a.weight"].shape, [2, 3]);
    assert_eq!(weights.read_f32("b.weight").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(weights.read_rows_f32("a.weight", 1..2).unwrap(), [3.0, 4.0, 5.0]);
    assert_eq!(weights.read_rows_f32("b.weight", 2..4).unwrap(), [2.0, 3.0]);
    assert_eq!(weights.read_rows_f32("a.weight", 1..1).unwrap(), [0.0_f32; 0]);
    assert_eq!(weights.raw("b.weight").unwrap().len(), 12);
    weights.release("a.weight");
    weights.release("no such tensor");
    assert_eq!(weights.read_f32("a.weight").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert!(!model.is_quantised());
    assert_eq!(model.weight_files(), [dir.path().join("model.safetensors")]);
}

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "a caller's mistake must be an error")]
fn rows_beyond_the_end_are_an_error() {
    let dir = folder(&[CONFIG, ("model.safetensors", &small_file())]);
    let model = open(dir.path()).unwrap();
    let error = model.weights().read_rows_f32("a.weight", 1..3).unwrap_err();
    assert_eq!(error.to_string(), "rows 1..3 of `a.weight` were asked for, it has 2");
    assert!(model.weights().read_rows_f32("a.weight", 2..1).is_err());
    assert!(model.weights().read_rows_f32("c", 0..1).is_err());
}

#[test]
fn shards_are_read_through_their_index() {
    let a = safetensors(&[("a", "F32", &[1], bytes_of(&[1.0]))]);
    let b = safetensors(&[("b", "F32", &[1], bytes_of(&[2.0]))]);
    let index = |map: serde_json::Value| json!({"metadata": {}, "weight_map": map}).to_string();
    let open_with = |map: serde_json::Value, second: &[u8]| {
        let index = index(map);
        let dir = folder(&[
            CONFIG,
            ("1.safetensors", &a),
            ("2.safetensors", second),
            ("model.safetensors.index.json", index.as_bytes()),
        ]);
        open(dir.path())
            .map(|model| model.weights().read_f32("b").unwrap())
            .map_err(|error| error.to_string())
    };
    let good = json!({"a": "1.safetensors", "b": "2.safetensors"});
    assert_eq!(open_with(good.clone(), &b).unwrap(), [2.0]);
    for (map, second, part) in [
        (good.clone(), &a, "is in `"),
        (json!({"a": "1.safetensors", "b": "3.safetensors"}), &b, "has no `3.safetensors`"),
        (json!({"a": "1.safetensors", "b": "1.safetensors"}), &b, "is not in `1.safetensors`"),
        (json!({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}), &b, "`c`"),
        (json!({"a": "2.safetensors"}), &b, "`a`"),
        (json!({"a": "../1.safetensors"}), &b, "is no safetensors file of this folder"),
    ] {
        let error = open_with(map, second).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    let unlisted =
        safetensors(&[("b", "F32", &[1], bytes_of(&[2.0])), ("c", "F32", &[1], bytes_of(&[3.0]))]);
    assert!(open_with(good, &unlisted).unwrap_err().contains("the index does not list it"));
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let int8 = safetensors(&[("a.weight", "I8", &[4], vec![0; 4])]);
    let gptq = safetensors(&[("a.qweight", "F32", &[1], vec![0; 4])]);
    let small = small_file();
    let awq = b"{\"quantization_config\": {\"quant_method\": \"awq\"}}";
    let fp8 = b"{\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\"}}";
    let cases: &[(&[File], &str, &str)] = &[
        (
            &[("config.json", fp8), ("model.safetensors", &small)],
            "quantised with fp8 (it has a `quantization_config`)",
            "unquantised",
        ),
        (
            &[("model.safetensors", &small)],
            "has no `config.json`; it holds `model.safetensors`",
            "config.json",
        ),
        (&[CONFIG], "has no `model.safetensors`; it holds `config.json`", "config.json"),
        (&[], "it holds no files", "config.json"),
        (
            &[CONFIG, ("pytorch_model.bin", b"x")],
            "only as pickle (`pytorch_model.bin`)",
            "save_pretrained",
        ),
        (&[CONFIG, ("model.safetensors", &int8)], "quantised with int8", "unquantised"),
        (&[CONFIG, ("model.safetensors", &gptq)], "quantised with GPTQ or AWQ", "unquantised"),
        (
            &[("config.json", awq), ("model.safetensors", &small)],
            "quantised with awq",
            "unquantised",
        ),
        (&[("config.json", b"[]"), ("model.safetensors", &small)], "not an object", "again"),
        (&[("config.json", b"{"), ("model.safetensors", &small)], "is damaged: JSON", "again"),
        (&[CONFIG, ("model.safetensors", b"")], "the file is empty", "again"),
        (&[("a.gguf", b"x"), ("b.gguf", b"y")], "several GGUF files: a.gguf, b.gguf", "name one"),
    ];
    for (files, part, hint) in cases {
        let dir = folder(files);
        let error = problem(dir.path());
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
    }
}

#[test]
fn weights_that_a_gguf_was_decoded_to_are_read() {
    let config = b"{\"quantization_config\": {\"quant_method\": \"gguf\"}}";
    let dir = folder(&[("config.json", config), ("model.safetensors", &small_file())]);
    assert!(open(dir.path()).is_ok());
}

#[test]
fn other_names_are_refused_with_the_way_to_name_a_model() {
    let dir = folder(&[CONFIG, ("model.safetensors", &small_file())]);
    let error = problem(&dir.path().join("model.safetensors"));
    assert!(error.to_string().contains("a single safetensors file"), "{error}");
    let error = problem(&dir.path().join("config.json"));
    assert!(error.to_string().contains("expected `GGUF`"), "{error}");
    let error = problem(Path::new("/no/such/folder"));
    assert!(matches!(error, WeightsError::NotFound { .. }));
    assert!(error.hint().unwrap().contains("hub id"));
}

#[test]
fn side_files_are_what_a_merged_folder_carries() {
    let dir = folder(&[
        CONFIG,
        ("model.safetensors", &small_file()),
        ("tokenizer.json", b"t"),
        ("tokenizer.model", b"m"),
        ("chat_template.jinja", b"c"),
        ("merges.txt", b""),
        ("generation_config.json", b"{}"),
        ("LICENSE", b"l"),
        ("USE_POLICY.md", b"u"),
        ("README.md", b"r"),
        ("optimizer.pt", b"o"),
    ]);
    let model = open(dir.path()).unwrap();
    assert_eq!(
        model.side_files().unwrap(),
        [
            "LICENSE",
            "USE_POLICY.md",
            "chat_template.jinja",
            "generation_config.json",
            "merges.txt",
            "tokenizer.json",
            "tokenizer.model"
        ]
    );
    assert_eq!(model.side_file("LICENSE").unwrap().unwrap(), b"l");
    assert_eq!(model.side_file("NOTICE").unwrap(), None);
    assert_eq!(model.side_file("../x").unwrap(), None);
}

#[test]
fn named_chat_templates_are_side_files_too() {
    let dir = folder(&[CONFIG, ("model.safetensors", &small_file())]);
    let templates = dir.path().join("additional_chat_templates");
    std::fs::create_dir(&templates).unwrap();
    std::fs::write(templates.join("tool_use.jinja"), b"t").unwrap();
    std::fs::write(templates.join("notes.txt"), b"n").unwrap();
    let model = open(dir.path()).unwrap();
    let name = "additional_chat_templates/tool_use.jinja";
    assert_eq!(model.side_files().unwrap(), [name]);
    assert_eq!(model.side_file(name).unwrap().unwrap(), b"t");
    assert_eq!(model.side_file("additional_chat_templates/../config.json").unwrap(), None);
}

/// As transformers 5: the config counts where the matrices agree, the weights where they do not.
#[test]
fn a_head_of_its_own_is_not_tied_whatever_the_config_says() {
    let tied = ("config.json", &b"{\"tie_word_embeddings\": true}"[..]);
    let with_head = |head: f32| {
        let matrices = [("model.embed_tokens.weight", 1.0_f32), ("lm_head.weight", head)];
        let bytes = matrices.map(|(name, value)| (name, value.to_le_bytes()));
        let views = bytes.iter().map(|(name, bytes)| {
            let view = ::safetensors::tensor::TensorView::new(
                ::safetensors::Dtype::F32,
                vec![1, 1],
                bytes,
            );
            (*name, view.unwrap())
        });
        let file = ::safetensors::serialize(views, None).unwrap();
        let dir = folder(&[tied, ("model.safetensors", &file)]);
        open(dir.path()).unwrap()
    };
    let same = with_head(1.0);
    assert_eq!((&same.config()["tie_word_embeddings"], same.warnings().len()), (&true.into(), 0));
    let other = with_head(2.0);
    assert_eq!(other.config()["tie_word_embeddings"], false);
    assert!(other.warnings()[0].contains("ties the head"), "{:?}", other.warnings());
}

#[test]
fn the_licence_in_the_metadata_of_a_gguf_stands_in_for_a_card() {
    let dir = tempfile::tempdir().unwrap();
    let writer = GgufWriter::llama()
        .string("general.license", "other")
        .string("general.license.name", "acme\nbase_model: x")
        .string("general.license.link", "https://example.org/terms");
    let path = writer.write(dir.path());
    let card = b"---\nlicense: other\nlicense_link: https://example.org/terms\n---\n";
    let of_file = open(&path).unwrap();
    assert_eq!(of_file.side_file("README.md").unwrap().unwrap(), card);
    assert!(!of_file.side_files().unwrap().contains(&"README.md".to_owned()));
    assert_eq!(open(dir.path()).unwrap().side_file("README.md").unwrap().unwrap(), card);
    std::fs::write(dir.path().join("README.md"), b"its own").unwrap();
    assert_eq!(open(dir.path()).unwrap().side_file("README.md").unwrap().unwrap(), b"its own");
    GgufWriter::llama().write(dir.path());
    assert_eq!(open(&path).unwrap().side_file("README.md").unwrap(), None);
}

#[test]
fn a_folder_around_one_gguf_is_that_model_with_its_licence() {
    let dir = folder(&[("LICENSE", b"l"), ("notes.txt", b"n")]);
    let writer = GgufWriter::llama().string("tokenizer.ggml.pre", "gpt-2");
    let path = writer.write(dir.path());
    let model = open(dir.path()).unwrap();
    assert_eq!(model.location(), path);
    let names = model.side_files().unwrap();
    assert_eq!(names[..2], ["LICENSE", "generation_config.json"]);
    for name in names {
        assert!(model.side_file(&name).unwrap().is_some(), "{name}");
    }
}

/// Everything a program would do with a model. Whatever the file says, what is read stays in
/// proportion to the file: at most 8 numbers a byte (4-bit blocks hold 7).
fn exercise(path: &Path, file_bytes: usize) {
    let model = match open(path) {
        Ok(model) => model,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let elements: usize = model.weights().entries().values().map(TensorEntry::elements).sum();
    assert!(elements <= file_bytes * 8);
    for name in model.weights().entries().keys() {
        model.weights().read_f32(name).unwrap();
        model.weights().release(name);
    }
    for name in model.side_files().unwrap() {
        drop(model.side_file(&name));
    }
}

/// Flips a bit, or cuts the file, at 200 places each.
fn break_everywhere(path: &Path, good: &[u8], head: usize) {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..200 {
        let mut flipped = good.to_vec();
        flipped[next(head)] ^= 1 << next(8);
        for bytes in [&flipped[..], &good[..next(good.len())]] {
            std::fs::write(path, bytes).unwrap();
            exercise(path.parent().unwrap(), bytes.len());
        }
    }
}

#[test]
fn a_broken_safetensors_file_is_an_error_and_nothing_worse() {
    let dir = folder(&[CONFIG]);
    let good = small_file();
    break_everywhere(&dir.path().join("model.safetensors"), &good, good.len());
}

#[test]
fn a_broken_gguf_file_is_an_error_and_nothing_worse() {
    let dir = folder(&[]);
    let writer = GgufWriter::llama().string("tokenizer.ggml.pre", "smollm");
    let good = writer.bytes();
    let path = writer.write(dir.path());
    exercise(dir.path(), good.len());
    break_everywhere(&path, &good, good.len() - 1_500);
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/tiny_llama.gguf");
    // Its head, tokenizer included, is the first 20 KB.
    break_everywhere(&path, &std::fs::read(fixture).unwrap(), 20_000);
}

proptest::proptest! {
    #[test]
    fn any_bytes_after_the_magic_are_an_error(tail in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, [&b"GGUF\x03\0\0\0"[..], &tail].concat()).unwrap();
        proptest::prop_assert!(open(&path).is_err());
    }
}
