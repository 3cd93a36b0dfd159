//! Formats written out by hand, templates that rewrite what they are given, and broken input.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::conversation::Message;
use crate::tokenizer::TokenizerFiles;
use crate::tokenizer::tests::{byte_level, byte_tokenizer};

/// Begin and end are the first two; the others occur in formats.
fn tokenizer() -> Tokenizer {
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<|eom|>", "<call_end>"];
    byte_tokenizer(&special, &json!({"bos_token": "<s>", "eos_token": "</s>"}))
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source("test", source, &tokenizer()).unwrap()
}

fn builtin(name: &str) -> ChatTemplate {
    ChatTemplate::named_or_file(name, &tokenizer()).unwrap()
}

fn conversation(turns: &[(&str, &str)]) -> Conversation {
    Conversation::new(turns.iter().map(|(role, content)| Message::new(*role, *content)).collect())
}

fn from_json(messages: Value) -> Conversation {
    Conversation::new(serde_json::from_value(messages).unwrap())
}

/// Text with `[[` and `]]` around what carries loss.
fn marked(template: &ChatTemplate, conversation: &Conversation, loss_on: LossOn) -> String {
    let tokenizer = tokenizer();
    let encoded = template.encode(conversation, &tokenizer, loss_on).unwrap();
    let mut bytes = Vec::new();
    let mut before = IGNORED;
    for (&id, &label) in encoded.token_ids.iter().zip(&encoded.labels) {
        assert!(label == IGNORED || label == id.cast_signed());
        match (before == IGNORED, label == IGNORED) {
            (true, false) => bytes.extend(b"[["),
            (false, true) => bytes.extend(b"]]"),
            _ => {}
        }
        before = label;
        match tokenizer.token_text(id).filter(|_| id > 255) {
            Some(text) => bytes.extend(text.into_bytes()),
            None => bytes.push(u8::try_from(id).unwrap()),
        }
    }
    if before != IGNORED {
        bytes.extend(b"]]");
    }
    String::from_utf8(bytes).unwrap()
}

fn assistant(template: &ChatTemplate, conversation: &Conversation) -> String {
    marked(template, conversation, LossOn::Assistant)
}

fn problem(template: &ChatTemplate, conversation: &Conversation) -> String {
    let encoded = template.encode(conversation, &tokenizer(), LossOn::Assistant);
    encoded.unwrap_err().to_string()
}

fn four_turns() -> Conversation {
    conversation(&[
        ("system", " Be brief. "),
        ("user", "Hi"),
        ("assistant", " Hello "),
        ("user", "Bye"),
        ("assistant", "Ciao"),
    ])
}

#[test]
fn llama_2_is_written_as_meta_wrote_it() {
    assert_eq!(
        assistant(&builtin("llama2"), &four_turns()),
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST][[ Hello </s>]]\
         <s>[INST] Bye [/INST][[ Ciao </s>]]"
    );
    let plain = conversation(&[("user", " Hi\n"), ("assistant", "Hello")]);
    assert_eq!(assistant(&builtin("llama2"), &plain), "<s>[INST] Hi [/INST][[ Hello </s>]]");
}

#[test]
fn every_builtin_gives_loss_to_answers_and_their_end() {
    let expected = [
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
            <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
            <|start_header_id|>assistant<|end_header_id|>\n\n[[Hello<|eot_id|>]]\
            <|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>\
            <|start_header_id|>assistant<|end_header_id|>\n\n[[Ciao<|eot_id|>]]",
        ),
        (
            "chatml",
            "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
            <|im_start|>assistant\n[[ Hello <|im_end|>]]\n<|im_start|>user\nBye<|im_end|>\n\
            <|im_start|>assistant\n[[Ciao<|im_end|>]]\n",
        ),
        (
            "mistral",
            "<s>[INST]  Be brief. \n\nHi[/INST][[ Hello</s>]][INST] Bye[/INST][[ Ciao</s>]]",
        ),
        (
            "gemma",
            "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n\
            [[Hello<end_of_turn>]]\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n\
            [[Ciao<end_of_turn>]]\n",
        ),
        (
            "phi3",
            "<|system|>\n Be brief. <|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n\
            [[ Hello <|end|>]]\n<|user|>\nBye<|end|>\n<|assistant|>\n[[Ciao<|end|>]]\n",
        ),
        (
            "zephyr",
            "<|system|>\n Be brief. </s>\n<|user|>\nHi</s>\n<|assistant|>\n[[ Hello </s>]]\n\
            <|user|>\nBye</s>\n<|assistant|>\n[[Ciao</s>]]\n",
        ),
        (
            "vicuna",
            "<s>Be brief. USER: Hi ASSISTANT:[[ Hello</s>]]USER: Bye ASSISTANT:[[ Ciao</s>]]",
        ),
        (
            "alpaca",
            "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\n[[Hello</s>]]\n\n\
            ### Instruction:\nBye\n\n### Response:\n[[Ciao</s>]]\n\n",
        ),
    ];
    for (name, text) in expected {
        assert_eq!(assistant(&builtin(name), &four_turns()), text, "{name}");
    }
    assert_eq!(expected.len() + 1, BUILTIN_TEMPLATES.len());
}

#[test]
fn a_wrong_name_lists_the_builtins() {
    let error = ChatTemplate::named_or_file("llama4", &tokenizer()).unwrap_err().to_string();
    assert_eq!(
        error,
        "`llama4` is no built-in chat template and no file; known are `alpaca`, `chatml`, \
         `gemma`, `llama2`, `llama3`, `mistral`, `phi3`, `vicuna`, `zephyr`"
    );
}

#[test]
fn a_file_is_a_template_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.jinja");
    std::fs::write(&path, "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
        .unwrap();
    let own = ChatTemplate::named_or_file(path.to_str().unwrap(), &tokenizer()).unwrap();
    assert_eq!(
        assistant(&own, &conversation(&[("user", "a"), ("assistant", "b")])),
        "a</s>[[b</s>]]"
    );
    std::fs::write(&path, b"{{ \xff }}").unwrap();
    let error = ChatTemplate::named_or_file(path.to_str().unwrap(), &tokenizer()).unwrap_err();
    assert!(error.to_string().ends_with("byte 3 is not UTF-8"), "{error}");
    let error = ChatTemplate::named_or_file(folder.path().to_str().unwrap(), &tokenizer());
    assert!(error.unwrap_err().to_string().contains("cannot be used"));
}

#[test]
fn the_base_brings_a_text_a_list_or_a_file() {
    let with = |template: Value| {
        let tokenizer = byte_tokenizer(&[], &json!({"chat_template": template}));
        ChatTemplate::of_base(&tokenizer)
    };
    assert!(with(Value::Null).unwrap().is_none());
    let list = with(json!([{"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }} tools"}]));
    let list = list.unwrap().unwrap();
    let plain = conversation(&[("user", "a")]);
    assert_eq!(list.render(&plain, GenerationPrompt::Omit).unwrap(), "plain");
    let tools = plain.with_tools(json!([{"name": "t"}]));
    assert_eq!(list.render(&tools, GenerationPrompt::Omit).unwrap(), "1 tools");
    let error = with(json!([{"name": "rag", "template": ""}])).unwrap_err().to_string();
    assert!(error.contains("no chat template named `default`, only rag"), "{error}");
    assert!(with(json!(3)).unwrap_err().to_string().contains("is neither a template nor a list"));
    let error = with(json!("{% if %}")).unwrap_err().to_string();
    assert!(error.starts_with("chat template of the base model does not parse"), "{error}");
}

#[test]
fn templates_in_a_folder_of_their_own_go_by_their_names() {
    let plain = byte_tokenizer(&[], &json!({"chat_template": "overridden"}));
    let with = |default: Option<&str>| {
        let files = TokenizerFiles {
            tokenizer_json: byte_level(&[]).to_string().into_bytes(),
            tokenizer_config_json: Some(br#"{"chat_template": "overridden"}"#.to_vec()),
            chat_template_jinja: default.map(str::to_owned),
            additional_chat_templates: [("tool_use", "tools"), ("rag", "grounded")]
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .into(),
            ..TokenizerFiles::default()
        };
        Tokenizer::from_files(&files).unwrap()
    };
    let chat = conversation(&[("user", "a")]);
    let text = |template: &ChatTemplate, chat: &Conversation| {
        template.render(chat, GenerationPrompt::Omit).unwrap()
    };
    let tokenizer = with(Some("plain"));
    let of_base = ChatTemplate::of_base(&tokenizer).unwrap().unwrap();
    assert_eq!(text(&of_base, &chat), "plain");
    assert_eq!(text(&of_base, &chat.clone().with_tools(json!([{"name": "t"}]))), "tools");
    let rag = ChatTemplate::named_or_file("rag", &tokenizer).unwrap();
    assert_eq!(text(&rag, &chat), "grounded");
    let error = ChatTemplate::named_or_file("nothing", &tokenizer).unwrap_err().to_string();
    assert!(error.ends_with(", `rag` of the base model, `tool_use` of the base model"), "{error}");
    let error = ChatTemplate::of_base(&with(None)).unwrap_err().to_string();
    assert!(error.ends_with("no chat template named `default`, only rag, tool_use"), "{error}");
    assert_ne!(with(None).fingerprint(), with(Some("plain")).fingerprint());
    assert!(ChatTemplate::named_or_file("rag", &plain).is_err());
}

#[test]
fn loss_on_and_train_choose_the_turns() {
    let mut chat = four_turns();
    let chatml = builtin("chatml");
    let last = marked(&chatml, &chat, LossOn::LastMessage);
    assert_eq!(last.matches("[[").count(), 1);
    assert!(last.ends_with("[[Ciao<|im_end|>]]\n"));
    assert!(marked(&chatml, &chat, LossOn::All).starts_with("[[<|im_start|>system"));
    chat.messages[4].train = Some(false);
    chat.messages[2].train = Some(true);
    let chosen = marked(&chatml, &chat, LossOn::LastMessage);
    assert!(chosen.contains("[[ Hello <|im_end|>]]") && chosen.ends_with("Ciao<|im_end|>\n"));
    chat.messages[1].train = Some(false);
    let all = marked(&chatml, &chat, LossOn::All);
    assert!(all.contains("user\n]]Hi[[<|im_end|>"), "{all}");
    assert!(all.ends_with("assistant\n]]Ciao<|im_end|>[[\n]]"), "{all}");
    chat.messages[1].train = Some(true);
    assert_eq!(
        problem(&chatml, &chat),
        "turn 1 (counting from 0) has `train` = true, and its role is `user`"
    );
}

const TOOL_CALLS: &str = "{{ bos_token }}{% for m in messages %}\
    {{ '<h>' + m.role + '</h>\n' }}\
    {% if m.tool_calls %}{% for c in m.tool_calls %}\
    {{ '{\"name\": \"' + c.function.name + '\", \"parameters\": ' }}{{ c.function.arguments | tojson }}{{ '}<call_end>' }}\
    {% endfor %}{{ '<|eom|>' }}\
    {% else %}{{ m.content | tojson if m.role == 'tool' else m.content | trim }}{{ '<|eot|>' }}{% endif %}\
    {% endfor %}{% if add_generation_prompt %}{{ '<h>assistant</h>\n' }}{% endif %}";

#[test]
fn tool_calls_carry_loss_as_the_template_writes_them() {
    let calls = |arguments: Value| json!([{"type": "function", "function": {"name": "add", "arguments": arguments}}]);
    let chat = from_json(json!([
        {"role": "user", "content": "1+2, then 0?"},
        {"role": "assistant", "content": null, "tool_calls": calls(json!({"a": 1, "b": 2}))},
        {"role": "tool", "content": "3 \"ok\""},
        {"role": "assistant", "content": null, "tool_calls": calls(json!({}))},
        {"role": "tool", "content": "0"},
        {"role": "assistant", "content": "3 and 0"},
    ]));
    assert_eq!(
        assistant(&template(TOOL_CALLS), &chat),
        "<s><h>user</h>\n1+2, then 0?<|eot|>\
         <h>assistant</h>\n[[{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}<call_end><|eom|>]]\
         <h>tool</h>\n\"3 \\\"ok\\\"\"<|eot|>\
         <h>assistant</h>\n[[{\"name\": \"add\", \"parameters\": {}}<call_end><|eom|>]]\
         <h>tool</h>\n\"0\"<|eot|>\
         <h>assistant</h>\n[[3 and 0<|eot|>]]"
    );
}

/// Ends prompts in an opened thought, and takes thoughts out of finished turns.
const REASONING: &str = "{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}\
    <A>{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}</s>\
    {% endif %}{% endfor %}{% if add_generation_prompt %}<A><think>\n{% endif %}";

#[test]
fn a_thought_that_the_prompt_opens_carries_no_loss() {
    let chat = conversation(&[
        ("user", "a"),
        ("assistant", "<think>\nhm\n</think>\n\nb"),
        ("user", "c"),
        ("assistant", "<think>\nso\n</think>\n\nd"),
    ]);
    assert_eq!(
        assistant(&template(REASONING), &chat),
        "<U>a<A>[[b</s>]]<U>c<A><think>\n[[so\n</think>\n\nd</s>]]"
    );
}

#[test]
fn text_that_moves_to_the_last_user_turn_does_not_mislead() {
    let source = "{{ bos_token }}{% for m in messages %}\
        {% if m.role == 'system' %}{% elif m.role == 'user' %}[U]\
        {% if loop.index0 >= messages | length - 2 %}{{ messages[0].content }}|{% endif %}\
        {{ m.content }}[/U]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}";
    assert_eq!(
        assistant(&template(source), &four_turns()),
        "<s>[U]Hi[/U][[  Hello </s>]][U] Be brief. |Bye[/U][[ Ciao</s>]]"
    );
}

#[test]
fn a_conversation_may_begin_with_the_assistant() {
    let chat = conversation(&[("assistant", "Welcome"), ("user", "Hi"), ("assistant", "Hello")]);
    assert_eq!(
        assistant(&builtin("chatml"), &chat),
        "<|im_start|>assistant\n[[Welcome<|im_end|>]]\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\n[[Hello<|im_end|>]]\n"
    );
    let no_prompt = template("{% for m in messages %}{{ m.content }}</s>{% endfor %}");
    assert_eq!(
        problem(&no_prompt, &chat),
        "chat template `test`: which text belongs to turn 0 (counting from 0) cannot be found: no \
         turn of the conversation comes before it"
    );
}

#[test]
fn generation_marks_of_the_template_win() {
    let marks = template(
        "{% for m in messages %}{% if m.role == 'assistant' %}<A>{% generation %}{{ m.content }}!\
         {% endgeneration %}{% else %}<U>{{ m.content }}{% endif %}{% endfor %}",
    );
    let mut chat =
        conversation(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    assert_eq!(assistant(&marks, &chat), "<U>a<A>[[b!]]<U>c<A>[[d!]]");
    assert_eq!(marked(&marks, &chat, LossOn::LastMessage), "<U>a<A>b!<U>c<A>[[d!]]");
    chat.messages[3].train = Some(false);
    assert_eq!(assistant(&marks, &chat), "<U>a<A>[[b!]]<U>c<A>d!");
}

#[test]
fn what_cannot_be_located_is_an_error() {
    let chat = conversation(&[("user", "a"), ("assistant", "b")]);
    let ignores =
        template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}");
    assert!(problem(&ignores, &chat).contains("does not change the rendering"));
    let other_opening = template(
        "{% for m in messages %}{{ '<U>' if m.role == 'user' else '<B>' }}{{ m.content }}</s>{% endfor %}\
         {% if add_generation_prompt %}<A>{% endif %}",
    );
    assert!(
        problem(&other_opening, &chat).contains("opened otherwise"),
        "{}",
        problem(&other_opening, &chat)
    );
    let refuses = template(
        "{% if add_generation_prompt %}{{ raise_exception('no') }}{% endif %}\
         {% for m in messages %}{{ m.content }}</s>{% endfor %}",
    );
    assert!(problem(&refuses, &chat).contains("cannot be rendered as a prompt"));
    let error = problem(&builtin("llama2"), &conversation(&[("assistant", "b")]));
    assert!(
        error.contains("the template says: expected a turn of user, found assistant"),
        "{error}"
    );
}

#[test]
fn turns_that_nothing_closes_are_counted() {
    let open = template(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
        {% if add_generation_prompt %}assistant:{% endif %}",
    );
    let chat =
        conversation(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let encoded = open.encode(&chat, &tokenizer(), LossOn::Assistant).unwrap();
    assert_eq!(encoded.turns_without_end, 2);
    assert_eq!(assistant(&open, &chat), "user: a\nassistant:[[ b]]\nuser: c\nassistant:[[ d]]\n");
}

#[test]
fn content_in_parts_and_phis_closing_token_are_understood() {
    let parts = template(
        "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}\
         {% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}<|eot|>\n{% endfor %}\
         {% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}",
    );
    let chat = from_json(json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]));
    assert_eq!(
        assistant(&parts, &chat),
        "<user>ab<|eot|>\n<assistant>[[c<|eot|>]]\n<user>d<|eot|>\n<assistant>[[e<|eot|>]]\n</s>"
    );
}

#[test]
fn a_row_has_at_most_one_begin_token() {
    let doubled = template("{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}");
    let chat = conversation(&[("user", "<s>a"), ("assistant", "b")]);
    assert_eq!(assistant(&doubled, &chat), "<s>a</s>[[b</s>]]");
}

#[test]
fn an_empty_conversation_has_no_loss_and_no_panic() {
    let encoded =
        builtin("chatml").encode(&conversation(&[]), &tokenizer(), LossOn::Assistant).unwrap();
    assert_eq!(
        encoded,
        EncodedConversation { token_ids: vec![], labels: vec![], turns_without_end: 0 }
    );
}

fn any_turns() -> impl Strategy<Value = Conversation> {
    let role = prop::sample::select(vec!["system", "user", "assistant", "tool"]);
    let turn = (role, "(\\PC|\n| |<\\|im_end\\|>|</s>|<s>){0,12}", prop::option::of(any::<bool>()));
    prop::collection::vec(turn, 0..6).prop_map(|turns| {
        let message = |(role, content, train): (&str, String, Option<bool>)| Message {
            train: train.filter(|_| role == "assistant"),
            ..Message::new(role, content)
        };
        Conversation::new(turns.into_iter().map(message).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chatml_masks_answers_whatever_they_hold(chat in any_turns()) {
        let mut expected = String::new();
        for message in &chat.messages {
            let answer = format!("{}<|im_end|>", message.text().unwrap());
            let trained = message.role == "assistant" && message.train != Some(false);
            let answer = if trained { format!("[[{answer}]]") } else { answer };
            expected.extend(["<|im_start|>", &message.role, "\n", &answer, "\n"]);
        }
        prop_assert_eq!(assistant(&builtin("chatml"), &chat), expected);
    }

    #[test]
    fn every_builtin_answers_or_refuses(chat in any_turns()) {
        for builtin in BUILTIN_TEMPLATES {
            let template = ChatTemplate::named_or_file(builtin.name, &tokenizer()).unwrap();
            for loss_on in [LossOn::Assistant, LossOn::LastMessage, LossOn::All] {
                if let Ok(encoded) = template.encode(&chat, &tokenizer(), loss_on) {
                    prop_assert_eq!(encoded.token_ids.len(), encoded.labels.len());
                }
            }
        }
    }

    #[test]
    fn broken_templates_never_panic(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{%", "%}", "{%-", "-%}", "{#", "#}", " for m in messages ", " endfor ", " if ",
            " endif ", "m", ".content", "[", "]", "(", ")", "|tojson", "|trim(3)", "'", "\"", "é", "\n",
            " generation ", " endgeneration ", " set x = ", " ~ ", "::-1", "*99999999", " macro f() ",
            " endmacro ", "f()", "range(99999)", ".split()", " include ", " break ", "namespace()", " is ",
            "strftime_now('%", "messages", "\u{fdd0}", "\u{fdd1}", "\u{fdd2}", "-", "9223372036854775807",
        ]), 0..24),
        chat in any_turns(),
    ) {
        if let Ok(template) = ChatTemplate::from_source("t", &pieces.concat(), &tokenizer()) {
            let _ = template.encode(&chat, &tokenizer(), LossOn::Assistant);
        }
    }
}

/// Nesting that a recursive parser, writer or destructor could not survive.
#[test]
fn deep_templates_and_values_are_refused_or_rendered() {
    let chat = conversation(&[("user", "a"), ("assistant", "b")]);
    let many = |text: &str| text.repeat(20_000);
    let sources = [
        format!("{{{{ {}1 }}}}", many("(")),
        format!("{{{{ {}1 }}}}", many("[")),
        format!("{{{{ {}1 }}}}", many("-")),
        format!("{{{{ {}1 }}}}", many("not ")),
        format!("{{{{ 'a'{} }}}}", many(" ~ 'a'")),
        format!("{{{{ 1{} }}}}", many(" + 1")),
        format!("{{{{ 1{} }}}}", many(" and 1")),
        format!("{{{{ 2{} }}}}", many("**1")),
        format!("{{{{ messages{} }}}}", many(".x")),
        format!("{{{{ messages{} }}}}", many("|trim")),
        format!("{{{{ messages{} }}}}", many("[0:]")),
        format!("{{{{ {}1 }}}}", many("1 if 1 else ")),
        many("{% if 1 %}"),
        format!("{}{}", many("{% if 1 %}"), many("{% endif %}")),
        format!("{{% if 0 %}}{}{{% endif %}}", many("{% elif 0 %}")),
        "{% set n = namespace(x=[]) %}{% for i in range(90000) %}{% set n.x = [n.x] %}{% endfor %}\
         {{ n.x }}{{ n.x | tojson }}{{ n.x | string }}{{ n.x == n.x }}"
            .to_owned(),
        "{% set n = namespace(x=[]) %}{% for i in range(90000) %}{% for j in range(90000) %}\
         {% set n.x = [n.x] %}{% endfor %}{% endfor %}"
            .to_owned(),
        "{% set n = namespace(x={}) %}{% for i in range(90000) %}{% set n.x = {'a': n.x} %}{% endfor %}"
            .to_owned(),
        "{% set n = namespace(x=[]) %}{% for i in range(9000) %}{% set n.x = n.x + [i] %}{% endfor %}\
         {{ n.x | length }}"
            .to_owned(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{{ 'a' * 99999999999 }}".to_owned(),
        "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}"
            .to_owned(),
        "{% include 'chat_template' %}".to_owned(),
        "{{ '%999999999d' | format(1) }}{{ '{:999999999}'.format(1) }}".to_owned(),
        "{{ 'a' | indent(9999999999) }}{{ [1] | tojson(indent=64) }}".to_owned(),
        "{{ 'a'.replace('', 'b' * 1000000) }}{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}".to_owned(),
    ];
    for source in sources {
        if let Ok(template) = ChatTemplate::from_source("t", &source, &tokenizer()) {
            let _ = template.encode(&chat, &tokenizer(), LossOn::Assistant);
        }
    }
}

/// Templates that only frame their turns are taken apart, and give the same text again.
#[test]
fn parts_of_every_builtin_compose_to_what_it_renders() {
    use super::turn_parts::SystemPlace;
    for template in BUILTIN_TEMPLATES {
        let template = builtin(template.name);
        for bos in [None, Some("<s>")] {
            let parts = template.turn_parts(bos).unwrap();
            assert!(!parts.generation.is_empty() || parts.user.suffix.contains("/INST"));
            assert_ne!(parts.system, SystemPlace::None);
        }
    }
    let llama2 = builtin("llama2").turn_parts(Some("<s>")).unwrap();
    assert_eq!((llama2.user.prefix.as_str(), llama2.user.suffix.as_str()), ("[INST] ", " [/INST]"));
    assert_eq!(llama2.assistant.suffix, " </s><s>");
    let inside = SystemPlace::FirstUser(super::Frame {
        prefix: "<<SYS>>\n".to_owned(),
        suffix: "\n<</SYS>>\n\n".to_owned(),
    });
    assert_eq!(llama2.system, inside);
}

#[test]
fn a_default_system_message_is_a_part() {
    let source = "{% if messages[0].role != 'system' %}[S]Be kind.[/S]{% endif %}\
                  {% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}\
                  {% if add_generation_prompt %}[assistant]{% endif %}";
    let source = source
        .replace("[{{ m.role }}]", "{{ '[S]' if m.role == 'system' else '[' + m.role + ']' }}");
    let source = source.replace("[/]", "{{ '[/S]' if m.role == 'system' else '[/]' }}");
    let own = ChatTemplate::from_source("own", &source, &tokenizer()).unwrap();
    let parts = own.turn_parts(None).unwrap();
    assert_eq!(parts.default_system.as_deref(), Some("Be kind."));
    assert_eq!(parts.compose(&[("user", "a")]), "[S]Be kind.[/S][user]a[/][assistant]");
    // One that counts its turns does more than frame them.
    let counting = "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}";
    let counting = ChatTemplate::from_source("own", counting, &tokenizer()).unwrap();
    assert_eq!(counting.turn_parts(None), None);
}
