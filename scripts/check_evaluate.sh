#!/usr/bin/env bash
# A tune of SmolLM2 from one recipe, evaluated as base, adapter, merged folder and GGUF Q8_0: the adapter and
# the merged folder must agree, and the report must hold every verdict. Minutes on a CPU.
#
#   scripts/check_evaluate.sh path/to/tunesmith [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "$1")
out=${2:-runs/check-evaluate}
base=models/SmolLM2-135M-Instruct.Q4_1.gguf
scripts/fetch_smollm2.sh "$base"
mkdir -p "$out"

"$program" train recipes/smollm2_identity.toml --device cpu --set "output_dir=\"$out/run\""
rm -rf "$out/merged" "$out/gguf"
"$program" merge "$out/run" --output "$out/merged" --dtype f32
"$program" merge "$out/run" --output "$out/gguf" --quantize q8_0
# `generate_match` on the rows of the tune itself: did it learn them?
cat > "$out/answers.toml" <<'TASK'
kind = "generate_match"
prompt = "{{messages[0].content}}"
answer = "{{messages[1].content}}"
max_tokens = 32
chat = true
stop = ["\n"]
TASK
"$program" evaluate "$base" "$out/run" "$out/merged" "$out/gguf" --device cpu \
  --task "forgetting,perplexity,$out/answers.toml" --data perplexity=recipes/data/identity_eval.txt \
  --data answers=recipes/data/identity.jsonl --json "$out/figures.json"
"$program" -q evaluate "$base" "$out/run" "$out/merged" "$out/gguf" --device cpu \
  --task "forgetting,perplexity,$out/answers.toml" --data perplexity=recipes/data/identity_eval.txt \
  --data answers=recipes/data/identity.jsonl
python3 - "$out/figures.json" <<'PY'
import json, sys
figures = json.load(open(sys.argv[1]))
base, adapter, merged, gguf = [target["tasks"] for target in figures["targets"]]
for task, values in adapter.items():
    for name, value in values.items():
        other = merged[task][name]
        assert abs(value - other) <= 2e-3 * max(1.0, abs(value)), (task, name, value, other)
verdicts = {(one["task"], one["target"], one["metric"]): one["verdict"] for one in figures["comparisons"]}
assert adapter["answers"]["exact_match"] > base["answers"]["exact_match"]
assert all(len(one["interval"]) == 2 for one in figures["comparisons"])
print(f"adapter and merged agree; {len(verdicts)} verdicts")
PY
