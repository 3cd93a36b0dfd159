#!/usr/bin/env python3
"""Loads the GGUF files that Tunesmith wrote of merged families in llama.cpp: 20 greedy tokens against PEFT's.

    mkdir DIR; TUNESMITH_MERGED_FAMILIES=DIR cargo nextest run --workspace --test parity -E 'test(gguf_files_of_merged)'
    python scripts/check_family_gguf.py DIR NODE_FOLDER

NODE_FOLDER is where scripts/check_llama_cpp.sh installed node-llama-cpp. Needs what check_merged_families.py needs.
Keys and values are kept in 16 bits there, so tokens whose logits nearly tie may change places; the margin is printed.
"""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import transformers
from check_merged_families import peft_tokens
from make_family_fixtures import GREEDY_TOKENS, ROOT


def check(folder: Path, node: Path) -> bool:
    name = folder.name.removesuffix("_gguf")
    prompt = json.loads((ROOT / name / "reference.json").read_text())["greedy_prompt"]
    wanted, margin = peft_tokens(name, prompt)
    command = ["node", "llama_cpp_ids.mjs", str(folder.resolve() / "model.gguf"), json.dumps(prompt),
               str(GREEDY_TOKENS)]
    result = subprocess.run(command, cwd=node, capture_output=True, text=True)
    if result.returncode:
        print(f"{name}: llama.cpp fails: {result.stderr.strip()[-400:]}", flush=True)
        return False
    found = json.loads(result.stdout)["tokens"]
    same = next((n for n, (a, b) in enumerate(zip(found, wanted)) if a != b), GREEDY_TOKENS)
    print(f"{name}: {same} of {GREEDY_TOKENS} tokens as PEFT's (margin {margin:.1e})", flush=True)
    return same == GREEDY_TOKENS or margin < 2e-2


def main() -> int:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    root, node = Path(sys.argv[1]), Path(sys.argv[2])
    shutil.copy(Path(__file__).parent / "llama_cpp_ids.mjs", node)
    # llama.cpp takes Phi-3's divisors by the size of the context, transformers by the length of the text.
    files = sorted(path.parent for path in root.glob("*_gguf/model.gguf") if not path.parent.name.startswith("phi3"))
    passed = [check(folder, node) for folder in files]
    print(f"{sum(passed)} of {len(passed)} files")
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
