#!/usr/bin/env python3
"""Writes tests/fixtures/families: tiny random models of every family and what transformers and PEFT compute.

usage: make_family_fixtures.py [VARIANT ...]        (from the root of the repository; all where none is named)

Needs torch, transformers 5, peft and safetensors. Weights are stored in f16 and computed with in f32 on one thread
of the CPU, so a second run on the same versions writes the same bytes.

    config.json, model.safetensors   the model; `*_old` as transformers 4 wrote its configuration
    adapter/                         a PEFT LoRA of rank 2 on every linear layer but the head
    reference.json                   ids of two sequences, their mean loss, 20 greedy tokens
    parameters/                      of some: an adapter over experts as parameters (`target_parameters`), its logits, and
                                     gradients in the names and shapes of its tensors
    reference.safetensors            logits of the longer sequence without and with the adapter, and the gradients
                                     of the mean loss over both sequences for every factor
"""

import json
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

ROOT = Path("tests/fixtures/families")
VOCAB = 64
LENGTHS = (13, 40)
WINDOW = 8
GREEDY_PROMPT, GREEDY_TOKENS = 12, 20


@dataclass
class Variant:
    """One model: its type, its keys, and how its files are changed to look as other programs write them."""

    model_type: str
    config: dict = field(default_factory=dict)
    old: dict | None = None
    absent: tuple = ()
    rename: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)
    adapter: dict = field(default_factory=dict)
    # With a cache, transformers keeps keys turned by the short factors when a text grows past the first training's
    # length, except in Phi-3; here tokens are those of fresh passes.
    stale_cache: bool = False
    fused: bool = False
    # PEFT's names of the experts, where an adapter over them is written, too.
    parameters: str | None = None

    def has_experts(self) -> bool:
        return self.model_type in EXPERT_LAYERS


# Names of gate, up and down of an expert, as checkpoints have them.
GATED = ("gate_proj", "up_proj", "down_proj")
EXPERT_LAYERS = {"mixtral": ("w1", "w3", "w2"), "qwen3_moe": GATED, "deepseek_v2": GATED, "deepseek_v3": GATED}
LATENT_LAYERS = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"]

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
        "beta_fast": 4.0, "beta_slow": 0.5}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.3],
        "long_factor": [1.5, 2.0, 4.0]}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 48, "n_inner": 40}
GEMMA3 = {"sliding_window": WINDOW, "num_hidden_layers": 3, "head_dim": 12, "query_pre_attn_scalar": 20,
          "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
          "final_logit_softcapping": 9.0}
GEMMA3_ROPE = {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
               "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
MOE = {"num_experts_per_tok": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
LATENT = {"kv_lora_rank": 12, "q_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8,
          "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
          "num_key_value_heads": 4, "first_k_dense_replace": 1, "hidden_size": 24, "intermediate_size": 32}
DEEP_YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 0.5}
LLAMA4 = {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 16,
          "intermediate_size_mlp": 24, "num_hidden_layers": 3, "interleave_moe_layer_step": 2, "floor_scale": 8,
          "no_rope_layers": [1, 0, 1], "attention_chunk_size": 16, "hidden_size": 24,
          "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 1.0, "original_max_position_embeddings": 16}}
LLAMA4_VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                 "image_size": 8, "patch_size": 4, "vision_output_dim": 8, "projector_input_dim": 8,
                 "projector_output_dim": 8}
COHERE = {"logit_scale": 0.5, "layer_norm_eps": 1e-5}

VARIANTS = {
    "llama_yarn": Variant("llama", {"rope_parameters": YARN, "head_dim": 16}),
    "llama_longrope": Variant("llama", {"head_dim": 6, "rope_parameters": LONG | {
        "original_max_position_embeddings": 24, "factor": 4.0}}, stale_cache=True),
    "mistral": Variant("mistral", {"sliding_window": WINDOW, "head_dim": 12}),
    "mistral_old": Variant("mistral", {"sliding_window": None}, old={"rope_theta": 10000.0}),
    "qwen2": Variant("qwen2", {"tie_word_embeddings": True}),
    "qwen2_sliding_old": Variant("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW,
                                           "max_window_layers": 1, "rope_parameters": YARN},
                                 old={"rope_theta": 10000.0, "rope_scaling": {
                                     "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                                     "beta_fast": 4.0, "beta_slow": 0.5}}, absent=("layer_types",)),
    "qwen3": Variant("qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "qwen3_bias": Variant("qwen3", {"head_dim": 8, "attention_bias": True, "use_sliding_window": True,
                                    "sliding_window": WINDOW, "num_hidden_layers": 3,
                                    "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    "smollm3": Variant("smollm3", {"num_hidden_layers": 4}),
    "smollm3_old": Variant("smollm3", {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1],
                                       "use_sliding_window": True, "sliding_window": WINDOW},
                           old={"rope_theta": 50000.0}, absent=("layer_types",)),
    "phi3": Variant("phi3", {"num_hidden_layers": 2, "max_position_embeddings": 96,
                             "original_max_position_embeddings": 24, "rope_parameters": LONG | {
                                 "partial_rotary_factor": 0.75}}),
    "phi3_old": Variant("phi3", {"sliding_window": WINDOW, "max_position_embeddings": 96,
                                 "original_max_position_embeddings": 24, "rope_parameters": LONG | {
                                     "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0]}},
                        old={"rope_theta": 10000.0, "rope_scaling": {
                            "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3],
                            "long_factor": [1.5, 2.0, 3.0, 4.0]}}),
    "gemma2": Variant("gemma2", {"sliding_window": WINDOW, "num_hidden_layers": 3, "head_dim": 12,
                                 "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0,
                                 "final_logit_softcapping": 9.0}),
    "gemma2_old": Variant("gemma2", {"sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8,
                                     "attn_logit_softcapping": 5.0, "final_logit_softcapping": None},
                          old={"rope_theta": 10000.0}, absent=("layer_types", "tie_word_embeddings")),
    # The factor of scores that llama.cpp derives from the head size.
    "gemma2_pattern": Variant("gemma2", SMALL | {"sliding_window": WINDOW, "query_pre_attn_scalar": 8,
                                                 "attn_logit_softcapping": 3.0, "final_logit_softcapping": 9.0}),
    "gemma3_text": Variant("gemma3_text", GEMMA3 | {"rope_parameters": GEMMA3_ROPE}),
    "gemma3_text_old": Variant("gemma3_text", GEMMA3 | {"rope_parameters": GEMMA3_ROPE},
                               old={"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 2,
                                    "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
                               absent=("layer_types", "tie_word_embeddings", "final_logit_softcapping",
                                       "_sliding_window_pattern")),
    # The pattern of llama.cpp, which is in no metadata.
    "gemma3_text_pattern": Variant("gemma3_text", SMALL | {
        "num_hidden_layers": 6, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "rope_parameters": GEMMA3_ROPE}),
    # transformers leaves the cap of the logits out where images are seen, too.
    "gemma3": Variant("gemma3", GEMMA3 | {"rope_parameters": GEMMA3_ROPE, "final_logit_softcapping": None}),
    "olmo2": Variant("olmo2", {"rms_norm_eps": 1e-5, "rope_parameters": {
        "rope_type": "default", "rope_theta": 500000.0}}),
    "granite": Variant("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.3,
                                   "residual_multiplier": 0.7, "logits_scaling": 2.0,
                                   "tie_word_embeddings": True}),
    "granite_old": Variant("granite", {"embedding_multiplier": 2, "attention_multiplier": 0.2,
                                       "residual_multiplier": 0.5, "logits_scaling": 3, "attention_bias": True,
                                       "mlp_bias": True}, old={"rope_theta": 10000.0, "rope_scaling": None}),
    "cohere": Variant("cohere", COHERE),
    "cohere_qk_norm_old": Variant("cohere", COHERE | {"use_qk_norm": True},
                                  old={"rope_theta": 10000.0}, absent=("tie_word_embeddings",)),
    "cohere2": Variant("cohere2", COHERE | {"sliding_window": WINDOW, "num_hidden_layers": 3,
                                            "layer_types": ["sliding_attention", "full_attention",
                                                            "sliding_attention"]}),
    "cohere2_pattern": Variant("cohere2", COHERE | SMALL | {"num_hidden_layers": 4, "sliding_window": WINDOW}),
    "mixtral": Variant("mixtral", MOE | {"num_local_experts": 4, "intermediate_size": 24, "sliding_window": None},
                       parameters="mlp.experts"),
    "mixtral_old": Variant("mixtral", MOE | {"num_local_experts": 3, "intermediate_size": 24,
                                             "sliding_window": WINDOW}, old={"rope_theta": 10000.0}),
    "qwen3_moe": Variant("qwen3_moe", MOE | {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 12,
                                             "num_hidden_layers": 3, "mlp_only_layers": [0],
                                             "norm_topk_prob": False}),
    "qwen3_moe_old": Variant("qwen3_moe", MOE | {"num_experts": 5, "moe_intermediate_size": 16, "head_dim": 8,
                                                 "decoder_sparse_step": 2, "norm_topk_prob": True},
                             old={"rope_theta": 10000.0, "rope_scaling": None}),
    # Experts in one tensor, as transformers 5 holds them in memory.
    "qwen3_moe_fused": Variant("qwen3_moe", MOE | {"num_experts": 3, "moe_intermediate_size": 16, "head_dim": 8,
                                                   "norm_topk_prob": True}, fused=True, parameters="mlp.experts"),
    "deepseek_v2": Variant("deepseek_v2", LATENT | {
        "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
        "routed_scaling_factor": 1.5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "deepseek_v2_groups_old": Variant(
        "deepseek_v2", LATENT | {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2,
                                 "n_routed_experts": 6, "n_shared_experts": 1, "routed_scaling_factor": 2.0,
                                 "attention_bias": True, "v_head_dim": 12, "rope_parameters": DEEP_YARN | {
                                     "rope_type": "yarn", "rope_theta": 10000.0, "mscale": 0.707,
                                     "mscale_all_dim": 0.707}},
        old={"rope_theta": 10000, "scoring_func": "softmax", "moe_layer_freq": 1, "rope_scaling": DEEP_YARN | {
            "type": "yarn", "mscale": 0.707, "mscale_all_dim": 0.707}}, absent=("head_dim", "qk_head_dim")),
    # With a layer for multi-token prediction, as the published checkpoints have.
    "deepseek_v3": Variant("deepseek_v3", LATENT | {
        "n_routed_experts": 6, "n_shared_experts": 1, "n_group": 3, "topk_group": 2, "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "rope_parameters": DEEP_YARN | {
            "rope_type": "yarn", "rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 0.5}},
        extra={"model.layers.2.enorm.weight": (24,), "model.layers.2.eh_proj.weight": (24, 48)}),
    "deepseek_v3_old": Variant("deepseek_v3", LATENT | {
        "q_lora_rank": None, "n_group": 2, "topk_group": 2, "norm_topk_prob": False, "attention_bias": True,
        "routed_scaling_factor": 1.0, "rope_interleave": False},
        old={"rope_theta": 10000.0, "rope_scaling": None, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
             "num_nextn_predict_layers": 0}, absent=("head_dim", "qk_head_dim", "num_mtp_layers")),
    "deepseek_v3_fused": Variant("deepseek_v3", LATENT | {
        "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "v_head_dim": 10}, fused=True, parameters="mlp.experts"),
    # What llama.cpp can express: one magnitude, and groups.
    "deepseek_v3_yarn": Variant("deepseek_v3", LATENT | {
        "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.0,
        "rope_parameters": DEEP_YARN | {"rope_type": "yarn", "rope_theta": 10000.0, "mscale": 1.0,
                                        "mscale_all_dim": 1.0}}),
    "llama4_text": Variant("llama4_text", LLAMA4, parameters="feed_forward.experts"),
    "llama4_text_old": Variant("llama4_text", LLAMA4 | {
        "num_hidden_layers": 2, "interleave_moe_layer_step": 1, "num_experts_per_tok": 2, "use_qk_norm": False,
        "no_rope_layers": [0, 1], "attn_scale": 0.4, "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        old={"rope_theta": 10000.0, "rope_scaling": None}, absent=("layer_types", "moe_layers")),
    "llama4": Variant("llama4", LLAMA4 | {"num_hidden_layers": 2, "no_rope_layers": [1, 0]}),
    # The constants of llama.cpp, which are in no metadata.
    "llama4_text_pattern": Variant("llama4_text", LLAMA4 | {
        "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "attention_chunk_size": 8192, "floor_scale": 8192,
        "attn_scale": 0.1, "hidden_size": 16, "num_local_experts": 3}),
    "gpt2": Variant("gpt2", GPT),
    # As the first GPT-2 files: no prefix, masks among the tensors.
    "gpt2_old": Variant("gpt2", GPT | {"n_inner": None, "scale_attn_by_inverse_layer_idx": True}, old={},
                        absent=("tie_word_embeddings",), rename={"transformer.": ""},
                        extra={"h.{}.attn.bias": (1, 1, 48, 48)}),
    "gpt_neox": Variant("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                         "partial_rotary_factor": 0.5}}),
    "gpt_neox_sequential_old": Variant(
        "gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_fast", "num_attention_heads": 2,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                         "partial_rotary_factor": 0.25}},
        old={"rotary_emb_base": 10000, "rotary_pct": 0.25},
        extra={"gpt_neox.layers.{}.attention.bias": (1, 1, 48, 48),
               "gpt_neox.layers.{}.attention.masked_bias": ()}),
}


def build_config(variant: Variant):
    keys = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
            "attn_implementation": "eager"}
    if variant.model_type != "gpt2":
        keys |= {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "max_position_embeddings": 96}
        if variant.model_type != "gpt_neox":
            keys["num_key_value_heads"] = 2
    keys |= variant.config
    if variant.model_type == "llama4":
        text = AutoConfig.for_model("llama4_text", **keys).to_dict()
        return AutoConfig.for_model("llama4", text_config=text, vision_config=LLAMA4_VISION, boi_token_index=60,
                                    eoi_token_index=61, image_token_index=62)
    if variant.model_type != "gemma3":
        return AutoConfig.for_model(variant.model_type, **keys)
    text = AutoConfig.for_model("gemma3_text", **keys).to_dict()
    vision = {"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 1, "image_size": 8, "patch_size": 4}
    return AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4,
                                image_token_index=60, boi_token_index=61, eoi_token_index=62)


def build_model(variant: Variant, seed: int):
    """Norms and biases are random and weights are wide, so that a wrong rotary embedding or mask shows."""
    torch.manual_seed(seed)
    model = class_of(build_config(variant)).from_config(build_config(variant), attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    around = 0.0 if variant.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            module = name.rsplit(".", 2)[-2]
            is_norm = "norm" in module or module.startswith("ln_")
            if is_norm and name.endswith("weight"):
                parameter.copy_(around + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif any(part in name for part in ("embed", "lm_head", "wte", "wpe")):
                parameter.copy_(0.4 * noise)
            else:
                parameter.copy_(0.25 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model.to(torch.float16).eval()


def rewrite_config(folder: Path, variant: Variant) -> None:
    """The configuration as transformers 4 wrote it."""
    keys = json.loads((folder / "config.json").read_text())
    keys = {k: v for k, v in keys.items() if k not in ("rope_parameters", "dtype", *variant.absent)}
    keys |= {"torch_dtype": "float16", "transformers_version": "4.44.0"} | variant.old
    (folder / "config.json").write_text(json.dumps(dict(sorted(keys.items())), indent=2) + "\n")


def rewrite_tensors(folder: Path, variant: Variant, layers: int) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for old, new in variant.rename.items():
        tensors = {new + name.removeprefix(old) if name.startswith(old) else name: tensor
                   for name, tensor in tensors.items()}
    for name, shape in variant.extra.items():
        for layer in range(layers):
            tensors[name.format(layer)] = torch.ones(shape, dtype=torch.float16)
    save_file(tensors, path, metadata={"format": "pt"})


def class_of(config):
    """Llama 4 with vision is another class than its language model, which cannot be loaded out of it."""
    return AutoModelForImageTextToText if config.model_type == "llama4" else AutoModelForCausalLM


def open_model(folder: Path):
    loader = class_of(AutoConfig.from_pretrained(folder))
    return loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


class Expert(torch.nn.Module):
    """One expert with layers of its own, as transformers 4 had them and checkpoints still have."""

    def __init__(self, names, gate_up, down):
        super().__init__()
        self.names = names
        for name, weight in zip(names, (*gate_up.chunk(2), down)):
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.data = weight.data.clone()
            self.add_module(name, layer)

    def forward(self, x):
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(torch.nn.functional.silu(gate(x)) * up(x))


class ExpertList(torch.nn.ModuleList):
    def forward(self, hidden, index, weights):
        out = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            token, place = torch.where(index == number)
            out = out.index_add(0, token, expert(hidden[token]) * weights[token, place, None])
        return out


def open_linear_model(folder: Path, variant: Variant):
    """The model with every linear layer a module, so that PEFT can adapt each."""
    model = open_model(folder)
    if variant.has_experts():
        # PEFT would turn names of experts' layers into those of the fused parameters, which are gone here.
        model.config.model_type = "llama"
        for layer in model.model.layers:
            experts = getattr(layer.mlp, "experts", None)
            if experts is not None:
                layer.mlp.experts = ExpertList(
                    Expert(EXPERT_LAYERS[variant.model_type], gate_up, down)
                    for gate_up, down in zip(experts.gate_up_proj, experts.down_proj))
    return model


def logits_of(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def greedy(model, ids: list[int]) -> tuple[list[int], float]:
    """Greedy tokens by a fresh pass for each, and the smallest distance of the two best logits on the way."""
    text, margin = list(ids), float("inf")
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            best = logits_of(model, text)[-1].topk(2)
            margin = min(margin, (best.values[0] - best.values[1]).item())
            text.append(best.indices[0].item())
    return text[len(ids):], margin


def greedy_cached(model, ids: list[int]) -> list[int]:
    with torch.no_grad():
        logits_of(model, ids[:2])
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                         max_new_tokens=GREEDY_TOKENS, min_new_tokens=GREEDY_TOKENS, do_sample=False, use_cache=True,
                         eos_token_id=None)
    return out[0, len(ids):].tolist()


def draw(generator: torch.Generator, length: int) -> list[int]:
    return torch.randint(3, VOCAB - 4, (length,), generator=generator).tolist()


def draw_clear(model, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """A prompt whose continuation is varied and hangs on no near tie."""
    best = None
    for _ in range(200):
        ids = draw(generator, GREEDY_PROMPT)
        tokens, margin = greedy(model, ids)
        score = (len(set(tokens)) >= 5, margin)
        best = max(best or (score, ids, tokens), (score, ids, tokens))
        if len(set(tokens)) >= 5 and margin >= 0.01:
            break
    assert best[0][1] >= 0.002, best[0]
    return best[1], best[2]


def loss_sum(model, ids: list[int]) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits_of(model, ids)[:-1], torch.tensor(ids[1:]), reduction="sum")


def write_adapter(folder: Path, variant: Variant, seed: int) -> None:
    torch.manual_seed(seed + 2)
    target = "all-linear"
    if variant.model_type == "gemma3":
        target = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    if variant.model_type.startswith("llama4"):
        target = r".*(?<!vision_model)\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        if variant.model_type == "llama4":
            target = ".*language_model" + target
    if variant.has_experts():
        target = ["q_proj", "k_proj", "v_proj", "o_proj", *GATED, "w1", "w2", "w3"]
        target += LATENT_LAYERS if variant.model_type.startswith("deepseek") else []
    keys = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": target, "task_type": "CAUSAL_LM"}
    model = get_peft_model(open_linear_model(folder, variant), LoraConfig(**(keys | variant.adapter)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    path = folder / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2) + "\n")


def checkpoint_name(variant: Variant, name: str) -> str:
    """The name a module has in checkpoints, where that differs from transformers 5."""
    return name.replace(".mlp.", ".block_sparse_moe.") if variant.model_type == "mixtral" else name


def rename_adapter(folder: Path, variant: Variant) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = {checkpoint_name(variant, name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def fuse_experts(folder: Path, layers: int) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for layer in range(layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        count = sum(name.startswith(prefix) and name.endswith("down_proj.weight") for name in tensors)
        if count == 0:
            continue
        part = lambda name: [tensors.pop(f"{prefix}.{e}.{name}.weight") for e in range(count)]
        gate, up, down = part("gate_proj"), part("up_proj"), part("down_proj")
        tensors[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gate, up)])
        tensors[f"{prefix}.down_proj"] = torch.stack(down)
    save_file(tensors, path, metadata={"format": "pt"})


def write_reference(folder: Path, variant: Variant, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    sequences = [draw(generator, length) for length in LENGTHS]
    count = sum(len(ids) - 1 for ids in sequences)
    model = open_model(folder)
    prompt, tokens = draw_clear(model, generator)
    if not variant.stale_cache:
        cached = greedy_cached(model, prompt)
        assert cached == tokens, (folder, tokens, cached)
    with torch.no_grad():
        tensors = {"logits": logits_of(model, sequences[1])}
        base_loss = sum(loss_sum(model, ids).item() for ids in sequences) / count
    linear = open_linear_model(folder, variant)
    with torch.no_grad():
        assert (logits_of(linear, sequences[1]) - tensors["logits"]).abs().max() < 1e-4
    model = PeftModel.from_pretrained(linear, folder / "adapter", is_trainable=True).eval()
    tensors["adapter_logits"] = logits_of(model, sequences[1]).detach()
    loss = sum(loss_sum(model, ids) for ids in sequences) / count
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            tensors["gradient." + checkpoint_name(variant, name.replace(".default", ""))] = gradient
    merged = model.merge_and_unload()
    with torch.no_grad():
        distance = (logits_of(merged, sequences[1]) - tensors["adapter_logits"]).abs().max().item()
    assert distance < 1e-4, (folder, distance)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "reference.safetensors")
    made_by = (f"scripts/make_family_fixtures.py, torch {torch.__version__.split('+')[0]}, "
               f"transformers {transformers.__version__}, peft {peft.__version__}")
    facts = {"made_by": made_by, "sequences": sequences, "mean_loss": base_loss, "adapter_mean_loss": loss.item(),
             "greedy_prompt": prompt, "greedy": tokens}
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in facts.items()]
    (folder / "reference.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_parameters(folder: Path, variant: Variant, seed: int) -> None:
    """An adapter over attention and over all experts of a layer at once, and what PEFT computes with it."""
    torch.manual_seed(seed + 3)
    names = [f"{variant.parameters}.{part}" for part in ("gate_up_proj", "down_proj")]
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_b_proj", "k_proj", "o_proj"], target_parameters=names,
                        rank_pattern={"experts.down_proj": 1}, task_type="CAUSAL_LM")
    model = get_peft_model(open_model(folder), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder / "parameters")
    (folder / "parameters" / "README.md").unlink(missing_ok=True)
    path = folder / "parameters" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    config["target_parameters"].sort(reverse=True)
    path.write_text(json.dumps(config, indent=2) + "\n")
    sequences = json.loads((folder / "reference.json").read_text())["sequences"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    count = sum(len(ids) - 1 for ids in sequences)
    (sum(loss_sum(model, ids) for ids in sequences) / count).backward()
    tensors = {name.replace(".default", ""): parameter.grad.contiguous() for name, parameter in model.named_parameters()
               if parameter.requires_grad}
    save_file(tensors, folder / "parameters" / "gradients.safetensors", metadata={"format": "pt"})
    logits = logits_of(model, sequences[1]).detach()
    save_file({"logits": logits}, folder / "parameters" / "logits.safetensors")


def make(name: str, variant: Variant) -> None:
    folder, seed = ROOT / name, 2000 + 10 * sum(map(ord, name))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = build_model(variant, seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if variant.old is not None:
        rewrite_config(folder, variant)
    if variant.fused:
        fuse_experts(folder, model.config.num_hidden_layers)
    if variant.rename or variant.extra:
        rewrite_tensors(folder, variant, model.config.num_hidden_layers)
    write_adapter(folder, variant, seed)
    write_reference(folder, variant, seed)
    rename_adapter(folder, variant)
    if variant.parameters:
        write_parameters(folder, variant, seed)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{name}: {size / 1024:.0f} KiB", flush=True)


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in sys.argv[1:] or VARIANTS:
        make(name, VARIANTS[name])


if __name__ == "__main__":
    main()
