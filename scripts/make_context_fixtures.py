#!/usr/bin/env python3
"""Writes tests/fixtures/context.json: tiny models with another rotary scaling than their own, by transformers.

usage: make_context_fixtures.py       (after make_family_fixtures.py, from the root of the repository)

For each base of tests/fixtures/families and each table of a recipe's `[rope_scaling]`: the positions that the
extended configuration has, and the logits of the last position of a text that is longer than the base's context.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path("tests/fixtures")
LENGTH = 150
TABLES = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.2,
     "original_max_position_embeddings": 64, "max_position_embeddings": 160},
    {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "longrope"},
]
BASES = ("mistral_old", "qwen3", "olmo2", "cohere", "gpt_neox", "phi3", "gemma3_text")


def extended(folder: Path, table: dict):
    config = AutoConfig.from_pretrained(folder)
    positions = config.max_position_embeddings
    rope = config.rope_parameters
    own = rope.get("full_attention", rope)
    kept = {k: v for k, v in own.items() if k in ("rope_theta", "partial_rotary_factor")}
    table = dict(table)
    longer = table.pop("max_position_embeddings", None)
    original = table.pop("original_max_position_embeddings", own.get("original_max_position_embeddings", positions))
    if table["rope_type"] != "dynamic":
        config.max_position_embeddings = longer or int(table["factor"] * original)
    if table["rope_type"] not in ("linear", "dynamic"):
        table["original_max_position_embeddings"] = original
        if getattr(config, "original_max_position_embeddings", None) is not None:
            config.original_max_position_embeddings = original
    if table["rope_type"] == "llama3":
        table |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    new = kept | table
    config.rope_parameters = rope | {"full_attention": new} if "full_attention" in rope else new
    return config


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    ids = torch.randint(3, 60, (LENGTH,), generator=torch.Generator().manual_seed(7))
    cases = []
    for base in BASES:
        folder = ROOT / "families" / base
        for table in TABLES:
            only_longrope = base == "phi3"
            if only_longrope != (table["rope_type"] == "longrope"):
                continue
            if only_longrope:
                pairs = len(json.loads((folder / "config.json").read_text())["rope_parameters"]["short_factor"])
                table = table | {"factor": 8.0, "short_factor": [1.0 + 0.1 * n for n in range(pairs)],
                                 "long_factor": [2.0 + n for n in range(pairs)]}
            config = extended(folder, table)
            model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32,
                                                         attn_implementation="eager").eval()
            with torch.no_grad():
                logits = model(ids[None], use_cache=False).logits[0, -1]
            cases.append({"base": base, "table": table, "positions": config.max_position_embeddings,
                          "logits": [round(x, 6) for x in logits.tolist()]})
    facts = {"made_by": f"scripts/make_context_fixtures.py, torch {torch.__version__.split('+')[0]}, "
                        f"transformers {transformers.__version__}", "ids": ids.tolist()}
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in facts.items()]
    lines.append('"cases": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]")
    (ROOT / "context.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
