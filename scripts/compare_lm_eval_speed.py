"""Tunesmith's speed against lm-eval's on the same rows and model, both in turns.

    python scripts/compare_lm_eval_speed.py MODEL FOLDER path/to/tunesmith [PAIRS] [TASK,...]

TASK: names of scripts/make_evaluate_fixtures.py; arc, mmlu, hellaswag (likelihoods) and gsm8k, translation
(generated answers) if none is named. Each pair runs both programs anew on 40 rows (a third of them where
answers are generated, to 256 tokens), with as many threads as OMP_NUM_THREADS and `--threads` say (THREADS,
default 1). Loading the model is left out for lm-eval, whose clock starts after it, and counted for Tunesmith.
Wall seconds mean something on a quiet machine only; CPU seconds always. Prints the medians and the range of the
ratios lm-eval / Tunesmith.
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from compare_lm_eval import TRANSLATION  # noqa: E402

THREADS = os.environ.get("THREADS", "1")
ROWS, BATCH = "40", "8"


def theirs(model, folder, task):
    """Wall and CPU seconds of lm-eval; writes the rows."""
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS}
    command = [sys.executable, str(ROOT / "scripts/make_evaluate_fixtures.py"), model, str(folder), ROWS, BATCH, task]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    figures = json.loads((folder / "reference.json").read_text())[task]
    return figures["seconds"], figures["cpu_seconds"]


def ours(program, model, folder, task):
    """Wall and CPU seconds of Tunesmith on the same rows."""
    name = task
    if task == "translation":
        name = str(folder / "translation.toml")
        pathlib.Path(name).write_text(TRANSLATION)
    command = [program, "-q", "evaluate", model, "--task", name, "--data", str(folder / f"{task}.jsonl"),
               "--device", "cpu", "--no-cache", "--json", str(folder / "figures.json"), "--threads", THREADS]
    if task == "mmlu":
        command += ["--few-shot", "5", "--few-shot-data", str(folder / "mmlu_examples.jsonl")]
    if task == "gsm8k":
        command += ["--few-shot", "3", "--few-shot-data", str(folder / "gsm8k_examples.jsonl")]
    usage = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    start, before = time.time(), usage()
    subprocess.run(command, check=True)
    return time.time() - start, usage() - before


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    model, folder, program = sys.argv[1], pathlib.Path(sys.argv[2]).absolute(), sys.argv[3]
    pairs = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    tasks = sys.argv[5].split(",") if len(sys.argv) > 5 else ["arc", "mmlu", "hellaswag", "gsm8k", "translation"]
    folder.mkdir(parents=True, exist_ok=True)
    print("| task | lm-eval wall s | Tunesmith wall s | ratio | lm-eval CPU s | Tunesmith CPU s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for task in tasks:
        runs = [(theirs(model, folder, task), ours(program, model, folder, task)) for _ in range(pairs)]
        cells = []
        for which in (0, 1):
            ratios = [other[which] / own[which] for other, own in runs]
            middle = [statistics.median(run[side][which] for run in runs) for side in (0, 1)]
            spread = f" ({min(ratios):.2f}-{max(ratios):.2f})" if pairs > 1 else ""
            cells += [f"{middle[0]:.1f}", f"{middle[1]:.1f}", f"{statistics.median(ratios):.2f}{spread}"]
        print(f"| {task} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
