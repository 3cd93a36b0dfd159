#!/usr/bin/env python3
"""What transformers makes of SmolLM2-135M-Instruct: writes tests/fixtures/smollm2/reference.json.

usage: make_smollm2_reference.py SmolLM2-135M-Instruct.Q4_1.gguf HF_DIR     (from the root of the repository)

HF_DIR is written first where it is absent: the GGUF's weights as an f32 folder, by transformers' own `gguf_file=`.
Nothing of the model is committed, only figures: ids of tests/fixtures/smollm2/text.txt, perplexity, greedy tokens.
"""

import argparse
import hashlib
import json
import math
import struct
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

FOLDER = Path("tests/fixtures/smollm2")
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
PROMPTS = {"plain": "The capital of France is", "code": "def fibonacci(n):\n    ", "digits": "Count:  1, 2, 3, 4,"}


def write_hf_folder(gguf: Path, folder: Path) -> None:
    # Without dequantize=True transformers 5.23 unpacks the weights all the same, but refuses to save them.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def digits_apart(tokenizer: Tokenizer) -> Tokenizer:
    """The split that `tokenizer.ggml.pre = smollm` names: each digit by itself, then byte-level BPE."""
    other = Tokenizer.from_str(tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return other


def window_losses(model, ids: list[int], window: int) -> dict:
    total, tokens = 0.0, 0
    for start in range(0, len(ids), window):
        part = torch.tensor([ids[start:start + window]])
        if part.shape[1] < 2:
            continue
        with torch.no_grad():
            logits = model(input_ids=part, use_cache=False).logits.float()
        total += torch.nn.functional.cross_entropy(logits[0, :-1], part[0, 1:], reduction="sum").item()
        tokens += part.shape[1] - 1
    return {"window": window, "nll_per_token": total / tokens, "perplexity": math.exp(total / tokens), "tokens": tokens}


def greedy(model, ids: list[int], count: int = 32) -> dict:
    """Greedy tokens and, for each, the distance of the two best logits: a near tie may fall either way."""
    text, margins = list(ids), []
    for _ in range(count):
        with torch.no_grad():
            best = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].topk(2)
        margins.append(round((best.values[0] - best.values[1]).item(), 5))
        text.append(best.indices[0].item())
        if text[-1] == model.config.eos_token_id:
            break
    return {"input_ids": ids, "greedy": text[len(ids):], "margins": margins}


def facts_of(model, tokenizer: Tokenizer, text: str) -> dict:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return {"count": len(ids), "sha256_of_little_endian_u32": hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest(),
            "first_64": ids[:64], "last_16": ids[-16:], "perplexity": [window_losses(model, ids, n) for n in (256, 512)]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not (arguments.folder / "model.safetensors").exists():
        write_hf_folder(arguments.gguf, arguments.folder)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32).eval()
    as_saved = Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    text = (FOLDER / "text.txt").read_text(encoding="utf-8")
    chat = AutoTokenizer.from_pretrained(arguments.folder).apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True)
    prompts = PROMPTS | {"chat": chat}
    smollm = digits_apart(as_saved)
    value = {
        "made_by": f"scripts/make_smollm2_reference.py, torch {torch.__version__.split('+')[0]}, "
                   f"transformers {transformers.__version__}",
        "gguf_sha256": hashlib.sha256(arguments.gguf.read_bytes()).hexdigest(),
        "text_as_gguf_pre_smollm": facts_of(model, smollm, text),
        "text_as_transformers_folder": facts_of(model, as_saved, text),
        "prompts": {name: {"text": prompt} | greedy(model, smollm.encode(prompt, add_special_tokens=False).ids)
                    for name, prompt in prompts.items()},
    }
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
    (FOLDER / "reference.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
