#!/usr/bin/env bash
# Tunesmith against PEFT on the CPU: the same rows, interleaved, medians.
#
#   scripts/compare_peft.sh MODEL_DIR [PAIRS]      PYTHON=... with torch, transformers and peft
#
# MODEL_DIR is an HF folder. f32, rank 16 on every linear layer, 4 rows a step. Three kinds of work:
#   full        4 rows of 256 tokens, every token trained, without gradient checkpointing
#   recomputed  the same with gradient checkpointing
#   chat        rows of 32 to 512 tokens of which the last 15 to 60 % carry loss: PEFT pads each
#               batch to its longest row, Tunesmith packs; tokens per second count real tokens
# Prints a table: tokens per second, seconds to the first step, peak resident memory.
#
# Variables: TUNESMITH the program, STEPS of a run (8), WORK some of the kinds above.
set -euo pipefail
model=$(realpath "$1")
pairs=${2:-5}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
tunesmith=${TUNESMITH:-${CARGO_TARGET_DIR:-target}/release/tunesmith}
steps=${STEPS:-8}
kinds=${WORK:-full recomputed chat}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" - "$model" "$work" <<'PY'
import json, random, sys
vocab = json.load(open(f"{sys.argv[1]}/config.json"))["vocab_size"]
random.seed(0)
draw = lambda n: [random.randrange(3, vocab) for _ in range(n)]
def write(name, rows):
    with open(f"{sys.argv[2]}/{name}.jsonl", "w") as file:
        for ids, prompt in rows:
            labels = [-100] * prompt + ids[prompt:]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
write("full", [(draw(256), 0) for _ in range(64)])
chat = []
for _ in range(96):
    # Log-normal, as lengths of conversations are: a median of 130, a few of 512.
    length = min(512, max(32, round(random.lognormvariate(4.87, 0.7))))
    chat.append((draw(length), round(length * random.uniform(0.4, 0.85))))
write("chat", chat)
PY

# recipe ROWS_FILE PACKING CHECKPOINTING
recipe() {
  cat > "$work/recipe.toml" <<TOML
base_model = "$model"
output_dir = "$work/run"
precision = "f32"
[[dataset]]
path = "$work/$1.jsonl"
format = "tokens"
[batch]
sequence_length = 512
packing = $2
shuffle = false
sequences_per_micro_batch = 4
[adapter.lora]
rank = 16
[optimizer.adamw]
learning_rate = 1e-4
[schedule.constant]
[train]
steps = $steps
gradient_checkpointing = "$3"
[checkpoint]
every_steps = 1000
TOML
}

for ((pair = 1; pair <= pairs; pair++)); do
  for kind in $kinds; do
    flag=
    rows=full
    case $kind in
      full) recipe full false off ;;
      recomputed) recipe full false on; flag=--checkpointing ;;
      chat) recipe chat true off; rows=chat ;;
    esac
    rm -rf "$work/run"
    "$tunesmith" -q train "$work/recipe.toml" --device cpu
    "$python" - "$work/run" "$kind" >> "$work/ours" <<'PY'
import json, sys
lines = [json.loads(line) for line in open(f"{sys.argv[1]}/metrics.jsonl")][3:]
report = json.load(open(f"{sys.argv[1]}/report.json"))
print(json.dumps({"kind": sys.argv[2],
    "tokens_per_second": sum(l["tokens"] for l in lines) / sum(l["step_seconds"] for l in lines),
    "seconds_to_first_step": report["seconds_to_first_step"],
    "peak_mib": report["peak_memory_bytes"] / 2**20}))
PY
    # shellcheck disable=SC2086
    "$python" scripts/peft_bench.py "$model" "$work/$rows.jsonl" --steps "$steps" --device cpu $flag \
      | tail -n 1 | sed "s/{/{\"kind\": \"$kind\", /" >> "$work/peft"
    echo "pair $pair, $kind done" >&2
  done
done

"$python" - "$work" $kinds <<'PY'
import json, statistics, sys
read = lambda name: [json.loads(line) for line in open(f"{sys.argv[1]}/{name}")]
ours, peft = read("ours"), read("peft")
print("| work | figure | PEFT | Tunesmith | ratio (pairs) |\n|---|---|---|---|---|")
for kind in sys.argv[2:]:
    a = [r for r in ours if r["kind"] == kind]
    b = [r for r in peft if r["kind"] == kind]
    for key in ("tokens_per_second", "seconds_to_first_step", "peak_mib"):
        ratios = sorted(x[key] / y[key] for x, y in zip(a, b))
        median = lambda rows: statistics.median(r[key] for r in rows)
        print(f"| {kind} | {key} | {median(b):.1f} | {median(a):.1f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) |")
PY
