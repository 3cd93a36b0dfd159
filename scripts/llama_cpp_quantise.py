#!/usr/bin/env python3
"""Converts a GGUF by llama.cpp: python scripts/llama_cpp_quantise.py NODE_MODULES IN OUT FILE_TYPE

FILE_TYPE is llama.cpp's number of the type: 1 for F16. IN may be quantised already.
"""

import sys

from compare_quantised import quantise

node_modules, source, target, file_type = sys.argv[1:5]
quantise(node_modules, source, target, int(file_type), again=True)
