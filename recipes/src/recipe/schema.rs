//! The JSON schema of recipes, from the config structs.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::Recipe;

/// JSON schema (draft 7) of a recipe, for editors and for the check of every recipe.
///
/// Definitions are inlined, so that it reads without following references; `null` is removed,
/// because TOML has none.
pub fn schema() -> Value {
    let mut settings = SchemaSettings::draft07();
    settings.inline_subschemas = true;
    let mut schema = settings.into_generator().into_root_schema_for::<Recipe>().to_value();
    tidy(&mut schema);
    schema
}

fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            remove_null(object);
            object.values_mut().for_each(tidy);
        }
        Value::Array(elements) => elements.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// `["string", "null"]` becomes `"string"`; `anyOf [T, null]` becomes `T`.
fn remove_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [single] = types.as_slice() {
            let single = single.clone();
            object.insert("type".to_owned(), single);
        }
    }
    if let Some(Value::Array(words)) = object.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    if object.get("default").is_some_and(Value::is_null) {
        object.shift_remove("default");
    }
    let Some(Value::Array(choices)) = object.get_mut("anyOf") else { return };
    choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
    if let [Value::Object(single)] = choices.as_slice() {
        let single = single.clone();
        object.shift_remove("anyOf");
        for (key, value) in single {
            object.entry(key).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(value: &Value, found: &mut Vec<Value>) {
        match value {
            Value::Object(object) => {
                if object.contains_key("properties") {
                    found.push(value.clone());
                }
                object.values().for_each(|inner| tables(inner, found));
            }
            Value::Array(elements) => elements.iter().for_each(|inner| tables(inner, found)),
            _ => {}
        }
    }

    #[test]
    fn every_table_is_closed_and_every_key_has_a_description() {
        let mut found = Vec::new();
        tables(&schema(), &mut found);
        assert!(found.len() > 10, "{}", found.len());
        for table in found {
            assert_eq!(table["additionalProperties"], Value::Bool(false), "{table}");
            for (key, value) in table["properties"].as_object().unwrap() {
                let described = value.get("description").or_else(|| value.get("properties"));
                assert!(
                    described.is_some() || value.get("additionalProperties").is_some(),
                    "{key}"
                );
            }
        }
    }

    #[test]
    fn what_does_not_work_yet_is_absent() {
        let text = schema().to_string();
        for word in ["f16", "preference"] {
            assert!(!text.contains(&format!("\"{word}\"")), "{word}");
        }
    }
}
