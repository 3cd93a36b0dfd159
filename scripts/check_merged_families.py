#!/usr/bin/env python3
"""Loads what Tunesmith wrote in transformers and PEFT and compares it with PEFT's base + adapter.

    mkdir DIR; TUNESMITH_MERGED_FAMILIES=DIR cargo nextest run --workspace --test parity \\
        -E 'test(merged_folders) or test(adapters_of_recipes)'
    python scripts/check_merged_families.py DIR

For every family: the merged folder's logits (the largest distance is printed; beyond 1e-4 of the largest logit is a
failure) and 20 greedy tokens, against those of PEFT's adapter on the base. For experts adapted as parameters: the
logits of our adapter in PEFT against ours. Exits 1 on a failure.
"""

import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from make_family_fixtures import ROOT, VARIANTS, greedy, logits_of, open_linear_model, open_model
from peft import PeftModel
from safetensors.torch import load_file, save_file


def peft_tokens(name, prompt):
    model = PeftModel.from_pretrained(open_linear_model(ROOT / name, VARIANTS[name]), adapter_of(name)).eval()
    return greedy(model, prompt)


def adapter_of(name) -> str:
    """The fixture's adapter; PEFT knows Mixtral's experts by other names."""
    folder = ROOT / name / "adapter"
    if VARIANTS[name].model_type != "mixtral":
        return str(folder)
    copy = tempfile.mkdtemp()
    shutil.copy(folder / "adapter_config.json", copy)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key.replace(".block_sparse_moe.", ".mlp."): value for key, value in tensors.items()},
              f"{copy}/adapter_model.safetensors", metadata={"format": "pt"})
    return copy


def check_merged(root: Path, name: str) -> bool:
    reference = json.loads((ROOT / name / "reference.json").read_text())
    expected = load_file(ROOT / name / "reference.safetensors")["adapter_logits"]
    with torch.no_grad():
        merged = open_model(root / name)
        error = ((logits_of(merged, reference["sequences"][1]) - expected).abs().max() / expected.abs().max()).item()
        wanted, margin = peft_tokens(name, reference["greedy_prompt"])
        tokens, _ = greedy(merged, reference["greedy_prompt"])
    print(f"{name}: logits {error:.1e}, tokens {'equal' if tokens == wanted else 'differ'} (margin {margin:.1e})",
          flush=True)
    # Two logits that are nearer to each other than the distance allowed may change places.
    return error < 1e-4 and (tokens == wanted or margin < 1e-4 * expected.abs().max().item())


def check_parameters(root: Path, name: str) -> bool:
    folder = root / "parameters" / name
    model = PeftModel.from_pretrained(open_model(ROOT / name), folder).eval()
    ids = json.loads((ROOT / name / "reference.json").read_text())["sequences"][1]
    expected = torch.tensor(json.loads((folder / "logits.json").read_text())).reshape(len(ids), -1)
    with torch.no_grad():
        error = ((logits_of(model, ids) - expected).abs().max() / expected.abs().max()).item()
    print(f"{name}: our adapter over parameters in PEFT: logits {error:.1e}", flush=True)
    return error < 1e-4


def main() -> int:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    merged = [check_merged(root, name) for name in VARIANTS]
    parameters = [check_parameters(root, folder.name) for folder in sorted((root / "parameters").iterdir())]
    print(f"{sum(merged)} of {len(merged)} merged models, {sum(parameters)} of {len(parameters)} adapters as they should be")
    return int(not all(merged + parameters))


if __name__ == "__main__":
    sys.exit(main())
