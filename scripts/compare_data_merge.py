#!/usr/bin/env python3
"""Data preparation against datasets.map, and merging against merge_and_unload: one interleaved run on the CPU.

    scripts/compare_data_merge.py TUNESMITH MODEL_DIR ADAPTER_DIR [PAIRS]

needs torch, transformers, peft and datasets. MODEL_DIR is an HF folder, ADAPTER_DIR a PEFT adapter over
it. Tokenising: 60,000 made-up rows of text by both with empty caches, the same tokenizer.json, all
cores; wall time of the whole command, start and reading included. Merging: from the two folders to a
saved model in the base's number format; wall time and peak resident memory of the whole process.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 60_000

TOKENISE = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
rows = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[3])
done = rows.map(lambda batch: {"input_ids": tokenizer(batch["text"])["input_ids"]}, batched=True,
                num_proc=int(sys.argv[4]), remove_columns=["text"])
print(sum(len(ids) for ids in done["input_ids"]))
"""

MERGE = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""


def measure(command, **environment):
    """Wall seconds and output of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{command}\n{errors.decode()}")
    seconds = time.perf_counter() - started
    return seconds, output.decode()


def peak(command):
    """Wall seconds and the largest resident set, in MiB, among the process and its children."""
    code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
            "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)")
    seconds, output = measure([sys.executable, "-c", code, *command])
    return seconds, int(output)


def write_rows(path):
    random.seed(0)
    words = ["".join(random.choice("abcdefghilmnoprstuvw") for _ in range(random.randint(2, 9))) for _ in range(5000)]
    with open(path, "w") as file:
        for _ in range(ROWS):
            text = " ".join(random.choices(words, k=random.randint(20, 120)))
            file.write(json.dumps({"text": text}) + "\n")


def recipe(path, rows, model):
    path.write_text(f'''base_model = "{model}"
output_dir = "{path.parent}/run"
[[dataset]]
path = "{rows}"
format = "text"
[batch]
sequence_length = 1024
on_overlong = "truncate"
[adapter.lora]
[objective.sft]
[optimizer.adamw]
[schedule.constant]
[train]
steps = 1
''')


def row(name, peer, ours):
    ratios = sorted(b / a for a, b in zip(ours, peer))
    print(f"| {name} | {statistics.median(peer):.1f} | {statistics.median(ours):.1f} | "
          f"{statistics.median(ratios):.1f} ({ratios[0]:.1f}–{ratios[-1]:.1f}) |")


def main():
    program, model, adapter = sys.argv[1:4]
    pairs = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    figures = {"datasets": [], "tokenise": [], "peft": [], "merge": [], "peft_mib": [], "merge_mib": []}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        write_rows(work / "rows.jsonl")
        recipe(work / "recipe.toml", work / "rows.jsonl", model)
        for pair in range(pairs):
            seconds, _ = measure([program, "plan", str(work / "recipe.toml"), "--device", "cpu", "--json", "-"],
                                 TUNESMITH_CACHE=str(work / f"cache{pair}"))
            figures["tokenise"].append(seconds)
            seconds, _ = measure([sys.executable, "-c", TOKENISE, str(work / "rows.jsonl"), model,
                                  str(work / f"datasets{pair}"), str(os.cpu_count())], TOKENIZERS_PARALLELISM="true")
            figures["datasets"].append(seconds)
            seconds, mib = peak([program, "merge", adapter, "--base", model, "--output", str(work / f"ours{pair}")])
            figures["merge"].append(seconds)
            figures["merge_mib"].append(mib)
            seconds, mib = peak([sys.executable, "-c", MERGE, model, adapter, str(work / f"peft{pair}")])
            figures["peft"].append(seconds)
            figures["peft_mib"].append(mib)
    print("| work | peer | Tunesmith | times less (pairs) |\n|---|---|---|---|")
    row("tokenising 60,000 rows, seconds (datasets.map)", figures["datasets"], figures["tokenise"])
    row("merging, seconds (merge_and_unload + save)", figures["peft"], figures["merge"])
    row("merging, peak resident MiB", figures["peft_mib"], figures["merge_mib"])


if __name__ == "__main__":
    main()
