#!/usr/bin/env bash
# Checks the build with CUDA: needs no GPU, no toolkit, and compiles no machine code for it.
#
#   scripts/check_cuda.sh
set -euo pipefail
cd "$(dirname "$0")/.."

need() { command -v "$1" >/dev/null || { echo "error: \`$1\` is missing; $2" >&2; exit 1; }; }
need cargo "install Rust with rustup"
need cc "install a C compiler, on Debian: apt-get install build-essential"

cargo fmt --check --manifest-path trainer/kernels/cubecl-llvm/Cargo.toml
cargo check --locked --package recipes --features cuda

# What would make the build download an LLVM or bring a database.
unwanted=$(cargo tree --locked --package recipes --features cuda --edges normal,build --prefix none |
  grep -E '^(tracel-llvm-bundler|llvm-sys|turso|burn-fusion) ' | sort -u || true)
if [ -n "$unwanted" ]; then
  echo "error: the CUDA build depends on crates that it must do without:" >&2
  echo "$unwanted" >&2
  exit 1
fi
echo "the CUDA build checks"
