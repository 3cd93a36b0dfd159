#!/usr/bin/env bash
# Compares what `tunesmith merge --quantize` writes with llama.cpp itself: its own quantiser on the
# same weights, and its own inference on our files.
#
#   scripts/check_llama_cpp.sh [FOLDER]        default: target/llama-cpp
#
# TUNESMITH   the program (default: built in release)
# PYTHON      a Python with numpy and gguf 0.19.0 (default: python3)
# BASE        the base model (default: SmolLM2 of scripts/fetch_test_material.sh)
# ADAPTER     an adapter for it (default: a short training on recipes/data/identity.jsonl)
# TYPES       the types to compare
#
# node-llama-cpp 3.22.1 with its prebuilt llama.cpp comes through npm into FOLDER. Needs 4 GB of disk
# and some minutes; not run in continuous integration.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
folder="${1:-target/llama-cpp}"
material="${TUNESMITH_TEST_MATERIAL:-target/test-material}"
base=$(realpath "${BASE:-$material/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}")
python="${PYTHON:-python3}"
types="${TYPES:-q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 f16 bf16}"
if [ -z "${TUNESMITH:-}" ]; then
    cargo build --release
    TUNESMITH=target/release/tunesmith
fi
tunesmith=$(realpath "$TUNESMITH")
mkdir -p "$folder"
cd "$folder"

if [ ! -d node_modules/node-llama-cpp ]; then
    npm install --ignore-scripts --omit=optional --no-audit --no-fund \
        node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
fi
adapter="${ADAPTER:-$PWD/run}"
if [ ! -d "$adapter" ]; then
    cat >recipe.toml <<EOF
base_model = "$base"
output_dir = "run"
[[dataset]]
path = "$root/recipes/data/identity.jsonl"
[batch]
sequence_length = 256
[train]
steps = 12
[adapter.lora]
rank = 8
[optimizer.adamw]
learning_rate = 1e-3
EOF
    "$tunesmith" train recipe.toml
fi

merge() { # TYPE: prints the file
    if [ ! -d "merged-$1" ]; then
        "$tunesmith" merge "$adapter" --base "$base" --output "merged-$1" --quantize "$1" >&2
    fi
    echo "merged-$1/model-$1.gguf"
}

f32=$(merge f32)
for type in $types; do
    "$python" "$root/scripts/compare_quantised.py" node_modules "$f32" "$(merge "$type")"
done
cp "$root/scripts/llama_cpp_greedy.mjs" greedy.mjs
for type in f16 q8_0 q4_k_m; do
    file=$(merge "$type")
    for prompt in "The capital of France is" "def fibonacci(n):"; do
        node greedy.mjs "$file" "$prompt" 40 >greedy.json
        "$tunesmith" generate "$file" --prompt "$prompt" --max-tokens 40 --temperature 0 \
            >ours.txt
        "$python" "$root/scripts/compare_greedy.py" greedy.json ours.txt "$type" "$prompt"
    done
done
