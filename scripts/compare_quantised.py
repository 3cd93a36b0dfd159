#!/usr/bin/env python3
"""Compares a quantised GGUF of ours with what llama.cpp's own quantiser makes of the same weights.

    python scripts/compare_quantised.py NODE_MODULES F32.gguf OURS.gguf

F32.gguf holds the weights unquantised; llama.cpp (the library inside node-llama-cpp) quantises it to
the type that OURS.gguf names. Types of all tensors and bytes of data must be equal, and the
root-mean-square error of every tensor at most 1.02 of llama.cpp's.
"""

import ctypes
import sys
import tempfile
from collections import Counter
from pathlib import Path

import gguf
import numpy as np


class Parameters(ctypes.Structure):
    """The beginning of llama_model_quantize_params; the rest keeps its defaults."""

    _fields_ = [("threads", ctypes.c_int32), ("file_type", ctypes.c_int32),
                ("output_type", ctypes.c_int32), ("embedding_type", ctypes.c_int32),
                ("allow_requantize", ctypes.c_bool), ("rest", ctypes.c_uint8 * 239)]


def quantise(node_modules, source, target, file_type, again=False):
    folder = Path(node_modules) / "@node-llama-cpp/linux-x64/bins/linux-x64"
    for library in ("libggml-base.so", "libggml.v0.5.0.so"):
        ctypes.CDLL(str(folder / library), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(folder / "libllama.v0.5.0.so"))
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama.llama_log_set(log, None)
    llama.llama_backend_init()
    llama.llama_model_quantize_default_params.restype = Parameters
    parameters = llama.llama_model_quantize_default_params()
    parameters.file_type = file_type
    parameters.allow_requantize = again
    parameters.threads = 1
    status = llama.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert status == 0, f"llama_model_quantize: {status}"


def tensors(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values(tensor):
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)


def rms(difference):
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


def main():
    node_modules, source, ours_path = sys.argv[1:4]
    file_type = int(gguf.GGUFReader(ours_path).fields["general.file_type"].contents())
    exact = tensors(source)
    ours = tensors(ours_path)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "llama_cpp.gguf"
        quantise(node_modules, source, target, file_type)
        theirs = tensors(target)
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        worst, total = (0.0, ""), [0.0, 0.0]
        for name, tensor in ours.items():
            other = theirs[name]
            assert tensor.tensor_type == other.tensor_type, (name, tensor.tensor_type, other.tensor_type)
            assert list(tensor.shape) == list(other.shape), name
            original = values(exact[name])
            errors = [rms(values(t) - original) for t in (tensor, other)]
            total = [sum + error**2 * original.size for sum, error in zip(total, errors)]
            if errors[0] > 0:
                worst = max(worst, (errors[0] / errors[1] if errors[1] else np.inf, name))
        sizes = [sum(int(t.n_bytes) for t in files.values()) for files in (ours, theirs)]
        files = [Path(ours_path).stat().st_size, target.stat().st_size]
    assert sizes[0] == sizes[1], sizes
    kinds = Counter(tensor.tensor_type.name for tensor in ours.values())
    ratio = (total[0] / total[1]) ** 0.5 if total[1] else 1.0
    print(f"{Path(ours_path).name}: types equal {dict(kinds)}, {sizes[0]} bytes of tensors, files "
          f"{files[0]} and {files[1]}; RMSE over llama.cpp's {ratio:.4f}, worst tensor "
          f"{worst[0]:.4f} ({worst[1]})")
    assert worst[0] <= 1.02, worst


if __name__ == "__main__":
    main()
