#!/usr/bin/env python3
"""Writes tests/fixtures/quantise: what int8 and NF4 bases are compared with.

    pip install bitsandbytes==0.50.2 peft==0.21.2 transformers==5.23.0 torch safetensors
    python scripts/make_quantise_fixtures.py SMOLLM2_HF_FOLDER

codes.safetensors  64 rows of a real weight (f16) and a random matrix whose rows end inside a block, and
                   what bitsandbytes makes of them on the CPU: codes, scales, values
training.json      losses of 20 steps of PEFT over tests/fixtures/llama/gqa with its linear layers
                   quantised and dequantised by bitsandbytes, embeddings and head as they are
"""

import json
import sys
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes import functional
from safetensors import safe_open
from safetensors.torch import save_file

import make_fixtures

OUT = make_fixtures.ROOT.parent / "quantise"
WEIGHT = "model.layers.11.self_attn.q_proj.weight"


def nf4(weight):
    return functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")


def int8(weight):
    codes, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant.default(weight.to(torch.float16), 0.0)
    return codes, absmax


def nearest(table, values):
    """Codes of the nearest of ascending values; a tie goes to the lower one."""
    middles = ((table[1:].double() + table[:-1].double()) / 2).float()
    return torch.bucketize(values, middles)


def dynamic_map():
    """The signed map of arXiv 1511.04561."""
    middles = []
    for exponent in range(7):
        edges = [0.1 + 0.9 * i / 2**exponent for i in range(2**exponent + 1)]
        middles += [(low + high) / 2 * 10.0 ** (exponent - 6) for low, high in zip(edges, edges[1:])]
    return torch.tensor(sorted([0.0, 1.0] + middles + [-m for m in middles]), dtype=torch.float64).float()


def nf4_values(weight):
    """NF4 with double quantisation by its definition, with the mean of the scales summed in f64. bitsandbytes' CPU kernel
    takes the scale code beside the nearest one in one block of some hundred, and the last bit of the mean decides a few
    more: a loss moves by 1e-4, what training adds by 1e-2. `dequantised` makes sure that nothing else differs."""
    values = functional.get_4bit_type("nf4", device="cpu").float()
    blocks = weight.float().reshape(-1, 64)
    scales = blocks.abs().amax(1)
    codes = nearest(values, (blocks * (1 / scales.clamp_min(1e-38)).unsqueeze(1)).clamp(-1, 1))
    mean = scales.double().mean().float()
    rest = scales - mean
    largest = torch.nn.functional.pad(rest, (0, -len(rest) % 256)).reshape(-1, 256).abs().amax(1)
    largest = largest.repeat_interleave(256)[:len(rest)]
    code_map = dynamic_map()
    stored = code_map[nearest(code_map, (rest * (1 / largest)).clamp(-1, 1))] * largest + mean
    return (values[codes] * stored.unsqueeze(1)).reshape(weight.shape)


def dequantised(weight, kind):
    if kind == "nf4":
        # Blocks run over rows. bitsandbytes 0.50.2 gives wrong values on the CPU for rows shorter than a
        # block, so the same numbers are shown to it as rows of one block.
        own = nf4_values(weight)
        theirs = functional.dequantize_4bit(*nf4(weight.reshape(-1, 64))).to(torch.float32).reshape(weight.shape)
        apart = ((own - theirs).abs() / own.abs().amax()).reshape(-1, 64).amax(1)
        assert apart.max() < 0.015 and (apart > 1e-6).float().mean() < 0.02, (apart.max(), (apart > 1e-6).float().mean())
        return own
    codes, absmax = int8(weight)
    return codes.float() * absmax.unsqueeze(1) / 127


def describe(name, weight, tensors):
    packed, state = nf4(weight.float().contiguous())
    codes, absmax = int8(weight)
    tensors |= {
        f"{name}.weight": weight.to(torch.float16).contiguous(),
        f"{name}.nf4_codes": packed.flatten(),
        f"{name}.nf4_scale_codes": state.absmax,
        f"{name}.nf4_scale_scales": state.state2.absmax,
        f"{name}.nf4_offset": state.offset.reshape(1),
        f"{name}.nf4_values": functional.dequantize_4bit(packed, state)[:8].contiguous(),
        f"{name}.int8_codes": codes.contiguous(),
        f"{name}.int8_absmax": absmax.contiguous(),
    }


def losses(kind):
    folder = make_fixtures.ROOT / "gqa"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    plain = make_fixtures.open_adapter

    def opened(folder, trainable=False):
        model = plain(folder, trainable=trainable)
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and ".layers." in name and "lora_" not in name:
                    module.weight.copy_(dequantised(module.weight, kind))
        return model

    make_fixtures.open_adapter = opened
    result = make_fixtures.train(folder, rows, 4)
    make_fixtures.open_adapter = plain
    return result["losses"]


def main():
    torch.manual_seed(7)
    OUT.mkdir(parents=True, exist_ok=True)
    with safe_open(Path(sys.argv[1]) / "model.safetensors", "pt") as file:
        real = file.get_tensor(WEIGHT)[:64].to(torch.float16)
    tensors = {}
    describe("real", real, tensors)
    describe("random", (torch.randn(70, 33) * 0.3).to(torch.float16), tensors)
    save_file(tensors, OUT / "codes.safetensors")
    versions = f"scripts/make_quantise_fixtures.py, bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}"
    make_fixtures.write_json(OUT / "training.json", {
        "made_by": versions, "int8": losses("int8"), "nf4": losses("nf4")})


if __name__ == "__main__":
    main()
