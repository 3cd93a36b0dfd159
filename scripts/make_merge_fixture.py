#!/usr/bin/env python3
"""Makes tests/fixtures/merge: tiny Llama bases, PEFT adapters, and what PEFT merges them into.

Usage: make_merge_fixture.py [OUT]    (needs torch, transformers, peft)

Two cases, each with `base/`, `adapter/` and `merged/`:
- f32:  rsLoRA with rank_pattern and alpha_pattern, biases, an untied head, one weight file
- bf16: plain scaling, rank_pattern by regular expression, tied head, sharded weights,
        an adapter stored in bf16
"""
import json
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

CASES = {
    "f32": {
        "dtype": torch.float32,
        "model": {"attention_bias": True, "tie_word_embeddings": False},
        "shard": "5GB",
        "lora": {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": "all-linear",
            "rank_pattern": {"layers.0.mlp.up_proj": 3, "down_proj": 5},
            "alpha_pattern": {"k_proj": 2.5, "layers.1.mlp.gate_proj": 9},
        },
    },
    "bf16": {
        "dtype": torch.bfloat16,
        "model": {"tie_word_embeddings": True},
        "shard": "4KB",
        "lora": {
            "r": 3,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "v_proj", "mlp.down_proj"],
            "rank_pattern": {r"model\.layers\.[1-9]\.self_attn\.(q|v)_proj": 6},
        },
    },
}


def make_model(case):
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **case["model"],
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model.to(case["dtype"])


def make_case(name, case, out):
    torch.manual_seed(len(name))
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model = make_model(case)
    model.save_pretrained(folder / "base", max_shard_size=case["shard"])
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **case["lora"]))
    with torch.no_grad():
        for parameter_name, parameter in peft_model.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(0.0, 0.2)
    peft_model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    settle(folder / "adapter", case["dtype"])
    base = LlamaForCausalLM.from_pretrained(folder / "base", dtype=case["dtype"])
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "merged")
    for extra in ("config.json", "generation_config.json"):
        (folder / "merged" / extra).unlink(missing_ok=True)


def settle(adapter, dtype):
    """Stores the adapter in `dtype`, and a config without paths of this machine."""
    path = adapter / "adapter_model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "tiny-llama"
    # PEFT keeps this as a set; sorted, so that the fixture is the same each time.
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    root = pathlib.Path(__file__).resolve().parent.parent
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / "tests/fixtures/merge"
    for case_name, case in CASES.items():
        make_case(case_name, case, target)
