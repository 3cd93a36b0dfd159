//! Chat formats for bases that bring no template of their own.
//!
//! To add one: write `<name>.jinja` here, and its line in [`BUILTIN_TEMPLATES`].

/// A chat format that comes with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltinTemplate {
    /// What a recipe calls it.
    pub name: &'static str,
    /// Which models were tuned with it.
    pub summary: &'static str,
    /// The Jinja text.
    pub source: &'static str,
}

/// Every built-in chat format.
pub const BUILTIN_TEMPLATES: &[BuiltinTemplate] = &[
    BuiltinTemplate {
        name: "alpaca",
        summary: "`### Instruction:` and `### Response:`; needs no special token but the end",
        source: include_str!("alpaca.jinja"),
    },
    BuiltinTemplate {
        name: "chatml",
        summary: "`<|im_start|>` and `<|im_end|>`: Qwen, SmolLM2, Hermes and many others",
        source: include_str!("chatml.jinja"),
    },
    BuiltinTemplate {
        name: "gemma",
        summary: "`<start_of_turn>` and `<end_of_turn>`; the assistant is called `model`",
        source: include_str!("gemma.jinja"),
    },
    BuiltinTemplate {
        name: "llama2",
        summary: "`[INST]` and `<<SYS>>`: Llama 2 Chat",
        source: include_str!("llama2.jinja"),
    },
    BuiltinTemplate {
        name: "llama3",
        summary: "`<|start_header_id|>` and `<|eot_id|>`: Llama 3, 3.1, 3.2, 3.3 Instruct",
        source: include_str!("llama3.jinja"),
    },
    BuiltinTemplate {
        name: "mistral",
        summary: "`[INST]` without blanks inside: Mistral and Mixtral Instruct",
        source: include_str!("mistral.jinja"),
    },
    BuiltinTemplate {
        name: "phi3",
        summary: "`<|user|>` and `<|end|>`: Phi 3 and 3.5",
        source: include_str!("phi3.jinja"),
    },
    BuiltinTemplate {
        name: "vicuna",
        summary: "`USER:` and `ASSISTANT:`: Vicuna 1.1 and later",
        source: include_str!("vicuna.jinja"),
    },
    BuiltinTemplate {
        name: "zephyr",
        summary: "`<|user|>` and the end-of-sequence token: Zephyr, TinyLlama Chat",
        source: include_str!("zephyr.jinja"),
    },
];
