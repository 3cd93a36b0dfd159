#!/usr/bin/env python3
"""Compares greedy text: python scripts/compare_greedy.py LLAMA_CPP.json OURS.txt LABEL PROMPT

LLAMA_CPP.json is what llama_cpp_greedy.mjs prints. The texts must agree until llama.cpp's two best
logits lie within 0.05 of each other; beyond that, rounding decides.
"""

import json
import sys

theirs = json.load(open(sys.argv[1]))
ours = open(sys.argv[2]).read()
label, prompt = sys.argv[3:5]
ours = ours.removeprefix(prompt)
sure = next((n for n, gap in enumerate(theirs["gaps"]) if gap < 0.05), len(theirs["gaps"]))
expected = theirs["texts"][sure - 1] if sure else ""
agree = ours.strip().startswith(expected.strip())
print(f"{label}: {prompt!r}: {sure} of {len(theirs['gaps'])} tokens are sure, "
      f"{'equal' if agree else 'DIFFERENT'}: {expected!r}")
if not agree:
    sys.exit(f"ours: {ours!r}")
