#!/usr/bin/env python3
"""Writes tests/fixtures/gguf: what the GGUF reader is compared with.

    pip install gguf==0.19.0 transformers==5.23.0 torch safetensors tokenizers
    python scripts/make_gguf_fixtures.py [SmolLM2-135M-Instruct.Q4_1.gguf]

blocks.safetensors     random blocks of every type, and their values by the gguf package
tiny_llama.gguf        a random Llama: GQA, biases, interleaved q/k, a SentencePiece vocabulary
tiny_llama.safetensors its tensors as transformers reads them
tiny_llama_ids.json    texts and their ids by llama.cpp's rule, written out in `sentencepiece_ids`
smollm2_ids.json       texts and their ids in SmolLM2 (only where its GGUF is given): transformers'
                       reading of the file, with digits split first as `tokenizer.ggml.pre = smollm`
                       demands; llama.cpp (node-llama-cpp 3.22.1) gives the same ids
"""

import json
import sys
import warnings
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "gguf"
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Bytes of a block at which a float16 lies: these get sensible values, all other bytes are random.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
TEXTS = [
    "Hello, world!",
    " leading space, trailing space ",
    "  two   three    spaces\t\ttabs\n\n\nnewlines \r\n mixed",
    "1234567890 3.14159 1,000,000 x2y34z v1.2.3 ２０２６ Ⅷ ½ ²",
    "don't you'll WE'RE I'M they've it's 'quoted'",
    "def f(x: int) -> dict:\n    return {\"a\": [x ** 2 for x in range(10)]}\n",
    "let s = r#\"raw\"#; // comment\n\tif a != b && c >= 0x1F { panic!(\"{s:?}\") }",
    "Ünïcödé: straße, naïve, 日本語のテキスト, 한국어, русский, العربية, हिन्दी, ไทย",
    "emoji 😀👩‍👩‍👧🏳️‍🌈 math ∑∫√≠ arrows →⇒ quotes “”‘’ dash – — …",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>more <|im_end|> spaced <repo_name>x",
    "a\u0301 vs á, nbsp\u00a0here, zwj\u200dhere, bom\ufeffhere",
    "MixedCaseWords_and_snake_case-kebab.dots/slashes\\back https://example.org/?q=1&r=2#frag",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa      !!!!!!!!????....----====",
    "",
    "\n",
    "   ",
]


def blocks(generator):
    arrays = {}
    for name in TYPES:
        block, size = gguf.GGML_QUANT_SIZES[Type[name]]
        count = 768 // block
        if name == "F32":
            raw = generator.standard_normal(count).astype(np.float32).view(np.uint8).reshape(count, 4)
        elif name in ("F16", "BF16"):
            # Every exponent and both signs, but no infinity: those bits are the bits of NaN, too.
            bits = generator.integers(0, 2**16, count).astype(np.uint16)
            bits &= np.uint16(0xBBFF if name == "F16" else 0xBFFF)
            raw = bits.view(np.uint8).reshape(count, 2)
        else:
            raw = generator.integers(0, 256, (count, size)).astype(np.uint8)
            for at in HALVES[name]:
                halves = (generator.standard_normal(count) * 0.1).astype(np.float16)
                raw[:, at:at + 2] = halves.view(np.uint8).reshape(count, 2)
        arrays[f"{name}.bytes"] = np.ascontiguousarray(raw).reshape(-1)
        values = gguf.quants.dequantize(raw.reshape(1, -1).copy(), Type[name]) if name != "F32" \
            else raw.reshape(1, -1).view(np.float32)
        arrays[f"{name}.values"] = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    save_file(arrays, OUT / "blocks.safetensors")


def vocabulary():
    """A small SentencePiece-like vocabulary: (text, score, type)."""
    from tokenizers import Tokenizer, models, trainers
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=[], show_progress=False,
                                  max_token_length=8)
    model = Tokenizer(models.BPE())
    model.train_from_iterator(["▁" + text.replace(" ", "▁") for text in TEXTS[:6] * 2], trainer)
    ids = model.get_vocab()
    learned = [text for text in sorted(ids, key=ids.get) if len(text) > 1]
    letters = sorted(text for text in ids if len(text) == 1)
    special = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    bytes_ = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces = [(text, -float(rank), 1) for rank, text in enumerate(learned + letters)]
    return special + bytes_ + pieces + [("<tool>", 0.0, 4)]


def sentencepiece_ids(pieces, text):
    """llama.cpp's rule: after each special token a prefix space; join the best-scored neighbours."""
    index = {piece: id for id, (piece, _, _) in enumerate(pieces)}
    special = ["<unk>", "<s>", "</s>", "<tool>"]
    out, parts = [], [text]
    for token in special:
        split = []
        for part in parts:
            if isinstance(part, int):
                split.append(part)
                continue
            for at, words in enumerate(part.split(token)):
                split += ([index[token]] if at else []) + ([words] if words else [])
        parts = split
    for part in parts:
        if isinstance(part, int):
            out.append(part)
            continue
        symbols = list("▁" + part.replace(" ", "▁"))
        while True:
            joins = [(-pieces[index[a + b]][1], at) for at, (a, b) in enumerate(zip(symbols, symbols[1:]))
                     if a + b in index and pieces[index[a + b]][2] in (1, 4)]
            if not joins:
                break
            _, at = min(joins)
            symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
        for symbol in symbols:
            out += [index[symbol]] if symbol in index else \
                [index[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return [index["<s>"]] + out


def interleave(rows, heads):
    """The HF order of q and k rows (half-split) to GGUF's (pairs side by side)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tiny_llama(generator):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    pieces = vocabulary()
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, vocab_size=len(pieces),
                         max_position_embeddings=128, attention_bias=True, mlp_bias=True,
                         rms_norm_eps=1e-5, rope_theta=50000.0, tie_word_embeddings=True,
                         bos_token_id=1, eos_token_id=2)
    torch.manual_seed(int(generator.integers(1 << 30)))
    state = {name: torch.randn(tensor.shape).numpy() * 0.3
             for name, tensor in LlamaForCausalLM(config).state_dict().items()
             if name != "lm_head.weight"}
    writer = gguf.GGUFWriter(OUT / "tiny_llama.gguf", "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in state.items():
        stem, kind = name.rsplit(".", 1)
        if "q_proj" in name or "k_proj" in name:
            tensor = interleave(tensor, 4 if "q_proj" in name else 2)
        if tensor.ndim == 1:
            dtype = Type.F32
        elif "embed" in name:
            dtype = Type.Q8_0
        else:
            dtype = [Type.F16, Type.Q8_0, Type.Q4_0, Type.Q5_1, Type.BF16][len(name) % 5]
        data = gguf.quants.quantize(np.ascontiguousarray(tensor, dtype=np.float32), dtype)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = AutoModelForCausalLM.from_pretrained(OUT, gguf_file="tiny_llama.gguf", dtype=torch.float32)
    expected = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()
                if name != "lm_head.weight"}
    # transformers drops the biases of a Llama GGUF; they are stored in f32, so the originals hold.
    expected |= {name: tensor.astype(np.float32) for name, tensor in state.items() if name.endswith("bias")}
    expected["model.embed_tokens.weight"] = expected["model.embed_tokens.weight"][:16].copy()
    save_file(expected, OUT / "tiny_llama.safetensors")
    texts = TEXTS + ["<s>a</s> b<tool>c", "hello<tool> world</s>"]
    cases = [{"text": text, "ids": sentencepiece_ids(pieces, text)} for text in texts]
    write_json("tiny_llama_ids.json", cases)


def smollm2(path):
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    without_digits = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer])
    cases = []
    for text, undivided in zip(TEXTS, without_digits):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == undivided or any(c.isnumeric() for c in text), text
        cases.append({"text": text, "ids": ids})
    write_json("smollm2_ids.json", cases)


def write_json(name, cases):
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (OUT / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main():
    warnings.simplefilter("ignore")
    OUT.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(20261122)
    blocks(generator)
    tiny_llama(generator)
    if len(sys.argv) > 1:
        smollm2(Path(sys.argv[1]).resolve())


if __name__ == "__main__":
    main()
