//! Adapters that go to another format and come back.

use super::*;
use crate::weights::Network;

fn base() -> ModelFiles {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny_llama");
    ModelFiles::open(path.to_str().unwrap(), Network::Offline).unwrap()
}

fn values(count: usize, salt: usize) -> Vec<f32> {
    (0..count).map(|n| ((n * 31 + salt) as f32 * 0.77).sin()).collect()
}

/// Two modules of different rank and scale; keys have their rows in another order in GGUF.
fn adapter(base: &ModelFiles) -> (PeftConfig, AdapterWeights) {
    let mut modules = ScaledModules::new();
    for (module, rank, scale) in [
        ("model.layers.0.self_attn.k_proj", 4, 2.0),
        ("model.layers.1.self_attn.k_proj", 4, 2.0),
        ("model.layers.1.mlp.down_proj", 2, 0.75),
    ] {
        let shape = &base.weights().entries()[&format!("{module}.weight")].shape;
        let (d_out, d_in) = (shape[0], shape[1]);
        let (a, b) = (values(rank * d_in, 1), values(d_out * rank, 2));
        modules.insert(module.to_owned(), (LoraFactors { a, b, rank, d_in, d_out }, scale));
    }
    from_scaled(modules)
}

fn deltas((config, weights): &(PeftConfig, AdapterWeights)) -> Vec<(String, Vec<f64>)> {
    let delta = |(module, factors): (&String, &LoraFactors)| {
        let LoraFactors { a, b, rank, d_in, d_out } = factors;
        let scale = config.scale(module);
        let mut out = vec![0.0; d_out * d_in];
        for (row, out) in out.chunks_exact_mut(*d_in).enumerate() {
            for k in 0..*rank {
                let b = scale * f64::from(b[row * rank + k]);
                out.iter_mut().zip(&a[k * d_in..]).for_each(|(out, a)| *out += b * f64::from(*a));
            }
        }
        (module.clone(), out)
    };
    weights.modules.iter().map(delta).collect()
}

fn assert_same(found: &(PeftConfig, AdapterWeights), expected: &(PeftConfig, AdapterWeights)) {
    let (found, expected) = (deltas(found), deltas(expected));
    assert_eq!(found.len(), expected.len());
    for ((module, found), (expected_module, expected)) in found.iter().zip(&expected) {
        assert_eq!(module, expected_module);
        let same = found.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-5);
        assert!(same && found.len() == expected.len(), "{module}");
    }
}

#[test]
fn gguf_and_back_is_the_same_update() {
    let base = base();
    let adapter = adapter(&base);
    assert_eq!(adapter.0.rank_pattern.iter().count(), 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/a.gguf");
    write_gguf_adapter(&path, (&adapter.0, &adapter.1), &base, "mine").unwrap();
    let read = read_gguf_adapter(&path, &base).unwrap();
    assert_same(&read, &adapter);
    assert_eq!(read.1.modules["model.layers.1.mlp.down_proj"].rank, 2);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    let name = path.to_str().unwrap();
    let Err(error) = ModelFiles::open(name, Network::Offline) else { panic!("opened as a model") };
    assert!(error.to_string().contains("`adapter` is not supported"), "{error}");
}

#[test]
fn rank_stabilised_scales_are_folded() {
    let base = base();
    let (mut config, weights) = adapter(&base);
    config.scaling = Scaling::BySquareRootOfRank;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    write_gguf_adapter(&path, (&config, &weights), &base, "mine").unwrap();
    assert_same(&read_gguf_adapter(&path, &base).unwrap(), &(config.clone(), weights.clone()));
    write_mlx_adapter(folder.path(), (&config, &weights), 4).unwrap();
    assert_same(&read_mlx_adapter(folder.path()).unwrap(), &(config, weights));
}

#[test]
fn mlx_and_back_is_the_same_update() {
    let base = base();
    let adapter = adapter(&base);
    let folder = tempfile::tempdir().unwrap();
    write_mlx_adapter(folder.path(), (&adapter.0, &adapter.1), 4).unwrap();
    assert!(is_mlx_adapter(folder.path()));
    assert_same(&read_mlx_adapter(folder.path()).unwrap(), &adapter);
    let text = std::fs::read(folder.path().join("adapter_config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let keys = serde_json::json!(["mlp.down_proj", "self_attn.k_proj"]);
    assert_eq!(json["lora_parameters"]["keys"], keys);
    assert_eq!(json["num_layers"], 4);
    let bytes = std::fs::read(folder.path().join("adapters.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| file.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("model.layers.0.self_attn.k_proj.lora_a"), [128, 4]);
    assert_eq!(shape("model.layers.1.mlp.down_proj.lora_b"), [4, 128]);
}

#[test]
fn what_the_format_cannot_hold_is_named() {
    let base = base();
    let (config, mut weights) = adapter(&base);
    let factors = weights.modules["model.layers.1.mlp.down_proj"].clone();
    weights.modules.insert("model.layers.0.mlp.router".to_owned(), factors.clone());
    weights.modules.insert("lm_head".to_owned(), factors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let error = write_gguf_adapter(&path, (&config, &weights), &base, "mine").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("router` has no name in GGUF") && text.contains("`lm_head` is tied"));
    assert!(!path.exists());
    std::fs::write(folder.path().join("adapters.safetensors"), "x").unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), "{\"fine_tune_type\": \"dora\"}")
        .unwrap();
    let error = read_mlx_adapter(folder.path()).unwrap_err();
    assert!(error.to_string().contains("fine_tune_type = \"dora\""), "{error}");
}
