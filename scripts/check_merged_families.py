#!/usr/bin/env python3
"""Loads folders that Tunesmith merged in transformers and compares their logits with PEFT's base + adapter.

    TUNESMITH_MERGED_FAMILIES=DIR cargo nextest run --workspace --test parity merged_folders
    python scripts/check_merged_families.py DIR

Prints the largest distance for each folder; exits 1 where one is beyond 1e-4 of the largest logit.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from make_family_fixtures import ROOT, VARIANTS, logits_of, open_model
from safetensors.torch import load_file


def main() -> int:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    failed = False
    for name in VARIANTS:
        reference = json.loads((ROOT / name / "reference.json").read_text())
        expected = load_file(ROOT / name / "reference.safetensors")["adapter_logits"]
        with torch.no_grad():
            actual = logits_of(open_model(Path(sys.argv[1]) / name), reference["sequences"][1])
        error = ((actual - expected).abs().max() / expected.abs().max()).item()
        failed |= not error < 1e-4
        print(f"{name}: {error:.1e}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
