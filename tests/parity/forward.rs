//! Logits, losses and greedy tokens of every variant, with and without an adapter.

use adapters::read_adapter;
use datasets::MicroBatch;
use trainer::base_model::{Decoder, Sharing, TokenTree};

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

#[test]
fn texts_that_share_beginnings_get_the_logits_they_get_alone() {
    for variant in fixture::VARIANTS {
        let decoder = fixture::decoder(variant);
        let most = decoder.config().max_positions;
        let reference = fixture::json(variant, "reference.json");
        let mut text = fixture::ids(&reference["sequences"][0]["input_ids"]);
        text.truncate(most.min(24));
        let other: Vec<u32> = text[..9].iter().copied().chain([1, 2, 3]).collect();
        let texts: [&[u32]; 4] = [&text, &other, &text[..5], &[4, 5]];
        let (tree, rows) = TokenTree::of_texts(&texts, Sharing::Beginnings);
        assert!(tree.tokens() < texts.iter().map(|text| text.len()).sum());
        let hidden = decoder.hidden_of_tree(&tree);
        for (text, rows) in texts.iter().zip(&rows) {
            let alone = decoder.hidden(text, &[0, text.len()]);
            let (shared, alone) = (kernels::gather_rows(&hidden, rows), alone);
            let error =
                fixture::relative_error(&kernels::to_f32(&shared), &kernels::to_f32(&alone));
            assert!(error < 1e-5, "{variant}: sharing changes hidden states by {error}");
        }
    }
}

#[test]
fn sequences_of_a_batch_get_the_logits_they_get_alone() {
    for variant in fixture::VARIANTS {
        let decoder = fixture::decoder(variant);
        let mut batch = decoder.new_cache_of(3, 4);
        // Rows are steps, columns slots; the second sequence grows beyond its first room.
        let steps: [[&[u32]; 3]; 3] =
            [[&[3, 4, 5], &[9], &[2, 2, 2, 2, 2]], [&[6], &[8], &[3]], [&[7], &[1], &[4]]];
        let mut alone = [decoder.new_cache(), decoder.new_cache(), decoder.new_cache()];
        // The order of the slots does not matter.
        for (parts, order) in steps.iter().zip([[0, 1, 2], [2, 0, 1], [0, 1, 2]]) {
            let new: Vec<(usize, &[u32])> = order.iter().map(|&slot| (slot, parts[slot])).collect();
            let together = kernels::to_f32(&decoder.advance(&new, &mut batch));
            let expected: Vec<f32> = new
                .iter()
                .flat_map(|&(slot, ids)| decoder.next_logits(ids, &mut alone[slot]))
                .collect();
            let error = fixture::relative_error(&together, &expected);
            assert!(error < 1e-5, "{variant}: a batch changes logits by {error}");
        }
        batch.clear(1);
        let again = kernels::to_f32(&decoder.advance(&[(1, &[9, 8])], &mut batch));
        let fresh = decoder.next_logits(&[9, 8], &mut decoder.new_cache());
        assert!(fixture::relative_error(&again, &fresh) < 1e-5, "{variant}: a slot used again");
    }
}
