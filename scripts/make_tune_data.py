#!/usr/bin/env python3
"""Makes the data of recipes/code_tune.toml and recipes/language_tune.toml from files on this machine.

    scripts/make_tune_data.py code data/code trainer/src datasets/src adapters/src recipes/src
    scripts/make_tune_data.py language data/language SENTENCES.txt

`code` takes Rust sources. One file of eight, chosen by the hash of its path, is held out. Written are
train.jsonl ({"text"}: whole files, to be cut by the format fill_in_the_middle), lines.jsonl ({"prefix", "middle",
"suffix"}: every second line of a function, what an editor asks for), instructions.jsonl ({"messages"}: a function
asked for by its doc comment), fill_in.jsonl (as lines.jsonl, of held-out functions), held_out.txt.

`language` takes a text with a sentence a line. One of ten, chosen by its hash, is held out. Written are
train.jsonl ({"text"}), continue.jsonl ({"prompt", "completion"}: sentences cut in the middle), questions.jsonl
({"prompt"}: beginnings of held-out sentences), held_out.txt.
"""

import hashlib
import json
import pathlib
import re
import sys

FUNCTION = re.compile(r"((?:^ *///.*\n)+)(?:^ *#\[.*\n)*(^ *(?:pub(?:\(\w+\))? )?fn (\w+)[^{;]*\{\n(?:.*\n)*?^ *\}\n)", re.M)


def held_out(text, one_of):
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % one_of == 0


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{path}: {len(rows)} rows")


def functions(text):
    """Doc comment, name and text of short functions."""
    for match in FUNCTION.finditer(text):
        body = match[2]
        if 4 <= body.count("\n") <= 14 and body.count("{") == body.count("}"):
            doc = " ".join(line.strip()[3:].strip() for line in match[1].splitlines())
            yield doc, match[3], body


def lines_of(body):
    """Every second line of a function, but its first and its last brace, with what stands around it."""
    lines = body.splitlines(keepends=True)
    for at in range(1, len(lines) - 1, 2):
        middle = lines[at].strip("\n")
        if len(middle.strip()) > 8:
            suffix = "\n" + "".join(lines[at + 1 :])
            yield {"prefix": "".join(lines[:at]), "middle": middle, "suffix": suffix}


def code(out, folders):
    files = sorted(path for folder in folders for path in pathlib.Path(folder).rglob("*.rs"))
    train, train_lines, instructions, fill_in, rest = [], [], [], [], []
    for path in files:
        text = path.read_text(encoding="utf-8")
        if not held_out(path.as_posix(), 8):
            train.append({"text": text})
            for doc, name, body in functions(text):
                question = f"Write the Rust function `{name}`. {doc}"
                messages = [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": f"```rust\n{body}```"},
                ]
                instructions.append({"messages": messages})
                train_lines.extend(lines_of(body))
            continue
        rest.append(text)
        for _, _, body in functions(text):
            fill_in.extend(lines_of(body))
    write_rows(out / "train.jsonl", train)
    write_rows(out / "lines.jsonl", train_lines)
    write_rows(out / "instructions.jsonl", instructions)
    write_rows(out / "fill_in.jsonl", fill_in)
    (out / "held_out.txt").write_text("\n".join(rest), encoding="utf-8")


def language(out, sources):
    lines = [line.strip() for source in sources for line in open(source, encoding="utf-8")]
    # Whole sentences that are long enough to be cut.
    lines = [line for line in dict.fromkeys(lines) if 6 <= len(line.split()) <= 60]
    train = [line for line in lines if not held_out(line, 10)]
    rest = [line for line in lines if held_out(line, 10)]
    cut = [(line, len(line.split()) // 2) for line in train]
    begin = lambda line, at: " ".join(line.split()[:at])
    end = lambda line, at: " " + " ".join(line.split()[at:])
    # Several sentences a row: rows of a dozen tokens teach little about text.
    paragraphs = [" ".join(train[at : at + 8]) for at in range(0, len(train), 8)]
    write_rows(out / "train.jsonl", [{"text": text} for text in paragraphs])
    rows = [{"prompt": begin(line, at), "completion": end(line, at)} for line, at in cut[::4]]
    write_rows(out / "continue.jsonl", rows)
    write_rows(out / "questions.jsonl", [{"prompt": begin(line, len(line.split()) // 2)} for line in rest])
    (out / "held_out.txt").write_text("\n".join(rest) + "\n", encoding="utf-8")


def main():
    if len(sys.argv) < 4 or sys.argv[1] not in ("code", "language"):
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    (code if sys.argv[1] == "code" else language)(out, sys.argv[3:])


if __name__ == "__main__":
    main()
