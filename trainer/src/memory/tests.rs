//! Plans from shapes alone.

use super::*;

fn request<'a>(
    (config, optimizer): (&'a DecoderConfig, &'a OptimizerConfig),
    batch: &'a BatchConfig,
    checkpointing: GradientCheckpointing,
) -> PlanRequest<'a> {
    PlanRequest {
        config,
        base_bytes: 1 << 20,
        trained_parameters: 1000,
        adapter_bytes_per_token: 0,
        batch,
        longest_example: 0,
        activation_width: 2,
        optimizer,
        checkpointing,
        place: Place::Host,
    }
}

fn llama() -> DecoderConfig {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        "hidden_act": "silu",
    });
    DecoderConfig::read(&config).expect("a Llama")
}

fn rows(rows: u64) -> BatchConfig {
    BatchConfig {
        packing: true,
        sequences_per_micro_batch: usize::try_from(rows)
            .ok()
            .and_then(std::num::NonZeroUsize::new)
            .expect("some rows"),
        ..BatchConfig::default()
    }
}

#[test]
fn the_largest_micro_batch_fits_and_one_row_more_does_not() {
    let config = llama();
    let optimizer = OptimizerConfig::Adamw(crate::AdamwConfig::default());
    let available = PROGRAM_BYTES + (HEAD_CHUNK_BYTES as u64) + (64 << 20);
    for checkpointing in [GradientCheckpointing::On, GradientCheckpointing::Off] {
        let peak = |count: u64| {
            let batch = rows(count);
            let request = request((&config, &optimizer), &batch, checkpointing);
            memory_plan(&request, FreeMemory::default()).peak_bytes
        };
        let largest =
            largest_that_fits(&request((&config, &optimizer), &rows(1), checkpointing), available);
        assert!(peak(largest.sequences_per_micro_batch) <= available);
        assert!(peak(largest.sequences_per_micro_batch + 1) > available);
    }
}

/// With less and less memory more and more blocks run again, then inputs leave a GPU; each
/// choice fits, and none fits that is cheaper.
#[test]
fn the_planner_takes_the_cheapest_way_that_fits() {
    let config = llama();
    let optimizer = OptimizerConfig::Adamw(crate::AdamwConfig::default());
    let batch = rows(16);
    let auto = request((&config, &optimizer), &batch, GradientCheckpointing::Auto);
    let peak = |choice| plan_of_tokens(&auto, auto.tokens(), choice).peak_bytes;
    let cheapest_first = [
        Recompute::First(0),
        Recompute::First(1),
        Recompute::First(2),
        Recompute::First(3),
        Recompute::Parked(2),
        Recompute::Parked(3),
        Recompute::Parked(4),
    ];
    let mut last = u64::MAX;
    for choice in cheapest_first {
        let needed = peak(choice);
        assert!(needed < last, "{choice:?} saves nothing");
        last = needed;
        // An eighth is kept back.
        let device = Some(needed.div_ceil(7) * 8);
        let on_gpu = FreeMemory { device, parking: Some(1 << 40) };
        let plan = memory_plan(&auto, on_gpu);
        assert_eq!((plan.choice, plan.peak_bytes), (choice, needed));
        let on_host = FreeMemory { device, parking: None };
        let expected = if choice.parked(4) > 0 { Recompute::Blocks } else { choice };
        assert_eq!(memory_plan(&auto, on_host).choice, expected);
    }
    let nothing_free = FreeMemory { device: Some(1), parking: Some(1) };
    assert_eq!(memory_plan(&auto, nothing_free).choice, Recompute::Blocks);
    assert_eq!(memory_plan(&auto, FreeMemory::default()).choice, Recompute::Nothing);
}
