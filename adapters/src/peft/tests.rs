//! Adapter folders on disk: round trips, and everything that is refused.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::error::AdapterError;
use crate::pattern::ModulePatterns;
use crate::safetensors_file::{TensorSpec, header, write_f32};

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

fn config() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_f32(&mut bytes, values).unwrap();
    bytes
}

/// An adapter folder with tensors of these names, types, shapes and bytes.
fn folder(config: &Value, tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
    let spec = |(name, dtype, shape, _): &(String, Dtype, Vec<usize>, Vec<u8>)| TensorSpec {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
    };
    let mut file = header(&tensors.iter().map(spec).collect::<Vec<_>>());
    for (.., bytes) in tensors {
        file.extend(bytes);
    }
    fs::write(dir.path().join(WEIGHTS_FILE), file).unwrap();
    dir
}

fn f32_tensor(name: impl Into<String>, shape: &[usize]) -> (String, Dtype, Vec<usize>, Vec<u8>) {
    let count = shape.iter().product();
    (name.into(), Dtype::F32, shape.to_vec(), f32_bytes(&vec![0.5; count]))
}

fn good_tensors() -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let a = f32_tensor(format!("{Q}.lora_A.weight"), &[2, 3]);
    vec![a, f32_tensor(format!("{Q}.lora_B.weight"), &[5, 2])]
}

fn error_of(dir: &Path) -> String {
    read_adapter(dir).unwrap_err().to_string()
}

#[test]
fn all_three_float_types_are_read() {
    let values = [1.5_f32, -0.25, 3.0, 0.0, 8.0, -2.0];
    let halves: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let brains: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    for (dtype, bytes) in
        [(Dtype::F32, f32_bytes(&values)), (Dtype::F16, halves), (Dtype::BF16, brains)]
    {
        let mut tensors = good_tensors();
        tensors[0] = (format!("{Q}.lora_A.weight"), dtype, vec![2, 3], bytes);
        let dir = folder(&config(), &tensors);
        let (_, weights) = read_adapter(dir.path()).unwrap();
        let factors = &weights.modules["model.layers.0.self_attn.q_proj"];
        assert_eq!(factors.a, values);
        assert_eq!((factors.rank, factors.d_in, factors.d_out), (2, 3, 5));
    }
}

#[test]
fn every_tensor_that_fits_nowhere_is_in_one_error() {
    let mut tensors = good_tensors();
    let mut nan = f32_tensor("base_model.model.n.lora_A.weight", &[2, 3]);
    nan.3[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    tensors.extend([
        nan,
        f32_tensor("base_model.model.n.lora_B.weight", &[5, 2]),
        f32_tensor("base_model.model.alone.lora_A.weight", &[2, 3]),
        f32_tensor("base_model.model.ranked.lora_A.weight", &[3, 3]),
        f32_tensor("base_model.model.ranked.lora_B.weight", &[5, 3]),
        f32_tensor("base_model.model.vector.lora_A.weight", &[2]),
        f32_tensor("base_model.model.vector.lora_B.weight", &[5, 2]),
        f32_tensor("base_model.model.embed_tokens.lora_embedding_A", &[2, 9]),
        f32_tensor(format!("{Q}.lora_magnitude_vector"), &[5]),
        f32_tensor(format!("{Q}.lora_A.default.weight"), &[2, 3]),
        f32_tensor("base_model.model.lm_head.modules_to_save.default.weight", &[4, 3]),
        f32_tensor("base_model.model.norm.scale", &[4]),
        f32_tensor("lora_A.weight", &[2, 3]),
    ]);
    tensors.push(("base_model.model.i.lora_A.weight".into(), Dtype::I32, vec![2, 3], vec![0; 24]));
    tensors.push(f32_tensor("base_model.model.i.lora_B.weight", &[5, 2]));
    let dir = folder(&config(), &tensors);
    let text = error_of(dir.path());
    assert!(text.starts_with("11 problems of `"), "{text}");
    for part in [
        "`base_model.model.n.lora_A.weight` holds NaN, at element 1",
        "`base_model.model.alone.lora_B.weight` is missing, its partner is there",
        "`ranked` has lora_A [3, 3] and lora_B [5, 3], but the config says rank 2",
        "`vector` has lora_A [2] and lora_B [5, 2], which are no matrices",
        "lora_embedding_A` is an update of an embedding",
        "lora_magnitude_vector` is a magnitude of DoRA",
        "lora_A.default.weight` has an adapter's name in it",
        "`base_model.model.lm_head.modules_to_save.default.weight` has an adapter's name in it",
        "`base_model.model.norm.scale` is no part of an adapter that is known",
        "`lora_A.weight` has a name that does not begin with `base_model.model.`",
        "`i` has lora_A of type I32",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn folders_that_are_no_adapter_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let error = read_adapter(&dir.path().join("nowhere")).unwrap_err();
    assert!(error.to_string().starts_with("cannot open the folder"), "{error}");
    assert!(error_of(dir.path()).contains("has no `adapter_config.json`"));
    let named = dir.path().join("french");
    fs::create_dir(&named).unwrap();
    fs::write(named.join(CONFIG_FILE), config().to_string()).unwrap();
    assert!(read_adapter(dir.path()).unwrap_err().hint().unwrap().ends_with("french"));
    assert!(error_of(&named).ends_with("has no `adapter_model.safetensors`"));
    fs::write(named.join("adapter_model.bin"), "pickle").unwrap();
    let error = read_adapter(&named).unwrap_err();
    assert!(error.to_string().contains("(pickle), which is not read"), "{error}");
    assert!(error.hint().unwrap().contains("safe_serialization=True"));
}

#[test]
fn an_adapter_without_tensors_is_refused() {
    let dir = folder(&config(), &[]);
    assert!(error_of(dir.path()).contains("`adapter_model.safetensors` holds no tensor"));
}

#[test]
fn every_cut_and_every_flipped_bit_of_the_header_is_an_error_or_the_same_adapter() {
    let dir = folder(&config(), &good_tensors());
    let path = dir.path().join(WEIGHTS_FILE);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(read_adapter(dir.path()).is_err(), "cut to {length} bytes");
    }
    let header_bytes = whole.len() - 16 * 4;
    for place in 0..header_bytes {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << bit;
            fs::write(&path, &flipped).unwrap();
            if let Ok((_, weights)) = read_adapter(dir.path()) {
                assert_eq!(weights.modules.len(), 1, "byte {place}, bit {bit}");
            }
        }
    }
}

#[test]
fn what_cannot_be_read_back_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut weights) = read_adapter(folder(&config(), &good_tensors()).path()).unwrap();
    let module = "model.layers.0.self_attn.q_proj";
    let factors = weights.modules.get_mut(module).unwrap();
    factors.b[0] = f32::INFINITY;
    let error = write_adapter(&dir.path().join("out"), &config, &weights).unwrap_err();
    assert!(error.to_string().contains("has inf in B, at element 0"), "{error}");
    assert!(!dir.path().join("out").exists());
}

#[test]
fn a_write_that_fails_leaves_the_files_that_were_there() {
    let dir = folder(&config(), &good_tensors());
    let before = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
    let (config, weights) = read_adapter(dir.path()).unwrap();
    let partial = dir.path().join(format!("{WEIGHTS_FILE}.partial"));
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = write_adapter(dir.path(), &config, &weights).unwrap_err();
    assert!(matches!(error, AdapterError::Io { action: "write", .. }), "{error}");
    assert_eq!(fs::read(dir.path().join(WEIGHTS_FILE)).unwrap(), before);
    assert!(!partial.exists());
}

#[test]
fn the_norm_of_the_delta_is_that_of_the_product() {
    let factors = LoraFactors {
        a: vec![1.0, 2.0, 3.0, -1.0, 0.5, 0.0],
        b: vec![1.0, 2.0, 0.0, -1.0, 3.0, 1.0, 4.0, 4.0],
        rank: 2,
        d_in: 3,
        d_out: 4,
    };
    let mut squared = 0.0_f64;
    for o in 0..4 {
        for i in 0..3 {
            let delta = f64::from(factors.b[o * 2] * factors.a[i])
                + f64::from(factors.b[o * 2 + 1] * factors.a[3 + i]);
            squared += delta * delta;
        }
    }
    assert!((factors.delta_norm() - squared.sqrt()).abs() < 1e-12);
    assert_eq!(factors.fault(), None);
}

#[test]
fn faults_name_factor_and_place() {
    let good = LoraFactors { a: vec![1.0; 6], b: vec![0.0; 8], rank: 2, d_in: 3, d_out: 4 };
    assert!(good.delta_norm().abs() < f64::MIN_POSITIVE);
    let mut bad = good.clone();
    bad.b[5] = f32::INFINITY;
    assert_eq!(bad.fault().unwrap(), "has inf in B, at element 5");
    let short = LoraFactors { a: vec![1.0; 5], ..good };
    assert_eq!(short.fault().unwrap(), "has 5 values in A, not [2, 3]");
}

fn any_config() -> impl Strategy<Value = PeftConfig> {
    let names = prop::collection::vec("[a-z_.]{1,12}", 0..4);
    let scaling = prop_oneof![Just(Scaling::ByRank), Just(Scaling::BySquareRootOfRank)];
    let alphas = prop::collection::btree_map("[a-z_|().]{0,3}[a-z]", 0.5_f64..64.0, 0..3);
    let numbers = (1_usize..9, 0.25_f64..100.0, 0.0_f64..0.9);
    (numbers, scaling, any::<bool>(), prop::option::of(names), alphas).prop_filter_map(
        "patterns compile",
        |((rank, alpha, dropout), scaling, use_dora, names, alphas)| {
            Some(PeftConfig {
                base_model_name_or_path: Some("org/base".to_owned()),
                revision: None,
                rank,
                alpha,
                dropout,
                scaling,
                use_dora,
                target_modules: names.map(ModuleNames::List),
                exclude_modules: None,
                rank_pattern: ModulePatterns::default(),
                alpha_pattern: ModulePatterns::new(alphas).ok()?,
                target_parameters: Vec::new(),
                ..PeftConfig::default()
            })
        },
    )
}

fn any_weights(config: &PeftConfig) -> impl Strategy<Value = AdapterWeights> + use<> {
    let (rank, use_dora) = (config.rank, config.use_dora);
    let values = move |count: usize| prop::collection::vec(-1e6_f32..1e6, count);
    let factors = (1_usize..6, 1_usize..6).prop_flat_map(move |(d_in, d_out)| {
        (values(rank * d_in), values(d_out * rank)).prop_map(move |(a, b)| LoraFactors {
            a,
            b,
            rank,
            d_in,
            d_out,
        })
    });
    prop::collection::btree_map("[a-z0-9_]{1,5}(\\.[a-z0-9_]{1,5}){0,3}", factors, 1..5).prop_map(
        move |modules| {
            let magnitude = |(name, factors): (&String, &LoraFactors)| {
                (name.clone(), (0..factors.d_out).map(|row| row as f32 - 0.5).collect())
            };
            let magnitudes =
                if use_dora { modules.iter().map(magnitude).collect() } else { BTreeMap::new() };
            AdapterWeights { modules, magnitudes, ..AdapterWeights::default() }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back_and_written_again_to_the_same_bytes(
        (config, weights) in any_config()
            .prop_flat_map(|config| {
                let weights = any_weights(&config);
                (Just(config), weights)
            })
    ) {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_adapter(first.path(), &config, &weights).unwrap();
        let (read_config, read_weights) = read_adapter(first.path()).unwrap();
        prop_assert_eq!(&read_config, &config);
        prop_assert_eq!(&read_weights, &weights);
        write_adapter(second.path(), &read_config, &read_weights).unwrap();
        for name in [CONFIG_FILE, WEIGHTS_FILE] {
            let bytes = |dir: &TempDir| fs::read(dir.path().join(name)).unwrap();
            prop_assert_eq!(bytes(&first), bytes(&second));
        }
        prop_assert_eq!(fs::read_dir(first.path()).unwrap().count(), 2);
    }
}
