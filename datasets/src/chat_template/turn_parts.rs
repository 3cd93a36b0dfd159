//! The text that a chat template puts around each turn, for programs whose templates are not Jinja.
//!
//! A template is asked, not read: probe conversations are rendered and cut at their contents. What
//! comes out is composed again and compared with what the template gives, so a template that does
//! more than frame its turns has no parts.

use super::{ChatTemplate, GenerationPrompt};
use crate::conversation::{Conversation, Message};

/// Contents of the probes: words that no template writes.
const SYSTEM: &str = "Qsystemq";
const USERS: [&str; 2] = ["Quseroneq", "Qusertwoq"];
const ANSWERS: [&str; 2] = ["Qansweroneq", "Qanswertwoq"];

/// Text before and after the content of a turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// Before the content.
    pub prefix: String,
    /// After it.
    pub suffix: String,
}

/// Where a system message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemPlace {
    /// It is a turn of its own.
    Turn(Frame),
    /// It stands inside the first user turn, before the user's text.
    FirstUser(Frame),
    /// The template has no place for one.
    None,
}

/// The parts of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnParts {
    /// Text at the beginning of every conversation, without the begin-of-sequence token.
    pub head: String,
    /// Around system messages.
    pub system: SystemPlace,
    /// The system message of conversations that have none.
    pub default_system: Option<String>,
    /// Around user turns.
    pub user: Frame,
    /// Around answers.
    pub assistant: Frame,
    /// What asks for an answer.
    pub generation: String,
}

impl ChatTemplate {
    /// The parts, where the template only frames its turns. `bos` is the begin-of-sequence token's
    /// text where the tokenizer adds it by itself: it is left out of the parts.
    pub fn turn_parts(&self, bos: Option<&str>) -> Option<TurnParts> {
        let probe = Probe { template: self, bos };
        let parts = probe.parts()?;
        probe.agrees_with(&parts).then_some(parts)
    }
}

struct Probe<'a> {
    template: &'a ChatTemplate,
    bos: Option<&'a str>,
}

impl Probe<'_> {
    fn render(&self, turns: &[(&str, &str)], prompt: GenerationPrompt) -> Option<String> {
        let messages = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
        let text = self.template.render(&Conversation::new(messages), prompt).ok()?;
        let bos = self.bos.unwrap_or_default();
        Some(text.strip_prefix(bos).map_or(text.clone(), str::to_owned))
    }

    fn parts(&self) -> Option<TurnParts> {
        let (user, answer) = (("user", USERS[0]), ("assistant", ANSWERS[0]));
        let asked = self.render(&[user], GenerationPrompt::Add)?;
        let bare = self.render(&[user], GenerationPrompt::Omit)?;
        let answered = self.render(&[user, answer], GenerationPrompt::Omit)?;
        let two = self.render(&[user, answer, ("user", USERS[1])], GenerationPrompt::Omit)?;

        let (start, user_suffix) = bare.split_once(USERS[0])?;
        let generation = asked.strip_prefix(&bare)?.to_owned();
        let (before, assistant_suffix) = answered.split_once(ANSWERS[0])?;
        let (_, assistant_prefix) = before.split_once(USERS[0])?;
        let assistant_prefix = assistant_prefix.strip_prefix(user_suffix)?;
        let (_, between) = two.split_once(ANSWERS[0])?;
        let (user_prefix, _) = between.strip_prefix(assistant_suffix)?.split_once(USERS[1])?;
        // A begin-of-sequence token at every user turn: the first comes from the tokenizer.
        let bos = self.bos.unwrap_or_default();
        let repeated = user_prefix.strip_prefix(bos).filter(|_| !bos.is_empty());
        let assistant_suffix = match repeated {
            Some(_) => format!("{assistant_suffix}{bos}"),
            None => assistant_suffix.to_owned(),
        };
        let user_prefix = repeated.unwrap_or(user_prefix);
        let start = start.strip_suffix(user_prefix)?;
        let (head, system, default_system) = match self.system(start, user_prefix) {
            SystemPlace::Turn(frame) => framed_system(start, frame)?,
            other => (start.to_owned(), other, None),
        };
        Some(TurnParts {
            head,
            system,
            default_system,
            user: Frame { prefix: user_prefix.to_owned(), suffix: user_suffix.to_owned() },
            assistant: Frame { prefix: assistant_prefix.to_owned(), suffix: assistant_suffix },
            generation,
        })
    }

    /// Where a system message goes; the prefix of its turn still has the head before it.
    fn system(&self, start: &str, user_prefix: &str) -> SystemPlace {
        let turns = [("system", SYSTEM), ("user", USERS[0])];
        let place = self.render(&turns, GenerationPrompt::Omit).and_then(|text| {
            let (before, rest) = text.split_once(SYSTEM)?;
            let (between, _) = rest.split_once(USERS[0])?;
            let own_turn = between.strip_suffix(user_prefix).filter(|_| !user_prefix.is_empty());
            if let Some(suffix) = own_turn {
                let frame = Frame { prefix: before.to_owned(), suffix: suffix.to_owned() };
                return Some(SystemPlace::Turn(frame));
            }
            let prefix = before.strip_prefix(start)?.strip_prefix(user_prefix)?.to_owned();
            Some(SystemPlace::FirstUser(Frame { prefix, suffix: between.to_owned() }))
        });
        place.unwrap_or(SystemPlace::None)
    }

    fn agrees_with(&self, parts: &TurnParts) -> bool {
        let full = [
            ("system", SYSTEM),
            ("user", USERS[0]),
            ("assistant", ANSWERS[0]),
            ("user", USERS[1]),
            ("assistant", ANSWERS[1]),
            ("user", USERS[0]),
        ];
        let has_system = parts.system != SystemPlace::None;
        let from = usize::from(!has_system);
        [&full[from..], &full[1..], &full[from..2], &full[1..2], &full[from..4], &full[1..4]]
            .into_iter()
            .all(|turns| {
                self.render(turns, GenerationPrompt::Add)
                    .is_some_and(|text| text == parts.compose(turns))
            })
    }
}

/// Parts the text before the first user turn into head and default system message.
fn framed_system(start: &str, frame: Frame) -> Option<(String, SystemPlace, Option<String>)> {
    if let Some(prefix) = frame.prefix.strip_prefix(start) {
        let frame = Frame { prefix: prefix.to_owned(), suffix: frame.suffix };
        return Some((start.to_owned(), SystemPlace::Turn(frame), None));
    }
    let default = start.strip_prefix(&frame.prefix)?.strip_suffix(&frame.suffix)?.to_owned();
    Some((String::new(), SystemPlace::Turn(frame), Some(default)))
}

impl TurnParts {
    /// The conversation of `(role, content)` as the parts give it, asking for an answer.
    pub fn compose(&self, turns: &[(&str, &str)]) -> String {
        let system = turns.iter().find(|turn| turn.0 == "system").map(|turn| turn.1);
        let mut text = self.head.clone();
        if let (None, Some(default), SystemPlace::Turn(frame)) =
            (system, &self.default_system, &self.system)
        {
            text.extend([frame.prefix.as_str(), default, &frame.suffix]);
        }
        let mut is_first_user = true;
        for (role, content) in turns {
            let frame = match (*role, &self.system) {
                ("system", SystemPlace::Turn(frame)) => frame,
                ("user", _) => &self.user,
                ("assistant", _) => &self.assistant,
                _ => continue,
            };
            text.push_str(&frame.prefix);
            if let (true, "user", SystemPlace::FirstUser(inner), Some(system)) =
                (is_first_user, *role, &self.system, system)
            {
                text.extend([inner.prefix.as_str(), system, &inner.suffix]);
            }
            is_first_user &= *role != "user";
            text.push_str(content);
            text.push_str(&frame.suffix);
        }
        text + &self.generation
    }
}
