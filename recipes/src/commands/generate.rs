//! `tunesmith generate`: text from a model, an adapter or a run.

use std::io::{BufRead, IsTerminal, stdin};

use clap::Args;
use datasets::{ChatTemplate, Conversation, GenerationPrompt, Message, SpecialTokens, Tokenizer};
use serde_json::{Value, json};
use trainer::base_model::Decoder;
use trainer::generate::{Ending, Generator, Next, Sampling};

use crate::cli::{DeviceArgs, JsonArgs, NetworkArgs, PrecisionArgs};
use crate::device;
use crate::diagnostics::{ExitStatus, UserError};
use crate::printer::Printer;
use crate::target::Target;

/// Flags of `tunesmith generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// A model, `.gguf` file, adapter or run.
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// Text to go on from; with `--chat`, what the user says.
    #[arg(long, value_name = "TEXT", required_unless_present = "chat")]
    pub prompt: Option<String>,
    /// Talk through the chat template; without `--prompt`, line by line from the terminal.
    #[arg(long)]
    pub chat: bool,
    /// System message of `--chat`.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// A Jinja file or the name of a built-in template, for bases that bring none.
    #[arg(long, value_name = "NAME|FILE", requires = "chat")]
    pub chat_template: Option<String>,
    /// Tokens of an answer at most.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// 0 takes the best token each time.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = at_least_zero)]
    pub temperature: f64,
    /// Keeps the most probable tokens up to this sum.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share)]
    pub top_p: f64,
    /// Keeps this many most probable tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// The base model of an adapter, where its own is elsewhere.
    #[arg(long, value_name = "DIR")]
    pub base: Option<String>,
    /// Where to run.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// In what to compute.
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Whether the network may be used.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Where prompt, token ids and text go, in place of the text on stdout.
    #[command(flatten)]
    pub json: JsonArgs,
}

fn at_least_zero(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a number of at least 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && *number <= 1.0);
    number.ok_or_else(|| "expected a number above 0 and at most 1".to_owned())
}

/// Writes text to stdout as it comes.
pub fn generate(arguments: &GenerateArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    if arguments.json.json.is_some() && arguments.prompt.is_none() {
        let message = "`--json` holds one answer, and a conversation has many";
        return Err(UserError::new(message, "give `--prompt` what the user says").into());
    }
    let chosen = device::choose(arguments.device.device)?;
    let base = arguments.base.as_deref();
    let target = Target::open(&arguments.target, base, arguments.network.network())?;
    printer.warnings(target.base.files.warnings());
    if let Some(line) = target.base.left_out() {
        printer.warning(&line);
    }
    let decoder =
        target.load(&chosen.device, chosen.dtype(arguments.precision.precision.into()))?;
    let session = Session { target: &target, decoder: &decoder, arguments };
    let answer = match (&arguments.prompt, arguments.chat) {
        (Some(prompt), false) => session.complete(prompt, printer)?,
        (Some(prompt), true) => session.chat()?.turn(prompt, printer)?,
        (None, _) => {
            session.talk(printer)?;
            return Ok(ExitStatus::Success);
        }
    };
    if let Some(json) = &arguments.json.json {
        printer.json(json, &answer.json(&target.name))?;
    }
    Ok(ExitStatus::Success)
}

/// What a model wrote, and after what.
struct Answer {
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    text: String,
    ending: Ending,
}

impl Answer {
    fn json(&self, target: &str) -> Value {
        let (ending, stop_id) = match self.ending {
            Ending::Stopped(id) => ("stop_token", Some(id)),
            Ending::Length | Ending::Interrupted => ("length", None),
        };
        json!({
            "target": target,
            "prompt_ids": self.prompt_ids,
            "ids": self.ids,
            "ending": ending,
            "stop_id": stop_id,
            "text": self.text,
        })
    }
}

struct Session<'a> {
    target: &'a Target,
    decoder: &'a Decoder,
    arguments: &'a GenerateArgs,
}

impl<'a> Session<'a> {
    fn tokenizer(&self) -> &'a Tokenizer {
        self.target.tokenizer()
    }

    fn sampling(&self) -> Sampling {
        let GenerateArgs { temperature, top_p, top_k, seed, .. } = *self.arguments;
        Sampling { temperature, top_p, top_k, seed }
    }

    /// Goes on from plain text; a BOS where the tokenizer puts one.
    fn complete(&self, prompt: &str, printer: &mut Printer) -> anyhow::Result<Answer> {
        let mut ids = self.tokenizer().encode(prompt)?;
        let bos = self.tokenizer().bos().filter(|_| self.tokenizer().adds_bos());
        if let Some(bos) = bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        if ids.is_empty() {
            return Err(UserError::new("the prompt is empty", "give `--prompt` some text").into());
        }
        self.answer(ids, printer)
    }

    /// Generates after the prompt, writing text as it comes.
    fn answer(&self, prompt_ids: Vec<u32>, printer: &mut Printer) -> anyhow::Result<Answer> {
        self.target.base.check_ids(&prompt_ids)?;
        // One more for the first new token.
        self.target.base.check_length("the text", prompt_ids.len() + 1)?;
        let mut generator = Generator::new(self.decoder, self.sampling());
        let mut stream = self.tokenizer().stream(SpecialTokens::Skip);
        let (mut ids, mut text, mut failure) = (Vec::new(), String::new(), None);
        let stop_ids = self.tokenizer().stop_ids();
        let most = self.arguments.max_tokens;
        let ending = generator.run(&prompt_ids, most, &stop_ids, &mut |token| {
            ids.push(token);
            let written = stream.push(token).map_err(anyhow::Error::from).and_then(|part| {
                self.show(&part, printer)?;
                text.push_str(&part);
                Ok(())
            });
            match written {
                Ok(()) => Next::Continue,
                Err(error) => {
                    failure = Some(error);
                    Next::Stop
                }
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        let rest = stream.finish()?;
        self.show(&format!("{rest}\n"), printer)?;
        text.push_str(&rest);
        Ok(Answer { prompt_ids, ids, text, ending })
    }

    /// Text goes to stdout unless JSON was asked for.
    fn show(&self, part: &str, printer: &mut Printer) -> anyhow::Result<()> {
        if self.arguments.json.json.is_none() {
            printer.data_raw(part.as_bytes())?;
        }
        Ok(())
    }

    fn chat(&self) -> anyhow::Result<Chat<'_, 'a>> {
        let template = match &self.arguments.chat_template {
            Some(name) => ChatTemplate::named_or_file(name, self.tokenizer())?,
            None => ChatTemplate::of_base(self.tokenizer())?.ok_or_else(|| {
                let names: Vec<&str> =
                    datasets::BUILTIN_TEMPLATES.iter().map(|template| template.name).collect();
                UserError::new(
                    format!("`{}` brings no chat template", self.target.name),
                    format!("name one with `--chat-template`: {}", names.join(", ")),
                )
            })?,
        };
        let mut conversation = Conversation::new(Vec::new());
        if let Some(system) = &self.arguments.system {
            conversation.messages.push(Message::new("system", system));
        }
        Ok(Chat { session: self, template, conversation })
    }

    /// Turns from the terminal until the end of its input.
    fn talk(&self, printer: &mut Printer) -> anyhow::Result<()> {
        let mut chat = self.chat()?;
        if stdin().is_terminal() {
            printer.status("type a line and press Enter; Ctrl-D ends");
        }
        for line in stdin().lock().lines() {
            let line = line?;
            if !line.trim().is_empty() {
                chat.turn(line.trim(), printer)?;
            }
        }
        Ok(())
    }
}

/// A conversation in progress.
struct Chat<'s, 'a> {
    session: &'s Session<'a>,
    template: ChatTemplate,
    conversation: Conversation,
}

impl Chat<'_, '_> {
    fn turn(&mut self, said: &str, printer: &mut Printer) -> anyhow::Result<Answer> {
        self.conversation.messages.push(Message::new("user", said));
        let text = self.template.render(&self.conversation, GenerationPrompt::Add)?;
        let ids = self.session.tokenizer().encode(&text)?;
        let answer = self.session.answer(ids, printer)?;
        self.conversation.messages.push(Message::new("assistant", &answer.text));
        Ok(answer)
    }
}
