#!/usr/bin/env python3
"""Writes tests/fixtures/adamw_8bit/steps.safetensors: three updates of AdamW with moments in 8 bits.

    python scripts/make_adamw_8bit_fixture.py

Needs numpy and safetensors. The algorithm is that of Dettmers et al. 2021 (arXiv 2110.02861) with
blocks of 256 numbers and the dynamic maps of bitsandbytes' `create_dynamic_map`, written down here
once more with numpy; updates in the order of PyTorch's AdamW. bitsandbytes itself has this
optimizer for GPUs only.
"""

import pathlib

import numpy as np
from safetensors.numpy import save_file

BLOCK = 256
RATE, BETAS, EPSILON, DECAY = 1e-2, (0.9, 0.999), 1e-8, 0.01


def dynamic_map(signed: bool) -> np.ndarray:
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = np.linspace(0.1, 1.0, 2**exponent * (1 if signed else 2) + 1)
        middles = 10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2
        values.extend(middles)
        if signed:
            values.extend(-middles)
    return np.sort(np.array(values, dtype=np.float32))


def pack(values: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, scales = [], []
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        scale = np.abs(block).max()
        shares = block / scale if scale > 0 else np.zeros_like(block)
        nearest = np.abs(table[None].astype(np.float64) - shares[:, None]).argmin(1)
        # A negative moment stays negative.
        nearest[(block < 0) & (table[nearest] >= 0)] -= 1
        codes.append(nearest.astype(np.uint8))
        scales.append(scale)
    return np.concatenate(codes), np.array(scales, dtype=np.float32)


def unpack(codes: np.ndarray, scales: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table[codes] * np.repeat(scales, BLOCK)[: codes.size]


def main() -> None:
    random = np.random.default_rng(20261122)
    rows, columns, steps = 7, 300, 3
    weight = random.normal(size=rows * columns).astype(np.float32)
    # Gradients of very different sizes within a block.
    sizes = 10.0 ** random.uniform(-5, 0, size=(steps, rows * columns))
    gradients = (random.normal(size=(steps, rows * columns)) * sizes).astype(np.float32)
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    tensors = {"weight": weight.reshape(rows, columns).copy(), "gradients": gradients.reshape(steps, rows, columns)}
    first, second = pack(np.zeros_like(weight), signed), pack(np.zeros_like(weight), unsigned)
    for step in range(1, steps + 1):
        g = gradients[step - 1]
        m = unpack(*first, signed)
        v = unpack(*second, unsigned)
        # 1 - beta is taken in f32, as there.
        rest = [np.float32(1) - np.float32(beta) for beta in BETAS]
        m = (m + (g - m) * rest[0]).astype(np.float32)
        v = (v * np.float32(BETAS[1]) + g * g * rest[1]).astype(np.float32)
        root = np.sqrt(v) / np.float32(np.sqrt(1 - BETAS[1] ** step)) + np.float32(EPSILON)
        rate = np.float32(RATE / (1 - BETAS[0] ** step))
        weight = weight * np.float32(1 - RATE * DECAY) - rate * (m / root)
        first, second = pack(m, signed), pack(v, unsigned)
    tensors["weight_after"] = weight.reshape(rows, columns)
    tensors["first"], tensors["first_scales"] = first
    tensors["second"], tensors["second_scales"] = second
    folder = pathlib.Path(__file__).parent.parent / "tests/fixtures/adamw_8bit"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "steps.safetensors")


if __name__ == "__main__":
    main()
