//! Combined adapters against PEFT's on the same factors, and what cannot be combined.

use std::path::Path;

use serde_json::Value;

use super::factors::Letter;
use super::*;

struct Fixture {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    json: Value,
}

impl Fixture {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/combine");
        let bytes = std::fs::read(folder.join("combine.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let values = |data: &[u8]| {
            data.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect()
        };
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, tensor)| (name, (tensor.shape().to_vec(), values(tensor.data()))));
        let json = std::fs::read(folder.join("combine.json")).unwrap();
        Self { tensors: tensors.collect(), json: serde_json::from_slice(&json).unwrap() }
    }

    fn adapter(&self, name: &str) -> (PeftConfig, AdapterWeights) {
        let mut weights = AdapterWeights::default();
        for module in ["q_proj", "up_proj"] {
            let (a_shape, a) = self.tensors[&format!("in.{name}.{module}.A")].clone();
            let (b_shape, b) = self.tensors[&format!("in.{name}.{module}.B")].clone();
            let (rank, d_in, d_out) = (a_shape[0], a_shape[1], b_shape[0]);
            weights.modules.insert(module.to_owned(), LoraFactors { a, b, rank, d_in, d_out });
        }
        let alpha = self.json["alphas"][name].as_f64().unwrap();
        (config(4, alpha), weights)
    }
}

fn config(rank: usize, alpha: f64) -> PeftConfig {
    let names = ["q_proj", "up_proj"].map(str::to_owned).to_vec();
    PeftConfig {
        base_model_name_or_path: None,
        revision: None,
        rank,
        alpha,
        dropout: 0.0,
        scaling: Scaling::ByRank,
        use_dora: false,
        target_modules: Some(ModuleNames::List(names)),
        exclude_modules: None,
        rank_pattern: crate::ModulePatterns::default(),
        alpha_pattern: crate::ModulePatterns::default(),
        target_parameters: Vec::new(),
        ..PeftConfig::default()
    }
}

fn delta(config: &PeftConfig, module: &str, factors: &LoraFactors) -> Vec<f64> {
    let scale = config.scale(module);
    let LoraFactors { a, b, rank, d_in, d_out } = factors;
    let element = |row: usize, column: usize| -> f64 {
        (0..*rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * d_in + column])).sum()
    };
    let rows = 0..*d_out;
    rows.flat_map(|row| (0..*d_in).map(move |column| (row, column)))
        .map(|(row, column)| scale * element(row, column))
        .collect()
}

#[test]
fn every_method_gives_the_deltas_of_peft() {
    let fixture = Fixture::read();
    let cases = fixture.json["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 12);
    for (name, case) in cases {
        let names = case["adapters"].as_array().unwrap().iter();
        let adapters: Vec<_> = names.map(|name| fixture.adapter(name.as_str().unwrap())).collect();
        let weights: Vec<f64> =
            case["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
        let method = CombineMethod::ALL.iter().find(|row| case["method"] == row.0).unwrap().1;
        let request = CombineRequest {
            adapters: &adapters,
            weights: &weights,
            method,
            density: case["density"].as_f64(),
            rank: case["rank"].as_u64().map(|rank| rank as usize),
            majority_sign: match case["majority_sign"].as_str() {
                Some("frequency") => MajoritySign::Frequency,
                _ => MajoritySign::Total,
            },
            seed: 0,
        };
        let (config, mut combined) = combine(&request).unwrap();
        if name.starts_with("dare") {
            given_masks(&fixture, name, &request, &mut combined);
        }
        for (module, factors) in &combined.modules {
            let (_, expected) = &fixture.tensors[&format!("delta.{name}.{module}")];
            let found = delta(&config, module, factors);
            for (found, &expected) in found.iter().zip(expected) {
                let error = (found - f64::from(expected)).abs();
                assert!(error < 1e-4, "{name}, {module}: {found} {expected}");
            }
        }
    }
}

/// Combines again with the masks that PEFT drew.
fn given_masks(
    fixture: &Fixture,
    case: &str,
    request: &CombineRequest,
    combined: &mut AdapterWeights,
) {
    for (module, parts) in &parts_by_module(request) {
        let mask = |letter: Letter, adapter: usize| {
            let letter = match letter {
                Letter::A => "A",
                Letter::B => "B",
                Letter::Dense => "D",
            };
            let (_, mask) = &fixture.tensors[&format!("mask.{case}.{module}.{letter}.{adapter}")];
            mask.iter().map(|&kept| kept != 0.0).collect()
        };
        let elementwise = Elementwise { masks: Some(&mask), ..Elementwise::new(request, module) };
        let factors = match request.rank {
            Some(rank) => dense::approximated(&elementwise, parts, rank).unwrap(),
            None => elementwise.combine(parts),
        };
        combined.modules.insert((*module).to_owned(), factors);
    }
}

fn request<'a>(
    adapters: &'a [(PeftConfig, AdapterWeights)],
    weights: &'a [f64],
    method: CombineMethod,
) -> CombineRequest<'a> {
    let density = method.prunes().then_some(0.5);
    let majority_sign = MajoritySign::Total;
    CombineRequest { adapters, weights, method, density, rank: None, majority_sign, seed: 7 }
}

#[test]
fn random_pruning_repeats_under_a_seed_and_keeps_its_share() {
    let fixture = Fixture::read();
    let adapters = [fixture.adapter("one"), fixture.adapter("two")];
    let first = request(&adapters, &[1.0, 1.0], CombineMethod::DareLinear);
    let (config, weights) = combine(&first).unwrap();
    assert_eq!(combine(&first).unwrap(), (config, weights.clone()));
    assert_ne!(combine(&CombineRequest { seed: 8, ..first }).unwrap().1, weights);
    let one = request(&adapters[..1], &[1.0], CombineMethod::DareLinear);
    let (_, alone) = combine(&CombineRequest { density: Some(0.25), ..one }).unwrap();
    let values = alone.modules.values().flat_map(|f| f.a.iter().chain(&f.b));
    let (kept, all) = (values.clone().filter(|v| **v != 0.0).count(), values.count());
    assert!((kept as f64 / all as f64 - 0.25).abs() < 0.1, "{kept} of {all}");
}

#[test]
fn a_full_rank_cut_changes_nothing_and_a_lower_one_keeps_the_most() {
    let (config, weights) = Fixture::read().adapter("one");
    for (module, factors) in &weights.modules {
        let whole = delta(&config, module, factors);
        let error = |rank: usize| -> f64 {
            let cut = delta(&config, module, &truncated(factors, rank));
            cut.iter().zip(&whole).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
        };
        assert!(error(4) < 1e-4 && error(6) < 1e-4);
        assert!(error(3) < error(2) && error(2) < error(1), "{}", error(3));
    }
}

#[test]
fn what_does_not_go_together_is_named() {
    let fixture = Fixture::read();
    let (config_one, one) = fixture.adapter("one");
    let mut narrow = one.clone();
    let cut = truncated(&narrow.modules["q_proj"], 2);
    narrow.modules.insert("q_proj".to_owned(), cut);
    let adapters = [(config_one.clone(), one), (config_one, narrow)];
    let problem = |request: &CombineRequest| combine(request).unwrap_err();
    let ties = request(&adapters, &[1.0, 1.0], CombineMethod::Ties);
    let error = problem(&ties);
    assert!(error.to_string().contains("`q_proj` has different ranks: {2, 4}"), "{error}");
    assert!(error.hint().unwrap().contains("--method cat"));
    assert!(combine(&request(&adapters, &[1.0, 1.0], CombineMethod::Cat)).is_ok());
    let error = problem(&CombineRequest { weights: &[1.0], ..ties });
    assert_eq!(error.to_string(), "1 weights for 2 adapters");
    let error = problem(&CombineRequest { density: None, ..ties });
    assert_eq!(error.to_string(), "method `ties` needs a density");
    let error = problem(&CombineRequest { weights: &[1.0, f64::NAN], ..ties });
    assert_eq!(error.to_string(), "weight NaN is not a finite number");
    let cat = request(&adapters, &[1.0, 1.0], CombineMethod::Cat);
    let error = problem(&CombineRequest { rank: Some(2), ..cat });
    assert_eq!(error.to_string(), "method `cat` takes no rank");
}
