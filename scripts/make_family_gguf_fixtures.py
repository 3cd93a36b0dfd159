#!/usr/bin/env python3
"""Writes tests/fixtures/families/*/model.gguf: the tiny models as llama.cpp's converter lays them out.

usage: make_family_gguf_fixtures.py [VARIANT ...]     (after make_family_fixtures.py, from the root of the repository)

Needs gguf, safetensors and numpy. Tensor names are those of the gguf package; matrices are F16, vectors F32.
"""

import json
import re
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
    "mixtral": MODEL_ARCH.LLAMA, "qwen3_moe_fused": MODEL_ARCH.QWEN3MOE, "deepseek_v2": MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3_fused": MODEL_ARCH.DEEPSEEK2, "deepseek_v3_yarn": MODEL_ARCH.DEEPSEEK2,
    "llama4_text_pattern": MODEL_ARCH.LLAMA4,
}
INTERLEAVED = (MODEL_ARCH.LLAMA, MODEL_ARCH.SMOLLM3, MODEL_ARCH.GRANITE)
GEMMA = (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3)
# Of these the latent expansion lies in one tensor, as files from before 2025-04 have it.
LATENT_IN_ONE = ("deepseek_v2",)
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


def parted(variant, arch, tensors, keys):
    """Tensors under the names that the name map knows: experts stacked, the latent expansion in two."""
    stacks = {}
    for name, tensor in tensors.items():
        expert = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name)
        if expert:
            prefix, number, layer = expert.groups()
            stacks.setdefault(f"{prefix}.{layer}.weight", {})[int(number)] = tensor
        elif name.endswith("experts.gate_up_proj"):
            if arch == MODEL_ARCH.LLAMA4:
                tensor = tensor.swapaxes(1, 2)
            gate, up = np.split(tensor, 2, axis=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        elif name.endswith("experts.down_proj"):
            yield name + ".weight", tensor.swapaxes(1, 2) if arch == MODEL_ARCH.LLAMA4 else tensor
        elif name.endswith("kv_b_proj.weight") and variant not in LATENT_IN_ONE:
            heads = keys["num_attention_heads"]
            rows = tensor.reshape(heads, -1, tensor.shape[-1])
            content = keys["qk_nope_head_dim"]
            yield name.replace("kv_b", "k_b"), rows[:, :content].swapaxes(1, 2)
            yield name.replace("kv_b", "v_b"), rows[:, content:]
        elif name.endswith("e_score_correction_bias"):
            yield name.replace("correction_bias", "correction.bias"), tensor
        else:
            yield name, tensor
    for name, experts in stacks.items():
        yield name, np.stack([experts[number] for number in sorted(experts)])


def add_experts(writer, variant, arch, keys):
    count = next((keys[n] for n in ("num_local_experts", "num_experts", "n_routed_experts") if n in keys), None)
    if count is None:
        return
    writer.add_expert_count(count)
    writer.add_expert_used_count(keys["num_experts_per_tok"])
    if arch == MODEL_ARCH.LLAMA4:
        writer.add_interleave_moe_layer_step(keys["interleave_moe_layer_step"])
        writer.add_expert_feed_forward_length(keys["intermediate_size"])
    elif arch != MODEL_ARCH.LLAMA:
        writer.add_expert_feed_forward_length(keys["moe_intermediate_size"])
    if arch == MODEL_ARCH.DEEPSEEK2:
        is_v3 = keys["model_type"] == "deepseek_v3"
        writer.add_leading_dense_block_count(keys["first_k_dense_replace"])
        writer.add_expert_shared_count(keys["n_shared_experts"])
        writer.add_expert_weights_scale(keys["routed_scaling_factor"])
        writer.add_expert_weights_norm(bool(keys["norm_topk_prob"]))
        func = gguf.ExpertGatingFuncType
        writer.add_expert_gating_func(func.SIGMOID if is_v3 else func.SOFTMAX)
        if is_v3:
            writer.add_expert_group_count(keys["n_group"])
            writer.add_expert_group_used_count(keys["topk_group"])


def add_latent(writer, variant, keys):
    if keys["q_lora_rank"] is not None:
        writer.add_q_lora_rank(keys["q_lora_rank"])
    rank, content, rotated = keys["kv_lora_rank"], keys["qk_nope_head_dim"], keys["qk_rope_head_dim"]
    writer.add_kv_lora_rank(rank)
    in_one = variant in LATENT_IN_ONE
    writer.add_key_length(content + rotated if in_one else rank + rotated)
    writer.add_value_length(keys["v_head_dim"] if in_one else rank)
    if not in_one:
        writer.add_key_length_mla(content + rotated)
        writer.add_value_length_mla(keys["v_head_dim"])
    writer.add_rope_dimension_count(rotated)
    magnitude = (keys.get("rope_parameters") or {}).get("mscale_all_dim")
    if magnitude is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * magnitude)


def llama3_factors(rope, head_dim):
    """The divisor of each rotary pair."""
    lengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    original, low, high = (rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    kept, divided = lengths < original / high, lengths > original / low
    assert (kept | divided).all()
    return np.where(kept, 1.0, rope["factor"]).astype(np.float32)


def add_sizes(writer, arch, keys):
    get = lambda *names, default=None: next((keys[n] for n in names if keys.get(n) is not None), default)
    heads = get("num_attention_heads", "n_head")
    hidden = get("hidden_size", "n_embd")
    sizes = {"heads": heads, "kv_heads": get("num_key_value_heads", default=heads),
             "head_dim": get("head_dim", default=hidden // heads)}
    writer.add_context_length(get("max_position_embeddings", "n_positions"))
    writer.add_embedding_length(hidden)
    writer.add_block_count(get("num_hidden_layers", "n_layer"))
    writer.add_feed_forward_length(get("intermediate_size_mlp", "intermediate_size", "n_inner"))
    writer.add_head_count(heads)
    writer.add_head_count_kv(1 if arch == MODEL_ARCH.DEEPSEEK2 else sizes["kv_heads"])
    if arch not in (MODEL_ARCH.GPT2, MODEL_ARCH.GPTNEOX, MODEL_ARCH.DEEPSEEK2):
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
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(full, sizes["head_dim"]))
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
    add_experts(writer, variant, arch, keys)
    if arch == MODEL_ARCH.DEEPSEEK2:
        add_latent(writer, variant, keys)
    names = gguf.get_tensor_name_map(arch, keys.get("num_hidden_layers", keys.get("n_layer")))
    for name, tensor in parted(variant, arch, load_file(folder / "model.safetensors"), keys):
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
