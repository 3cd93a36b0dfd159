#!/usr/bin/env python3
"""Writes tests/fixtures/families/*/model.gguf: the tiny models as llama.cpp's converter lays them out.

usage: make_family_gguf_fixtures.py [VARIANT ...]     (after make_family_fixtures.py, from the root of the repository)

Needs gguf, safetensors and numpy. Tensor names are those of the gguf package; matrices are F16, vectors F32.
"""

import json
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import MODEL_ARCH
from make_family_fixtures import ROOT
from safetensors.numpy import load_file

ARCHITECTURES = {
    "llama_yarn": MODEL_ARCH.LLAMA, "mistral_old": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3, "smollm3": MODEL_ARCH.SMOLLM3, "phi3": MODEL_ARCH.PHI3, "phi3_old": MODEL_ARCH.PHI3,
    "gemma2_old": MODEL_ARCH.GEMMA2, "gemma3_text_pattern": MODEL_ARCH.GEMMA3, "olmo2": MODEL_ARCH.OLMO2,
    "granite": MODEL_ARCH.GRANITE, "cohere": MODEL_ARCH.COMMAND_R, "cohere_qk_norm_old": MODEL_ARCH.COMMAND_R,
    "cohere2_pattern": MODEL_ARCH.COHERE2, "gpt2": MODEL_ARCH.GPT2, "gpt_neox": MODEL_ARCH.GPTNEOX,
}
INTERLEAVED = (MODEL_ARCH.LLAMA, MODEL_ARCH.SMOLLM3, MODEL_ARCH.GRANITE)
GEMMA = (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3)
COHERE = (MODEL_ARCH.COMMAND_R, MODEL_ARCH.COHERE2)


def interleave(rows, heads):
    """The HF order of q and k rows (half-split) to GGUF's (pairs side by side)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def heads_apart(rows, heads):
    """GPT-NeoX's query, key and value of a head together to all queries, all keys, all values."""
    parts = rows.reshape(heads, 3, rows.shape[0] // heads // 3, *rows.shape[1:])
    return parts.swapaxes(0, 1).reshape(rows.shape)


def converted(arch, name, tensor, sizes):
    if arch in INTERLEAVED and ("q_proj" in name or "k_proj" in name):
        return interleave(tensor, sizes["heads"] if "q_proj" in name else sizes["kv_heads"])
    if arch in GEMMA and name.endswith("norm.weight"):
        return tensor + 1
    if arch == MODEL_ARCH.GPTNEOX and "query_key_value" in name:
        return heads_apart(tensor, sizes["heads"])
    if arch == MODEL_ARCH.GPT2 and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return tensor.T
    return tensor


def add_sizes(writer, arch, keys):
    get = lambda *names, default=None: next((keys[n] for n in names if keys.get(n) is not None), default)
    heads = get("num_attention_heads", "n_head")
    hidden = get("hidden_size", "n_embd")
    sizes = {"heads": heads, "kv_heads": get("num_key_value_heads", default=heads),
             "head_dim": get("head_dim", default=hidden // heads)}
    writer.add_context_length(get("max_position_embeddings", "n_positions"))
    writer.add_embedding_length(hidden)
    writer.add_block_count(get("num_hidden_layers", "n_layer"))
    writer.add_feed_forward_length(get("intermediate_size", "n_inner"))
    writer.add_head_count(heads)
    writer.add_head_count_kv(sizes["kv_heads"])
    if arch not in (MODEL_ARCH.GPT2, MODEL_ARCH.GPTNEOX):
        writer.add_key_length(sizes["head_dim"])
        writer.add_value_length(sizes["head_dim"])
    if "rms_norm_eps" in keys:
        writer.add_layer_norm_rms_eps(keys["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(get("layer_norm_eps", "layer_norm_epsilon"))
    return sizes


def add_rope(writer, arch, keys, sizes):
    rope = keys.get("rope_scaling") or keys.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    theta = full.get("rope_theta", keys.get("rope_theta"))
    if theta is not None:
        writer.add_rope_freq_base(float(theta))
    if arch in (MODEL_ARCH.PHI3, MODEL_ARCH.GPTNEOX):
        share = rope.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(sizes["head_dim"] * share))
    kind = full.get("rope_type", full.get("type"))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR if kind == "linear" else gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(full["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(full["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(full["beta_slow"])
    if kind == "longrope":
        original, context = keys["original_max_position_embeddings"], keys["max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(context / original) / np.log(original))))
        for part in ("long", "short"):
            writer.add_tensor(f"rope_factors_{part}.weight", np.array(full[f"{part}_factor"], dtype=np.float32))


def add_peculiar(writer, arch, keys):
    if keys.get("sliding_window") and arch in (*GEMMA, MODEL_ARCH.PHI3, MODEL_ARCH.COHERE2):
        writer.add_sliding_window(keys["sliding_window"])
    if arch == MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(keys["attn_logit_softcapping"])
        if keys["final_logit_softcapping"]:
            writer.add_final_logit_softcapping(keys["final_logit_softcapping"])
    if arch == MODEL_ARCH.GRANITE:
        writer.add_attention_scale(keys["attention_multiplier"])
        writer.add_embedding_scale(keys["embedding_multiplier"])
        writer.add_residual_scale(keys["residual_multiplier"])
        writer.add_logit_scale(keys["logits_scaling"])
    if arch in COHERE:
        writer.add_logit_scale(keys["logit_scale"])
    if arch == MODEL_ARCH.GPTNEOX:
        writer.add_parallel_residual(keys["use_parallel_residual"])


def make(variant, arch):
    folder = ROOT / variant
    keys = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(folder / "model.gguf", gguf.MODEL_ARCH_NAMES[arch])
    sizes = add_sizes(writer, arch, keys)
    add_rope(writer, arch, keys, sizes)
    add_peculiar(writer, arch, keys)
    names = gguf.get_tensor_name_map(arch, keys.get("num_hidden_layers", keys.get("n_layer")))
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, kind = name.rsplit(".", 1)
        tensor = converted(arch, name, tensor.astype(np.float32), sizes)
        dtype = Type.F32 if tensor.ndim == 1 else Type.F16
        data = np.ascontiguousarray(tensor, dtype=np.float32 if dtype == Type.F32 else np.float16)
        gguf_name = names.get_name(stem)
        assert gguf_name, name
        writer.add_tensor(f"{gguf_name}.{kind}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{variant}: {(folder / 'model.gguf').stat().st_size / 1024:.0f} KiB", flush=True)


def main():
    for variant in sys.argv[1:] or ARCHITECTURES:
        make(variant, ARCHITECTURES[variant])


if __name__ == "__main__":
    main()
