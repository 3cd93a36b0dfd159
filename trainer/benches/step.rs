//! Time of the gradients of a whole training step, by length of the rows and by size of the model.
//!
//!   cargo bench --workspace --bench step
//!
//! Models are Llamas of random weights, written to a temporary folder; LoRA of rank 16 on every
//! linear layer, every token trained. An `item` of the table is a token. A `char` is a microsecond
//! of the machine at the rate of products that is measured first, so `0.8 Mchar/s` means 80 % of
//! it; what counts are the products that cannot be left out: forward, input gradients, adapters,
//! and half of attention's square.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run stops")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use adapters::weights::{ModelFiles, Network};
use adapters::{LoraConfig, PeftConfig, initial_factors, select_targets};
use burn::tensor::{DType, Device};
use datasets::{MicroBatch, Origin, TokenizedExample};
use divan::Bencher;
use divan::counter::{CharsCount, ItemsCount};
use kernels::Threads;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use trainer::base_model::{
    BaseFormat, BaseStorage, Decoder, DecoderConfig, ModelLoader, Recompute, StepPlace,
    linear_layers,
};

/// The program's allocator, which keeps freed pages in training.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 2 and 3, which its bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

const RANK: usize = 16;

/// A Llama's sizes.
#[derive(Debug, Clone, Copy)]
struct Shape {
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    tied: bool,
}

/// SmolLM2-135M, SmolLM2-360M and TinyLlama-1.1B.
const SHAPES: [(&str, Shape); 3] = [
    (
        "135M",
        Shape {
            hidden: 576,
            inner: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            vocab: 49_152,
            tied: true,
        },
    ),
    (
        "360M",
        Shape {
            hidden: 960,
            inner: 2560,
            layers: 32,
            heads: 15,
            kv_heads: 5,
            vocab: 49_152,
            tied: true,
        },
    ),
    (
        "1.1B",
        Shape {
            hidden: 2048,
            inner: 5632,
            layers: 22,
            heads: 32,
            kv_heads: 4,
            vocab: 32_000,
            tied: false,
        },
    ),
];

impl Shape {
    fn named(name: &str) -> Self {
        SHAPES.into_iter().find(|(known, _)| *known == name).expect("a name of the table").1
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Self { hidden, inner, vocab, .. } = *self;
        let keys = hidden / self.heads * self.kv_heads;
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
        for layer in 0..self.layers {
            for (name, shape) in [
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![keys, hidden]),
                ("self_attn.v_proj", vec![keys, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
            ] {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
        }
        tensors
    }

    fn write(&self, folder: &Path) {
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0,
            "hidden_act": "silu",
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let tensors = self.tensors();
        let largest = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).max();
        // Values between -0.02 and 0.02; every tensor begins with the same ones.
        let bytes: Vec<u8> = (0..largest.unwrap_or(0))
            .flat_map(|i| {
                let value = ((i * 7919) % 1009) as f32 / 1009.0 - 0.5;
                half::bf16::from_f32(0.04 * value).to_le_bytes()
            })
            .collect();
        let views = tensors.into_iter().map(|(name, shape)| {
            let count: usize = shape.iter().product();
            (name, TensorView::new(Dtype::BF16, shape, &bytes[..2 * count]).unwrap())
        });
        let path = folder.join("model.safetensors");
        safetensors::serialize_to_file(views, None::<HashMap<_, _>>, &path).unwrap();
    }

    /// The model with a fresh adapter.
    fn decoder(&self, dtype: DType) -> Decoder {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        let files = ModelFiles::open(folder.path().to_str().unwrap(), Network::Offline).unwrap();
        let config = DecoderConfig::read(files.config()).unwrap();
        let format = BaseFormat { dtype, storage: BaseStorage::Dense };
        let mut decoder =
            ModelLoader::new(&files, &Device::flex(), format).unwrap().decoder().unwrap();
        let layers = linear_layers(&config);
        let lora: LoraConfig = serde_json::from_value(json!({ "rank": RANK })).unwrap();
        let targets = select_targets(&lora, &layers).unwrap();
        let peft = PeftConfig::from_recipe(&lora, &targets, &layers, "random").unwrap();
        decoder.attach(&peft, &initial_factors(&targets, &lora, 0, &files).unwrap());
        decoder
    }

    /// Products of a step, in operations.
    fn operations(&self, rows: usize, length: usize) -> f64 {
        let Self { hidden, inner, heads, kv_heads, vocab, layers, .. } = *self;
        let keys = hidden / heads * kv_heads;
        let linears = [
            (hidden, hidden),
            (hidden, keys),
            (hidden, keys),
            (hidden, hidden),
            (hidden, inner),
            (hidden, inner),
            (inner, hidden),
        ];
        let of_block: usize =
            linears.iter().map(|(from, to)| 4 * from * to + 6 * RANK * (from + to)).sum();
        // Two products forward and five backward over what the causal mask leaves.
        let attention = 7 * hidden * length;
        let per_token = layers * (of_block + attention) + 4 * hidden * vocab;
        (per_token * rows * length) as f64
    }
}

fn batch(rows: usize, length: usize, vocab: usize) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for row in 0..rows {
        let token_ids: Vec<u32> =
            (0..length).map(|i| ((row * length + i) * 7919 % vocab) as u32).collect();
        batch.push(&TokenizedExample {
            labels: token_ids.iter().map(|&id| id as i32).collect(),
            token_ids,
            dataset: 0,
            origin: Origin { file: 0, line: row as u64 + 1, part: 0 },
        });
    }
    batch
}

static OPERATIONS_PER_SECOND: LazyLock<f64> = LazyLock::new(|| {
    kernels::measure_matrix_library(kernels::matrix_library(), Threads::All, 12)
        .expect("the library in use is open")
});

static SMALL: LazyLock<Decoder> = LazyLock::new(|| Shape::named(SHAPES[0].0).decoder(DType::F32));

#[expect(clippy::print_stdout, unsafe_code, reason = "the head of the table; the allocator")]
fn main() {
    // SAFETY: sets one number in mimalloc's table of options; any value of the type is valid.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    println!(
        "products: {:.1} GFLOP/s by {}",
        *OPERATIONS_PER_SECOND / 1e9,
        kernels::matrix_library().name()
    );
    divan::main();
}

fn measure(
    bencher: Bencher,
    decoder: &Decoder,
    shape: Shape,
    (rows, length): (usize, usize),
    recompute: Recompute,
) {
    let batch = batch(rows, length, shape.vocab);
    let factor = 1.0 / batch.trained_tokens() as f64;
    let place = StepPlace { step: 0, micro_batch: 0 };
    let microseconds = 1e6 * shape.operations(rows, length) / *OPERATIONS_PER_SECOND;
    bencher
        .counter(ItemsCount::new(rows * length))
        .counter(CharsCount::new(microseconds as usize))
        .bench_local(|| decoder.loss_and_gradients(&batch, factor, place, recompute));
}

/// 135M in f32; as many rows as make 1,024 tokens, and at least one.
#[divan::bench(args = [128, 256, 512, 1024, 2048, 4096], sample_count = 5, sample_size = 1)]
fn tokens_per_row(bencher: Bencher, length: usize) {
    let rows = (1024 / length).max(1);
    let shape = Shape::named("135M");
    measure(bencher, &SMALL, shape, (rows, length), Recompute::Nothing);
}

/// The same with blocks computed again in the backward pass.
#[divan::bench(args = [256, 4096], sample_count = 5, sample_size = 1)]
fn tokens_per_row_recomputed(bencher: Bencher, length: usize) {
    let rows = (1024 / length).max(1);
    let shape = Shape::named("135M");
    measure(bencher, &SMALL, shape, (rows, length), Recompute::Blocks);
}

/// Weights in bf16, 2 rows of 256 tokens.
#[divan::bench(args = SHAPES.map(|(name, _)| name), sample_count = 5, sample_size = 1)]
fn size_of_model(bencher: Bencher, name: &str) {
    let shape = Shape::named(name);
    let decoder = shape.decoder(DType::BF16);
    measure(bencher, &decoder, shape, (2, 256), Recompute::Nothing);
}
