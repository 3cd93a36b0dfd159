#!/usr/bin/env python3
"""Writes tests/fixtures/methods: what PEFT computes with other methods than plain LoRA, over the tiny Llama models.

usage: make_method_fixtures.py [METHOD ...]        (from the root of the repository; all where none is named)

Each folder has an adapter as PEFT saves it, logits of one text, the gradients of the first step, the losses and the
adapter of 20 steps over the base's `rows.jsonl`, and the merged weights. f32 on one thread of the CPU.
"""

import json
import re
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from make_fixtures import (CLIP, LEARNING_RATE, ROWS_PER_STEP, STEPS, WEIGHT_DECAY, adapter_tensors, fresh_logits,
                           made_by, step_loss, write_json)
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT, BASES = Path("tests/fixtures/methods"), Path("tests/fixtures")


@dataclass
class Method:
    """One adapter: its base, and what PEFT's config says."""

    base: str
    adapter: dict = field(default_factory=dict)
    rate_ratio: float = 1.0
    """Learning rate of B over that of A."""
    trained: bool = True
    starts: bool = False
    """Begins as a part of the base: the folder has that start, and the adapter that PEFT converts at the end."""


METHODS = {
    # Biases under the magnitudes, and modules of different ranks.
    "dora": Method("llama/attention_bias_tied", {"use_dora": True, "rank_pattern": {"q_proj": 2}}),
    "dora_rslora": Method("llama/gqa", {"use_dora": True, "use_rslora": True}, rate_ratio=4.0),
    "lora_plus": Method("llama/gqa", rate_ratio=8.0),
    # Weights that are stored [in, out]: merged weights only.
    "dora_gpt2": Method("families/gpt2", {"use_dora": True, "fan_in_fan_out": True,
                                          "target_modules": ["c_attn", "c_fc", "c_proj"]}, trained=False),
    "pissa": Method("llama/gqa", {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}}, starts=True),
    "olora": Method("llama/gqa", {"init_lora_weights": "olora", "use_rslora": True}, starts=True),
    # Modules that are trained as a whole: both ends, a head that parts from the embedding, both as the one matrix
    # that they are, norms and single layers with their biases; biases; weights stored [in, out] with layer norms.
    "save_ends": Method("llama/gqa", {"modules_to_save": ["lm_head", "embed_tokens"]}),
    "save_tied_head": Method("llama/attention_bias_tied", {"modules_to_save": ["lm_head"]}),
    "save_tied_pair": Method("llama/attention_bias_tied", {"modules_to_save": ["embed_tokens"],
                                                           "ensure_weight_tying": True}),
    "save_norms": Method("llama/attention_bias_tied", {"modules_to_save": ["norm", "q_proj"]}),
    "bias_all": Method("llama/attention_bias_tied", {"bias": "all", "target_modules": ["q_proj", "down_proj"]}),
    "save_gpt2": Method("families/gpt2", {"modules_to_save": ["ln_2", "c_fc"], "bias": "lora_only",
                                          "fan_in_fan_out": True, "target_modules": ["c_attn"]}, trained=False),
}


KEYS = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def train_from_start(folder: Path, method: Method) -> None:
    """Trains from PEFT's own start, and converts the result to a LoRA over the base as it is."""
    model = get_peft_model(base_of(method), LoraConfig(**(KEYS | method.adapter))).train()
    save_file(adapter_tensors(model), folder / "start.safetensors")
    with tempfile.TemporaryDirectory() as start:
        model.save_pretrained(start)
        train(folder, model, method)
        model.save_pretrained(folder / "adapter", path_initial_model_for_weight_conversion=start)
    tidy(folder / "adapter")


def tidy(adapter: Path) -> None:
    (adapter / "README.md").unlink(missing_ok=True)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2) + "\n")


def new_adapter(folder: Path, method: Method, seed: int) -> None:
    """An adapter whose every tensor is off its starting value."""
    torch.manual_seed(seed)
    model = get_peft_model(base_of(method), LoraConfig(**(KEYS | method.adapter)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape))
            if "lora_magnitude_vector" in name:
                parameter.mul_(1.0 + 0.1 * torch.randn(parameter.shape))
            if parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder / "adapter")
    tidy(folder / "adapter")


def base_of(method: Method):
    return AutoModelForCausalLM.from_pretrained(BASES / method.base, dtype=torch.float32)


def open_adapter(folder: Path, method: Method, trainable: bool):
    return PeftModel.from_pretrained(base_of(method), folder / "adapter", is_trainable=trainable)


def is_decayed(name: str) -> bool:
    """As the trainer of transformers groups parameters: neither biases nor norms decay."""
    return not re.search(r"bias|layernorm|(?:^|\.)norm(?:$|\.)|(?:^|\.)ln_", name)


def trained_tensors(model, gradients=False) -> dict:
    """By their names in adapter_model.safetensors, apart from `base_layer`."""
    found = adapter_tensors(model, gradients)
    return {name.replace(".modules_to_save", "").replace(".base_layer", ""): v for name, v in found.items()}


def optimizer_of(model, method: Method):
    keys = {"betas": (0.9, 0.999), "eps": 1e-8}
    if method.rate_ratio == 1.0:
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups = [{"params": [p for n, p in trained if is_decayed(n) == decayed],
                   "weight_decay": WEIGHT_DECAY if decayed else 0.0} for decayed in (True, False)]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=LEARNING_RATE, **keys)
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=LEARNING_RATE, loraplus_weight_decay=WEIGHT_DECAY,
                                     loraplus_lr_ratio=method.rate_ratio, **keys)


def train(folder: Path, model, method: Method) -> None:
    rows = [json.loads(line) for line in (BASES / method.base / "rows.jsonl").read_text().splitlines()]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(model, method)
    losses, norms = [], []
    for step in range(STEPS):
        losses.append(step_loss(model, rows[step * ROWS_PER_STEP:(step + 1) * ROWS_PER_STEP], 1))
        if step == 0 and not method.starts:
            save_file(trained_tensors(model, gradients=True), folder / "step_1_gradients.safetensors")
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, CLIP).item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if not method.starts:
        save_file(trained_tensors(model), folder / "adapter_after_20_steps.safetensors")
    write_json(folder / "training.json", {
        "made_by": made_by().replace("make_fixtures", "make_method_fixtures"), "base": method.base,
        "learning_rate": LEARNING_RATE, "learning_rate_ratio": method.rate_ratio, "weight_decay": WEIGHT_DECAY,
        "max_gradient_norm": CLIP, "losses": losses, "gradient_norms_before_clipping": norms})


def write_reference(folder: Path, method: Method, seed: int) -> None:
    model = open_adapter(folder, method, trainable=False).eval()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (24,), generator=generator).tolist()
    logits = fresh_logits(model, ids).contiguous()
    base_keys = set(base_of(method).state_dict())
    merged = {k: v.contiguous().clone() for k, v in model.merge_and_unload().state_dict().items()}
    base = base_of(method).state_dict()
    changed = {k: v for k, v in merged.items() if k in base_keys and not torch.equal(v, base[k])}
    save_file(changed, folder / "merged.safetensors", metadata={"format": "pt"})
    save_file({"logits": logits}, folder / "reference.safetensors")
    write_json(folder / "reference.json", {"base": method.base, "input_ids": ids})


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in sys.argv[1:] or METHODS:
        folder, seed = ROOT / name, 7000 + 10 * list(METHODS).index(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if METHODS[name].starts:
            train_from_start(folder, METHODS[name])
        else:
            new_adapter(folder, METHODS[name], seed)
            write_reference(folder, METHODS[name], seed + 1)
        if METHODS[name].trained and not METHODS[name].starts:
            train(folder, open_adapter(folder, METHODS[name], trainable=True).train(), METHODS[name])
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{name}: {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
