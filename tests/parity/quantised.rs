//! A GGUF trained as it stands against its dequantised copy.

use std::path::Path;

use adapters::weights::{ModelFiles, Network};
use adapters::{AdapterWeights, LoraConfig, PeftConfig, initial_factors, select_targets};
use burn::tensor::{DType, Device};
use datasets::{MicroBatch, Origin, TokenizedExample};
use trainer::base_model::{
    BaseFormat, BaseStorage, Decoder, ModelLoader, Recompute, StepPlace, linear_layers,
};

fn decoder(files: &ModelFiles, storage: BaseStorage) -> Decoder {
    let format = BaseFormat { dtype: DType::F32, storage };
    let loader = ModelLoader::new(files, &Device::flex(), format).unwrap();
    let layers = linear_layers(loader.config());
    let lora: LoraConfig =
        serde_json::from_value(serde_json::json!({"rank": 4, "alpha": 8.0})).unwrap();
    let targets = select_targets(&lora, &layers).unwrap();
    let peft = PeftConfig::from_recipe(&lora, &targets, &layers, "base").unwrap();
    let mut weights: AdapterWeights = initial_factors(&targets, &lora, 3, files).unwrap();
    for factors in weights.modules.values_mut() {
        let numbers = factors.b.iter_mut().enumerate();
        numbers.for_each(|(i, value)| *value = (i as f32 * 0.61).sin() * 0.05);
    }
    let mut decoder = loader.decoder().unwrap();
    decoder.attach(&peft, &weights);
    decoder
}

#[test]
fn a_gguf_as_it_stands_gives_the_bits_of_its_dequantised_weights() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/tiny_llama.gguf");
    let files = ModelFiles::open(path.to_str().unwrap(), Network::Offline).unwrap();
    assert!(files.is_quantised());
    let [dense, stored] = [BaseStorage::Dense, BaseStorage::AsStored].map(|s| decoder(&files, s));
    let vocab = dense.config().vocab_size as u32;
    for length in [7, 61] {
        let ids: Vec<u32> = (0..length).map(|i| (i * 37 + 5) % vocab).collect();
        let example = TokenizedExample {
            labels: ids.iter().map(|&id| id as i32).collect(),
            token_ids: ids,
            dataset: 0,
            origin: Origin { file: 0, line: 1, part: 0 },
        };
        let mut batch = MicroBatch::default();
        batch.push(&example);
        let place = StepPlace { step: 0, micro_batch: 0 };
        let run = |d: &Decoder| d.loss_and_gradients(&batch, 0.1, place, Recompute::Nothing);
        let (a, b) = (run(&dense), run(&stored));
        assert_eq!(a.loss_sum.to_bits(), b.loss_sum.to_bits());
        for (module, gradients) in &a.gradients {
            let other = &b.gradients[module];
            assert_eq!(kernels::to_f32(&gradients.a), kernels::to_f32(&other.a), "{module}");
            assert_eq!(kernels::to_f32(&gradients.b), kernels::to_f32(&other.b), "{module}");
        }
    }
}
