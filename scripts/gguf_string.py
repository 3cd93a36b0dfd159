"""Prints one string of a GGUF file's metadata: gguf_string.py FILE KEY. Needs Python alone."""

import struct
import sys

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


def number(file, kind):
    size = struct.calcsize("<" + kind)
    return struct.unpack("<" + kind, file.read(size))[0]


def string(file):
    return file.read(number(file, "Q"))


def skip(file, kind):
    if kind == STRING:
        string(file)
    elif kind == ARRAY:
        item, count = number(file, "I"), number(file, "Q")
        if item in SIZES:
            file.seek(SIZES[item] * count, 1)
        else:
            for _ in range(count):
                skip(file, item)
    else:
        file.seek(SIZES[kind], 1)


def find(path, wanted):
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            sys.exit(f"{path} is no GGUF file")
        _version, _tensors, pairs = number(file, "I"), number(file, "Q"), number(file, "Q")
        for _ in range(pairs):
            key, kind = string(file).decode(), number(file, "I")
            if key == wanted and kind == STRING:
                return string(file)
            skip(file, kind)
    sys.exit(f"{path} has no string `{wanted}`")


sys.stdout.buffer.write(find(*sys.argv[1:3]))
