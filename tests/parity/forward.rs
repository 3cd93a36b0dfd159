//! Logits, losses and greedy tokens of every variant, with and without an adapter.

use adapters::read_adapter;
use datasets::MicroBatch;
use trainer::base_model::Decoder;

use crate::fixture;

const TOLERANCE: f32 = 1e-4;

pub(crate) fn greedy(decoder: &Decoder, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut cache = decoder.new_cache();
    let mut new = prompt.to_vec();
    let mut tokens = Vec::new();
    for _ in 0..count {
        let logits = decoder.next_logits(&new, &mut cache);
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        tokens.push(best as u32);
        new = vec![best as u32];
    }
    tokens
}

#[test]
fn logits_and_losses_equal_those_of_transformers() {
    for variant in fixture::VARIANTS {
        let decoder = fixture::decoder(variant);
        let reference = fixture::json(variant, "reference.json");
        let tensors = fixture::tensors(variant, "reference.safetensors");
        for (index, sequence) in reference["sequences"].as_array().unwrap().iter().enumerate() {
            let ids = fixture::ids(&sequence["input_ids"]);
            let logits = kernels::to_f32(&decoder.logits(&ids, &[0, ids.len()]));
            let error =
                fixture::relative_error(&logits, &tensors[&format!("sequence_{index}.logits")]);
            assert!(error < TOLERANCE, "{variant}, sequence {index}: logits are off by {error}");
            let mut targets: Vec<i32> = ids.iter().skip(1).map(|&id| id as i32).collect();
            targets.push(datasets::IGNORED);
            let batch = MicroBatch {
                segment_starts: vec![0, ids.len()],
                token_ids: ids.clone(),
                targets,
                rows: 1,
            };
            let loss = decoder.loss_sum(&batch) / (ids.len() - 1) as f64;
            let expected = sequence["mean_loss"].as_f64().unwrap();
            assert!((loss / expected - 1.0).abs() < 1e-5, "{variant}: loss {loss}, not {expected}");
        }
    }
}

#[test]
fn greedy_tokens_with_a_cache_equal_those_of_transformers() {
    for variant in fixture::VARIANTS {
        let decoder = fixture::decoder(variant);
        let reference = fixture::json(variant, "reference.json");
        for sequence in reference["sequences"].as_array().unwrap() {
            let ids = fixture::ids(&sequence["input_ids"]);
            let expected = fixture::ids(&sequence["greedy_with_cache"]);
            assert_eq!(greedy(&decoder, &ids, expected.len()), expected, "{variant}");
        }
    }
}

#[test]
fn packed_sequences_get_the_logits_they_get_alone() {
    for variant in fixture::VARIANTS {
        let decoder = fixture::decoder(variant);
        let reference = fixture::json(variant, "reference.json");
        let sequences = reference["sequences"].as_array().unwrap();
        let ids: Vec<Vec<u32>> = sequences.iter().map(|s| fixture::ids(&s["input_ids"])).collect();
        let together: Vec<u32> = ids.concat();
        let packed = decoder.logits(&together, &[0, ids[0].len(), together.len()]);
        let alone: Vec<f32> = ids
            .iter()
            .flat_map(|ids| kernels::to_f32(&decoder.logits(ids, &[0, ids.len()])))
            .collect();
        let error = fixture::relative_error(&kernels::to_f32(&packed), &alone);
        assert!(error < 1e-5, "{variant}: packing changes logits by {error}");
    }
}

#[test]
fn logits_with_a_peft_adapter_equal_those_of_peft() {
    for variant in ["gqa", "attention_bias_tied", "rope_llama3", "f16", "bf16"] {
        let mut decoder = fixture::decoder(variant);
        let (config, weights) = read_adapter(&fixture::path(variant).join("adapter")).unwrap();
        decoder.attach(&config, &weights);
        let reference = fixture::json(variant, "reference.json");
        let tensors = fixture::tensors(variant, "adapter_reference.safetensors");
        for (index, sequence) in reference["sequences"].as_array().unwrap().iter().enumerate() {
            let ids = fixture::ids(&sequence["input_ids"]);
            let logits = kernels::to_f32(&decoder.logits(&ids, &[0, ids.len()]));
            let name = format!("sequence_{index}.logits");
            let error = fixture::relative_error(&logits, &tensors[&name]);
            assert!(error < TOLERANCE, "{variant}, sequence {index}: logits are off by {error}");
        }
    }
}
