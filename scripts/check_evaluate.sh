#!/usr/bin/env bash
# Evaluation from end to end on SmolLM2: a tune from one recipe, evaluated as base, adapter, merged folder and GGUF
# Q8_0. The adapter and the merged folder must agree, the adapter must be better at what it was tuned for, every
# comparison must have an interval and a verdict. Then, with a Python that has lm-eval, every shipped kind of task item
# by item against lm-eval with transformers. Exit 1 where something is not so.
#
#   scripts/check_evaluate.sh path/to/tunesmith [FOLDER]       about 5 minutes on 2 cores, 15 with lm-eval
#
# Variables:
#   PYTHON   a Python with lm-eval 0.4.13, transformers, gguf, sacrebleu; without it that part is left out, and said to be
#   MODEL    the base in HF layout, f32; made with PYTHON where it is not given
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
evaluate() {
  "$program" evaluate "$base" "$out/run" "$out/merged" "$out/gguf" --device cpu \
    --task "forgetting,perplexity,$out/answers.toml" --data perplexity=recipes/data/identity_eval.txt \
    --data answers=recipes/data/identity.jsonl "$@"
}
evaluate --json "$out/figures.json"
# The same from the cache, for people.
evaluate --quiet
"$program" report "$out/run" --evaluation "$out/figures.json" --output "$out/report.html"
python3 - "$out/figures.json" <<'PY'
import json, sys

figures = json.load(open(sys.argv[1]))
base, adapter, merged, gguf = [target["tasks"] for target in figures["targets"]]
for task, values in adapter.items():
    for name, value in values.items():
        # What is searched in the training data is known of a run alone.
        if name.startswith("in_training"):
            continue
        other = merged[task][name]
        assert abs(value - other) <= 2e-3 * max(1.0, abs(value)), (task, name, value, other)
verdicts = {(one["task"], one["target"], one["metric"]): one for one in figures["comparisons"]}
assert all(len(one["interval"]) == 2 and one["verdict"] for one in verdicts.values())
for target in figures["targets"][1:]:
    better = verdicts["answers", target["target"], "exact_match"]
    assert better["verdict"] == "better", better
    print(f"{target['target']}: exact_match {better['difference']:+.3f}, 95 % interval "
          f"{better['interval'][0]:+.3f} to {better['interval'][1]:+.3f}: {better['verdict']}")
print(f"adapter and merged agree; {len(verdicts)} verdicts")
PY

python=${PYTHON:-python3}
if ! "$python" -c 'import lm_eval, transformers, gguf, sacrebleu' 2>/dev/null; then
  echo "left out: the comparison with lm-eval ($python lacks some of lm_eval, transformers, gguf, sacrebleu; name another with PYTHON=)"
  exit 0
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
model=${MODEL:-$out/base}
if [ ! -f "$model/config.json" ]; then
  "$python" - "$base" "$model" <<'PY'
import pathlib, sys, torch, transformers

file, folder = pathlib.Path(sys.argv[1]), sys.argv[2]
for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
    kind.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).save_pretrained(folder)
PY
fi
"$python" scripts/make_evaluate_fixtures.py "$model" "$out/lm-eval" 18 8
"$python" scripts/compare_lm_eval.py "$model" "$out/lm-eval" "$program" --threads 1
