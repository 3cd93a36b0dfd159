"""Tunesmith against lm-eval on the same rows and model, item by item and second by second.

    OMP_NUM_THREADS=1 python scripts/make_evaluate_fixtures.py MODEL FOLDER 40 8
    python scripts/compare_lm_eval.py MODEL FOLDER path/to/tunesmith [--threads N]

The first command writes rows and lm-eval's answers (batches of 8) to FOLDER; this one runs the
shipped task files on the same rows and prints what differs. Seconds are CPU seconds of one process;
lm-eval's leave out loading the model, Tunesmith's hold it.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRANSLATION = """kind = "translation"
prompt = "Sentence: {{source}}\\nAgain:"
answer = "target"
stop = ["\\n"]
max_tokens = 24
metrics = ["bleu", "chrf", "chrf++"]
"""


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(program, model, name, folder, scratch, more):
    task = name
    if name == "translation":
        task = scratch / "translation.toml"
        task.write_text(TRANSLATION)
    command = [program, "-q", "evaluate", model, "--task", str(task), "--data",
               str(folder / f"{name}.jsonl"), "--device", "cpu", "--samples",
               str(scratch / "samples.jsonl"), "--json", str(scratch / "figures.json"), *more]
    if name == "mmlu":
        command += ["--few-shot", "5", "--few-shot-data", str(folder / "mmlu_examples.jsonl")]
    if name == "gsm8k":
        command += ["--few-shot", "3", "--few-shot-data", str(folder / "gsm8k_examples.jsonl")]
    before = cpu_seconds()
    subprocess.run(command, check=True)
    figures = json.loads((scratch / "figures.json").read_text())["targets"][0]["tasks"][name]
    samples = [json.loads(line) for line in (scratch / "samples.jsonl").read_text().splitlines()]
    return figures, samples, cpu_seconds() - before


def differences(samples, items):
    """Largest difference of a log-likelihood, and how many answers differ."""
    largest, answers = 0.0, 0
    for index, item in enumerate(items):
        sample = samples[index % len(samples)]
        for ours, theirs in zip(sample.get("log_likelihoods", []), item.get("log_likelihoods", [])):
            largest = max(largest, abs(ours - theirs))
        for key in ("acc", "acc_norm"):
            if key in item and key in sample:
                answers += abs(item[key] - sample[key]) > 1e-6
        if "generated" in item:
            answers += item["generated"] != sample["generated"]
    return largest, answers


def main():
    model, folder, program = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    reference = json.loads((folder / "reference.json").read_text())
    total = [0.0, 0.0]
    print("| task | items | figure (lm-eval, Tunesmith) | largest difference of a log-likelihood | "
          "answers that differ | CPU s lm-eval | CPU s Tunesmith |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, theirs in reference.items():
            ours, samples, seconds = run(program, model, name, folder, pathlib.Path(scratch), sys.argv[4:])
            largest, answers = differences(samples, theirs["items"])
            key, value = next((key, value) for key, value in theirs["figures"].items())
            own = key.removesuffix(",none")
            own = "probability_mass" if name == "truthfulqa_mc2" else own
            total[0] += theirs["cpu_seconds"]
            total[1] += seconds
            print(f"| {name} | {len(samples)} | {own} {value:.4f}, {ours[own]:.4f} | {largest:.1e} | "
                  f"{answers} | {theirs['cpu_seconds']:.1f} | {seconds:.1f} |", flush=True)
    print(f"| all | | | | | {total[0]:.1f} | {total[1]:.1f} | ratio {total[0] / total[1]:.2f}")


if __name__ == "__main__":
    main()
