//! The hand-written backward pass against burn's autodiff, over random shapes, ratios of query to key
//! heads, and packings.

use std::collections::BTreeMap;
use std::path::Path;

use adapters::weights::{ModelFiles, Network};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation};
use datasets::{MicroBatch, Origin, TokenizedExample};
use kernels::{AttentionShape, Direction, RotaryHead, RotaryPairs, Segments, Sight, reference};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use trainer::base_model::{ModelLoader, Recompute, StepPlace};

const VOCAB: usize = 23;
const RANK: usize = 3;
const ALPHA: usize = 6;
const THETA: f64 = 10_000.0;
const EPSILON: f64 = 1e-5;

/// A Llama's sizes.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    inner: usize,
    layers: usize,
}

impl Sizes {
    fn hidden(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Linear layers of a block: name, `d_out`, `d_in`.
    fn linears(&self) -> [(&'static str, usize, usize); 7] {
        let (hidden, keys) = (self.hidden(), self.kv_heads * self.head_dim);
        [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", self.inner, hidden),
            ("mlp.up_proj", self.inner, hidden),
            ("mlp.down_proj", hidden, self.inner),
        ]
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Numbers in [-1, 1) that look random.
fn random(state: &mut u64, count: usize, scale: f32) -> Vec<f32> {
    let mut next = || {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*state >> 40) as f32 / 8_388_608.0 - 1.0) * scale
    };
    (0..count).map(|_| next()).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<_, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A model and an adapter of random numbers, in `folder`.
fn create(folder: &Path, sizes: Sizes, seed: u64) -> (Tensors, Tensors) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let (mut base, mut adapter) = (Tensors::new(), Tensors::new());
    let hidden = sizes.hidden();
    let mut add = |to: &mut Tensors, name: String, shape: &[usize], scale: f32| {
        let values = random(&mut state, shape.iter().product(), scale);
        to.insert(name, (shape.to_vec(), values));
    };
    add(&mut base, "model.embed_tokens.weight".to_owned(), &[VOCAB, hidden], 1.0);
    add(&mut base, "lm_head.weight".to_owned(), &[VOCAB, hidden], 0.5);
    add(&mut base, "model.norm.weight".to_owned(), &[hidden], 1.0);
    for layer in 0..sizes.layers {
        let prefix = format!("model.layers.{layer}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(&mut base, format!("{prefix}.{norm}.weight"), &[hidden], 1.0);
        }
        for (name, d_out, d_in) in sizes.linears() {
            let module = format!("{prefix}.{name}");
            let scale = 1.5 / (d_in as f32).sqrt();
            add(&mut base, format!("{module}.weight"), &[d_out, d_in], scale);
            let peft = format!("base_model.model.{module}");
            add(&mut adapter, format!("{peft}.lora_A.weight"), &[RANK, d_in], scale);
            add(&mut adapter, format!("{peft}.lora_B.weight"), &[d_out, RANK], 0.3);
        }
    }
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": sizes.inner, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim, "vocab_size": VOCAB, "tie_word_embeddings": false,
        "rope_theta": THETA, "rms_norm_eps": EPSILON, "max_position_embeddings": 512,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write(&folder.join("model.safetensors"), &base);
    let peft = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA,
        "lora_dropout": 0.0, "bias": "none", "base_model_name_or_path": "base",
        "target_modules": sizes.linears().map(|(name, ..)| name.rsplit('.').next().unwrap()),
    });
    let place = folder.join("adapter");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("adapter_config.json"), peft.to_string()).unwrap();
    write(&place.join("adapter_model.safetensors"), &adapter);
    (base, adapter)
}

fn tensor<const D: usize>(tensors: &Tensors, name: &str) -> Tensor<D> {
    let (shape, values) = &tensors[name];
    let data = TensorData::new(values.clone(), shape.clone());
    Tensor::from_data(data, (&Device::flex(), DType::F32))
}

/// The model in plain operations, with the adapter's factors as leaves.
struct Oracle<'a> {
    sizes: Sizes,
    base: &'a Tensors,
    leaves: &'a BTreeMap<String, Tensor<2>>,
    segments: Segments,
    angles: (Tensor<2>, Tensor<2>),
}

impl Oracle<'_> {
    fn linear(&self, x: &Tensor<2>, module: &str) -> Tensor<2> {
        let leaf = |factor: &str| {
            let name = format!("base_model.model.{module}.{factor}.weight");
            self.leaves[&name].clone().transpose()
        };
        let dense = tensor::<2>(self.base, &format!("{module}.weight")).transpose();
        let scale = ALPHA as f64 / RANK as f64;
        x.clone().matmul(dense) + x.clone().matmul(leaf("lora_A")).matmul(leaf("lora_B")) * scale
    }

    fn norm(&self, x: &Tensor<2>, name: &str) -> Tensor<2> {
        reference::rms_norm(x, &tensor::<1>(self.base, &format!("{name}.weight")), EPSILON)
    }

    fn block(&self, x: &Tensor<2>, layer: usize) -> Tensor<2> {
        let Sizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let normed = self.norm(x, &name("input_layernorm"));
        let linear = |part: &str| self.linear(&normed, &name(&format!("self_attn.{part}")));
        let turn = |x: Tensor<2>| {
            let head = RotaryHead { head_dim, pairs: RotaryPairs::HalfSplit };
            reference::rope(x, (&self.angles.0, &self.angles.1), head, Direction::Forward)
        };
        let (q, k, v) = (turn(linear("q_proj")), turn(linear("k_proj")), linear("v_proj"));
        let scale = 1.0 / (head_dim as f64).sqrt();
        let sight = Sight::Whole;
        let shape = AttentionShape { heads, kv_heads, head_dim, scale, sight, soft_cap: None };
        let attended = reference::attention(&q, &k, &v, shape, &self.segments).output;
        let x = x.clone() + self.linear(&attended, &name("self_attn.o_proj"));
        let normed = self.norm(&x, &name("post_attention_layernorm"));
        let gate = activation::silu(self.linear(&normed, &name("mlp.gate_proj")));
        let up = self.linear(&normed, &name("mlp.up_proj"));
        x + self.linear(&(gate * up), &name("mlp.down_proj"))
    }

    fn loss(&self, batch: &MicroBatch) -> Tensor<1> {
        let ids = |ids: Vec<i64>| {
            let count = ids.len();
            Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &Device::flex())
        };
        let embedding = tensor::<2>(self.base, "model.embed_tokens.weight");
        let tokens = batch.token_ids.iter().map(|&id| i64::from(id)).collect();
        let mut x = embedding.select(0, ids(tokens)).autodiff();
        for layer in 0..self.sizes.layers {
            x = self.block(&x, layer);
        }
        let head = tensor::<2>(self.base, "lm_head.weight").transpose();
        let logits = self.norm(&x, "model.norm").matmul(head);
        let (rows, wanted): (Vec<i64>, Vec<i64>) = batch
            .targets
            .iter()
            .enumerate()
            .filter(|(_, target)| **target >= 0)
            .map(|(row, &target)| (row as i64, i64::from(target)))
            .unzip();
        let count = rows.len();
        let picked = activation::log_softmax(logits, 1).select(0, ids(rows));
        picked.gather(1, ids(wanted).reshape([count, 1])).sum().neg()
    }
}

fn angles(lengths: &[usize], head_dim: usize) -> (Tensor<2>, Tensor<2>) {
    let half = head_dim / 2;
    let positions = lengths.iter().flat_map(|&length| 0..length);
    let angle = |position: usize, pair: usize| {
        position as f64 / THETA.powf(2.0 * pair as f64 / head_dim as f64)
    };
    let all: Vec<f64> = positions.flat_map(|p| (0..half).map(move |pair| angle(p, pair))).collect();
    let rows = all.len() / half;
    let values = |of: fn(f64) -> f64| {
        let values: Vec<f32> = all.iter().map(|&angle| of(angle) as f32).collect();
        Tensor::from_data(TensorData::new(values, [rows, half]), &Device::flex())
    };
    (values(f64::cos), values(f64::sin))
}

fn examples(lengths: &[usize], seed: u64) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (index, &length) in lengths.iter().enumerate() {
        let id = |i: usize| ((seed as usize + 7 * index + i * i) % VOCAB) as u32;
        let token_ids: Vec<u32> = (0..length).map(id).collect();
        let label = |i: usize| if i.is_multiple_of(3) { -100 } else { id(i) as i32 };
        batch.push(&TokenizedExample {
            labels: (0..length).map(label).collect(),
            token_ids,
            dataset: 0,
            origin: Origin { file: 0, line: index as u64 + 1, part: 0 },
        });
    }
    batch
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn gradients_are_those_of_autodiff(
        (heads, kv_heads) in prop::sample::select(vec![(1, 1), (2, 1), (4, 2), (3, 3), (6, 2)]),
        head_dim in prop::sample::select(vec![4_usize, 8, 10]),
        inner in 3_usize..20,
        layers in 1_usize..4,
        lengths in prop::collection::vec(3_usize..12, 1..5),
        seed in 0_u64..1000,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let sizes = Sizes { heads, kv_heads, head_dim, inner, layers };
        let (base, adapter) = create(folder.path(), sizes, seed);
        let batch = examples(&lengths, seed);
        let files = ModelFiles::open(folder.path().to_str().unwrap(), Network::Offline).unwrap();
        let loader = ModelLoader::new(&files, &Device::flex(), DType::F32).unwrap();
        let mut decoder = loader.decoder().unwrap();
        let (peft, weights) = adapters::read_adapter(&folder.path().join("adapter")).unwrap();
        decoder.attach(&peft, &weights);
        let place = StepPlace { step: 0, micro_batch: 0 };
        let ours = decoder.loss_and_gradients(&batch, 1.0, place, Recompute::Nothing);

        let leaves: BTreeMap<_, _> = adapter
            .keys()
            .map(|name| (name.clone(), tensor::<2>(&adapter, name).autodiff().require_grad()))
            .collect();
        let segments = Segments::of_tokens(&batch.segment_starts);
        let angles = angles(&lengths, head_dim);
        let oracle = Oracle { sizes, base: &base, leaves: &leaves, segments, angles };
        let loss = oracle.loss(&batch);
        let expected = f64::from(kernels::values(loss.clone().inner())[0]);
        prop_assert!((ours.loss_sum - expected).abs() <= 1e-5 * expected.abs(), "{} is not {expected}", ours.loss_sum);
        let mut gradients = loss.backward();
        for (module, found) in &ours.gradients {
            for (factor, actual) in [("lora_A", &found.a), ("lora_B", &found.b)] {
                let leaf = &leaves[&format!("base_model.model.{module}.{factor}.weight")];
                let expected = kernels::to_f32(&leaf.grad_remove(&mut gradients).unwrap());
                let error = crate::fixture::relative_error(&kernels::to_f32(actual), &expected);
                prop_assert!(error < 1e-5, "{module}.{factor} is off by {error}");
            }
        }
    }
}
