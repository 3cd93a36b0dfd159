"""Writes rows in the published formats of well-known tasks, and what lm-eval says about them.

    python scripts/make_evaluate_fixtures.py                      # tests/fixtures/evaluate
    python scripts/make_evaluate_fixtures.py MODEL OUTPUT [ROWS [BATCH [TASK,TASK]]]   # any model

Needs lm-eval 0.4.13, sacrebleu and a transformers that reads the model. The rows are made up here;
prompts and scoring are lm-eval's own task files, pointed at local files. Everything runs in f32 on
the CPU, one request at a time unless BATCH says otherwise.
"""

import json
import logging
import os
import pathlib
import random
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
ROOT = pathlib.Path(__file__).resolve().parent.parent

ANIMALS = {"bear": "the cave", "duck": "the pond", "wolf": "the forest", "sheep": "the hill",
           "pig": "the barn", "lion": "the plain", "fish": "the river", "owl": "the old tree"}
CITIES = {"France": "Paris", "Greece": "Athens", "Spain": "Madrid", "Italy": "Rome",
          "Norway": "Oslo", "Japan": "Tokyo", "Peru": "Lima", "Egypt": "Cairo"}
NAMES = ["Anna", "Ben", "Clara", "Daniel", "Greta", "Tom"]
THINGS = ["lamp", "book", "hat", "basket", "kite", "boat"]
COLOURS = ["green", "yellow", "brown", "red"]


def question(draw):
    """A question, its right answer and three wrong ones."""
    table, ask = draw.choice([(ANIMALS, "Where does the {} live?"),
                              (CITIES, "What is the capital of {}?")])
    key = draw.choice(sorted(table))
    wrong = draw.sample(sorted(set(table.values()) - {table[key]}), 3)
    return ask.format(key), table[key], wrong


def shuffled(draw, right, wrong):
    choices = [right, *wrong]
    draw.shuffle(choices)
    return choices, choices.index(right)


def arc(draw):
    ask, right, wrong = question(draw)
    choices, answer = shuffled(draw, right, wrong[: draw.choice([2, 3])])
    labels = draw.choice(["ABCD", "1234"])[: len(choices)]
    return {"question": ask, "choices": {"text": choices, "label": list(labels)},
            "answerKey": labels[answer]}


def mmlu(draw):
    ask, right, wrong = question(draw)
    choices, answer = shuffled(draw, right, wrong)
    return {"question": " " + ask, "subject": "made_up_facts", "choices": choices, "answer": answer}


def hellaswag(draw):
    name, thing, colour = draw.choice(NAMES), draw.choice(THINGS), draw.choice(COLOURS)
    endings = [f"takes the {colour} {thing} [step] home.", "sings  to the moon. [title] Then rests",
               f"eats the {thing} and the table.", "is a number between 3 and 4."]
    draw.shuffle(endings)
    return {"activity_label": "Finding a " + thing, "ctx_a": f"{name} sees a {colour} {thing}. [header]",
            "ctx_b": draw.choice([f"{name} then", "the child"]), "endings": endings,
            "label": str(draw.randrange(4))}


def winogrande(draw):
    one, two = draw.sample(NAMES, 2)
    thing = draw.choice(THINGS)
    return {"sentence": f"{one} gave the {thing} to {two} because _ had asked for it.",
            "option1": one, "option2": two, "answer": draw.choice("12")}


def truthfulqa(draw):
    ask, right, wrong = question(draw)
    more, _, more_wrong = question(draw)
    true = [f"It is {right}.", f"{right.capitalize()}."]
    false = [f"It is {text}." for text in [*wrong, more_wrong[0]]]
    return {"question": ask,
            "mc1_targets": {"choices": [true[0], *false[:3]], "labels": [1, 0, 0, 0]},
            "mc2_targets": {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)}}


def gsm8k(draw):
    a, b, c = draw.randrange(2, 90), draw.randrange(2, 900), draw.randrange(2, 9)
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    total = a + b * c
    shown = f"{total:,}"
    return {"question": f"{name} has {a} {thing}s and buys {c} times {b} more. How many {thing}s are there?",
            "answer": f"{c} times {b} is <<{c}*{b}={b * c}>>{b * c}.\n"
                      f"{a} + {b * c} = {shown}\n#### {shown}"}


def medqa(draw):
    ask, right, wrong = question(draw)
    choices, answer = shuffled(draw, right, wrong)
    return {"sent1": ask, "label": answer, **{f"ending{i}": text for i, text in enumerate(choices)}}


def pubmedqa(draw):
    ask, right, wrong = question(draw)
    return {"QUESTION": f"Is it {draw.choice([right, wrong[0]])}? {ask}",
            "CONTEXTS": [f"We asked {draw.choice(NAMES)}.", f"The answer was {right}."],
            "final_decision": draw.choice(["yes", "no", "maybe"])}


def wikitext(draw):
    lines = [" = The Harbour = "]
    for _ in range(draw.randrange(2, 6)):
        name, thing = draw.choice(NAMES), draw.choice(THINGS)
        lines.append(f" {name} , who sold a {thing} ( and a  hat ) for 1 @,@ {draw.randrange(100, 999)} coins "
                     f"at 4 @.@ 5 o 'clock , said : \" well @-@ made , this one ! \" The {thing} 's price fell . ")
    return {"page": " \n ".join(lines) + " \n "}


def translation(draw):
    ask, right, _ = question(draw)
    return {"source": f"{ask} {right.capitalize()}.",
            "target": f"{right.capitalize()}, of course: {ask.lower()}"}


# Name of the task here, its file in lm-eval, its rows, rows for examples, overrides.
TASKS = [
    ("arc", "arc/arc_challenge.yaml", arc, 0, {}),
    ("mmlu", "mmlu/default/mmlu_anatomy.yaml", mmlu, 5,
     {"num_fewshot": 5, "description": "The following are multiple choice questions (with answers) "
                                       "about made up facts.\n\n"}),
    ("hellaswag", "hellaswag/hellaswag.yaml", hellaswag, 0, {}),
    ("winogrande", "winogrande/default.yaml", winogrande, 0, {}),
    ("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", truthfulqa, 0, {}),
    ("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", truthfulqa, 0, {}),
    ("medqa", "medqa/medqa.yaml", medqa, 0, {}),
    ("pubmedqa", "pubmedqa/pubmedqa.yaml", pubmedqa, 0, {}),
    ("gsm8k", "gsm8k/gsm8k.yaml", gsm8k, 30, {"num_fewshot": 3}),
    ("wikitext", "wikitext/wikitext.yaml", wikitext, 0, {}),
    ("translation", None, translation, 0, {}),
]

TRANSLATION = {
    "task": "translation", "output_type": "generate_until", "test_split": "test",
    "doc_to_text": "Sentence: {{source}}\nAgain:", "doc_to_target": "target",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "temperature": 0.0,
                          "max_gen_toks": 24},
    "metric_list": [{"metric": name, "aggregation": name, "higher_is_better": True}
                    for name in ["bleu", "chrf", "chrf++"]],
}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def task_config(name, yaml, data, examples, overrides):
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = pathlib.Path(lm_eval.tasks.__file__).parent
    if yaml is not None:
        found = folder / yaml
        if not found.exists():
            found = next((folder / yaml).parent.glob("*.yaml"))
        config = load_yaml(found)
    else:
        config = dict(TRANSLATION)
    files = {"test": str(data)}
    if examples is not None:
        files["train"] = files["dev"] = str(examples)
    config |= {"task": name, "dataset_path": "json", "dataset_name": None, "test_split": "test",
               "training_split": None, "validation_split": None,
               "dataset_kwargs": {"data_files": files}, **overrides}
    if examples is not None:
        config["fewshot_split"] = "train"
    for key in ["tag", "include", "task_alias", "should_decontaminate"]:
        config.pop(key, None)
    return config


def item(sample):
    """What is compared of one item: numbers and answers, not prompts."""
    kept = {key: sample[key] for key in ["acc", "acc_norm", "exact_match"] if key in sample}
    responses = sample["resps"]
    if isinstance(responses[0][0], str):
        kept["generated"] = responses[0][0]
        kept["filter"] = sample["filter"]
    elif isinstance(responses[0][0], (list, tuple)):
        kept["log_likelihoods"] = [float(one[0][0]) for one in responses]
    else:
        kept["log_likelihood"] = float(responses[0][0])
    return kept


def evaluate(model_dir, folder, rows, batch_size=1, only=None):
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(model_dir), dtype="float32", device="cpu", batch_size=batch_size)
    reference = {}
    for seed, (name, yaml, make, example_rows, overrides) in enumerate(TASKS):
        if only and name not in only:
            continue
        draw = random.Random(f"{seed} {name}")
        count = max(6, rows // 3) if name in ("gsm8k", "wikitext", "translation") else rows
        data, examples = folder / f"{name}.jsonl", None
        write(data, [make(draw) for _ in range(count)])
        if example_rows:
            examples = folder / f"{name}_examples.jsonl"
            write(examples, [make(draw) for _ in range(example_rows)])
        config = task_config(name, yaml, data, examples, dict(overrides))
        if model.max_length < 1024 and name == "gsm8k":
            config["generation_kwargs"] = {**config["generation_kwargs"], "max_gen_toks": 24}
        task = ConfigurableTask(config=config)
        task.set_fewshot_seed(1234)
        started, cpu = time.time(), time.process_time()
        result = lm_eval.evaluate(model, {"tasks": {name: task}, "groups": {}, "group_map": {}},
                                  bootstrap_iters=0, log_samples=True)
        figures = {key: value for key, value in result["results"][name].items()
                   if isinstance(value, float)}
        reference[name] = {"figures": figures, "seconds": time.time() - started,
                           "cpu_seconds": time.process_time() - cpu,
                           "items": [item(sample) for sample in result["samples"][name]]}
        # A long comparison that is stopped keeps what it has.
        (folder / "reference.json").write_text(json.dumps(reference) + "\n")
        print(name, figures, f"{time.time() - started:.1f} s",
              f"{time.process_time() - cpu:.1f} s of CPU", file=sys.stderr, flush=True)
    return reference


CODE = [
    ("humaneval", "humaneval/humaneval.yaml", [
        {"task_id": "Made/0", "prompt": "def double(x):\n    \"\"\"Twice x.\"\"\"\n",
         "canonical_solution": "    return 2 * x\n", "entry_point": "double",
         "test": "def check(candidate):\n    assert candidate(4) == 8\n"},
        {"task_id": "Made/1", "prompt": "def longest(words):\n    \"\"\"The longest word.\"\"\"\n",
         "canonical_solution": "    return max(words, key=len)\n", "entry_point": "longest",
         "test": "def check(candidate):\n    assert candidate(['a', 'abc']) == 'abc'\n"}]),
    ("mbpp", "mbpp/mbpp.yaml", [
        {"task_id": 11, "text": "Write a function to double a number.", "code": "def double(x):\n  return 2 * x",
         "test_list": ["assert double(1) == 2", "assert double(0) == 0", "assert double(-1) == -2"]},
        {"task_id": 12, "text": "Write a function to find the longest word.", "code": "def longest(w):\n  return max(w, key=len)",
         "test_list": ["assert longest(['a']) == 'a'", "assert longest(['a', 'bc']) == 'bc'", "assert longest(['']) == ''"]}]),
]


EXAMPLES = [{"task_id": 2 + place, "text": text, "code": f"def {name}(x):\r\n  return {body}",
             "test_list": [f"assert {name}({x}) == {y}" for x, y in tests]}
            for place, (text, name, body, tests) in enumerate([
                ("Write a function to add one.", "more", "x + 1", [(1, 2), (0, 1), (-1, 0)]),
                ("Write a function to halve a number.", "half", "x / 2", [(2, 1), (0, 0), (6, 3)]),
                ("Write a function to square a number.", "square", "x * x", [(2, 4), (0, 0), (3, 9)])])]


def code_prompts(folder):
    """What lm-eval would send to a model, and the programs that it would run of an answer `ANSWER`."""
    import types

    # lm-eval fetches what judges programs; prompts need no judge.
    judge = types.SimpleNamespace(compute=lambda **_: [{"pass@1": 0.0}])
    sys.modules["evaluate"] = types.SimpleNamespace(load=lambda *_, **__: judge)
    from lm_eval.api.task import ConfigurableTask

    found, shown = {}, [{**one, "is_fewshot": True} for one in EXAMPLES]
    for name, yaml, rows in CODE:
        data = folder / f"{name}.jsonl"
        write(data, rows)
        examples = {"fewshot_config": {"sampler": "first_n", "samples": shown}} if name == "mbpp" else {}
        task = ConfigurableTask(config=task_config(name, yaml, data, None, examples))
        task.build_all_requests(rank=0, world_size=1)
        instances = sorted(task.instances, key=lambda one: one.doc_id)
        settings = instances[0].args[1]
        found[name] = {
            "prompts": [one.args[0] for one in instances], "until": settings["until"],
            "max_gen_toks": settings.get("max_gen_toks"),
            "targets": [task.doc_to_target(one.doc) for one in instances],
        }
    # The first row of the published file is passed over.
    first = {"task_id": 1, "text": "", "code": "", "test_list": [""] * 3}
    write(folder / "mbpp_examples.jsonl", [first, *EXAMPLES])
    (folder / "code_prompts.json").write_text(json.dumps(found, indent=1) + "\n")


def corpus_scores(folder):
    """BLEU and chrF of fixed texts, with one and with two references."""
    import sacrebleu

    draw = random.Random(7)
    words = ["the", "cat", "sat", "(on)", "a", "mat,", "3.5", "it's", "well-made", "naïve", "日本",
             "&quot;x&quot;", "end.", "!", "1,200", "x-1", "5-4"]
    sentence = lambda: " ".join(draw.choice(words) for _ in range(draw.randrange(1, 14)))
    rows = []
    for _ in range(40):
        reference = sentence()
        answer = reference.split()
        for _ in range(draw.randrange(0, 4)):
            answer[draw.randrange(len(answer))] = draw.choice(words)
        rows.append({"answer": " ".join(answer[: draw.randrange(1, 14)]),
                     "references": [reference, sentence()]})
    rows.append({"answer": "", "references": ["the cat", "a mat"]})
    scores = {}
    for count in (1, 2):
        answers = [row["answer"] for row in rows]
        streams = [[row["references"][i] for row in rows] for i in range(count)]
        scores[str(count)] = {
            "bleu": sacrebleu.corpus_bleu(answers, streams).score,
            "chrf": sacrebleu.corpus_chrf(answers, streams).score,
            "chrf++": sacrebleu.corpus_chrf(answers, streams, word_order=2).score,
        }
    (folder / "corpus_scores.json").write_text(
        json.dumps({"rows": rows, "scores": scores}, ensure_ascii=False, indent=1) + "\n")


def main():
    logging.disable(logging.WARNING)
    arguments = sys.argv[1:]
    model = pathlib.Path(arguments[0]) if arguments else ROOT / "recipes/tiny_llama"
    folder = pathlib.Path(arguments[1]) if arguments else ROOT / "tests/fixtures/evaluate"
    rows = int(arguments[2]) if len(arguments) > 2 else 30
    batch_size = int(arguments[3]) if len(arguments) > 3 else 1
    only = arguments[4].split(",") if len(arguments) > 4 else None
    folder.mkdir(parents=True, exist_ok=True)
    reference = evaluate(model, folder, rows, batch_size, only)
    if not arguments:
        for task in reference.values():
            del task["seconds"], task["cpu_seconds"]
        corpus_scores(folder)
        code_prompts(folder)
    (folder / "reference.json").write_text(json.dumps(reference, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
