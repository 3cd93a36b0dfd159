"""Writes tests/fixtures/chat/*.json: what transformers makes of conversations.

    python scripts/make_chat_fixtures.py [MATERIAL]     default: target/test-material

Needs transformers, gguf and the folder that scripts/fetch_test_material.sh fills. For each real
tokenizer and conversation it records the token ids, the SHA-256 of the rendered text and of the
rendered prompt, and the assistant mask. Masks come from `{% generation %}`-annotated copies of the
templates, which are made here by text substitution and written nowhere. jinja.json holds small
snippets with what transformers' Jinja set-up renders for them.
"""

import hashlib
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

MATERIAL = Path(sys.argv[1] if len(sys.argv) > 1 else "target/test-material")
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "chat"


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Current weather <of> a place & \"its\" surroundings – in °C",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["place"],
        },
    },
}
THOUGHT = "<think>\nTwo and two\nmake four.\n</think>\n\n"

PLAIN = {
    "one turn": [turn("user", "Hi"), turn("assistant", "Hello, how can I help?")],
    "system": [
        turn("system", "You answer in one word."),
        turn("user", "Capital of France?"),
        turn("assistant", "Paris"),
    ],
    "several turns": [
        turn("system", "Be brief."),
        turn("user", "1+1?"),
        turn("assistant", "2"),
        turn("user", "And 2+2?"),
        turn("assistant", "4"),
        turn("user", "Thanks"),
        turn("assistant", "You are welcome.\n\nAnything else?"),
    ],
    "same answer again": [
        turn("user", "Say yes"),
        turn("assistant", "yes"),
        turn("user", "yes"),
        turn("assistant", "yes"),
    ],
    "untrained turn": [
        turn("user", "a"),
        turn("assistant", "wrong answer", train=False),
        turn("user", "b"),
        turn("assistant", "right answer"),
    ],
    "unicode": [
        turn("user", "Grüße! こんにちは 👩‍👩‍👧 e\u0301 ﬁ"),
        turn("assistant", "Здравствуйте 🙂\u200d 😀é – “ok” e\u0301 \u00a0end"),
    ],
    "blanks": [
        turn("system", "  spaced  "),
        turn("user", "\n\n question \n"),
        turn("assistant", "trailing   \n\n"),
        turn("user", "   "),
        turn("assistant", "tab\tend\t"),
    ],
    "empty answer": [turn("user", "Say nothing"), turn("assistant", "")],
    "ends with the user": [turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
    "template text in contents": [
        turn("user", "What does <|im_start|>assistant\nyes<|im_end|>\n mean? {{ messages }}"),
        turn("assistant", "It opens my turn: <|im_start|>assistant\n and {% raw %}"),
        turn("user", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nno"),
        turn("assistant", "ok<|eot_id|>"),
    ],
    "consecutive assistant turns": [
        turn("user", "Count"),
        turn("assistant", "one"),
        turn("assistant", "two"),
        turn("user", "on"),
        turn("assistant", "three"),
    ],
    "code": [
        turn("user", "Write a loop"),
        turn("assistant", "```python\nfor i in range(10):\n    print(f\"{i:03d}\")\n```\n12345 67"),
    ],
}

TOOLS = {
    "tool turn": [
        turn("user", "Weather in Oslo?"),
        turn("assistant", "Let me look."),
        turn("tool", "-3 °C, \"snow\""),
        turn("assistant", "It snows at -3 °C."),
    ],
}

QWEN = {
    "tool call": (
        [
            turn("system", "Use tools."),
            turn("user", "Weather in Tromsø and Rome?"),
            turn(
                "assistant",
                "",
                tool_calls=[
                    call("weather", {"place": "Tromsø", "days": 2, "scale": 1.0}),
                    call("weather", {"place": "Rome"}),
                ],
            ),
            turn("tool", "{\"t\": -3}"),
            turn("tool", "{\"t\": 18}"),
            turn("assistant", "-3 and 18."),
            turn("user", "Thanks"),
            turn("assistant", "Any time."),
        ],
        [WEATHER],
    ),
    "tool call with content and arguments as text": (
        [
            turn("user", "Weather?"),
            turn("assistant", "Looking.", tool_calls=[call("weather", "{\"place\": \"Oslo\"}")]),
            turn("tool", "rain"),
            turn("assistant", "", tool_calls=[call("weather", {})]),
            turn("tool", "sun"),
            turn("assistant", "Both."),
        ],
        [WEATHER],
    ),
    "tools without calls": ([turn("user", "Hi"), turn("assistant", "Hello")], [WEATHER]),
    "thinking in the last turn": (
        [turn("user", "2+2?"), turn("assistant", THOUGHT + "4")],
        None,
    ),
    "thinking removed from history": (
        [
            turn("user", "2+2?"),
            turn("assistant", THOUGHT + "4"),
            turn("user", "Sure?"),
            turn("assistant", THOUGHT + "Yes."),
        ],
        None,
    ),
    "thinking between tool calls": (
        [
            turn("user", "Weather?"),
            turn("assistant", THOUGHT, tool_calls=[call("weather", {"place": "Oslo"})]),
            turn("tool", "snow"),
            turn("assistant", THOUGHT + "Snow."),
            turn("user", "<tool_response>\nstill snow\n</tool_response>"),
            turn("assistant", "Still."),
        ],
        [WEATHER],
    ),
    "thinking in a field": (
        [
            turn("user", "2+2?"),
            turn("assistant", "4", reasoning_content="\nadd\n"),
            turn("user", "3+3?"),
            turn("assistant", "\n\n6", thinking="add again"),
        ],
        None,
    ),
}


def replaced(text, old, new):
    assert text.count(old) == 1, (old, text.count(old))
    return text.replace(old, new)


def annotated_chatml(template):
    return replaced(
        template,
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}",
    )


def annotated_llama(template):
    return replaced(
        template,
        "{{ content }}",
        "{% set header = (bos_token if loop.first else '')"
        " + '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}{{ header }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ content[header|length:] }}{% endgeneration %}"
        "{% else %}{{ content[header|length:] }}{% endif %}",
    )


def annotated_qwen(template):
    start = "    {%- elif message.role == \"assistant\" %}\n"
    end = "        {{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\" %}"
    header = "'<|im_start|>' + message.role + '\\n"
    before, rest = template.split(start)
    body, after = rest.split(end)
    body = replaced(body, header + "<think>\\n'", "'<think>\\n'")
    assert body.count(header + "' + content") == 2
    body = body.replace(header + "' + content", "content")
    return (
        before + start + "{{- " + header + "' }}{%- generation %}" + body
        + "{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}\n    {%- elif message.role == \"tool\" %}"
        + after
    )


def annotated_deepseek(template):
    end = " + message['content'] + '<｜end▁of▁sentence｜>'}}"
    for start in ("'<｜tool▁outputs▁end｜>'", "'<｜Assistant｜>'"):
        template = replaced(
            template,
            "{{" + start + end,
            "{{" + start + "}}{% generation %}{{message['content'] + '<｜end▁of▁sentence｜>'}}{% endgeneration %}",
        )
    return template


def annotated_gemma(template):
    end = "    {{ '<end_of_turn>\n' }}\n"
    before, rest = template.split("    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}")
    _, after = rest.split(end)
    return (
        before + "    {%- if role == 'model' -%}{%- generation -%}{{ message['content'] | trim }}{{ '<end_of_turn>' }}"
        "{%- endgeneration -%}{%- else -%}{{ message['content'] | trim }}{{ '<end_of_turn>' }}{%- endif -%}"
        "    {{ '\n' }}\n" + after
    )


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def stripped(messages):
    return [{key: value for key, value in m.items() if key != "train"} for m in messages]


def byte_ranges(text, spans):
    return [[len(text[:start].encode()), len(text[:end].encode())] for start, end in spans]


def runs(mask):
    """Ranges of indices where the mask is 1."""
    ranges = []
    for index, value in enumerate(mask):
        if value and ranges and ranges[-1][1] == index:
            ranges[-1][1] += 1
        elif value:
            ranges.append([index, index + 1])
    return ranges


def fixture(tokenizer, annotated, name, messages, tools):
    shown = stripped(messages)
    text = tokenizer.apply_chat_template(shown, tools=tools, tokenize=False)
    prompt = tokenizer.apply_chat_template(
        shown, tools=tools, tokenize=False, add_generation_prompt=True
    )
    special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    [again], [spans] = render_jinja_template(
        [shown], tools=tools, chat_template=annotated, return_assistant_tokens_mask=True, **special
    )
    assert again == text, f"{name}: the annotated copy renders another text"
    assistants = [message for message in messages if message["role"] == "assistant"]
    assert len(assistants) == len(spans), name
    trained = [s for m, s in zip(assistants, spans) if m.get("train", True)]
    encoded = tokenizer.apply_chat_template(
        shown, tools=tools, chat_template=annotated, return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    assert ids == tokenizer.encode(text, add_special_tokens=False), name
    case = {"name": name, "messages": messages}
    if tools is not None:
        case["tools"] = tools
    case |= {"text_sha256": sha256(text), "prompt_sha256": sha256(prompt)}
    turns = runs(mask)
    assert len(turns) == len(assistants), name
    turns = [r for m, r in zip(assistants, turns) if m.get("train", True)]
    case |= {"spans": byte_ranges(text, trained), "ids": ids, "mask": turns}
    return case


def write(name, tokenizer, annotate, cases):
    annotated = annotate(tokenizer.chat_template)
    made = []
    for label, (messages, tools) in cases.items():
        made.append(fixture(tokenizer, annotated, label, messages, tools))
    save(name, {"cases": made})


def save(name, value):
    FIXTURES.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: [\n" + ",\n".join(
        json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases) + "\n]"
        for key, cases in value.items()]
    (FIXTURES / f"{name}.json").write_text("{" + ",\n".join(lines) + "}\n")


SNIPPETS = [
    "{{ none }}|{{ true }}|{{ 1.0 }}|{{ 1e20 }}|{{ 1e-7 }}|{{ 7 // 2 }}|{{ -7 // 2 }}|{{ 7 % 3 }}|{{ 7 / 2 }}|{{ 2 ** 3 }}",
    "{{ [1, 'a', none, true, 1.5] }}|{{ {'a': 1, 'b': [2]} }}|{{ (1, 'x') }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ 1.5 }}",
    "{{ missing }}|{{ missing is defined }}|{{ data.missing is defined }}|{{ data.none is none }}",
    "{{ data | tojson }}",
    "{{ data | tojson(indent=2) }}",
    "{{ data | tojson(ensure_ascii=True) }}",
    "{{ data | tojson(separators=(',', ':'), sort_keys=True) }}",
    "{{ data | tojson(indent=4, sort_keys=true) }}",
    "{{ '  a b\\n' | trim }}|{{ 'xxaxx'.strip('x') }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'a\\x1c'.strip() }}",
    "{{ 'a,b,c'.split(',') }}|{{ 'a,b,c'.split(',', 1) }}|{{ ' a  b '.split() }}|{{ 'a--b'.split('--')[-1] }}",
    "{{ 'Abc'.startswith('A') }}|{{ 'Abc'.endswith('x') }}|{{ 'Abc'.lower() }}|{{ 'abc'.upper() }}|{{ 'abc def'.title() }}|{{ 'abc'.capitalize() }}",
    "{{ 'abc'.replace('b', 'x') }}|{{ 'abcabc'.find('c') }}|{{ 'abcabc'.rfind('c') }}|{{ 'aXbX'.count('X') }}|{{ 'a' in 'abc' }}|{{ 'z' not in 'abc' }}",
    "{{ 'prefix-x'.removeprefix('prefix-') }}|{{ 'x.txt'.removesuffix('.txt') }}",
    "{% for key, value in data.items() %}{{ key }}={{ value }};{% endfor %}",
    "{% for key in data %}{{ key }},{% endfor %}|{{ data.keys() | list }}|{{ data.get('a') }}|{{ data.get('q', 'none') }}|{{ data['a'] }}",
    "{{ words[::-1] }}|{{ words[1:] }}|{{ words[:-1] }}|{{ words[-1] }}|{{ 'abc'[::-1] }}|{{ 'abc'[1:2] }}",
    "{{ words | join(', ') }}|{{ words | length }}|{{ words | first }}|{{ words | last }}|{{ words | reverse | list }}|{{ words | map('upper') | list }}",
    "{{ words | select('equalto', 'a') | list }}|{{ items | selectattr('role', 'equalto', 'user') | list | length }}|{{ items | map(attribute='role') | join(' ') }}|{{ items | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list }}",
    "{% for x in range(5) %}{% if x == 1 %}{% continue %}{% endif %}{% if x == 3 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% set ns = namespace(n=0, found=false) %}{% for w in words %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }} {{ ns.found }}",
    "{% macro show(x, y='d') %}<{{ x }}{{ y }}>{% endmacro %}{{ show('a') }}{{ show('b', y=2) }}",
    "{{ 'a' is string }}|{{ data is mapping }}|{{ words is iterable }}|{{ 'a' is iterable }}|{{ words is sequence }}|{{ data is iterable }}|{{ 'a' is sequence }}|{{ 1 is sequence }}|{{ 1 is number }}|{{ true is boolean }}|{{ none is none }}|{{ data is sequence }}",
    "{{ words + ['z'] }}|{{ 'a' + 'b' }}|{{ 1 + 2.5 }}|{{ 'ab' * 2 }}",
    "{{ 'yes' if words else 'no' }}|{{ 'yes' if [] }}|{{ words and 'x' }}|{{ '' or 'y' }}|{{ not words }}",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n  {%- if true -%}\n  b\n  {%- endif +%}\nc\n\n",
    "{# comment #}\nx{# c -#}  \n y",
    "{% set text %}in{{ 1 }}\n{% endset %}[{{ text }}]",
    "{% for w in words %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }};{% else %}none{% endfor %}",
    "{% for w in [] %}x{% else %}none{% endfor %}",
    "{{ '<b>&\"' }}|{{ '<b>' | e }}|{{ '<b>' | safe }}",
    "{{ '%s' | format('q') }}|{{ '{} {}'.format('a', 1) }}",
    "{{ data.none | default('d') }}|{{ missing | default('d') }}|{{ '' | default('d', true) }}",
    "{{ '3' | int + 1 }}|{{ 3.7 | int }}|{{ 3 | string + 'x' }}|{{ 1e-9 | string }}|{{ data.nested | string }}|{{ true | string }}|{{ none | string }}",
    "{{ data | length }}|{{ data | items | list }}|{{ data | dictsort }}",
    "{{ 'line1\nline2' | indent(4) }}|{{ 'a\nb'.splitlines() }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}|{% set d = dict(x=1) %}{{ d.x }}|{{ d | tojson }}",
    "{{ raise_exception is defined }}|{{ strftime_now is defined }}|{{ tools is defined }}|{{ tools is none }}|{{ documents is none }}",
    "{% if '</think>' in text %}{{ text.split('</think>')[-1].lstrip('\\n') }}|{{ text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}{% endif %}",
    "{% for m in items %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}bad{% endif %}{% endfor %}ok",
    "{{ items[0].content is string }}|{{ items[0]['nope'] is defined }}|{{ items[0].tool_calls is not defined }}|{{ 'role' in items[0] }}",
    "{{ (words | length - 1) - 0 }}|{{ words|length > 1 and words|length < 9 }}|{{ 1 < 2 < 3 }}",
    "{{ words.index('b') if false else words.count('a') }}",
    "{{ 5 is odd }}|{{ 6 is even }}|{{ 6 is divisibleby 3 }}|{{ 'A' is upper }}|{{ 1 is integer }}|{{ 1.0 is float }}|{{ true is true }}|{{ 1 in [1] }}",
    "{{ [3, 1, 2] | sort }}|{{ [1, 2] | sum }}|{{ [1, 2, 2] | unique | list }}|{{ [1, 2] | max }}|{{ ['b', 'a'] | min }}|{{ -3 | abs }}|{{ 2.567 | round(1) }}",
    "{%- generation %}x{% endgeneration -%} y",
    "{% raw %}{{ x }}{% endraw %}|{{ '{{' }}",
    "{{ 'tab\\tnew\\\\n \\u00e9 \\'q\\'' }}",
    "{% if words is defined and words %}{{ words[0] }}{% elif true %}e{% endif %}",
    "{{ data.nested.list[1].x }}|{{ data['nested']['list'] | length }}|{{ data.nested | tojson }}",
    "{{ text | replace('think', 'T') }}|{{ text | upper }}|{{ 'a b' | capitalize }}|{{ 'a b' | title }}|{{ 'abc' | list }}",
    "{{ 'x' ~ (words | join) ~ '\\n' }}|{{ words | join('\\n- ') }}",
    "{% call(x) outer() %}{{ x }}{% endcall %}{% macro outer() %}[{{ caller(1) }}]{% endmacro %}",
    "{{ 'a' if data.a == 1 else 'b' }}|{{ data.float }}|{{ data.big }}|{{ data.neg }}",
]
CONTEXT = {
    "data": {
        "b": "é <&> \"q\" \\ \n\t\u0001\u007f😀", "a": 1, "float": 1.0, "big": 12345678901234567890,
        "neg": -2.5e-10, "large": 1e22, "none": None, "true": True,
        "nested": {"list": [1, {"x": "y"}], "empty": {}, "none": []},
    },
    "words": ["a", "b", "c"],
    "items": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}],
    "text": "<think>\nhm\n</think>\n\nanswer",
}


def snippets():
    made = []
    for snippet in SNIPPETS:
        try:
            [text], _ = render_jinja_template([[]], chat_template=snippet, **CONTEXT)
        except Exception as error:  # a snippet that Python refuses, ours must refuse too
            print(f"refused: {snippet!r}: {error}", file=sys.stderr)
            text = None
        made.append({"snippet": snippet, "text": text})
    save("jinja", {"context": [CONTEXT], "snippets": made})


snippets()
plain = {name: (messages, None) for name, messages in PLAIN.items()}
tools = {name: (messages, None) for name, messages in TOOLS.items()}
write("llama3_1", AutoTokenizer.from_pretrained(MATERIAL / "llama3_1"), annotated_llama, plain | tools)
write("qwen3", AutoTokenizer.from_pretrained(MATERIAL / "qwen3"), annotated_qwen, plain | tools | QWEN)
write("deepseek_v3", AutoTokenizer.from_pretrained(MATERIAL / "deepseek_v3"), annotated_deepseek, plain | tools)
# Roles that do not alternate are refused by the template.
alternating = {name: case for name, case in plain.items() if not name.startswith("consecutive")}
write("gemma3", AutoTokenizer.from_pretrained(MATERIAL / "gemma3"), annotated_gemma, alternating)
write(
    "smollm2",
    AutoTokenizer.from_pretrained(
        MATERIAL / "smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
    annotated_chatml,
    plain | tools,
)
