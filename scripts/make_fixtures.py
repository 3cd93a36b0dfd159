#!/usr/bin/env python3
"""Writes tests/fixtures/llama: tiny random Llama models and what transformers and PEFT compute with them.

usage: make_fixtures.py [VARIANT ...]        (from the root of the repository; all variants where none is named)

Needs torch, transformers 5, peft, safetensors and tokenizers. Everything is f32 on one thread of the CPU, so a
second run on the same versions writes the same bytes. tests/fixtures/llama/README.md says what each file holds.
"""

import json
import math
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
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path("tests/fixtures/llama")
VOCAB = 104
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LEARNING_RATE, WEIGHT_DECAY, CLIP, STEPS, ROWS_PER_STEP = 1e-3, 0.01, 1.0, 20, 4


@dataclass
class Variant:
    """One model of the set: what differs from a plain two-layer Llama."""

    config: dict = field(default_factory=dict)
    lengths: tuple = (26, 43)
    dtype: torch.dtype = torch.float32
    shard: str = "1GB"
    old_config: dict | None = None
    old_tensors: bool = False
    adapter: dict | None = None
    rows: int = 0
    merged: bool = False


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

VARIANTS = {
    "mha": Variant(config={"num_key_value_heads": 4}),
    "gqa": Variant(adapter={}, rows=80, merged=True),
    "mqa": Variant(config={"num_key_value_heads": 1, "num_hidden_layers": 3}),
    "attention_bias": Variant(config={"attention_bias": True}),
    "mlp_bias": Variant(config={"mlp_bias": True}),
    "tied": Variant(config={"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    # 78 rows: the last of the 20 steps is a shorter one.
    "attention_bias_tied": Variant(config={"attention_bias": True, "tie_word_embeddings": True}, adapter={}, rows=78),
    # heads x head_dim = 48, hidden = 40
    "odd_head_size": Variant(config={"hidden_size": 40, "head_dim": 12}),
    "rope_linear": Variant(config={"max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}}, lengths=(26, 61)),
    "rope_dynamic": Variant(config={"max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}}, lengths=(26, 61)),
    # head_dim 16 so that all three bands of wavelengths occur
    "rope_llama3": Variant(
        config={"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128,
                "rope_parameters": LLAMA3},
        lengths=(28, 75), rows=80,
        adapter={"use_rslora": True, "target_modules": "all-linear",
                 "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.down_proj": 6, "layers.0.mlp.(gate|up)_proj": 3},
                 "alpha_pattern": {"v_proj": 16, "^model.layers.0.mlp.down_proj": 3, "o_proj": 4}}),
    "sharded": Variant(config={"intermediate_size": 40}, shard="36KB"),
    "f16": Variant(dtype=torch.float16, adapter={}, merged=True),
    "bf16": Variant(dtype=torch.bfloat16, adapter={}, merged=True),
    # What transformers 4 wrote: rope_theta, rope_scaling and torch_dtype at the top level.
    "old_config": Variant(
        config={"max_position_embeddings": 128, "rope_parameters": LLAMA3 | {"rope_theta": 500.0}}, lengths=(28, 61),
        old_config={"rope_theta": 500.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}}),
    # Older still: "type" in place of "rope_type", and whole numbers where newer files have floats.
    "old_config_linear": Variant(
        config={"max_position_embeddings": 32, "rope_parameters": {
            "rope_type": "linear", "rope_theta": 20000.0, "factor": 2.0}}, lengths=(26, 61), dtype=torch.float16,
        old_config={"rope_theta": 20000, "rope_scaling": {"type": "linear", "factor": 2}}),
    # The first Llama files: no head_dim, kv heads, rope_theta, biases or tying in the config,
    # and rotary frequencies stored as tensors, which transformers leaves unused.
    "old_config_minimal": Variant(
        config={"num_key_value_heads": 4}, old_config={"rope_scaling": None}, old_tensors=True, dtype=torch.float16),
}
OLD_MINIMAL_ABSENT = ("head_dim", "num_key_value_heads", "rope_theta", "attention_bias", "mlp_bias",
                      "tie_word_embeddings", "attention_dropout", "pretraining_tp", "rope_scaling")


def build_config(variant: Variant) -> LlamaConfig:
    keys = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 2, "initializer_range": 0.25} | variant.config
    return LlamaConfig(**keys)


def build_model(variant: Variant, seed: int) -> LlamaForCausalLM:
    """A model whose norms and biases are random and whose weights are wide, so that a wrong RoPE or mask shows."""
    model = LlamaForCausalLM(build_config(variant))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.3 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(0.4 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(0.25 * noise)
    return model.to(variant.dtype).eval()


def write_old_config(folder: Path, variant: Variant) -> None:
    new = json.loads((folder / "config.json").read_text())
    old = {k: v for k, v in new.items() if k not in ("rope_parameters", "dtype")}
    old |= {"torch_dtype": new["dtype"], "transformers_version": "4.44.0", "rope_theta": 10000.0}
    old |= variant.old_config
    if variant.old_tensors:
        old = {k: v for k, v in old.items() if k not in OLD_MINIMAL_ABSENT}
        old["transformers_version"] = "4.28.1"
    (folder / "config.json").write_text(json.dumps(dict(sorted(old.items())), indent=2) + "\n")


def add_old_tensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    head_dim = 8
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies.clone()
    save_file(tensors, path, metadata={"format": "pt"})


def write_tokenizer(folder: Path) -> None:
    """Byte-level, a token a printable ASCII character; ids 99 and up have no text."""
    characters = ["Ċ", "Ġ"] + [chr(code) for code in range(33, 127)]
    vocab = {text: i for i, text in enumerate(SPECIAL + characters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    template = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
                "+ '<|im_end|>' + '\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
                "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>", "clean_up_tokenization_spaces": False,
                "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def fresh_logits(model, ids: list[int]) -> torch.Tensor:
    """Logits of one forward pass over `ids` alone, with no state of an earlier pass (dynamic RoPE keeps one)."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached"):
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.clone()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def losses_of(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")


def greedy(model, ids: list[int], count: int = 8) -> tuple[list[int], float]:
    """Greedy tokens by a fresh pass for each, and the smallest distance of the two best logits on the way."""
    text, margin = list(ids), math.inf
    for _ in range(count):
        best = fresh_logits(model, text)[-1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        text.append(best.indices[0].item())
    return text[len(ids):], margin


def greedy_cached(model, ids: list[int], count: int = 8) -> list[int]:
    fresh_logits(model, ids[:2])
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                         max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True, eos_token_id=None)
    return out[0, len(ids):].tolist()


def perplexity(model, ids: list[int], window: int) -> dict:
    total, tokens = 0.0, 0
    for start in range(0, len(ids), window):
        part = ids[start:start + window]
        if len(part) < 2:
            continue
        total += losses_of(fresh_logits(model, part), part).double().sum().item()
        tokens += len(part) - 1
    return {"window": window, "nll_per_token": total / tokens, "perplexity": math.exp(total / tokens), "tokens": tokens}


def text_ids(folder: Path) -> list[int]:
    text = (ROOT / "text.txt").read_text(encoding="utf-8")
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def draw_ids(generator: torch.Generator, length: int) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


def draw_clear(model, generator: torch.Generator, length: int) -> tuple[list[int], list[int], float]:
    """Ids whose greedy continuation is varied and hangs on no near tie."""
    while True:
        ids = draw_ids(generator, length)
        tokens, margin = greedy(model, ids)
        if margin >= 0.05 and len(set(tokens)) >= 5:
            return ids, tokens, margin


def write_reference(folder: Path, variant: Variant, seed: int) -> list[list[int]]:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    sequences, tensors, facts = [], {}, []
    for i, length in enumerate(variant.lengths):
        ids, tokens, margin = draw_clear(model, generator, length)
        logits = fresh_logits(model, ids)
        losses = losses_of(logits, ids)
        tensors |= {f"sequence_{i}.logits": logits.contiguous(), f"sequence_{i}.losses": losses.contiguous()}
        facts.append({"input_ids": ids, "mean_loss": losses.double().mean().item(), "greedy": tokens,
                      "greedy_smallest_margin": margin, "greedy_with_cache": greedy_cached(model, ids)})
        sequences.append(ids)
    save_file(tensors, folder / "reference.safetensors")
    reference = {"made_by": made_by(), "sequences": facts,
                 "perplexity_of_text": [perplexity(model, text_ids(folder), n) for n in (24, 48)]}
    write_json(folder / "reference.json", reference)
    return sequences


def made_by() -> str:
    return (f"scripts/make_fixtures.py, torch {torch.__version__.split('+')[0]}, "
            f"transformers {transformers.__version__}, peft {peft.__version__}")


def write_json(path: Path, value: dict) -> None:
    """One key a line, with what is under it on the same line."""
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_adapter(folder: Path, variant: Variant, seed: int) -> None:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(seed + 2)
    keys = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(**(keys | variant.adapter)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    # PEFT writes this list in the order of a Python set, which differs from run to run.
    path = folder / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2) + "\n")


def open_adapter(folder: Path, dtype=torch.float32, trainable=False):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    return PeftModel.from_pretrained(model, folder / "adapter", is_trainable=trainable)


def write_adapter_reference(folder: Path, variant: Variant, sequences: list[list[int]]) -> None:
    """What base + adapter gives, and what merge_and_unload makes of it."""
    model, tensors = open_adapter(folder).eval(), {}
    for i, ids in enumerate(sequences):
        tensors[f"sequence_{i}.logits"] = fresh_logits(model, ids).contiguous()
    greedy_facts = [greedy(model, ids) for ids in sequences]
    facts = {"made_by": made_by(), "scales": {name.removeprefix("base_model.model."): module.scaling["default"]
                                              for name, module in model.named_modules() if hasattr(module, "lora_A")},
             "greedy": [tokens for tokens, _ in greedy_facts],
             "greedy_smallest_margin": [margin for _, margin in greedy_facts],
             "perplexity_of_text": [perplexity(model, text_ids(folder), n) for n in (24, 48)]}
    merged = model.merge_and_unload().eval()
    tensors["sequence_0.merged_logits"] = fresh_logits(merged, sequences[0]).contiguous()
    facts["largest_distance_of_merged_logits"] = max(
        (fresh_logits(merged, ids) - tensors[f"sequence_{i}.logits"]).abs().max().item()
        for i, ids in enumerate(sequences))
    save_file(tensors, folder / "adapter_reference.safetensors")
    write_json(folder / "adapter_reference.json", facts)
    if variant.merged:
        merged = open_adapter(folder, dtype=variant.dtype).merge_and_unload()
        weights = {k: v.contiguous() for k, v in merged.state_dict().items()}
        save_file(weights, folder / "merged.safetensors", metadata={"format": "pt"})


def make_rows(generator: torch.Generator, count: int) -> list[dict]:
    """Rows of 5 to 44 tokens; stretches of -100 at the start, often another in the middle, sometimes at the end."""
    rows = []
    for _ in range(count):
        length, cut, kind = (torch.randint(low, high, (1,), generator=generator).item()
                             for low, high in ((5, 45), (0, 1000), (0, 4)))
        # half of the ids from a small set, so that the losses have something to fall towards
        ids = [t if t % 2 else 3 + t % 9 for t in draw_ids(generator, length)]
        labels = list(ids)
        prompt = cut % (length // 2 + 1)
        labels[:prompt] = [-100] * prompt
        if kind == 1 and length > 12:
            labels[length // 2 + 1:length // 2 + 4] = [-100] * 3
        if kind == 2 and length > 8:
            labels[-2:] = [-100] * 2
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def step_loss(model, rows: list[dict], width: int) -> float:
    """Backward over the rows of a step, `width` rows at a time; right padding, unseen by causal attention."""
    total = sum(label != -100 for row in rows for label in row["labels"][1:])
    loss_sum = 0.0
    for start in range(0, len(rows), width):
        part = rows[start:start + width]
        longest = max(len(row["input_ids"]) for row in part)
        ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in part])
        labels = torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in part])
        logits = model(input_ids=ids, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100,
            reduction="sum") / total
        loss.backward()
        loss_sum += loss.item()
    return loss_sum


def adapter_tensors(model, gradients=False) -> dict:
    """LoRA tensors (or their gradients) under the names of adapter_model.safetensors."""
    return {name.replace(".default", ""): (p.grad if gradients else p.detach()).clone().contiguous()
            for name, p in model.named_parameters() if p.requires_grad}


def train(folder: Path, rows: list[dict], width: int) -> dict:
    model = open_adapter(folder, trainable=True).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=WEIGHT_DECAY)
    losses, norms, first = [], [], None
    for step in range(STEPS):
        losses.append(step_loss(model, rows[step * ROWS_PER_STEP:(step + 1) * ROWS_PER_STEP], width))
        if step == 0:
            first = adapter_tensors(model, gradients=True)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, CLIP).item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"losses": losses, "norms": norms, "first": first, "final": adapter_tensors(model)}


def write_training(folder: Path, variant: Variant, seed: int) -> None:
    rows = make_rows(torch.Generator().manual_seed(seed + 3), variant.rows)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone, spread = train(folder, rows, 1), 0.0
    for width in (2, 4):
        other = train(folder, rows, width)
        spread = max([spread] + [abs(a - b) / abs(a) for a, b in zip(alone["losses"], other["losses"])])
        cosines = [torch.nn.functional.cosine_similarity(alone["final"][k].flatten(), v.flatten(), dim=0).item()
                   for k, v in other["final"].items()]
        assert spread < 1e-5 and min(cosines) > 0.99999, (folder, width, spread, min(cosines))
    save_file(alone["first"], folder / "step_1_gradients.safetensors")
    save_file(alone["final"], folder / "adapter_after_20_steps.safetensors")
    labels = [sum(label != -100 for row in rows[s:s + ROWS_PER_STEP] for label in row["labels"][1:])
              for s in range(0, len(rows), ROWS_PER_STEP)]
    tokens = [sum(len(row["input_ids"]) for row in rows[s:s + ROWS_PER_STEP])
              for s in range(0, len(rows), ROWS_PER_STEP)]
    write_json(folder / "training.json", {
        "made_by": made_by(),
        "optimizer": {"name": "adamw", "learning_rate": LEARNING_RATE, "betas": [0.9, 0.999], "epsilon": 1e-8,
                      "weight_decay": WEIGHT_DECAY, "max_gradient_norm": CLIP, "schedule": "constant"},
        "rows_per_step": ROWS_PER_STEP, "steps": STEPS,
        "losses": alone["losses"], "gradient_norms_before_clipping": alone["norms"],
        "trained_tokens": labels, "tokens": tokens,
        "largest_relative_spread_over_micro_batches_of_1_2_4_rows": spread})


def make(name: str, variant: Variant) -> None:
    folder, seed = ROOT / name, 1000 + 10 * list(VARIANTS).index(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = build_model(variant, seed)
    model.save_pretrained(folder, max_shard_size=variant.shard)
    if variant.old_config is not None:
        write_old_config(folder, variant)
    if variant.old_tensors:
        add_old_tensors(folder)
    write_tokenizer(folder)
    sequences = write_reference(folder, variant, seed)
    if variant.adapter is not None:
        write_adapter(folder, variant, seed)
        write_adapter_reference(folder, variant, sequences)
    if variant.rows:
        write_training(folder, variant, seed)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{name}: {size / 1024:.0f} KiB")


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in sys.argv[1:] or VARIANTS:
        make(name, VARIANTS[name])


if __name__ == "__main__":
    main()
