#!/usr/bin/env bash
# Checks the program against transformers and PEFT on SmolLM2-135M-Instruct, in f32 on the CPU:
# perplexity of GGUF and folder, losses of 20 training steps (also over the GGUF as it stands and over a base in int8 and
# NF4), adapters both ways, merged weights.
#
#   scripts/check_peers.sh              about 20 minutes on 2 cores; exit 1 where a check fails
#
# Needs a Python with torch, transformers 5, peft, gguf, safetensors, bitsandbytes; the network for the model alone.
#
# Variables:
#   PYTHON    the Python; default python3
#   PROGRAM   the program; built where it is not given
#   OUT       where everything goes; default peers-check. Weights made there are used again
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import torch, transformers, peft, gguf, safetensors, bitsandbytes' 2>/dev/null || {
  echo "error: $python lacks some of torch, transformers, peft, gguf, safetensors, bitsandbytes;" \
    "name another with PYTHON=, or run: $python -m pip install torch transformers peft gguf safetensors bitsandbytes" >&2
  exit 1
}
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
scripts/fetch_smollm2.sh "$model"
program=${PROGRAM:-}
if [ -z "$program" ]; then
  cargo build --release --locked -p recipes
  program=${CARGO_TARGET_DIR:-target}/release/tunesmith
fi
exec "$python" scripts/check_peers.py "$program" "$model" "${OUT:-peers-check}"
