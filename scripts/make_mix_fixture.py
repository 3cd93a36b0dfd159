#!/usr/bin/env python3
"""Writes tests/fixtures/mix: what mixed models are compared with.

    pip install torch safetensors mergekit==0.1.5
    python scripts/make_mix_fixture.py

mix.safetensors   `in.<model>.<tensor>` for a base and three models; `out.<case>.<tensor>`: what mergekit makes
                  of them; `mask.<case>.<tensor>.<n>`: what its random pruning kept of model n
mix.json          the cases: method, models, weights, density, position

DARE is rescaled by 1/density, as in its paper and in PEFT; mergekit keeps the sum of sizes instead, so its
rescaling is replaced here.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from mergekit import sparsify
from mergekit.merge_methods import registry
from mergekit.merge_methods.slerp import slerp
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "mix"
SHAPES = {"model.norm.weight": (14,), "model.layers.0.mlp.up_proj.weight": (12, 14)}
CASES = {
    "linear": ("linear", ["one", "two", "three"], [0.5, 0.3, 0.4], None, None),
    "slerp": ("slerp", ["one", "two"], None, None, 0.3),
    "slerp_parallel": ("slerp", ["one", "like_one"], None, None, 0.6),
    "task_arithmetic": ("task_arithmetic", ["one", "two", "three"], [0.7, 0.5, -0.4], None, None),
    "ties": ("ties", ["one", "two", "three"], [0.7, 0.5, 0.4], 0.55, None),
    "ties_all": ("ties", ["one", "two"], [1.0, 1.0], 1.0, None),
    "dare_linear": ("dare_linear", ["one", "two"], [0.7, -0.5], 0.6, None),
    "dare_ties": ("dare_ties", ["one", "two", "three"], [0.7, 0.5, 0.4], 0.6, None),
}


def main():
    torch.manual_seed(5)
    models = {name: {} for name in ["base", "one", "two", "three", "like_one"]}
    for tensor, shape in SHAPES.items():
        base = torch.randn(shape)
        models["base"][tensor] = base
        for name in ["one", "two", "three"]:
            models[name][tensor] = base + 0.3 * torch.randn(shape)
        models["like_one"][tensor] = 1.01 * models["one"][tensor] + 1e-4
    out = {f"in.{model}.{tensor}": value for model, of in models.items() for tensor, value in of.items()}

    sparsify.rescaled_masked_tensor = lambda tensor, mask, norm, eps=0: (
        tensor * mask / (1.0 if norm is None else density))
    bernoulli = torch.bernoulli
    for case, (method, names, weights, density, position) in CASES.items():
        for tensor in SHAPES:
            values = [models[name][tensor] for name in names]
            if method == "slerp":
                mixed = slerp(torch.tensor([position]), values[0][None], values[1][None])[0]
            elif method == "linear":
                mixed = sum(weight * value for weight, value in zip(weights, values)) / sum(weights)
            else:
                rule = registry.get(method)
                masks = []
                torch.bernoulli = lambda *a, **k: masks.append(bernoulli(*a, **k)) or masks[-1]
                group = SimpleNamespace(
                    base=SimpleNamespace(tensor=models["base"][tensor]),
                    non_base=[SimpleNamespace(tensor=value, id=name) for name, value in zip(names, values)])
                mixed = rule.merge_group(group, **{
                    "density": {name: density for name in names},
                    "weight": dict(zip(names, weights)),
                    "normalize": rule.default_normalize, "rescale": rule.default_rescale,
                    "int8_mask": False, "lambda": 1.0})
                torch.bernoulli = bernoulli
                out |= {f"mask.{case}.{tensor}.{n}": mask.clone() for n, mask in enumerate(masks)}
            out[f"out.{case}.{tensor}"] = mixed
    OUT.mkdir(exist_ok=True)
    save_file({name: value.float().contiguous() for name, value in out.items()}, OUT / "mix.safetensors")
    cases = {case: dict(zip(["method", "models", "weights", "density", "position"], values))
             for case, values in CASES.items()}
    (OUT / "mix.json").write_text(json.dumps(cases, indent=1) + "\n")


main()
