#!/usr/bin/env bash
# Tunesmith against PEFT on the CPU: the same rows, interleaved, medians.
#
#   scripts/compare_peft.sh MODEL_DIR [PAIRS]      PYTHON=... with torch, transformers and peft
#
# MODEL_DIR is an HF folder. f32, rank 16 on every linear layer, 4 rows of 256 tokens a step, every
# token trained. Prints a table: tokens per second, seconds to the first step, peak resident memory.
set -euo pipefail
model=$(realpath "$1")
pairs=${2:-5}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
tunesmith=${TUNESMITH:-${CARGO_TARGET_DIR:-target}/release/tunesmith}
steps=${STEPS:-8}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" - "$model" "$work/rows.jsonl" <<'PY'
import json, random, sys
vocab = json.load(open(f"{sys.argv[1]}/config.json"))["vocab_size"]
random.seed(0)
with open(sys.argv[2], "w") as file:
    for _ in range(64):
        ids = [random.randrange(3, vocab) for _ in range(256)]
        file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
PY
cat > "$work/recipe.toml" <<TOML
base_model = "$model"
output_dir = "$work/run"
precision = "f32"
[[dataset]]
path = "$work/rows.jsonl"
format = "tokens"
[batch]
sequence_length = 256
packing = false
shuffle = false
sequences_per_micro_batch = 4
[adapter.lora]
rank = 16
[optimizer.adamw]
learning_rate = 1e-4
[schedule.constant]
[train]
steps = $steps
[checkpoint]
every_steps = 1000
TOML

for ((pair = 1; pair <= pairs; pair++)); do
  for checkpointing in off on; do
    rm -rf "$work/run"
    "$tunesmith" -q train "$work/recipe.toml" --device cpu \
      --set "train.gradient_checkpointing=\"$checkpointing\""
    "$python" - "$work/run" "$checkpointing" >> "$work/ours" <<'PY'
import json, statistics, sys
lines = [json.loads(line) for line in open(f"{sys.argv[1]}/metrics.jsonl")][3:]
report = json.load(open(f"{sys.argv[1]}/report.json"))
print(json.dumps({"checkpointing": sys.argv[2],
    "tokens_per_second": sum(l["tokens"] for l in lines) / sum(l["step_seconds"] for l in lines),
    "seconds_to_first_step": report["seconds_to_first_step"],
    "peak_mib": report["peak_memory_bytes"] / 2**20}))
PY
    flag=$([ "$checkpointing" = on ] && echo --checkpointing || true)
    # shellcheck disable=SC2086
    "$python" scripts/peft_bench.py "$model" "$work/rows.jsonl" --steps "$steps" --device cpu $flag \
      | tail -n 1 | sed "s/{/{\"checkpointing\": \"$checkpointing\", /" >> "$work/peft"
    echo "pair $pair, checkpointing $checkpointing done" >&2
  done
done

"$python" - "$work" <<'PY'
import json, statistics, sys
read = lambda name: [json.loads(line) for line in open(f"{sys.argv[1]}/{name}")]
ours, peft = read("ours"), read("peft")
print("| gradient checkpointing | figure | PEFT | Tunesmith | ratio (pairs) |\n|---|---|---|---|---|")
for mode in ("off", "on"):
    a = [r for r in ours if r["checkpointing"] == mode]
    b = [r for r in peft if r["checkpointing"] == mode]
    for key in ("tokens_per_second", "seconds_to_first_step", "peak_mib"):
        ratios = sorted(x[key] / y[key] for x, y in zip(a, b))
        median = lambda rows: statistics.median(r[key] for r in rows)
        print(f"| {mode} | {key} | {median(b):.1f} | {median(a):.1f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) |")
PY
