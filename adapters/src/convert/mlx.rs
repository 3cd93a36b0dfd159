//! MLX adapters: `adapters.safetensors` and an `adapter_config.json` of their own kind.
//!
//! Factors lie transposed: `<module>.lora_a` is `[d_in, rank]`, `<module>.lora_b`
//! `[rank, d_out]`. One rank and one scale hold for all modules, and the scale multiplies as it
//! is: what differs is folded into B, and smaller ranks are filled with zeros.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{from_scaled, refuse_dora, refuse_whole, scaled_modules};
use crate::error::{AdapterError, TensorProblem};
use crate::peft::{AdapterWeights, CONFIG_FILE, LoraFactors, PeftConfig, transposed};
use crate::safetensors_file::{TensorSpec, header, write_f32};
use crate::weights::{ScaledModules, read_safetensors};

const WEIGHTS: &str = "adapters.safetensors";
/// MLX's own default, where a config leaves the scale out.
const DEFAULT_SCALE: f64 = 20.0;

/// Whether the folder holds an adapter of MLX.
pub fn is_mlx_adapter(folder: &Path) -> bool {
    folder.join(WEIGHTS).is_file() && folder.join(CONFIG_FILE).is_file()
}

/// Writes an MLX adapter into `folder`, which is made where it is missing. `layers` is the number
/// of the model's blocks.
pub fn write_mlx_adapter(
    folder: &Path,
    (config, weights): (&PeftConfig, &AdapterWeights),
    layers: usize,
) -> Result<(), AdapterError> {
    refuse_dora(folder, config, "magnitudes are not written to MLX adapters")?;
    refuse_whole(folder, weights, "is a whole tensor, and MLX's adapters hold updates alone")?;
    let rank = weights.modules.values().map(|factors| factors.rank).max().unwrap_or(1);
    let usual = config.scaling.scale(config.alpha, config.rank);
    let scale = if usual.abs() > 0.0 { usual } else { 1.0 };
    let mut tensors = Vec::new();
    for (module, (factors, own_scale)) in scaled_modules(config, weights) {
        let fold = (own_scale / scale) as f32;
        let LoraFactors { mut a, mut b, rank: own_rank, d_in, d_out } = factors;
        a.resize(rank * d_in, 0.0);
        let mut b_transposed = transposed(&b, own_rank);
        b.clear();
        for value in &mut b_transposed {
            *value *= fold;
        }
        b_transposed.resize(rank * d_out, 0.0);
        tensors.push((spec(&module, "lora_a", [d_in, rank]), transposed(&a, d_in)));
        tensors.push((spec(&module, "lora_b", [rank, d_out]), b_transposed));
    }
    fs::create_dir_all(folder).map_err(AdapterError::io("create the folder", folder))?;
    let mut bytes = header(&tensors.iter().map(|row| row.0.clone()).collect::<Vec<_>>());
    let path = folder.join(WEIGHTS);
    for (_, values) in &tensors {
        write_f32(&mut bytes, values).map_err(AdapterError::io("write", &path))?;
    }
    fs::write(&path, bytes).map_err(AdapterError::io("write", &path))?;
    let path = folder.join(CONFIG_FILE);
    let text = format!("{:#}\n", config_json(config, weights, layers, (rank, scale)));
    fs::write(&path, text).map_err(AdapterError::io("write", &path))
}

fn spec(module: &str, ending: &str, shape: [usize; 2]) -> TensorSpec {
    let name = format!("{module}.{ending}");
    TensorSpec { name, dtype: Dtype::F32, shape: shape.to_vec() }
}

fn config_json(
    config: &PeftConfig,
    weights: &AdapterWeights,
    layers: usize,
    (rank, scale): (usize, f64),
) -> Value {
    // Within a block modules are named from there on, others by their whole path.
    let key = |module: &String| {
        let mut parts = module.split('.');
        let inside = parts.by_ref().any(|part| part.parse::<usize>().is_ok());
        if inside { parts.collect::<Vec<_>>().join(".") } else { module.clone() }
    };
    let mut keys: Vec<String> = weights.modules.keys().map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    json!({
        "fine_tune_type": "lora",
        "model": config.base_model_name_or_path,
        "num_layers": layers,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": config.dropout, "keys": keys},
    })
}

/// Reads an MLX adapter.
pub fn read_mlx_adapter(folder: &Path) -> Result<(PeftConfig, AdapterWeights), AdapterError> {
    let path = folder.join(CONFIG_FILE);
    let text = fs::read(&path).map_err(AdapterError::io("read", &path))?;
    let syntax = |reason: String| AdapterError::ConfigSyntax { path: path.clone(), reason };
    let json: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| syntax(error.to_string()))?;
    let kind = json.get("fine_tune_type").and_then(Value::as_str).unwrap_or("lora");
    if kind != "lora" || json.get("use_dora") == Some(&Value::Bool(true)) {
        let features = vec![format!("`fine_tune_type = {kind:?}`")];
        return Err(AdapterError::Unsupported { path, features });
    }
    let parameters = json.get("lora_parameters").cloned().unwrap_or_default();
    let scale = match parameters.get("scale") {
        None => DEFAULT_SCALE,
        Some(scale) => scale.as_f64().ok_or_else(|| syntax(format!("`scale` is {scale}")))?,
    };
    let weights_path = folder.join(WEIGHTS);
    let modules = modules(&weights_path, scale)?;
    let (mut config, weights) = from_scaled(modules);
    config.dropout = parameters.get("dropout").and_then(Value::as_f64).unwrap_or(0.0);
    config.base_model_name_or_path = json.get("model").and_then(Value::as_str).map(str::to_owned);
    Ok((config, weights))
}

fn modules(path: &Path, scale: f64) -> Result<ScaledModules, AdapterError> {
    let tensors = read_safetensors(path)?;
    let mut modules = ScaledModules::new();
    let mut problems = Vec::new();
    for (name, (shape, values)) in &tensors {
        let Some(module) = name.strip_suffix(".lora_a") else {
            let partner = name.strip_suffix(".lora_b").map(|stem| format!("{stem}.lora_a"));
            if !partner.is_some_and(|partner| tensors.contains_key(&partner)) {
                let reason = "is no factor of a LoRA update, or its partner is missing";
                problems.push(TensorProblem::new(name, reason));
            }
            continue;
        };
        let b = tensors.get(&format!("{module}.lora_b"));
        let fitting = match (shape.as_slice(), b.map(|b| (b.0.as_slice(), &b.1))) {
            (&[d_in, rank], Some((&[rank_of_b, d_out], b))) if rank == rank_of_b => {
                Some((d_in, rank, d_out, b))
            }
            _ => None,
        };
        let Some((d_in, rank, d_out, b)) = fitting else {
            problems.push(TensorProblem::new(name, "does not fit its partner `lora_b`"));
            continue;
        };
        let factors =
            LoraFactors { a: transposed(values, rank), b: transposed(b, d_out), rank, d_in, d_out };
        match factors.fault() {
            Some(fault) => problems.push(TensorProblem::new(module, fault)),
            None => _ = modules.insert(module.to_owned(), (factors, scale)),
        }
    }
    if modules.is_empty() && problems.is_empty() {
        problems.push(TensorProblem::new("the file", "holds no update"));
    }
    if problems.is_empty() {
        return Ok(modules);
    }
    Err(AdapterError::Tensors { path: path.to_owned(), problems })
}
