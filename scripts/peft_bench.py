"""Tokens per second of PEFT on the rows of scripts/gpu_check.sh, in this machine's PyTorch.

usage: peft_bench.py MODEL_DIR ROWS_JSONL --steps N --device cuda|cpu [--rows N] [--checkpointing]
                     [--compile] [--liger] [--nf4] [--unsloth]
       peft_bench.py --matmul --device cuda|cpu

Rank 16 on every linear layer of the blocks, 4 rows a step or as many as said, bf16 on a GPU and f32 on the CPU, SDPA
attention, f32 adapter, AdamW. Uneven rows are padded to the longest of their batch, as a collator
does; only real tokens are counted. The first three steps are left out. Prints one line of JSON.

--matmul measures products of 8192 x 8192 bf16 matrices instead (1024 on the CPU). Exit code 3: a
package that was asked for is not there.
"""

import argparse
import importlib.util
import json
import resource
import sys
import time

STARTED = time.perf_counter()

import torch

WARM_UP_STEPS = 3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments_of_this_run():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    for flag in ("matmul", "checkpointing", "compile", "liger", "nf4", "unsloth"):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args()


def needs(package):
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed", file=sys.stderr)
        sys.exit(3)


def matmul_rate(device):
    size, rounds = (8192, 40) if device != "cpu" else (1024, 3)
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        x @ x
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(rounds):
        x @ x
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / rounds
    print(json.dumps({"tflops_per_second": round(2 * size**3 / seconds / 1e12, 2)}))


def unsloth_model(arguments):
    needs("unsloth")
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        arguments.model, dtype=torch.bfloat16, load_in_4bit=arguments.nf4
    )
    kind = "unsloth" if arguments.checkpointing else False
    return FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, target_modules=TARGETS, use_gradient_checkpointing=kind
    )


def peft_model(arguments, dtype):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    more = {}
    if arguments.liger:
        needs("liger_kernel")
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    if arguments.nf4:
        needs("bitsandbytes")
        from transformers import BitsAndBytesConfig

        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=dtype, attn_implementation="sdpa", device_map=arguments.device, **more
    )
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    if arguments.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def main():
    arguments = arguments_of_this_run()
    device, rows_per_step = arguments.device, arguments.rows
    on_gpu = device != "cpu"
    torch.manual_seed(0)
    if arguments.matmul:
        return matmul_rate(device)

    dtype = torch.bfloat16 if on_gpu else torch.float32
    model = unsloth_model(arguments) if arguments.unsloth else peft_model(arguments, dtype)
    model.train()
    if arguments.compile:
        model = torch.compile(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    with open(arguments.data) as file:
        rows = [json.loads(line) for line in file]
    tokens, seconds = 0, 0.0
    to_first_step = time.perf_counter() - STARTED
    for step in range(arguments.steps):
        first = step * rows_per_step % (len(rows) - rows_per_step + 1)
        batch = rows[first : first + rows_per_step]
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
