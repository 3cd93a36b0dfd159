//! The model card (`README.md`) of an adapter or a merged model, from facts alone.

use std::collections::BTreeSet;
use std::fmt::Write;

use adapters::{AdapterWeights, PeftConfig, WeightTying, WholeSelection};

use super::licence::{Licence, LicenceDuties};

/// What the card is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CardKind {
    /// A PEFT adapter folder.
    Adapter,
    /// A merged model in HF layout.
    Merged,
    /// A merged model in one GGUF file.
    Gguf,
}

/// What an adapter is.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFacts {
    /// `LoRA`, ...
    pub method: String,
    /// Inner dimension.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
    /// Factor on `B·A`.
    pub scale: f64,
    /// Names of the adapted modules.
    pub target_modules: Vec<String>,
    /// Names of the modules that were trained as a whole.
    pub whole_modules: Vec<String>,
    /// Numbers that were trained.
    pub trained_parameters: u64,
}

impl AdapterFacts {
    /// The facts of an adapter; modules by the last part of their names, each once.
    pub fn of(peft: &PeftConfig, weights: &AdapterWeights) -> Self {
        let modules = &weights.modules;
        let names = last_parts(modules.keys().map(String::as_str));
        Self {
            method: if peft.use_dora { "DoRA" } else { "LoRA" }.to_owned(),
            rank: peft.rank,
            alpha: peft.alpha,
            scale: modules.keys().next().map_or(0.0, |module| peft.scale(module)),
            target_modules: names,
            whole_modules: last_parts(weights.whole_modules()),
            trained_parameters: weights.parameters() - said_twice(peft, weights),
        }
    }

    /// The same for an adapter whose whole tensors are still the base's.
    #[must_use]
    pub fn with_whole(self, whole: &WholeSelection, weights: &AdapterWeights) -> Self {
        let counted = weights.whole.values().map(|tensor| tensor.values.len() as u64).sum::<u64>();
        Self {
            whole_modules: last_parts(whole.modules()),
            trained_parameters: weights.parameters() - counted + whole.parameters,
            ..self
        }
    }
}

/// The last part of each name, once.
fn last_parts<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let last = |name: &'a str| name.rsplit('.').next().unwrap_or(name);
    let names: BTreeSet<&str> = names.into_iter().map(last).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Numbers of a head that the file holds though it is the embedding.
fn said_twice(peft: &PeftConfig, weights: &AdapterWeights) -> u64 {
    let mut matrices = weights.whole.values().filter(|tensor| tensor.shape.len() == 2);
    match (peft.weight_tying, matrices.next(), matrices.next(), matrices.next()) {
        (WeightTying::Ensured, Some(first), Some(second), None) if first == second => {
            first.values.len() as u64
        }
        _ => 0,
    }
}

/// A file of data; never its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFacts {
    /// Path as in the recipe.
    pub path: String,
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Rows, where they were counted.
    pub rows: Option<u64>,
}

/// Everything that a card says.
#[derive(Debug, Clone)]
pub struct CardFacts<'a> {
    /// What the card is for.
    pub kind: CardKind,
    /// Which models were merged and how, where whole models were.
    pub mix: Option<String>,
    /// Name of the tune: the name of its folder.
    pub name: &'a str,
    /// `base_model` of the recipe.
    pub base_model: &'a str,
    /// `config.json` of the base model, which may know its hub id.
    pub base_config: &'a serde_json::Value,
    /// What the licence asks for.
    pub licence: &'a LicenceDuties,
    /// The adapter; several where several were merged.
    pub adapters: &'a [AdapterFacts],
    /// The data, where it is known.
    pub data: &'a [DataFacts],
    /// The recipe as run, where it is known.
    pub recipe: Option<&'a str>,
    /// Measured figures: name and value.
    pub figures: &'a [(String, String)],
}

/// The text of the card.
pub fn model_card(facts: &CardFacts<'_>) -> String {
    let mut card = head(facts);
    card.push_str(&introduction(facts));
    card.push_str(&usage(facts));
    card.push_str(&adapters(facts));
    card.push_str(&data(facts));
    card.push_str(&figures(facts));
    card.push_str(&recipe(facts));
    card.push_str(&licence(facts));
    card
}

/// The hub id of the base model, where it is known to be one.
fn hub_id(facts: &CardFacts<'_>) -> Option<String> {
    let from_config = facts.base_config.get("_name_or_path").and_then(serde_json::Value::as_str);
    let is_local = std::path::Path::new(facts.base_model).exists();
    let named = (!is_local).then_some(facts.base_model);
    named.into_iter().chain(from_config).find(|id| is_hub_id(id)).map(str::to_owned)
}

/// The name of a base model, where it is an id of the hub and no path.
pub fn hub_id_of(base_model: &str) -> Option<String> {
    let is_local = std::path::Path::new(base_model).exists();
    (!is_local && is_hub_id(base_model)).then(|| base_model.to_owned())
}

/// `owner/name`, and nothing that a path of a disk would look like.
fn is_hub_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed);
    let is_file = id.to_ascii_lowercase().ends_with(".gguf");
    !is_file && id.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// What cards call the base model: its hub id, or the last part of its path.
fn base_name(facts: &CardFacts<'_>) -> String {
    hub_id(facts).unwrap_or_else(|| last_part(facts.base_model).to_owned())
}

/// Folders of the author's machine are nobody's business.
fn last_part(path: &str) -> &str {
    let trimmed = path.trim_end_matches(['/', '\\']);
    trimmed.rsplit(['/', '\\']).next().filter(|name| !name.is_empty()).unwrap_or(path)
}

fn head(facts: &CardFacts<'_>) -> String {
    let mut head = String::from("---\n");
    for (key, value) in facts.licence.card_keys() {
        let _ = writeln!(head, "{key}: {}", yaml(&value));
    }
    if let Some(id) = hub_id(facts) {
        let relation = match facts.kind {
            CardKind::Adapter => "adapter",
            _ if facts.mix.is_some() => "merge",
            CardKind::Merged | CardKind::Gguf => "finetune",
        };
        let _ = writeln!(head, "base_model: {}\nbase_model_relation: {relation}", yaml(&id));
    }
    let library = match facts.kind {
        CardKind::Adapter => "peft",
        CardKind::Merged => "transformers",
        CardKind::Gguf => "gguf",
    };
    let _ = writeln!(head, "library_name: {library}\npipeline_tag: text-generation");
    let tag = if facts.mix.is_some() { "merge" } else { "lora" };
    let _ = write!(head, "tags:\n- {tag}\n- tunesmith\n---\n\n");
    head
}

/// A YAML scalar: bare where that is safe, else in double quotes.
fn yaml(text: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_word = ["true", "false", "null", "yes", "no", "on", "off"]
        .contains(&text.to_ascii_lowercase().as_str());
    if starts_well && !is_word && text.chars().all(is_safe) {
        return text.to_owned();
    }
    serde_json::Value::String(text.to_owned()).to_string()
}

/// Text that cannot open a heading, a table cell or a tag.
fn plain(text: &str) -> String {
    let clean = |c: char| if c.is_control() || "`|<>".contains(c) { ' ' } else { c };
    text.chars().map(clean).collect()
}

fn introduction(facts: &CardFacts<'_>) -> String {
    let base = plain(&base_name(facts));
    let name = plain(facts.name);
    let what = match (&facts.mix, facts.kind) {
        (Some(mix), _) => mix.clone(),
        (None, CardKind::Adapter) => format!("A LoRA adapter for `{base}`."),
        (None, CardKind::Merged | CardKind::Gguf) => {
            format!("`{base}` with a LoRA adapter merged into its weights.")
        }
    };
    let display = facts.licence.display().map_or(String::new(), |text| format!("**{text}**\n\n"));
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "# {name}\n\n{display}{what} Made with tunesmith {version}. Every figure on this page was \
         read from files or measured by the program; what it does not know is left out.\n\n"
    )
}

fn usage(facts: &CardFacts<'_>) -> String {
    let name = plain(facts.name);
    match facts.kind {
        CardKind::Adapter => {
            let base = hub_id(facts).unwrap_or_else(|| "path/to/base".to_owned());
            format!(
                "## How to use\n\nWith transformers and PEFT:\n\n```python\nfrom peft import \
                 PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 base = AutoModelForCausalLM.from_pretrained(\"{base}\")\n\
                 model = PeftModel.from_pretrained(base, \"{name}\")\n\
                 tokenizer = AutoTokenizer.from_pretrained(\"{name}\")\n```\n\n\
                 With candle, mistral.rs, llama.cpp and other engines, merge it first:\n\n\
                 ```sh\ntunesmith merge {name} --output {name}-merged\n```\n\n"
            )
        }
        CardKind::Merged => format!(
            "## How to use\n\nWith transformers:\n\n```python\nfrom transformers import \
             AutoModelForCausalLM, AutoTokenizer\n\n\
             model = AutoModelForCausalLM.from_pretrained(\"{name}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{name}\")\n```\n\n\
             The folder is in Hugging Face layout: candle and mistral.rs load it as it stands, and \
             `convert_hf_to_gguf.py` of llama.cpp turns it into a GGUF file.\n\n"
        ),
        CardKind::Gguf => "## How to use\n\nWith llama.cpp, for the file of this folder:\n\n\
             ```sh\nllama-cli -m model.gguf\n```\n\nWith Ollama:\n\n```sh\nollama create NAME -f \
             Modelfile\n```\n\nThe chat template is in both files.\n\n"
            .to_owned(),
    }
}

fn adapters(facts: &CardFacts<'_>) -> String {
    let mut text = String::new();
    for adapter in facts.adapters {
        let modules: Vec<_> =
            adapter.target_modules.iter().map(|name| format!("`{}`", plain(name))).collect();
        let whole: Vec<_> =
            adapter.whole_modules.iter().map(|name| format!("`{}`", plain(name))).collect();
        let whole = if whole.is_empty() {
            String::new()
        } else {
            format!("| trained as a whole | {} |\n", whole.join(", "))
        };
        let _ = write!(
            text,
            "## Adapter\n\n| | |\n|---|---|\n| method | {} |\n| rank | {} |\n| alpha | {} |\n\
             | scale | {} |\n| modules | {} |\n{}| trained parameters | {} |\n\n",
            plain(&adapter.method),
            adapter.rank,
            adapter.alpha,
            adapter.scale,
            modules.join(", "),
            whole,
            adapter.trained_parameters,
        );
    }
    text
}

fn data(facts: &CardFacts<'_>) -> String {
    if facts.data.is_empty() {
        return String::new();
    }
    let mut text =
        String::from("## Data\n\n| file | rows | bytes | SHA-256 |\n|---|---|---|---|\n");
    for file in facts.data {
        let rows = file.rows.map_or_else(|| "not counted".to_owned(), |rows| rows.to_string());
        let name = plain(last_part(&file.path));
        let _ = writeln!(text, "| {name} | {rows} | {} | `{}` |", file.bytes, file.sha256);
    }
    text.push('\n');
    text
}

fn figures(facts: &CardFacts<'_>) -> String {
    if facts.figures.is_empty() {
        return String::new();
    }
    let mut text = String::from("## Figures\n\n| | |\n|---|---|\n");
    for (name, value) in facts.figures {
        let _ = writeln!(text, "| {} | {} |", plain(name), plain(value));
    }
    text.push('\n');
    text
}

fn recipe(facts: &CardFacts<'_>) -> String {
    let Some(recipe) = facts.recipe else { return String::new() };
    let recipe = recipe_without_folders(recipe);
    let fence = "`".repeat(longest_run_of_backticks(&recipe).max(2) + 1);
    format!("## Recipe\n\n{fence}toml\n{}\n{fence}\n\n", recipe.trim_end())
}

/// Keys whose values are paths.
const PATH_KEYS: &[&str] = &["base_model", "output_dir", "path", "init_from", "chat_template"];

/// A recipe for others: every path of the author's machine keeps its last part.
pub(crate) fn recipe_without_folders(recipe: &str) -> String {
    recipe.lines().map(without_folders).collect::<Vec<_>>().join("\n")
}

fn without_folders(line: &str) -> String {
    let Some((key, value)) = line.split_once(" = ") else { return line.to_owned() };
    if !PATH_KEYS.contains(&key.trim()) {
        return line.to_owned();
    }
    match value.parse::<toml::Value>() {
        Ok(toml::Value::String(path)) if std::path::Path::new(&path).is_absolute() => {
            format!("{key} = {}", toml::Value::String(last_part(&path).to_owned()))
        }
        _ => line.to_owned(),
    }
}

fn longest_run_of_backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or_default()
}

fn licence(facts: &CardFacts<'_>) -> String {
    let licence = facts.licence;
    let mut text = format!("## Licence\n\nThe base model is under: {}.", plain(&licence.name()));
    if let Licence::Llama(llama) = licence.licence() {
        let _ = write!(text, " {}", llama.notice);
    }
    text.push_str("\n\nWhat this asks of those who pass the model on (not legal advice):\n\n");
    for duty in licence.duties() {
        let _ = writeln!(text, "- {duty}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn licence(text: &str) -> LicenceDuties {
        LicenceDuties::of_files(BTreeMap::from([("LICENSE".to_owned(), text.into())]))
    }

    fn card(kind: CardKind, base_model: &str, recipe: &str) -> String {
        let licence = licence("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT");
        model_card(&CardFacts {
            kind,
            mix: None,
            name: "Llama-mine",
            base_model,
            base_config: &serde_json::json!({}),
            licence: &licence,
            adapters: &[AdapterFacts {
                method: "LoRA".into(),
                rank: 16,
                alpha: 32.0,
                scale: 2.0,
                target_modules: vec!["q_proj".into()],
                whole_modules: vec!["lm_head".into()],
                trained_parameters: 1000,
            }],
            data: &[DataFacts {
                path: "/home/me/secret/train.jsonl".into(),
                sha256: "ab".into(),
                bytes: 10,
                rows: Some(2),
            }],
            recipe: Some(recipe),
            figures: &[("steps".into(), "20".into())],
        })
    }

    #[test]
    fn an_adapter_names_its_base_and_its_licence() {
        let card = card(CardKind::Adapter, "meta-llama/Llama-3.2-1B", "seed = 42");
        let head = "---\nlicense: llama3.2\nbase_model: meta-llama/Llama-3.2-1B\n\
                    base_model_relation: adapter\nlibrary_name: peft\n\
                    pipeline_tag: text-generation\ntags:\n- lora\n- tunesmith\n---\n\n\
                    # Llama-mine\n\n**Built with Llama**\n";
        assert!(card.starts_with(head), "{card}");
        assert!(card.contains("| train.jsonl | 2 | 10 | `ab` |"), "{card}");
    }

    #[test]
    fn folders_of_the_authors_machine_stay_out() {
        let recipe = "base_model = \"/home/me/models/x\"\npath = \"/home/me/secret/d.jsonl\"\n";
        for kind in [CardKind::Adapter, CardKind::Merged, CardKind::Gguf] {
            let card = card(kind, "/home/me/models/x", recipe);
            assert!(!card.contains("/home/me"), "{card}");
            assert!(!card.contains("base_model:"), "a local folder is no hub id: {card}");
        }
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        assert!(is_hub_id("meta-llama/Llama-2-7b-hf"));
        for path in ["./x/y", "/x/y", "a/b/c", "x", "a/b.gguf", "../x", "a/b c"] {
            assert!(!is_hub_id(path), "{path}");
        }
    }

    #[test]
    fn values_cannot_break_out_of_the_head_or_of_a_table() {
        assert_eq!(yaml("a: b\n---"), "\"a: b\\n---\"");
        assert_eq!(yaml("no"), "\"no\"");
        assert_eq!(plain("a|b`c<d"), "a b c d");
        assert!(recipe_fence("x = \"```\"").starts_with("## Recipe\n\n````toml"));
    }

    fn recipe_fence(text: &str) -> String {
        let card = card(CardKind::Merged, "m", text);
        card[card.find("## Recipe").unwrap()..].to_owned()
    }
}
