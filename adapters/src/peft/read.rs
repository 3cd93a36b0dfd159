//! Reads an adapter folder, and names everything in it that does not fit at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::{
    A_SUFFIX, AdapterWeights, B_SUFFIX, BASE_LAYER, CONFIG_FILE, LoraFactors, MAGNITUDE_SUFFIX,
    PeftConfig, TENSOR_PREFIX, WEIGHTS_FILE, WholeTensor, config_json,
    experts::{self, Wrapper},
    first_non_finite,
};
use crate::error::{AdapterError, TensorProblem};
use crate::safetensors_file::{HeaderFault, ReadHeader, read_header};

/// A config of the largest models stays below; a larger one is no config.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads `adapter_config.json` and `adapter_model.safetensors` of the folder `dir`.
pub fn read_adapter(dir: &Path) -> Result<(PeftConfig, AdapterWeights), AdapterError> {
    let config = read_config(dir)?;
    let path = dir.join(WEIGHTS_FILE);
    if !path.is_file() {
        return Err(missing_weights(dir));
    }
    let mut file = File::open(&path).map_err(AdapterError::io("open", &path))?;
    let header = read_header(&mut file).map_err(|fault| match fault {
        HeaderFault::Io(source) => AdapterError::io("read", &path)(source),
        HeaderFault::Invalid(reason) => AdapterError::WeightsHeader { path: path.clone(), reason },
    })?;
    let (pairs, whole, mut problems) = paired(&header, &config);
    let mut weights = AdapterWeights::default();
    for (name, info) in whole {
        let values =
            read_tensor(&mut file, &header, info).map_err(AdapterError::io("read", &path))?;
        let tensor = WholeTensor { shape: info.shape.clone(), values };
        problems.extend(tensor.fault().map(|fault| TensorProblem::new(&name, fault)));
        weights.whole.insert(name, tensor);
    }
    for (module, pair) in pairs {
        let factors = pair.read(&mut file, &header).map_err(AdapterError::io("read", &path))?;
        problems.extend(non_finite(&module, &factors));
        if let Some(info) = pair.magnitude {
            let values =
                read_tensor(&mut file, &header, info).map_err(AdapterError::io("read", &path))?;
            problems.extend(broken(&module, MAGNITUDE_SUFFIX, &values));
            weights.magnitudes.insert(module.clone(), values);
        }
        match &pair.parameter {
            None => _ = weights.modules.insert(module, factors),
            Some((wrapper, rank)) => {
                weights.modules.extend(experts::split(&config, wrapper, &factors, *rank));
            }
        }
    }
    if problems.is_empty() {
        return Ok((config, weights));
    }
    problems.sort_by(|x, y| x.name.cmp(&y.name));
    Err(AdapterError::Tensors { path, problems })
}

/// Reads the config alone.
fn read_config(dir: &Path) -> Result<PeftConfig, AdapterError> {
    let path = dir.join(CONFIG_FILE);
    if !path.is_file() {
        fs::read_dir(dir).map_err(AdapterError::io("open the folder", dir))?;
        return Err(AdapterError::NoConfig { path: dir.to_owned(), inside: adapters_inside(dir) });
    }
    let file = File::open(&path).map_err(AdapterError::io("open", &path))?;
    let mut text = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(AdapterError::io("read", &path))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        let reason = format!("it has more than {MAX_CONFIG_BYTES} bytes");
        return Err(AdapterError::ConfigSyntax { path, reason });
    }
    config_json::parse(&path, &text)
}

/// PEFT saves adapters that are not named `default` in folders of their names.
fn adapters_inside(dir: &Path) -> Vec<String> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.join(CONFIG_FILE).is_file())
        .map(|path| path.display().to_string())
        .collect();
    found.sort_unstable();
    found
}

fn missing_weights(dir: &Path) -> AdapterError {
    let path = dir.to_owned();
    if dir.join("adapter_model.bin").is_file() {
        AdapterError::PickledWeights { path }
    } else {
        AdapterError::NoWeights { path }
    }
}

/// Where the two factors of a module are, and their sizes.
struct Pair<'a> {
    a: &'a TensorInfo,
    b: &'a TensorInfo,
    magnitude: Option<&'a TensorInfo>,
    rank: usize,
    d_in: usize,
    d_out: usize,
    /// The experts it is of, and the rank of each.
    parameter: Option<(Wrapper, usize)>,
}

impl Pair<'_> {
    fn read(&self, file: &mut File, header: &ReadHeader) -> io::Result<LoraFactors> {
        Ok(LoraFactors {
            a: read_tensor(file, header, self.a)?,
            b: read_tensor(file, header, self.b)?,
            rank: self.rank,
            d_in: self.d_in,
            d_out: self.d_out,
        })
    }
}

/// Tensors that take the place of the base's, by their names there.
type Whole<'a> = BTreeMap<String, &'a TensorInfo>;

/// The good pairs by module, whole tensors, and what is wrong with everything else.
fn paired<'a>(
    header: &'a ReadHeader,
    config: &PeftConfig,
) -> (BTreeMap<String, Pair<'a>>, Whole<'a>, Vec<TensorProblem>) {
    let tensors: BTreeMap<String, &TensorInfo> = header.metadata.tensors().into_iter().collect();
    let mut problems = Vec::new();
    let (mut modules, mut whole) = (BTreeSet::new(), Whole::new());
    for (name, &info) in &tensors {
        match place_of(name) {
            Ok(Place::Update(module)) => _ = modules.insert(module),
            Ok(Place::Whole(tensor)) => match wrong_type(info) {
                None => _ = whole.insert(tensor, info),
                Some(reason) => problems.push(TensorProblem::new(name, reason)),
            },
            Err(reason) => problems.push(TensorProblem::new(name, reason)),
        }
    }
    let mut pairs = BTreeMap::new();
    for module in modules {
        match pair_of(&tensors, module, config) {
            Ok(pair) => _ = pairs.insert(module.to_owned(), pair),
            Err(problem) => problems.push(problem),
        }
    }
    if pairs.is_empty() && whole.is_empty() && problems.is_empty() {
        problems.push(TensorProblem::new(WEIGHTS_FILE, "holds no tensor"));
    }
    (pairs, whole, problems)
}

fn wrong_type(info: &TensorInfo) -> Option<String> {
    let is_read = matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
    (!is_read).then(|| format!("has type {}; F32, F16, BF16 are read", info.dtype))
}

/// What a tensor of the file is.
enum Place<'a> {
    /// A part of the update of a module.
    Update(&'a str),
    /// In place of the base's tensor of this name.
    Whole(String),
}

/// What a tensor is, or why it is nothing that is known.
fn place_of(name: &str) -> Result<Place<'_>, &'static str> {
    let Some(rest) = name.strip_prefix(TENSOR_PREFIX) else {
        return Err("has a name that does not begin with `base_model.model.`");
    };
    let suffixes = [A_SUFFIX, B_SUFFIX, MAGNITUDE_SUFFIX];
    match suffixes.iter().find_map(|suffix| rest.strip_suffix(suffix)) {
        Some("") => Err("names no module"),
        Some(module) => Ok(Place::Update(module)),
        None if name.contains("lora_embedding_") => {
            Err("is an update of an embedding, which is not supported")
        }
        None if name.contains(".token_adapter.") => {
            Err("holds rows of single tokens, which are not supported")
        }
        None if [".lora_A.", ".lora_B.", ".modules_to_save."].iter().any(|p| name.contains(p)) => {
            Err("has an adapter's name in it; PEFT files have `.lora_A.weight`, `.lora_B.weight` \
                 and whole tensors by their own names")
        }
        None => match rest.rsplit_once('.') {
            Some((module, kind @ ("weight" | "bias"))) if !module.is_empty() => {
                let module = module.strip_suffix(BASE_LAYER).unwrap_or(module);
                Ok(Place::Whole(format!("{module}.{kind}")))
            }
            _ => Err("is no part of an adapter that is known"),
        },
    }
}

fn pair_of<'a>(
    tensors: &BTreeMap<String, &'a TensorInfo>,
    module: &str,
    config: &PeftConfig,
) -> Result<Pair<'a>, TensorProblem> {
    let tensor = |suffix: &str| {
        let name = format!("{TENSOR_PREFIX}{module}{suffix}");
        tensors.get(&name).copied().ok_or(name)
    };
    let missing = |name: String| TensorProblem::new(name, "is missing, its partner is there");
    let a = tensor(A_SUFFIX).map_err(missing)?;
    let b = tensor(B_SUFFIX).map_err(missing)?;
    let problem = |reason: String| TensorProblem::new(module, reason);
    for (letter, info) in [("A", a), ("B", b)] {
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let reason =
                format!("has lora_{letter} of type {}; F32, F16, BF16 are read", info.dtype);
            return Err(problem(reason));
        }
    }
    let (&[rank, d_in], &[d_out, rank_of_b]) = (a.shape.as_slice(), b.shape.as_slice()) else {
        let (a, b) = (&a.shape, &b.shape);
        return Err(problem(format!("has lora_A {a:?} and lora_B {b:?}, which are no matrices")));
    };
    let wrapper = config.wrapper_at(module);
    let configured = config.rank(&wrapper.as_ref().map_or(module.to_owned(), Wrapper::path));
    let fits = match &wrapper {
        Some(_) => rank > 0 && rank.is_multiple_of(configured.max(1)),
        None => rank == configured,
    };
    if rank != rank_of_b || !fits {
        return Err(problem(format!(
            "has lora_A [{rank}, {d_in}] and lora_B [{d_out}, {rank_of_b}], but the config says \
             rank {configured}"
        )));
    }
    if d_in == 0 || d_out == 0 {
        return Err(problem(format!("has lora_A [{rank}, {d_in}] and lora_B [{d_out}, {rank}]")));
    }
    let magnitude = magnitude_of(tensors, (module, d_out), config)?;
    let parameter = wrapper.map(|wrapper| (wrapper, configured));
    Ok(Pair { a, b, magnitude, rank, d_in, d_out, parameter })
}

/// The magnitude of a module of DoRA; LoRA has none.
fn magnitude_of<'a>(
    tensors: &BTreeMap<String, &'a TensorInfo>,
    (module, d_out): (&str, usize),
    config: &PeftConfig,
) -> Result<Option<&'a TensorInfo>, TensorProblem> {
    let name = format!("{TENSOR_PREFIX}{module}{MAGNITUDE_SUFFIX}");
    let reason = match (tensors.get(&name), config.use_dora) {
        (None, false) => return Ok(None),
        (None, true) => "is missing, but the config says `use_dora`".to_owned(),
        (Some(_), false) => "is a magnitude of DoRA, but the config does not say `use_dora`".into(),
        (Some(info), true) if info.shape != [d_out] => {
            format!("has shape {:?}, the layer has {d_out} outputs", info.shape)
        }
        (Some(info), true) if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
            format!("has type {}; F32, F16, BF16 are read", info.dtype)
        }
        (Some(info), true) => return Ok(Some(info)),
    };
    Err(TensorProblem::new(name, reason))
}

/// The tensor in f32. The header was checked against the file's size, so its length is true.
fn read_tensor(file: &mut File, header: &ReadHeader, info: &TensorInfo) -> io::Result<Vec<f32>> {
    let (start, end) = info.data_offsets;
    let mut bytes = vec![0; end - start];
    file.seek(SeekFrom::Start(header.data_start + start as u64))?;
    file.read_exact(&mut bytes)?;
    let pairs = || bytes.as_chunks::<2>().0.iter().copied();
    Ok(match info.dtype {
        Dtype::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect(),
    })
}

fn non_finite(module: &str, factors: &LoraFactors) -> Vec<TensorProblem> {
    let of_a = broken(module, A_SUFFIX, &factors.a);
    of_a.into_iter().chain(broken(module, B_SUFFIX, &factors.b)).collect()
}

fn broken(module: &str, suffix: &str, values: &[f32]) -> Option<TensorProblem> {
    let (place, value) = first_non_finite(values)?;
    let name = format!("{TENSOR_PREFIX}{module}{suffix}");
    Some(TensorProblem::new(name, format!("holds {value}, at element {place}")))
}
