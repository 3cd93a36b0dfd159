//! What the licence of a base model asks of a tune, from the files beside its weights.
//!
//! The licence is read, never guessed: from the licence text first, then from the base model's
//! card. Where neither says anything, that is what is said. Not legal advice.

use std::collections::BTreeMap;
use std::path::Path;

use adapters::weights::{ModelFiles, WeightsError};

use super::{ProvenanceError, front_matter};
use crate::printer::write_atomically;

/// A licence of the Llama family, and what it asks of derivatives.
#[derive(Debug, PartialEq, Eq)]
pub struct LlamaLicence {
    /// The id that model cards use; `None` where the hub has none.
    pub card_id: Option<&'static str>,
    /// How notices call it.
    pub name: &'static str,
    /// Words of the title, in capitals, that no other licence has.
    title: &'static str,
    /// The sentence that the notice file must hold.
    pub notice: &'static str,
    /// What must be displayed prominently.
    pub display: Option<&'static str>,
    /// How the name of a distributed tune must begin.
    pub name_prefix: Option<&'static str>,
    /// Whether results may train other language models.
    outputs: &'static str,
    /// A limit for users in the European Union.
    european_union: Option<&'static str>,
}

const OUTPUTS_FORBIDDEN_2: &str = "the model and its results may not be used to improve other language models, except Llama 2 and its derivatives";
const OUTPUTS_FORBIDDEN_3: &str = "the model and its results may not be used to improve other language models, except Llama 3 and its derivatives";
const OUTPUTS_NAMED: &str = "the name of a model that is trained or improved with the model or its results must begin with \"Llama\"";
const EU_POLICY: &str =
    "the acceptable use policy of multimodal models excludes developers in the European Union";
const EU_LICENCE: &str = "section 1(a) grants no rights in multimodal models to individuals domiciled, or companies based, in the European Union";

/// The licences of the Llama family.
const LLAMA: &[LlamaLicence] = &[
    LlamaLicence {
        card_id: Some("llama2"),
        name: "Llama 2",
        title: "LLAMA 2 COMMUNITY LICENSE AGREEMENT",
        notice: "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta \
                 Platforms, Inc. All Rights Reserved.",
        display: None,
        name_prefix: None,
        outputs: OUTPUTS_FORBIDDEN_2,
        european_union: None,
    },
    LlamaLicence {
        card_id: Some("llama3"),
        name: "Llama 3",
        title: "META LLAMA 3 COMMUNITY LICENSE AGREEMENT",
        notice: "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © \
                 Meta Platforms, Inc. All Rights Reserved.",
        display: Some("Built with Meta Llama 3"),
        name_prefix: Some("Llama 3"),
        outputs: OUTPUTS_FORBIDDEN_3,
        european_union: None,
    },
    LlamaLicence {
        card_id: Some("llama3.1"),
        name: "Llama 3.1",
        title: "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT",
        notice: "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta \
                 Platforms, Inc. All Rights Reserved.",
        display: Some("Built with Llama"),
        name_prefix: Some("Llama"),
        outputs: OUTPUTS_NAMED,
        european_union: None,
    },
    LlamaLicence {
        card_id: Some("llama3.2"),
        name: "Llama 3.2",
        title: "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT",
        notice: "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta \
                 Platforms, Inc. All Rights Reserved.",
        display: Some("Built with Llama"),
        name_prefix: Some("Llama"),
        outputs: OUTPUTS_NAMED,
        european_union: Some(EU_POLICY),
    },
    LlamaLicence {
        card_id: Some("llama3.3"),
        name: "Llama 3.3",
        title: "LLAMA 3.3 COMMUNITY LICENSE AGREEMENT",
        notice: "Llama 3.3 is licensed under the Llama 3.3 Community License, Copyright © Meta \
                 Platforms, Inc. All Rights Reserved.",
        display: Some("Built with Llama"),
        name_prefix: Some("Llama"),
        outputs: OUTPUTS_NAMED,
        european_union: Some(EU_POLICY),
    },
    LlamaLicence {
        card_id: None,
        name: "Llama 4",
        title: "LLAMA 4 COMMUNITY LICENSE AGREEMENT",
        notice: "Llama 4 is licensed under the Llama 4 Community License, Copyright © Meta \
                 Platforms, Inc. All Rights Reserved.",
        display: Some("Built with Llama"),
        name_prefix: Some("Llama"),
        outputs: OUTPUTS_NAMED,
        european_union: Some(EU_LICENCE),
    },
];

/// The licence of a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Licence<'a> {
    /// One of the Llama family.
    Llama(&'static LlamaLicence),
    /// Apache License 2.0.
    Apache2,
    /// MIT licence.
    Mit,
    /// What the base model's card calls it; its terms are not known to this program.
    Named(&'a str),
    /// Nothing beside the weights says anything.
    Unknown,
}

/// What has to come along with a tune.
#[derive(Debug, Clone)]
pub struct LicenceDuties {
    llama: Option<&'static LlamaLicence>,
    known: Option<&'static str>,
    card_value: Option<String>,
    card_name: Option<String>,
    card_link: Option<String>,
    files: BTreeMap<String, Vec<u8>>,
}

/// Openings of the names of files that a licence asks to pass on.
const CARRIED: &[&str] = &["license", "licence", "copying", "notice", "use_policy"];
/// Longest text that is looked at for a licence.
const MAX_TEXT_BYTES: usize = 1 << 20;

impl LicenceDuties {
    /// Reads what stands beside the weights of `base`.
    pub fn of_base(base: &ModelFiles) -> Result<Self, WeightsError> {
        let mut files = BTreeMap::new();
        for name in base.side_files()?.into_iter().chain(["README.md".to_owned()]) {
            let is_wanted = is_carried(&name) || name == "README.md";
            if is_wanted && let Some(bytes) = base.side_file(&name)? {
                files.insert(name, bytes);
            }
        }
        Ok(Self::of_files(files))
    }

    /// Duties from the files beside the weights, by name; `README.md` is the base model's card.
    pub fn of_files(mut files: BTreeMap<String, Vec<u8>>) -> Self {
        let card = files.remove("README.md").unwrap_or_default();
        let card =
            String::from_utf8_lossy(card.get(..MAX_TEXT_BYTES).unwrap_or(&card)).into_owned();
        files.retain(|name, _| is_carried(name));
        let card_value = front_matter::value(&card, "license");
        let texts =
            || files.iter().filter(|(name, _)| !is_notice(name)).map(|(_, bytes)| text(bytes));
        let by_text =
            texts().find_map(|text| LLAMA.iter().find(|llama| text.contains(llama.title)));
        let known = texts().find_map(|text| known_licence(&text));
        let from_card = card_value.as_deref();
        let by_card =
            || LLAMA.iter().find(|llama| llama.card_id.is_some() && llama.card_id == from_card);
        // The licence text is what binds; the card only counts where there is none.
        let (llama, known) = match (by_text, known) {
            (Some(llama), _) => (Some(llama), None),
            (None, Some(known)) => (None, Some(known)),
            (None, None) => (by_card(), from_card.and_then(known_card_id)),
        };
        Self {
            llama,
            known,
            card_name: front_matter::value(&card, "license_name"),
            card_link: front_matter::value(&card, "license_link"),
            card_value,
            files,
        }
    }

    /// The licence.
    pub fn licence(&self) -> Licence<'_> {
        match (self.llama, self.known, &self.card_value) {
            (Some(llama), ..) => Licence::Llama(llama),
            (_, Some("apache-2.0"), _) => Licence::Apache2,
            (_, Some(_), _) => Licence::Mit,
            (_, _, Some(name)) => Licence::Named(self.card_name.as_deref().unwrap_or(name)),
            (None, None, None) => Licence::Unknown,
        }
    }

    /// How reports call the licence.
    pub fn name(&self) -> String {
        match self.licence() {
            Licence::Llama(llama) => format!("{} Community License", llama.name),
            Licence::Apache2 => "Apache License 2.0".to_owned(),
            Licence::Mit => "MIT License".to_owned(),
            Licence::Named(name) => name.to_owned(),
            Licence::Unknown => "unknown".to_owned(),
        }
    }

    /// `license`, `license_name` and `license_link` of a model card.
    pub fn card_keys(&self) -> Vec<(&'static str, String)> {
        let other = |name: String| {
            let link = self.card_link.clone().or_else(|| self.licence_file().map(str::to_owned));
            let keys = [("license", "other".to_owned()), ("license_name", name)];
            keys.into_iter().chain(link.map(|link| ("license_link", link))).collect()
        };
        match self.licence() {
            Licence::Llama(llama) => match llama.card_id {
                Some(id) => vec![("license", id.to_owned())],
                None => other(llama.name.to_lowercase().replace(' ', "")),
            },
            Licence::Apache2 => vec![("license", "apache-2.0".to_owned())],
            Licence::Mit => vec![("license", "mit".to_owned())],
            Licence::Named(_) => match (self.card_value.as_deref(), &self.card_name) {
                (Some("other"), name) => other(name.clone().unwrap_or_else(|| "other".to_owned())),
                (Some(value), _) => vec![("license", value.to_owned())],
                (None, _) => Vec::new(),
            },
            Licence::Unknown => Vec::new(),
        }
    }

    fn licence_file(&self) -> Option<&str> {
        let is_licence = |name: &&String| !is_notice(name) && !is_policy(name);
        self.files.keys().find(is_licence).map(String::as_str)
    }

    /// What must be displayed prominently.
    pub fn display(&self) -> Option<&'static str> {
        self.llama.and_then(|llama| llama.display)
    }

    /// What is wrong with distributing the tune as `name`, if anything.
    pub fn name_problem(&self, name: &str) -> Option<String> {
        let llama = self.llama?;
        let prefix = llama.name_prefix.filter(|prefix| !name.starts_with(prefix))?;
        Some(format!(
            "the {} licence asks that the name of a distributed tune begins with \"{prefix}\"; \
             this one is called \"{name}\"",
            llama.name
        ))
    }

    /// What the licence asks for, and what of it the base folder lacks; a sentence each.
    pub fn duties(&self) -> Vec<String> {
        let mut duties = Vec::new();
        let Some(llama) = self.llama else {
            duties.extend(self.other_duties());
            return duties;
        };
        match self.licence_file() {
            Some(file) => duties.push(format!("pass on `{file}`, the {} licence", llama.name)),
            None => duties.push(format!(
                "pass on a copy of the {} licence: the base folder has none, and this program \
                 does not make one up",
                llama.name
            )),
        }
        duties.push("keep the sentence in `NOTICE`".to_owned());
        duties.extend(llama.display.map(|display| format!("display \"{display}\" prominently")));
        let prefix = llama.name_prefix;
        duties.extend(
            prefix.map(|prefix| format!("let the name of the tune begin with \"{prefix}\"")),
        );
        duties.push("follow the acceptable use policy, and pass it on".to_owned());
        duties.push(llama.outputs.to_owned());
        duties.push(
            "ask Meta for a licence if your products had more than 700 million monthly users when \
             the model was released"
                .to_owned(),
        );
        duties.extend(llama.european_union.map(str::to_owned));
        duties
    }

    fn other_duties(&self) -> Vec<String> {
        match self.licence() {
            Licence::Apache2 => vec![
                "pass on the licence, and `NOTICE` where there is one".to_owned(),
                "state that the model was changed".to_owned(),
            ],
            Licence::Mit => vec!["pass on the licence with its copyright line".to_owned()],
            Licence::Named(name) => vec![format!(
                "read the licence `{name}`: this program does not know what it asks for"
            )],
            _ => vec![
                "find out under which licence the base model is: nothing beside its weights says so"
                    .to_owned(),
            ],
        }
    }

    /// The files to put beside a tune: licence and policy byte for byte, and `NOTICE`.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.files.clone();
        let Some(llama) = self.llama else { return files };
        let has_sentence = |(name, bytes): (&String, &Vec<u8>)| {
            is_notice(name) && text_as_is(bytes).contains(llama.notice)
        };
        if !files.iter().any(has_sentence) {
            let notice = files.entry("NOTICE".to_owned()).or_default();
            if !notice.is_empty() && !notice.ends_with(b"\n") {
                notice.push(b'\n');
            }
            notice.extend_from_slice(llama.notice.as_bytes());
            notice.push(b'\n');
        }
        files
    }

    /// Writes [`Self::files`] into `folder`.
    pub fn write(&self, folder: &Path) -> Result<(), ProvenanceError> {
        for (name, bytes) in self.files() {
            let path = folder.join(&name);
            write_atomically(&path, &bytes).map_err(|error| {
                let reason = std::io::Error::other(error.root_cause().to_string());
                ProvenanceError::io("write", &path)(reason)
            })?;
        }
        Ok(())
    }
}

pub(super) fn is_carried(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let is_text = !lower.ends_with(".safetensors") && !lower.contains(['/', '\\']);
    is_text && CARRIED.iter().any(|opening| lower.starts_with(opening))
}

fn is_notice(name: &str) -> bool {
    name.to_ascii_lowercase().starts_with("notice")
}

fn is_policy(name: &str) -> bool {
    name.to_ascii_lowercase().starts_with("use_policy")
}

fn text_as_is(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..MAX_TEXT_BYTES).unwrap_or(bytes)).into_owned()
}

/// Capitals, with one space between words.
fn text(bytes: &[u8]) -> String {
    let text = text_as_is(bytes).to_uppercase();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn known_licence(text: &str) -> Option<&'static str> {
    if text.contains("APACHE LICENSE") && text.contains("VERSION 2.0") {
        Some("apache-2.0")
    } else if text.contains("PERMISSION IS HEREBY GRANTED, FREE OF CHARGE, TO ANY PERSON")
        && text.contains("THE ABOVE COPYRIGHT NOTICE AND THIS PERMISSION NOTICE SHALL BE INCLUDED")
    {
        Some("mit")
    } else {
        None
    }
}

fn known_card_id(id: &str) -> Option<&'static str> {
    ["apache-2.0", "mit"].into_iter().find(|known| *known == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duties(files: &[(&str, &str)]) -> LicenceDuties {
        let own = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
        LicenceDuties::of_files(files.iter().map(own).collect())
    }

    #[test]
    fn the_licence_text_wins_over_the_card() {
        let found = duties(&[
            ("LICENSE", "LLAMA 3.1 COMMUNITY\n LICENSE AGREEMENT\n..."),
            ("README.md", "---\nlicense: apache-2.0\n---\n"),
        ]);
        assert_eq!(found.name(), "Llama 3.1 Community License");
        assert_eq!(found.card_keys(), [("license", "llama3.1".to_owned())]);
        assert_eq!(found.display(), Some("Built with Llama"));
        let notice = String::from_utf8(found.files()["NOTICE"].clone()).unwrap();
        assert_eq!(
            notice,
            "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta \
             Platforms, Inc. All Rights Reserved.\n"
        );
        assert_eq!(found.files()["LICENSE"], b"LLAMA 3.1 COMMUNITY\n LICENSE AGREEMENT\n...");
    }

    #[test]
    fn llama_3_and_llama_3_1_are_told_apart() {
        let found = duties(&[("LICENSE", "META LLAMA 3 COMMUNITY LICENSE AGREEMENT")]);
        assert_eq!(found.card_keys(), [("license", "llama3".to_owned())]);
        assert!(found.name_problem("Llama-3-mine").is_some());
        assert_eq!(found.name_problem("Llama 3 mine"), None);
    }

    #[test]
    fn a_card_without_a_licence_file_lacks_the_copy() {
        let found = duties(&[("README.md", "---\nlicense: llama3.2\n---\n")]);
        assert_eq!(found.name(), "Llama 3.2 Community License");
        assert!(found.duties()[0].contains("has none"), "{:?}", found.duties());
        assert!(found.name_problem("mine").unwrap().contains("begins with \"Llama\""));
    }

    #[test]
    fn a_notice_of_the_base_is_kept_and_completed_once() {
        let licence = ("LICENSE", "LLAMA 2 COMMUNITY LICENSE AGREEMENT");
        let found = duties(&[licence, ("NOTICE", "mine")]);
        let notice = String::from_utf8(found.files()["NOTICE"].clone()).unwrap();
        assert!(notice.starts_with("mine\nLlama 2 is licensed"), "{notice}");
        let again = duties(&[licence, ("NOTICE", &notice)]);
        assert_eq!(again.files()["NOTICE"], notice.as_bytes());
    }

    #[test]
    fn nothing_is_invented() {
        let found = duties(&[("README.md", "# A Llama 3 model\n")]);
        assert_eq!(found.licence(), Licence::Unknown);
        assert_eq!(found.card_keys(), []);
        assert!(found.files().is_empty());
        assert!(found.duties()[0].contains("nothing beside its weights says so"));
    }

    #[test]
    fn a_licence_of_another_name_is_passed_on_as_it_is_called() {
        let card = "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://example.org/l\n---\n";
        let found = duties(&[("README.md", card)]);
        assert_eq!(found.licence(), Licence::Named("qwen-research"));
        let keys = found.card_keys();
        assert_eq!(keys[1], ("license_name", "qwen-research".to_owned()));
        assert_eq!(keys[2], ("license_link", "https://example.org/l".to_owned()));
    }

    #[test]
    fn apache_asks_for_licence_and_statement_of_change() {
        let found = duties(&[("LICENSE", "Apache License\n Version 2.0, January 2004")]);
        assert_eq!(found.licence(), Licence::Apache2);
        assert_eq!(found.duties().len(), 2);
        assert!(found.files().contains_key("LICENSE"));
    }
}
