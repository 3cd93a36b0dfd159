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

compare() { # FILE LORA TARGET LABEL: greedy text of FILE and LORA in llama.cpp, and of TARGET here
    for prompt in "The capital of France is" "def fibonacci(n):"; do
        node greedy.mjs "$1" "$prompt" 40 $2 >greedy.json
        "$tunesmith" generate "$3" --prompt "$prompt" --max-tokens 40 --temperature 0 >ours.txt
        "$python" "$root/scripts/compare_greedy.py" greedy.json ours.txt "$4" "$prompt"
    done
}

f32=$(merge f32)
for type in $types; do
    "$python" "$root/scripts/compare_quantised.py" node_modules "$f32" "$(merge "$type")"
done
cp "$root/scripts/llama_cpp_greedy.mjs" greedy.mjs
file=$(merge f16)
compare "$file" "" "$file" f16
# Of quantised files llama.cpp rounds activations to 8 bit, too: they must load and answer, no more.
for type in q8_0 q4_k_m; do
    node greedy.mjs "$(merge "$type")" "The capital of France is" 24 >greedy.json
    "$python" -c 'import json, sys; print(sys.argv[1], repr(json.load(open("greedy.json"))["texts"][-1]))' "$type"
done

# Our GGUF adapter on the base in F16, which llama.cpp makes of the base, against our merged F16.
if [ "${base##*.}" = gguf ]; then
    rm -f lora.gguf
    "$tunesmith" adapter convert "$adapter" --base "$base" --to gguf --output lora.gguf
    "$python" "$root/scripts/llama_cpp_quantise.py" node_modules "$base" base-f16.gguf 1
    compare base-f16.gguf lora.gguf "$(merge f16)" "LoRA on F16"
fi
