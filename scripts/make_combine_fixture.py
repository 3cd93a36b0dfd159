#!/usr/bin/env python3
"""Writes tests/fixtures/combine: what combined adapters are compared with.

    pip install torch peft==0.21.2 safetensors
    python scripts/make_combine_fixture.py

combine.safetensors   for adapters `one`, `two`, `three` of two linear layers: `in.<adapter>.<module>.{A,B}`;
                      `delta.<case>.<module>`: scale·B·A of PEFT's `add_weighted_adapter`;
                      `mask.<case>.<module>.{A,B,D}.<n>`: what its random pruning kept of adapter n
combine.json          the cases: method, adapters, weights, density, rank; the adapters' alphas
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "combine"
ALPHAS = {"one": 8.0, "two": 6.0, "three": 5.0}
MODULES = ["q_proj", "up_proj"]
TWO, THREE = ["one", "two"], ["one", "two", "three"]
CASES = {
    "linear": ("linear", THREE, [0.7, 0.3, -0.4], None, None),
    "cat": ("cat", THREE, [0.7, 0.3, -0.4], None, None),
    "svd": ("svd", TWO, [0.6, -0.5], None, 3),
    "ties": ("ties", THREE, [0.7, 0.3, 0.5], 0.6, None),
    "ties_frequency": ("ties", THREE, [0.7, 0.3, 0.5], 0.5, None),
    "dare_linear": ("dare_linear", THREE, [0.7, 0.3, -0.4], 0.7, None),
    "dare_ties": ("dare_ties", THREE, [0.7, 0.3, 0.5], 0.6, None),
    "magnitude_prune": ("magnitude_prune", THREE, [0.7, -0.3, 0.5], 0.4, None),
    "ties_svd": ("ties_svd", THREE, [0.7, 0.3, 0.5], 0.6, 5),
    "dare_linear_svd": ("dare_linear_svd", THREE, [0.7, 0.3, -0.4], 0.7, 4),
    "dare_ties_svd": ("dare_ties_svd", THREE, [0.7, 0.3, 0.5], 0.6, 8),
    "magnitude_prune_svd": ("magnitude_prune_svd", THREE, [0.7, -0.3, 0.5], 0.4, 3),
}


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(12, 10, bias=False)
        self.up_proj = torch.nn.Linear(10, 16, bias=False)

    def forward(self, x):
        return self.up_proj(self.q_proj(x))


def main():
    torch.manual_seed(3)
    config = lambda name: LoraConfig(r=4, lora_alpha=ALPHAS[name], target_modules=MODULES)
    model = get_peft_model(Layers(), config("one"), adapter_name="one")
    for name in ["two", "three"]:
        model.add_adapter(name, config(name))
    tensors = {}
    layer = lambda module: getattr(model.base_model.model, module)
    for name in THREE:
        for module in MODULES:
            for letter, factors in [("A", layer(module).lora_A), ("B", layer(module).lora_B)]:
                weight = factors[name].weight
                torch.nn.init.normal_(weight)
                tensors[f"in.{name}.{module}.{letter}"] = weight.data.clone()
    original = torch.bernoulli
    for case, (method, adapters, weights, density, rank) in CASES.items():
        masks = []
        torch.bernoulli = lambda *a, **k: masks.append(original(*a, **k)) or masks[-1]
        sign = "frequency" if case.endswith("frequency") else "total"
        model.base_model.add_weighted_adapter(
            adapters, weights, case, combination_type=method, density=density, svd_rank=rank,
            majority_sign_method=sign)
        letters = "D" if method.endswith("_svd") else "AB"
        for place, mask in enumerate(masks):
            module = MODULES[place // (len(letters) * len(adapters))]
            letter = letters[place // len(adapters) % len(letters)]
            tensors[f"mask.{case}.{module}.{letter}.{place % len(adapters)}"] = mask.clone()
        for module in MODULES:
            tensors[f"delta.{case}.{module}"] = layer(module).get_delta_weight(case).data.clone()
    OUT.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / "combine.safetensors")
    cases = {case: dict(zip(["method", "adapters", "weights", "density", "rank"], values),
                        majority_sign="frequency" if case.endswith("frequency") else "total")
             for case, values in CASES.items()}
    (OUT / "combine.json").write_text(json.dumps({"alphas": ALPHAS, "cases": cases}, indent=1) + "\n")


main()
