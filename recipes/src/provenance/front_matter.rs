//! The YAML head of a model card: top-level keys with one word or text as value.
//!
//! Cards of base models are read for their licence alone, so this reads those lines and passes
//! over everything nested.

/// The value of a top-level `key` between the two `---` lines at the top of `text`.
pub(crate) fn value(text: &str, key: &str) -> Option<String> {
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let head = lines.take_while(|line| line.trim_end() != "---");
    let value = head
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .map(|value| value.split(" #").next().unwrap_or_default().trim())
        .map(|value| value.trim_matches(['"', '\'']).to_owned())
        .next()?;
    (!value.is_empty() && value.len() <= 200 && !value.contains(char::is_control)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::value;

    const CARD: &str = "---\nlicense: llama3.1  # as given\nlicense_name: 'a b'\ntags:\n- license: x\n---\nlicense: mit\n";

    #[test]
    fn values_stand_at_the_top_level_of_the_head() {
        assert_eq!(value(CARD, "license").as_deref(), Some("llama3.1"));
        assert_eq!(value(CARD, "license_name").as_deref(), Some("a b"));
        assert_eq!(value(CARD, "tags"), None);
        assert_eq!(value("license: mit", "license"), None);
    }
}
