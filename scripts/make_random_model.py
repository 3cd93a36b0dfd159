#!/usr/bin/env python3
"""Writes a Llama of random bf16 weights in the shape of a published one, for benchmarks.

    python scripts/make_random_model.py SHAPE OUT_FOLDER [TOKENIZER_FOLDER]     needs numpy

SHAPE: tiny, smollm2_135m, smollm2_360m, tinyllama_1b, llama2_7b, llama3_8b. Weights are normal with a deviation of
0.02, written tensor by tensor, so memory stays small. Tokenizer files are copied where a folder is
named; rows of token ids need none.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy

SHAPES = {
    #               hidden inner layers heads kv_heads vocab tied theta
    "tiny": (64, 128, 2, 4, 2, 512, False, 10000.0),
    "smollm2_135m": (576, 1536, 30, 9, 3, 49152, True, 100000.0),
    "smollm2_360m": (960, 2560, 32, 15, 5, 49152, True, 100000.0),
    "tinyllama_1b": (2048, 5632, 22, 32, 4, 32000, False, 10000.0),
    "llama2_7b": (4096, 11008, 32, 32, 32, 32000, False, 10000.0),
    "llama3_8b": (4096, 14336, 32, 32, 8, 128256, False, 500000.0),
}
SHARD_BYTES = 2 << 30


def tensors(hidden, inner, layers, heads, kv_heads, vocab, tied, _):
    keys = hidden // heads * kv_heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, shape in (
            ("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (keys, hidden)),
            ("self_attn.v_proj", (keys, hidden)), ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)),
            ("mlp.down_proj", (hidden, inner)), ("input_layernorm", (hidden,)),
            ("post_attention_layernorm", (hidden,)),
        ):
            yield f"{prefix}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocab, hidden)


def bf16(values):
    return (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)


def shards(entries):
    parts, size = [[]], 0
    for name, shape in entries:
        count = 2 * int(numpy.prod(shape))
        if size + count > SHARD_BYTES and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append((name, shape, count))
        size += count
    return parts


def write_shard(path, part, generator):
    header, offset = {}, 0
    for name, shape, count in part:
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, count in part:
            if len(shape) == 1:
                values = numpy.ones(shape, numpy.float32)
            else:
                values = generator.standard_normal(shape, numpy.float32) * numpy.float32(0.02)
            file.write(bf16(values).tobytes())


def main():
    shape, out = SHAPES[sys.argv[1]], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    hidden, inner, layers, heads, kv_heads, vocab, tied, theta = shape
    (out / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "tie_word_embeddings": tied,
        "rope_theta": theta, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }, indent=2) + "\n")
    parts, generator, index = shards(tensors(*shape)), numpy.random.default_rng(0), {}
    for number, part in enumerate(parts, 1):
        name = "model.safetensors" if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_shard(out / name, part, generator)
        index |= {tensor: name for tensor, _, _ in part}
    if len(parts) > 1:
        total = sum(count for part in parts for _, _, count in part)
        (out / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    if len(sys.argv) > 3:
        for file in Path(sys.argv[3]).glob("*token*.json"):
            shutil.copy(file, out)


if __name__ == "__main__":
    main()
