#!/usr/bin/env bash
# Checks that candle's own Llama loads a merged folder as it stands and takes the same greedy tokens.
#
#   scripts/check_candle.sh              trains and merges recipes/tiny_pirate.toml
#   scripts/check_candle.sh MERGED_DIR   a folder that `tunesmith merge` wrote, of a Llama model
#
# Both programs run in f32 on the CPU. Their tokens may part where the two best logits lie within
# 0.05. Needs the network for crates alone.
#
# Variables:
#   PROGRAM   the program; built where it is not given
#   TOKENS    tokens of each answer; default 48
set -euo pipefail
cd "$(dirname "$0")/.."

need() { command -v "$1" >/dev/null || { echo "error: \`$1\` is missing; $2" >&2; exit 1; }; }
need cargo "install Rust with rustup"
need cc "install a C compiler, on Debian: apt-get install build-essential"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cargo fmt --check --manifest-path tests/candle_client/Cargo.toml
target=${CARGO_TARGET_DIR:-$PWD/target}
program=${PROGRAM:-}
if [ -z "$program" ]; then
  cargo build --quiet --locked --workspace
  program=$target/debug/tunesmith
fi
# A folder of its own: cargo takes other features for other crates.
CARGO_TARGET_DIR=$target/candle_client cargo build --quiet --locked --release \
  --manifest-path tests/candle_client/Cargo.toml
client=$target/candle_client/release/candle_client

merged=${1:-}
if [ -z "$merged" ]; then
  "$program" --quiet train recipes/tiny_pirate.toml --device cpu --set "output_dir=\"$scratch/run\""
  "$program" --quiet merge "$scratch/run" --output "$scratch/merged"
  merged=$scratch/merged
fi

failed=0
# compare PROMPT [FLAG...]
compare() {
  "$program" --quiet --offline generate "$merged" --device cpu --precision f32 \
    --max-tokens "${TOKENS:-48}" --json "$scratch/answer.json" --prompt "$@"
  echo "$1"
  "$client" "$merged" --expect "$scratch/answer.json" || failed=1
}

compare "The capital of France is"
compare "Once upon a time"
if [ -f "$merged/chat_template.jinja" ] || grep -qs '"chat_template"' "$merged/tokenizer_config.json"; then
  compare "What are you called?" --chat
  compare "Write a short poem about the sea." --chat
fi
exit "$failed"
