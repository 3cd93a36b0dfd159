//! Mixes against mergekit's on the same tensors, and models that cannot be mixed.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::rules::{Consensus, agree};
use super::*;
use crate::safetensors_file::{TensorSpec, header, write_f32};
use crate::weights::Network;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn fixture() -> (Tensors, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/mix");
    let tensors = crate::weights::read_safetensors(&folder.join("mix.safetensors")).unwrap();
    let cases = std::fs::read(folder.join("mix.json")).unwrap();
    (tensors, serde_json::from_slice(&cases).unwrap())
}

/// A folder with the tensors whose names begin with `prefix`.
fn folder(tensors: &Tensors, prefix: &str, config: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let own: Vec<_> = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
        .collect();
    let spec = |&(name, (shape, _)): &(&str, &(Vec<usize>, Vec<f32>))| TensorSpec {
        name: name.to_owned(),
        dtype: Dtype::F32,
        shape: shape.clone(),
    };
    let mut bytes = header(&own.iter().map(spec).collect::<Vec<_>>());
    for (_, (_, values)) in &own {
        write_f32(&mut bytes, values).unwrap();
    }
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn config() -> Value {
    json!({"model_type": "llama", "rope_theta": 1e4, "torch_dtype": "float32"})
}

fn open(folder: &TempDir) -> ModelFiles {
    ModelFiles::open(&folder.path().display().to_string(), Network::Offline).unwrap()
}

fn settings(method: MixMethod) -> MixSettings {
    let density = method.needs_density().then_some(0.5);
    MixSettings { method, weights: Vec::new(), position: None, density, seed: 0 }
}

fn of_case(case: &Value) -> MixSettings {
    let method = MixMethod::ALL.iter().find(|row| case["method"] == row.0).unwrap().1;
    let weights = case["weights"].as_array().into_iter().flatten();
    MixSettings {
        method,
        weights: weights.map(|weight| weight.as_f64().unwrap()).collect(),
        position: case["position"].as_f64(),
        density: case["density"].as_f64(),
        seed: 0,
    }
}

fn assert_close(case: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 2e-6, "{case}: {found} {expected}");
    }
}

#[test]
fn every_method_mixes_as_mergekit_does() {
    let (tensors, cases) = fixture();
    let names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"];
    for (case, row) in cases.as_object().unwrap() {
        let settings = of_case(row);
        let models = row["models"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        if matches!(settings.method, MixMethod::DareLinear | MixMethod::DareTies) {
            for name in names {
                given_masks(&tensors, case, name, &settings, &models.clone().collect::<Vec<_>>());
            }
            continue;
        }
        let folders: Vec<_> =
            models.map(|model| folder(&tensors, &format!("in.{model}."), &config())).collect();
        let base = folder(&tensors, "in.base.", &config());
        let base = settings.method.needs_base().then(|| open(&base));
        let mixed = mix(folders.iter().map(open).collect(), base, &settings).unwrap();
        for name in names {
            let (shape, expected) = &tensors[&format!("out.{case}.{name}")];
            assert_close(case, &mixed.weights().read_f32(name).unwrap(), expected);
            // A part of the rows is a part of the whole.
            let columns = shape.iter().skip(1).product::<usize>();
            let rows = mixed.weights().read_rows_f32(name, 3..7).unwrap();
            assert_close(case, &rows, &expected[3 * columns..7 * columns]);
        }
    }
}

/// DARE with what mergekit drew.
fn given_masks(tensors: &Tensors, case: &str, name: &str, settings: &MixSettings, models: &[&str]) {
    let weights: Vec<f32> = settings.weights.iter().map(|weight| *weight as f32).collect();
    let density = settings.density.unwrap() as f32;
    let (_, base) = &tensors[&format!("in.base.{name}")];
    let consensus = match settings.method {
        MixMethod::DareTies => Consensus::SumOfAgreeing,
        _ => Consensus::None,
    };
    let found: Vec<f32> = (0..base.len())
        .map(|place| {
            let change = |(n, model): (usize, &&str)| {
                let mask = tensors[&format!("mask.{case}.{name}.{n}")].1[place];
                let value = tensors[&format!("in.{model}.{name}")].1[place];
                (value - base[place]) * mask / density
            };
            let changes: Vec<f32> = models.iter().enumerate().map(change).collect();
            base[place] + agree(&changes, &weights, consensus)
        })
        .collect();
    assert_close(case, &found, &tensors[&format!("out.{case}.{name}")].1);
}

#[test]
fn random_pruning_keeps_its_share_and_repeats_under_a_seed() {
    let shape = vec![50, 40];
    let values = |offset: f32| (shape.clone(), vec![offset; 2000]);
    let tensors: Tensors =
        [("b.w".to_owned(), values(0.0)), ("m.w".to_owned(), values(1.0))].into();
    let (base, model) = (folder(&tensors, "b.", &config()), folder(&tensors, "m.", &config()));
    let read = |seed: u64| {
        let settings = MixSettings { density: Some(0.25), seed, ..settings(MixMethod::DareLinear) };
        let mixed = mix(vec![open(&model)], Some(open(&base)), &settings).unwrap();
        let whole = mixed.weights().read_f32("w").unwrap();
        assert_eq!(mixed.weights().read_rows_f32("w", 9..11).unwrap(), whole[360..440]);
        whole
    };
    let first = read(0);
    assert!(first.iter().all(|value| *value == 0.0 || *value == 4.0));
    let kept = first.iter().filter(|value| **value > 0.0).count();
    assert!((400..600).contains(&kept), "{kept}");
    assert_eq!(read(0), first);
    assert_ne!(read(1), first);
}

#[test]
fn what_does_not_go_together_is_named() {
    let (tensors, _) = fixture();
    let of = |model: &str, config: &Value| folder(&tensors, &format!("in.{model}."), config);
    let (one, two) = (of("one", &config()), of("two", &config()));
    let pair = || vec![open(&one), open(&two)];
    let refused = |models, base: Option<ModelFiles>, settings: &MixSettings| {
        let error = mix(models, base, settings).err().unwrap();
        format!("{error}; {}", error.hint().unwrap())
    };
    let plain = settings(MixMethod::Linear);
    assert!(refused(vec![open(&one)], None, &plain).contains("at least two models"));
    let ties = settings(MixMethod::Ties);
    assert!(refused(pair(), None, &ties).contains("needs the base"));
    assert!(refused(pair(), Some(open(&one)), &plain).contains("takes no base"));
    let bare = MixSettings { density: None, ..ties.clone() };
    assert!(refused(pair(), Some(open(&one)), &bare).contains("needs a density; `--density 0.5`"));
    let far = MixSettings { position: Some(1.5), ..settings(MixMethod::Slerp) };
    assert!(refused(pair(), None, &far).contains("from 0 to 1"));
    let odd = MixSettings { weights: vec![1.0], ..plain.clone() };
    assert!(refused(pair(), None, &odd).contains("one weight for each"));
    let none = MixSettings { weights: vec![1.0, -1.0], ..plain.clone() };
    assert!(refused(pair(), None, &none).contains("sum is not 0"));

    let other = of("two", &json!({"model_type": "llama", "rope_theta": 5e5}));
    let message = refused(vec![open(&one), open(&other)], None, &plain);
    assert!(message.contains("`rope_theta` is 10000.0 and 500000.0"), "{message}");
    let mut wider = tensors.clone();
    wider.insert("in.two.model.norm.weight".to_owned(), (vec![15], vec![0.0; 15]));
    let wider = folder(&wider, "in.two.", &config());
    let message = refused(vec![open(&one), open(&wider)], None, &plain);
    assert!(message.contains("`model.norm.weight` has [15], not [14]"), "{message}");
}
