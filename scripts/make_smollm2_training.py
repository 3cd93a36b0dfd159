#!/usr/bin/env python3
"""Writes tests/fixtures/smollm2/training.json and training.safetensors: PEFT's steps over SmolLM2, f32 on the CPU.

    pip install bitsandbytes==0.50.2 peft==0.21.2 transformers==5.23.0 torch safetensors
    python scripts/make_smollm2_training.py SMOLLM2_HF_FOLDER      (from the root of the repository)

The folder is the GGUF's weights in f32 (`make_smollm2_reference.py` makes it). `plain` trains on it as it is; for `int8`
and `nf4` bitsandbytes has quantised and dequantised the linear layers of the blocks. Rows and first factors follow from
formulas (`ids`, `factor`), so that nothing but figures is committed: every step's loss, and what training added to the
factors of two layers.
"""

import json
import math
import sys
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import make_quantise_fixtures

OUT = Path("tests/fixtures/smollm2")
STEPS, ROWS, LENGTH, UNTRAINED = 4, 2, 48, 12
RATE, RANK, ALPHA = 1e-3, 2, 4
KEPT = ("model.layers.0.self_attn.q_proj", "model.layers.29.mlp.down_proj")


def ids(row):
    """Tokens of a row, counted over the whole run."""
    return [100 + (7919 * (row * LENGTH + place) + 31 * place * place) % 48_000 for place in range(LENGTH)]


def factor(parameter, scale):
    values = [scale * math.sin(0.37 * index + 0.5) for index in range(parameter.numel())]
    return torch.tensor(values, dtype=torch.float64).to(torch.float32).reshape(parameter.shape)


def open_model(folder, kind):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if kind != "plain":
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and ".layers." in name:
                    module.weight.copy_(make_quantise_fixtures.dequantised(module.weight, kind))
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(factor(parameter, 0.04 if "lora_A" in name else 0.02))
    return model.train()


def factors(model):
    found = {name.replace("base_model.model.", "").replace(".default.weight", ""): value.detach().clone()
             for name, value in model.named_parameters() if value.requires_grad}
    return {name: value for name, value in found.items() if name.startswith(KEPT)}


def train(folder, kind):
    model = open_model(folder, kind)
    before = factors(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        rows = torch.tensor([ids(step * ROWS + row) for row in range(ROWS)])
        labels = rows.clone()
        labels[:, :UNTRAINED] = -100
        logits = model(input_ids=rows, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    updates = {f"{kind}.{name}": (value - before[name]).contiguous() for name, value in factors(model).items()}
    return losses, updates


def main():
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, peft {peft.__version__}, " \
               f"bitsandbytes {make_quantise_fixtures.bitsandbytes.__version__}"
    facts, tensors = {"made_by": f"scripts/make_smollm2_training.py, {versions}"}, {}
    for kind in ("plain", "int8", "nf4"):
        facts[kind], updates = train(Path(sys.argv[1]), kind)
        tensors |= updates
    (OUT / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    save_file(tensors, OUT / "training.safetensors")


if __name__ == "__main__":
    main()
