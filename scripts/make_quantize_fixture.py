#!/usr/bin/env python3
"""Writes tests/fixtures/gguf/quantise.{safetensors,json}: the bar for our quantisers.

    pip install numpy safetensors gguf==0.19.0
    npm i --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
    python scripts/make_quantize_fixture.py NODE_MODULES [SmolLM2-135M-Instruct.Q4_1.gguf]

quantise.safetensors   rows of several distributions, f16; of SmolLM2 too where its GGUF is given
quantise.json          the root-mean-square error that llama.cpp's own quantiser reaches on them,
                       by row set and type (`ggml_quantize_chunk` of its prebuilt library, values
                       decoded by the gguf package); under `weighted`, by row set, the importance of
                       each column and the root of the mean of importance * error^2 with it
"""

import ctypes
import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "gguf"
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
ROWS, COLUMNS = 8, 768


def library(node_modules):
    folder = Path(node_modules) / "@node-llama-cpp/linux-x64/bins/linux-x64"
    ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
    chunk = ggml.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                      ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return chunk


def rms_error(chunk, name, rows, importance=None):
    values = np.ascontiguousarray(rows.astype(np.float32))
    block, size = gguf.GGML_QUANT_SIZES[Type[name]]
    out = np.zeros((values.shape[0], values.shape[1] // block * size), dtype=np.uint8)
    written = chunk(int(Type[name]), values.ctypes.data, out.ctypes.data, 0, *values.shape,
                    None if importance is None else importance.ctypes.data)
    assert written == out.size
    decoded = gguf.quants.dequantize(out, Type[name])
    weights = 1.0 if importance is None else importance.astype(np.float64)
    return float(np.sqrt(np.mean(weights * (decoded.astype(np.float64) - values) ** 2)))


def importance_of(generator):
    """Mean squares of inputs: most alike, some columns far above the others."""
    spread = np.exp(generator.standard_normal(COLUMNS))
    spread[generator.integers(0, COLUMNS, 12)] *= 50
    return np.ascontiguousarray(spread.astype(np.float32))


def row_sets(gguf_path):
    generator = np.random.default_rng(7)
    shape = (ROWS, COLUMNS)
    sets = {
        "normal": generator.standard_normal(shape) * 0.02,
        "heavy_tails": generator.standard_t(3, shape) * 0.02,
        "uniform": generator.uniform(-1, 1, shape),
        "shifted": generator.standard_normal(shape) * 0.05 + 0.2,
    }
    if gguf_path:
        for tensor in gguf.GGUFReader(gguf_path).tensors:
            if tensor.name in ("blk.3.ffn_down.weight", "blk.20.attn_q.weight", "token_embd.weight"):
                rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                rows = rows[: ROWS * 4].reshape(-1)[: ROWS * COLUMNS].reshape(shape)
                # The blocks of the file would come back exactly: real values lie between them.
                noise = generator.uniform(-0.02, 0.02, shape) * np.sqrt(np.mean(rows**2))
                sets["smollm2_" + tensor.name.split(".")[-2]] = rows + noise
    return {name: rows.astype(np.float16) for name, rows in sets.items()}


def main():
    chunk = library(sys.argv[1])
    sets = row_sets(sys.argv[2] if len(sys.argv) > 2 else None)
    save_file(sets, OUT / "quantise.safetensors")
    errors = {name: {kind: rms_error(chunk, kind, rows) for kind in TYPES}
              for name, rows in sets.items()}
    importance = importance_of(np.random.default_rng(8))
    errors["weighted"] = {"importance": [float(np.float16(x)) for x in importance]} | {
        name: {kind: rms_error(chunk, kind, rows, importance.astype(np.float16).astype(np.float32))
               for kind in TYPES}
        for name, rows in sets.items()}
    (OUT / "quantise.json").write_text(json.dumps(errors, indent=1) + "\n")


main()
