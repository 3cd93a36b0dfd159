#!/usr/bin/env python3
"""Writes tests/fixtures/balance: losses and gradients of transformers with the loss over experts.

usage: make_balance_fixtures.py       (after make_family_fixtures.py, from the root of the repository)

Both sequences of a variant's reference.json as one padded batch, with `output_router_logits`: the loss of the model
with its adapter, the part over experts without its factor, and the gradient of every factor of the adapter.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from make_family_fixtures import ROOT, VARIANTS, checkpoint_name, open_linear_model
from peft import PeftModel
from safetensors.torch import load_file, save_file

FACTORS = {"mixtral": 0.5, "qwen3_moe": 0.3, "qwen3_moe_fused": 0.2}
TARGET = ROOT.parent / "balance"


def padded(sequences):
    longest = max(map(len, sequences))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    return ids, mask, ids.masked_fill(mask == 0, -100)


def make(name, factor):
    folder, variant = ROOT / name, VARIANTS[name]
    linear = open_linear_model(folder, variant)
    linear.config.output_router_logits = True
    linear.config.router_aux_loss_coef = factor
    linear.router_aux_loss_coef = factor
    with tempfile.TemporaryDirectory() as copied:
        adapter = shutil.copytree(folder / "adapter", Path(copied) / "adapter")
        weights = adapter / "adapter_model.safetensors"
        tensors = {n.replace(".block_sparse_moe.", ".mlp."): t for n, t in load_file(weights).items()}
        save_file(tensors, weights, metadata={"format": "pt"})
        model = PeftModel.from_pretrained(linear, adapter, is_trainable=True).eval()
    ids, mask, labels = padded(json.loads((folder / "reference.json").read_text())["sequences"])
    result = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, output_router_logits=True)
    result.loss.backward()
    assert result.aux_loss.requires_grad and result.aux_loss > 0
    tensors = {"gradient." + checkpoint_name(variant, n.replace(".default", "")): p.grad.contiguous()
               for n, p in model.named_parameters() if p.requires_grad}
    TARGET.mkdir(exist_ok=True)
    save_file(tensors, TARGET / f"{name}.safetensors", metadata={"format": "pt"})
    return {"factor": factor, "loss": result.loss.item(), "router_aux_loss": result.aux_loss.item()}


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    facts = {name: make(name, factor) for name, factor in FACTORS.items()}
    facts["made_by"] = (f"scripts/make_balance_fixtures.py, torch {torch.__version__.split('+')[0]}, "
                        f"transformers {transformers.__version__}")
    (TARGET / "reference.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(facts)


if __name__ == "__main__":
    main()
