"""Tunesmith against lm-eval on the same rows and model, item by item and second by second.

    OMP_NUM_THREADS=1 python scripts/make_evaluate_fixtures.py MODEL FOLDER 40 8
    python scripts/compare_lm_eval.py MODEL FOLDER path/to/tunesmith [--threads N]

The first command writes rows and lm-eval's answers (batches of 8) to FOLDER; this one runs the
shipped task files on the same rows and prints what differs. Seconds are CPU seconds of one process;
lm-eval's leave out loading the model, Tunesmith's hold it. Exit 1 where a chosen answer, a generated text or a
figure is not the same: every item equal, perplexities to 1e-3, BLEU and chrF to 0.01. Two choices whose
log-likelihoods lie closer together than TIE are a tie: which of them is first is rounding, and such items are counted
apart.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile

# Log-likelihoods of both programs differ by less: f32 sums in other orders.
TIE = 1e-3

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


def is_tie(values):
    first, second = sorted(values, reverse=True)[:2]
    return first - second < TIE


def differences(samples, items):
    """Largest difference of a log-likelihood, how many answers differ, how many of them by a tie."""
    largest, answers, ties = 0.0, 0, 0
    for index, item in enumerate(items):
        sample = samples[index % len(samples)]
        values = item.get("log_likelihoods", [])
        for ours, theirs in zip(sample.get("log_likelihoods", []), values):
            largest = max(largest, abs(ours - theirs))
        for key in ("acc", "acc_norm"):
            if key in item and key in sample and abs(item[key] - sample[key]) > 1e-6:
                answers += 1
                ties += key == "acc" and is_tie(values)
        if "generated" in item:
            answers += item["generated"] != sample["generated"]
    return largest, answers, ties


def wrong_figures(name, theirs, ours):
    """Figures of both that are further apart than they may be."""
    wrong = []
    for key, value in theirs.items():
        own = key.removesuffix(",none")
        if name == "truthfulqa_mc2":
            own = own.replace("acc", "probability_mass")
        if own.endswith("_stderr") or own not in ours:
            continue
        bound = 1e-3 * abs(value) if "perplexity" in own or own == "bits_per_byte" else 1e-2 if name == "translation" else 1e-4
        if abs(ours[own] - value) > bound:
            wrong.append(f"{own} {value} there, {ours[own]} here")
    return wrong


def main():
    model, folder, program = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    reference = json.loads((folder / "reference.json").read_text())
    total, problems = [0.0, 0.0], []
    print("| task | items | figure (lm-eval, Tunesmith) | largest difference of a log-likelihood | "
          "answers that differ | CPU s lm-eval | CPU s Tunesmith |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, theirs in reference.items():
            ours, samples, seconds = run(program, model, name, folder, pathlib.Path(scratch), sys.argv[4:])
            largest, answers, ties = differences(samples, theirs["items"])
            if answers > ties:
                problems.append(f"{name}: {answers - ties} answers differ")
            if not ties:
                problems += [f"{name}: {one}" for one in wrong_figures(name, theirs["figures"], ours)]
            shown = f"{answers}, {ties} of them ties" if ties else answers
            key, value = next((key, value) for key, value in theirs["figures"].items())
            own = key.removesuffix(",none")
            own = "probability_mass" if name == "truthfulqa_mc2" else own
            total[0] += theirs["cpu_seconds"]
            total[1] += seconds
            print(f"| {name} | {len(samples)} | {own} {value:.4f}, {ours[own]:.4f} | {largest:.1e} | "
                  f"{shown} | {theirs['cpu_seconds']:.1f} | {seconds:.1f} |", flush=True)
    print(f"| all | | | | | {total[0]:.1f} | {total[1]:.1f} | ratio {total[0] / total[1]:.2f}")
    if problems:
        sys.exit("\n".join(["error: not as lm-eval has it", *problems]))


if __name__ == "__main__":
    main()
