"""What transformers and PEFT make of the same model, rows and adapters: see scripts/check_peers.sh.

usage: check_peers.py PROGRAM MODEL.gguf OUT_DIR

Prints a line for each check, with its figure and bound; exit code 1 where one fails.
"""

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from make_quantise_fixtures import dequantised

TEXT = Path("tests/fixtures/smollm2/text.txt")
WINDOW = 256
STEPS, ROWS, LENGTH = 20, 4, 64
RATE = 1e-3
TIE = 0.05
PROMPTS = ["The capital of France is", "def fibonacci(n):\n    ", "Once upon a time"]
# Rows of a micro-batch, micro-batches of a step, packed, checkpointed: all of them the same steps.
VARIANTS = {
    "4x1": (4, 1, "false", "off"),
    "2x2": (2, 2, "false", "off"),
    "1x4": (1, 4, "false", "off"),
    "4x1 checkpointed": (4, 1, "false", "on"),
    "packed": (1, 1, "true", "off"),
}

failures = 0


def check(name, figure, bound, passed):
    global failures
    failures += not passed
    print(f"{'passed' if passed else 'FAILED'}  {name:58} {figure:>12}  {bound}", flush=True)


def at_most(name, value, bound):
    check(name, f"{value:.3e}", f"<= {bound:g}", value <= bound)


def relative(one, other):
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


class Ours:
    """The program."""

    def __init__(self, program, out):
        self.program, self.out = program, out

    def run(self, *arguments):
        command = [self.program, "--quiet", *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def perplexity(self, target, *flags):
        text = self.run("evaluate", target, "--task", "perplexity", "--data", TEXT, "--sequence-length", WINDOW,
                        "--device", "cpu", "--precision", "f32", "--json", "-", *flags)
        return json.loads(text)["targets"][0]["tasks"]["perplexity"]["perplexity"]

    def train(self, base, adapter, rows, name, variant, quantise="none"):
        rows_at_once, micro_batches, packing, checkpointing = variant
        run = self.out / f"run {name}"
        recipe = self.out / f"{name}.toml"
        length = LENGTH * ROWS if packing == "true" else LENGTH
        recipe.write_text(f"""
base_model = "{base}"
output_dir = "{run}"
precision = "f32"
quantize_base = "{quantise}"
[[dataset]]
path = "{rows}"
format = "tokens"
[batch]
sequence_length = {length}
packing = {packing}
shuffle = false
sequences_per_micro_batch = {rows_at_once}
micro_batches_per_step = {micro_batches}
[adapter.lora]
init_from = "{adapter}"
[optimizer.adamw]
learning_rate = {RATE}
[schedule.constant]
warmup_steps = 0
[train]
steps = {STEPS}
max_gradient_norm = 0.0
gradient_checkpointing = "{checkpointing}"
""")
        self.run("train", recipe, "--device", "cpu", "--fresh")
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines], run / "adapter"


def load(folder, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, adapter, is_trainable=True)


def make_folder(gguf, folder):
    """The GGUF's weights as an f32 folder, by transformers' own reader."""
    if (folder / "model.safetensors").exists():
        return
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def make_bf16_folder(base, folder):
    """The base as models are published: rounding weights that were f32 costs more than a merge may."""
    if not (folder / "model.safetensors").exists():
        load(base).to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def make_adapter(base, folder):
    """A PEFT adapter whose B is not zero, so that a wrong scale or side shows at once."""
    torch.manual_seed(3)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.06)
    model.save_pretrained(folder)


def make_rows(vocabulary, path):
    """Random tokens; a random part of each row carries no loss, so that token weighting shows."""
    draw = random.Random(5)
    rows = []
    for _ in range(STEPS * ROWS):
        ids = [draw.randrange(10, vocabulary) for _ in range(LENGTH)]
        first = draw.randrange(1, LENGTH - 2)
        rows.append({"input_ids": ids, "labels": [-100] * first + ids[first:]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def perplexity(model, ids):
    total, tokens = 0.0, 0
    for start in range(0, len(ids), WINDOW):
        part = torch.tensor([ids[start:start + WINDOW]])
        if part.shape[1] > 1:
            with torch.no_grad():
                logits = model(input_ids=part, use_cache=False).logits
            total += torch.nn.functional.cross_entropy(logits[0, :-1], part[0, 1:], reduction="sum").item()
            tokens += part.shape[1] - 1
    return math.exp(total / tokens)


def train(model, rows, folder):
    """PEFT's 20 steps: the loss of a step is the mean over all its tokens that carry loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        batch = rows[step * ROWS:(step + 1) * ROWS]
        ids, labels = (torch.tensor([row[key] for row in batch]) for key in ("input_ids", "labels"))
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(folder)
    return losses


def tensors_of(*folders):
    found = [load_file(Path(folder) / "adapter_model.safetensors") for folder in folders]
    assert all(tensors.keys() == found[0].keys() for tensors in found), folders
    return found


def update_distance(start, one, other):
    """How far apart two runs moved the factors, over how far the second moved them; all of them together."""
    start, one, other = tensors_of(start, one, other)
    squares = lambda a, b: sum((a[name].double() - b[name].double()).square().sum().item() for name in a)
    return math.sqrt(squares(one, other) / squares(other, start))


def smallest_cosine(one, other):
    one, other = tensors_of(one, other)
    similarity = torch.nn.functional.cosine_similarity
    return min(similarity(one[name].double().flatten(), other[name].double().flatten(), 0).item() for name in one)


def digits_apart(folder):
    """The ids of the GGUF's own tokenizer: `tokenizer.ggml.pre = smollm` takes each digit by itself, as llama.cpp
    does, and transformers' reader of GGUF files leaves that out."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer.encode(TEXT.read_text(), add_special_tokens=False).ids


def check_perplexity(ours, gguf, base, ids):
    model = load(base)
    for name, target, ids_of in (("GGUF", gguf, digits_apart(base)), ("folder", base, ids)):
        theirs = perplexity(model, ids_of)
        found = ours.perplexity(target)
        at_most(f"perplexity of the {name}: {theirs:.4f}, {len(ids_of)} tokens", relative([found], [theirs]), 1e-3)


def check_training(ours, base, out):
    """Losses of all steps; gives the adapters that both wrote."""
    start, rows_file = out / "peft_start", out / "rows.jsonl"
    make_adapter(base, start)
    rows = make_rows(json.loads((base / "config.json").read_text())["vocab_size"], rows_file)
    expected = train(load(base, start), rows, out / "peft_trained")
    losses, adapters = {}, {}
    for name, variant in VARIANTS.items():
        losses[name], adapters[name] = ours.train(base, start, rows_file, name, variant)
        at_most(f"{name}: losses of {STEPS} steps", relative(losses[name], expected), 1e-3)
        cosine = smallest_cosine(adapters[name], out / "peft_trained")
        check(f"{name}: cosine to PEFT's adapter, smallest tensor", f"{cosine:.7f}", ">= 0.9999", cosine >= 0.9999)
    for name in ("2x2", "1x4", "4x1 checkpointed"):
        at_most(f"{name}: losses against 4x1", relative(losses[name], losses["4x1"]), 1e-5)
    return adapters["4x1"], out / "peft_trained", losses["4x1"]


def check_kept(ours, gguf, base, out, plain):
    """Bases that are kept in other ways: the GGUF as it stands, and `quantize_base`."""
    start, rows_file = out / "peft_start", out / "rows.jsonl"
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    losses, adapter = ours.train(gguf, start, rows_file, "GGUF", VARIANTS["4x1"])
    at_most("GGUF as it stands: losses against its folder in f32", relative(losses, plain), 1e-5)
    at_most("GGUF as it stands: update against PEFT's", update_distance(start, adapter, out / "peft_trained"), 1e-3)
    for kind in ("int8", "nf4"):
        model = load(base, start)
        with torch.no_grad():
            for name, module in model.named_modules():
                if name.endswith("base_layer") and ".layers." in name:
                    module.weight.copy_(dequantised(module.weight, kind))
        expected = train(model, rows, out / f"peft_{kind}")
        losses, adapter = ours.train(base, start, rows_file, kind, VARIANTS["4x1"], kind)
        at_most(f"{kind}: losses of {STEPS} steps over the same values", relative(losses, expected), 1e-3)
        at_most(f"{kind}: update against PEFT's", update_distance(start, adapter, out / f"peft_{kind}"), 1e-3)
        apart = relative(expected, plain)
        check(f"{kind}: losses apart from those of the wide base", f"{apart:.3e}", "> 1e-04", apart > 1e-4)


def check_adapters(ours, base, ids, own, peft):
    for name, adapter in (("our adapter in PEFT", own), ("PEFT's adapter here", peft)):
        theirs = perplexity(load(base, adapter).eval(), ids)
        found = ours.perplexity(adapter, "--base", base)
        at_most(f"perplexity, {name}: {theirs:.4f}", relative([found], [theirs]), 1e-3)


def check_merged(ours, base, adapter, out):
    # Out of its run, which knows the base that it was trained on.
    alone = out / "adapter"
    shutil.copytree(adapter, alone, dirs_exist_ok=True)
    make_bf16_folder(base, out / "base_bf16")
    cases = (("f32", base, adapter), ("f16", base, adapter), ("bf16", out / "base_bf16", alone))
    for word, base, adapter in cases:
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[word]
        plain = load(base).state_dict()
        theirs = load(base, adapter).merge_and_unload().state_dict()
        folder = out / f"merged_{word}"
        subprocess.run(["rm", "-rf", folder], check=True)
        ours.run("merge", adapter, "--base", base, "--output", folder, "--dtype", word)
        found = load_file(folder / "model.safetensors")
        assert found.keys() <= theirs.keys(), sorted(found.keys() - theirs.keys())[:4]
        worst = 0.0
        for name, ours_tensor in found.items():
            exact = theirs[name].double()
            # Half a step to the nearest number for each of the two, and the order of the sums.
            step = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
            order = 1e-6 * (exact - plain[name].double()).abs().max()
            difference = (ours_tensor.double() - theirs[name].to(dtype).double()).abs()
            worst = max(worst, (difference / (step + order)).max().item())
        at_most(f"merged {word} against merge_and_unload(), in roundings", worst, 1.0)


def check_greedy(ours, folder):
    """The merged folder loads as it stands and takes the same tokens up to a tie."""
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        answer = json.loads(ours.run("generate", folder, "--prompt", prompt, "--device", "cpu", "--precision", "f32",
                                     "--max-tokens", 32, "--json", "-"))
        expected = tokenizer(prompt).input_ids
        check(f"tokens of {prompt!r}", len(expected), "the same", answer["prompt_ids"] == expected)
        ids, agreed, gap = list(expected), 0, math.inf
        for choice in answer["ids"] + [answer["stop_id"]] * (answer["stop_id"] is not None):
            with torch.no_grad():
                best = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(2)
            gap = (best.values[0] - best.values[1]).item()
            if best.indices[0].item() != choice:
                break
            agreed, gap = agreed + 1, math.inf
            ids.append(choice)
        bound = "all the same" if gap == math.inf else f"then a gap of {gap:.4f} < {TIE}"
        check(f"greedy tokens after {prompt!r} in transformers", agreed, bound, gap == math.inf or gap < TIE)


def main():
    program, gguf, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    base = out / "base"
    make_folder(gguf, base)
    ours = Ours(program, out)
    ids = AutoTokenizer.from_pretrained(base)(TEXT.read_text(), add_special_tokens=False).input_ids
    check_perplexity(ours, gguf, base, ids)
    own, peft, plain = check_training(ours, base, out)
    check_kept(ours, gguf, base, out, plain)
    check_adapters(ours, base, ids, own, peft)
    check_merged(ours, base, own, out)
    check_greedy(ours, out / "merged_bf16")
    print(f"{failures} checks failed" if failures else "all checks passed")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
