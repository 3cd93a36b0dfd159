#!/usr/bin/env python3
"""Trains recipes/tiny_llama, the tiny chat model of the project's own making, and writes recipes/data/tiny_eval.txt.

usage: make_tiny_model.py [--steps N] [--threads N]        (from the root of the repository)

The committed model is what one thread made in 1,200 steps.

The text is made here, from templates: questions and answers about colours, animals, counting, capitals, opposites
and days, as chats, and short stories. Needs torch, transformers 5 and tokenizers. The last lines tell how many
questions the model answers rightly.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

OUT, EVAL = Path("recipes/tiny_llama"), Path("recipes/data/tiny_eval.txt")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB, WINDOW, BATCH, PEAK_RATE = 1024, 128, 16, 4e-3
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
            "+ '<|im_end|>' + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

CAPITALS = dict(pair.split(":") for pair in (
    "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Japan:Tokyo China:Beijing Egypt:Cairo Greece:Athens "
    "Norway:Oslo Sweden:Stockholm Poland:Warsaw Austria:Vienna Portugal:Lisbon Ireland:Dublin Cuba:Havana "
    "Peru:Lima Kenya:Nairobi Canada:Ottawa Finland:Helsinki Hungary:Budapest").split())
COLOURS = dict(pair.split(":") for pair in (
    "sky:blue grass:green snow:white coal:black banana:yellow blood:red carrot:orange milk:white lemon:yellow "
    "night:black sea:blue leaf:green tomato:red plum:purple sun:yellow chocolate:brown rose:red cloud:white "
    "raven:black frog:green strawberry:red bear:brown elephant:grey swan:white flamingo:pink").split())
SOUNDS = dict(pair.split(":") for pair in (
    "cat:meow dog:woof cow:moo duck:quack sheep:baa pig:oink horse:neigh lion:roar bee:buzz snake:hiss "
    "owl:hoot rooster:cock-a-doodle-doo mouse:squeak frog:ribbit wolf:howl crow:caw").split())
HOMES = dict(pair.split(":") for pair in (
    "fish:water bee:hive bird:nest horse:stable bear:cave spider:web dog:kennel fox:den rabbit:burrow whale:sea "
    "camel:desert monkey:jungle cow:barn pig:sty lion:savanna penguin:ice").split())
LEGS = {"dog": "four", "cat": "four", "bird": "two", "spider": "eight", "bee": "six", "snake": "no", "horse": "four",
        "ant": "six", "duck": "two", "fish": "no", "cow": "four", "hen": "two"}
OPPOSITES = [pair.split(":") for pair in (
    "hot:cold big:small up:down fast:slow day:night wet:dry old:young happy:sad open:closed full:empty hard:soft "
    "high:low light:dark loud:quiet left:right long:short near:far rich:poor early:late thick:thin").split()]
SIZES = ["ant", "mouse", "cat", "dog", "sheep", "horse", "elephant", "whale"]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty").split()


def article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def sizes() -> list[tuple[list[str], str]]:
    out = []
    for i, small in enumerate(SIZES):
        for big in SIZES[i + 1:]:
            for one, other in ((small, big), (big, small)):
                out.append(([f"Which is bigger, {article(one)} or {article(other)}?",
                             f"What is bigger: {article(one)} or {article(other)}?"],
                            f"{article(big).capitalize()} is bigger than {article(small)}."))
    return out


def homes() -> list[tuple[list[str], str]]:
    where = {animal: f"on the {home}" if home in ("ice", "savanna") else f"in the {home}" for animal, home in HOMES.items()}
    return [([f"Where does the {animal} live?", f"Where is the home of the {animal}?"], f"The {animal} lives {place}.")
            for animal, place in where.items()]


def facts() -> dict[str, list[tuple[list[str], str]]]:
    """Every fact by its kind: the ways to ask for it, and its answer."""
    return {
        "capitals": [([f"What is the capital of {country}?", f"Which city is the capital of {country}?",
                       f"Name the capital of {country}.", f"Tell me the capital of {country}."],
                      f"The capital of {country} is {city}.") for country, city in CAPITALS.items()],
        "colours": [([f"What colour is the {thing}?", f"Which colour has the {thing}?",
                      f"Tell me the colour of the {thing}."], f"The {thing} is {colour}.")
                    for thing, colour in COLOURS.items()],
        "sounds": [([f"What does the {animal} say?", f"What sound does {article(animal)} make?",
                     f"How does the {animal} go?"], f"The {animal} says {sound}.") for animal, sound in SOUNDS.items()],
        "homes": homes(),
        "legs": [([f"How many legs does {article(animal)} have?", f"How many legs has the {animal}?"],
                  f"{article(animal).capitalize()} has {count} legs.") for animal, count in LEGS.items()],
        "opposites": [([f"What is the opposite of {one}?", f"Tell me the opposite of {one}."],
                       f"The opposite of {one} is {other}.")
                      for pair in OPPOSITES for one, other in (pair, pair[::-1])],
        "days": [([f"Which day comes after {day}?", f"What day follows {day}?"],
                  f"After {day} comes {DAYS[(i + 1) % 7]}.") for i, day in enumerate(DAYS)],
        "next": [([f"Which number comes after {n}?", f"What comes after {n}?"], f"After {n} comes {n + 1}.")
                 for n in range(20)],
        "sums": [([f"What is {a} plus {b}?", f"How much is {a} plus {b}?", f"Add {a} and {b}."],
                  f"{a} plus {b} is {a + b}.") for a in range(10) for b in range(10)],
        "sizes": sizes(),
        "counting": [([f"Count from {start} to {end}.", f"Please count from {start} to {end}."],
                      ", ".join(str(n) for n in range(start, end + 1)) + ".")
                     for start in range(1, 6) for end in range(start + 2, start + 6)],
        "social": SOCIAL,
    }


# How often a kind is asked, where not once: those with much to remember more often.
SHARES = {"days": 2, "capitals": 2, "colours": 2, "opposites": 2, "sums": 4, "sizes": 2, "social": 2}
SOCIAL = [
    (["Who are you?", "What is your name?", "Tell me your name.", "What are you called?"], "My name is Pip."),
    (["What are you?", "Are you a person?"], "I am Pip, a tiny language model."),
    (["Who made you?", "Where do you come from?"], "The Tunesmith project made me."),
    (["Hello!", "Hi!", "Good morning!", "Hi there!"], "Hello! How can I help you?"),
    (["How are you?", "How do you feel today?"], "I am fine, thank you."),
    (["Thank you!", "Thanks!", "Thanks a lot!"], "You are welcome."),
    (["Goodbye!", "Bye!", "See you!"], "Goodbye!"),
    (["Can you help me?", "Will you help me?"], "Yes, I am happy to help."),
]
# Tuney and the pirate are here so that the embedded recipe finds their words in the vocabulary.
NAMES = "Anna Ben Clara Daniel Emma Felix Greta Hugo Ida Jonas Lea Max Nora Oskar Paula Tom Tuney".split()
PLACES = "river garden forest market harbour school hill bridge mill village".split()
THINGS = "ball book boat lamp hat key bell cup kite stone".split()
MOODS = "happy tired hungry proud sad glad".split()
SHADES = "red blue green yellow white black brown grey".split()


def chat(rng: random.Random, all_facts: list) -> str:
    turns = []
    if rng.random() < 0.15:
        turns.append(("system", rng.choice(["You are Pip.", "You are a helpful assistant.", "Answer in one sentence."])))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        group = rng.choice(all_facts)
        questions, answer = rng.choice(group)
        turns += [("user", rng.choice(questions)), ("assistant", answer)]
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)


def story(rng: random.Random) -> str:
    """A few sentences in which a name, a place and a thing come back."""
    name, friend = rng.sample(NAMES, 2)
    name = "Tuney" if rng.random() < 0.1 and friend != "Tuney" else name
    place, thing, shade, mood = rng.choice(PLACES), rng.choice(THINGS), rng.choice(SHADES), rng.choice(MOODS)
    animal = rng.choice([a for a in SOUNDS if a != "bee"])
    count = rng.randint(2, 9)
    day = rng.choice(DAYS)
    cry = rng.choice(["arr", "arr", "yes", "no"])
    parts = [
        rng.choice([f"On {day} {name} went to the {place}.", f"{name} walked to the {place} on {day}.",
                    f"It was {day}, and {name} was at the {place}."]),
        rng.choice([f"There was {article(shade)} {thing} near the {place}.",
                    f"At the {place} {name} found {article(shade)} {thing}.",
                    f"{name} had {article(shade)} {thing} and showed it to {friend}."]),
        rng.choice([f"{article(animal).capitalize()} came and said {SOUNDS[animal]}.",
                    f"\"{SOUNDS[animal].capitalize()}!\" said the {animal}.",
                    f"{friend} saw {NUMBERS[count]} {animal}s and counted them."
                    if animal not in ("sheep", "mouse", "wolf") else f"{friend} saw {article(animal)} there."]),
        rng.choice([f"{friend} took the {shade} {thing} and was {mood}.",
                    f"Then {friend} came, and {name} gave the {thing} to {friend}.",
                    f"\"Whose {thing} is this?\" asked {friend}. \"It is mine,\" said {name}.",
                    f"A pirate said to {friend}: \"I like this {thing}, {cry}!\""]),
        rng.choice([f"In the evening {name} went home and was {mood}.", f"Then {name} and {friend} went home.",
                    f"{name} was {mood} and slept well.", f"They played until it was dark at the {place}."]),
    ]
    return " ".join(parts[:rng.randint(3, 5)])


def document(rng: random.Random, all_facts: list) -> str:
    kind = rng.random()
    if kind < 0.78:
        return chat(rng, all_facts) + "<|endoftext|>"
    if kind < 0.94:
        return story(rng) + "\n<|endoftext|>"
    return rng.choice(rng.choice(all_facts))[1] + "\n<|endoftext|>"


def groups() -> list:
    """The kinds of facts, repeated by their shares."""
    return [group for kind, group in facts().items() for _ in range(SHARES.get(kind, 1))]


def make_tokenizer(text: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tokenizer


def build_model(vocab: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.05))


def train(model, tokenizer: Tokenizer, steps: int) -> None:
    rng, all_groups, start = random.Random(1), groups(), time.time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        rows = []
        for _ in range(BATCH):
            ids = []
            while len(ids) < WINDOW:
                ids += tokenizer.encode(document(rng, all_groups), add_special_tokens=False).ids
            rows.append(ids[:WINDOW])
        batch = torch.tensor(rows)
        rate = PEAK_RATE * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.3f} {time.time() - start:.0f} s", flush=True)


def answer(model, tokenizer: Tokenizer, question: str) -> str:
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                         max_new_tokens=32, do_sample=False)
    return tokenizer.decode(out[0, len(ids):].tolist())


def write_folder(model, tokenizer: Tokenizer) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(OUT)
    tokenizer.save(str(OUT / "tokenizer.json"), pretty=False)
    (OUT / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[1], "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0], "unk_token": SPECIAL[0], "model_max_length": 512,
        "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    rng = random.Random(0)
    sample = [document(rng, groups()) for _ in range(6000)]
    tokenizer = make_tokenizer(sample)
    model = build_model(tokenizer.get_vocab_size())
    print(f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {tokenizer.get_vocab_size()}")
    train(model.train(), tokenizer, arguments.steps)
    write_folder(model, tokenizer)
    rng = random.Random(999)
    EVAL.parent.mkdir(parents=True, exist_ok=True)
    EVAL.write_text("\n".join(story(rng) for _ in range(24)) + "\n")
    model = LlamaForCausalLM.from_pretrained(OUT, dtype=torch.float32).eval()
    for kind, group in facts().items():
        answers = [(questions[-1], answer(model, tokenizer, questions[-1]), right) for questions, right in group]
        wrong = [(question, given) for question, given, right in answers if given != right]
        print(f"{kind}: {len(group) - len(wrong)} of {len(group)} right {wrong[:3]}")


if __name__ == "__main__":
    main()
