"""Tokens per second of PEFT on the rows of scripts/gpu_check.sh, in this machine's PyTorch.

usage: peft_bench.py MODEL_DIR ROWS_JSONL --steps N --device cuda|cpu [--checkpointing]

Rank 16 on every linear layer of the blocks, 4 rows a step, bf16 on a GPU and f32 on the CPU, SDPA
attention, f32 adapter, AdamW. Uneven rows are padded to the longest of their batch, as a collator
does; only real tokens are counted. The first three steps are left out. Prints one line of JSON.
"""

import argparse
import json
import resource
import time

STARTED = time.perf_counter()

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ROWS_PER_STEP = 4
WARM_UP_STEPS = 3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    device = arguments.device
    on_gpu = device != "cpu"
    torch.manual_seed(0)

    dtype = torch.bfloat16 if on_gpu else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=dtype, attn_implementation="sdpa"
    ).to(device)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    if arguments.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    with open(arguments.rows) as file:
        rows = [json.loads(line) for line in file]
    tokens, seconds = 0, 0.0
    to_first_step = time.perf_counter() - STARTED
    for step in range(arguments.steps):
        first = step * ROWS_PER_STEP % (len(rows) - ROWS_PER_STEP + 1)
        batch = rows[first : first + ROWS_PER_STEP]
        started = time.perf_counter()
        longest = max(len(row["input_ids"]) for row in batch)
        pad = lambda row, key, fill: row[key] + [fill] * (longest - len(row[key]))
        ids = torch.tensor([pad(row, "input_ids", 0) for row in batch], device=device)
        labels = torch.tensor([pad(row, "labels", -100) for row in batch], device=device)
        mask = torch.tensor([pad({"mask": [1] * len(row["input_ids"])}, "mask", 0) for row in batch],
                            device=device)
        uneven = any(len(row["input_ids"]) < longest for row in batch)
        loss = model(input_ids=ids, labels=labels, use_cache=False,
                     attention_mask=mask if uneven else None).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        if on_gpu:
            torch.cuda.synchronize()
        if step >= WARM_UP_STEPS:
            tokens += sum(len(row["input_ids"]) for row in batch)
            seconds += time.perf_counter() - started
    peak = torch.cuda.max_memory_reserved() if on_gpu else 0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_per_second": round(tokens / seconds, 1), "reserved_bytes": peak,
                      "seconds_to_first_step": to_first_step, "peak_mib": resident}))


if __name__ == "__main__":
    main()
