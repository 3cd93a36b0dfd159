//! The model's sizes and its rotary embedding, from `config.json`.

use serde_json::Value;

use super::{family_keys, unsupported};
use crate::weights::gguf::{
    architecture::{Architecture, LONG_ROPE, ROPE_FACTORS},
    config::Sizes,
    head_writer::{Flag, HeadWriter},
    rope_factors::Llama3Scaling,
};
use crate::weights::{ModelFiles, WeightsError};

/// What families call the same size.
pub(super) const LAYERS: &[&str] = &["num_hidden_layers", "n_layer"];
pub(super) const HEADS: &[&str] = &["num_attention_heads", "n_head"];
pub(super) const EXPERTS: &[&str] = &["num_local_experts", "num_experts", "n_routed_experts"];
const HIDDEN: &[&str] = &["hidden_size", "n_embd"];
const CONTEXT: &[&str] = &["max_position_embeddings", "n_positions", "n_ctx"];

pub(super) fn write(
    head: &mut HeadWriter,
    base: &ModelFiles,
    architecture: &Architecture,
) -> Result<(), WeightsError> {
    let reader = Reader::new(base);
    let mut keys = Keys { head, prefix: architecture.name };
    let heads = reader.required(HEADS)?;
    keys.u32("block_count", reader.required(LAYERS)?);
    keys.u32("context_length", reader.required(CONTEXT)?);
    keys.u32("embedding_length", reader.required(HIDDEN)?);
    keys.u32("feed_forward_length", family_keys::inner_size(&reader)?);
    keys.u32("attention.head_count", heads);
    let kv_heads = reader.count("num_key_value_heads")?.unwrap_or(heads);
    // Latent attention is run as if all heads shared one key.
    let kv_heads = if architecture.is_latent() { 1 } else { kv_heads };
    keys.u32("attention.head_count_kv", kv_heads);
    if let Some(base) = family_keys::rope_base(&reader)? {
        keys.f32("rope.freq_base", base);
    }
    write_epsilon(&mut keys, &reader)?;
    if let Some(head_dim) = reader.count("head_dim")?.filter(|_| !architecture.is_latent()) {
        keys.u32("attention.key_length", head_dim);
        keys.u32("attention.value_length", head_dim);
    }
    keys.u32("vocab_size", reader.required(&["vocab_size"])?);
    let sizes = sizes(base)?;
    if sizes.rotated > 0 {
        keys.u32("rope.dimension_count", u32::try_from(sizes.rotated).unwrap_or(u32::MAX));
    }
    write_scaling(&mut keys, &reader)?;
    family_keys::write(&mut keys, &reader, architecture)
}

/// Writes keys of one architecture.
pub(super) struct Keys<'a> {
    head: &'a mut HeadWriter,
    prefix: &'static str,
}

impl Keys<'_> {
    pub(super) fn u32(&mut self, name: &str, value: u32) {
        self.head.u32(&format!("{}.{name}", self.prefix), value);
    }

    pub(super) fn f32(&mut self, name: &str, value: f64) {
        self.head.f32(&format!("{}.{name}", self.prefix), value as f32);
    }

    pub(super) fn string(&mut self, name: &str, value: &str) {
        self.head.string(&format!("{}.{name}", self.prefix), value);
    }

    pub(super) fn flag(&mut self, name: &str, value: Flag) {
        self.head.flag(&format!("{}.{name}", self.prefix), value);
    }
}

fn write_epsilon(keys: &mut Keys, reader: &Reader) -> Result<(), WeightsError> {
    if let Some(epsilon) = reader.number("rms_norm_eps")? {
        keys.f32("attention.layer_norm_rms_epsilon", epsilon);
        return Ok(());
    }
    let epsilon = match reader.number("layer_norm_eps")? {
        Some(epsilon) => Some(epsilon),
        None => reader.number("layer_norm_epsilon")?,
    };
    let epsilon = epsilon.ok_or_else(|| reader.bad("rms_norm_eps", "missing"))?;
    keys.f32("attention.layer_norm_epsilon", epsilon);
    Ok(())
}

fn write_scaling(keys: &mut Keys, reader: &Reader) -> Result<(), WeightsError> {
    match reader.scaling()? {
        Scaling::None | Scaling::Llama3(_) => {}
        Scaling::Linear(factor) => {
            keys.string("rope.scaling.type", "linear");
            keys.f32("rope.scaling.factor", factor);
        }
        Scaling::Yarn(yarn) => {
            keys.string("rope.scaling.type", "yarn");
            keys.f32("rope.scaling.factor", yarn.factor);
            keys.u32("rope.scaling.original_context_length", yarn.original);
            if let Some(turns) = yarn.beta_fast {
                keys.f32("rope.scaling.yarn_beta_fast", turns);
            }
            if let Some(turns) = yarn.beta_slow {
                keys.f32("rope.scaling.yarn_beta_slow", turns);
            }
            if let Some(weight) = yarn.magnitude {
                keys.f32("rope.scaling.yarn_log_multiplier", 0.1 * weight);
            }
        }
        Scaling::Long(long) => {
            keys.string("rope.scaling.type", "longrope");
            keys.u32("rope.scaling.original_context_length", long.original);
            keys.f32("rope.scaling.attn_factor", long.magnitude);
        }
    }
    Ok(())
}

/// Sizes of the attention, from the configuration.
pub(super) fn sizes(base: &ModelFiles) -> Result<Sizes, WeightsError> {
    let reader = Reader::new(base);
    let number = |key: &'static str| reader.number_of(&[key]);
    let heads = reader.number_of(HEADS).unwrap_or_default();
    let kv_heads = number("num_key_value_heads").unwrap_or(heads);
    if let (Some(content), Some(rotated), Some(value)) =
        (number("qk_nope_head_dim"), number("qk_rope_head_dim"), number("v_head_dim"))
    {
        let head_dim = content.saturating_add(rotated);
        return Ok(Sizes { heads, kv_heads: heads, head_dim, rotated, content, value });
    }
    let derived = || Some(reader.number_of(HIDDEN)? / heads.max(1));
    let head_dim = number("head_dim").or_else(derived).unwrap_or_default();
    if head_dim == 0 || head_dim % 2 != 0 {
        return Err(unsupported(base, "head size", head_dim.to_string(), "an even number above 0"));
    }
    let rotated = family_keys::rotated(&reader, head_dim);
    Ok(Sizes { heads, kv_heads, head_dim, rotated, content: 0, value: 0 })
}

/// The divisors of the rotary frequencies by the names of their tensors, where the model scales
/// them one by one.
pub(super) fn rope_tables(
    base: &ModelFiles,
    sizes: Sizes,
) -> Result<Vec<(String, Vec<f32>)>, WeightsError> {
    let reader = Reader::new(base);
    let pairs = usize::try_from(sizes.rotated / 2).unwrap_or_default();
    match reader.scaling()? {
        Scaling::None | Scaling::Linear(_) | Scaling::Yarn(_) => Ok(Vec::new()),
        Scaling::Llama3(scaling) => {
            let theta = family_keys::rope_base(&reader)?.unwrap_or(10_000.0);
            let factors = scaling.factors(pairs, theta);
            let factors = factors.into_iter().map(|factor| factor as f32).collect();
            Ok(vec![(ROPE_FACTORS.to_owned(), factors)])
        }
        Scaling::Long(long) => {
            let tables = LONG_ROPE.into_iter().zip([long.short, long.long]);
            tables
                .map(|(name, values)| match values.len() {
                    count if count == pairs => Ok((name.to_owned(), values)),
                    count => {
                        let problem = format!("{count} divisors for {pairs} rotary pairs");
                        Err(reader.bad("rope_scaling", problem))
                    }
                })
                .collect()
        }
    }
}

/// Scalings that the format can express.
enum Scaling {
    None,
    Linear(f64),
    Llama3(Llama3Scaling),
    Yarn(Yarn),
    Long(LongRope),
}

struct Yarn {
    factor: f64,
    original: u32,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    /// `mscale_all_dim`, where the architecture heeds it.
    magnitude: Option<f64>,
}

struct LongRope {
    original: u32,
    short: Vec<f32>,
    long: Vec<f32>,
    /// Factor of cosines and sines.
    magnitude: f64,
}

/// Reads keys of the language model's configuration.
pub(super) struct Reader<'a> {
    pub(super) base: &'a ModelFiles,
    config: &'a Value,
    pub(super) model_type: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(base: &'a ModelFiles) -> Self {
        let whole = base.config();
        let model_type = whole.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let text = whole.get("text_config").filter(|_| matches!(model_type, "gemma3" | "llama4"));
        Self { base, config: text.unwrap_or(whole), model_type }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn bad(&self, key: &str, problem: impl Into<String>) -> WeightsError {
        WeightsError::damaged(self.base.location(), format!("`config.json`, `{key}`"), problem)
    }

    /// What llama.cpp computes otherwise than the model.
    pub(super) fn inexpressible(
        &self,
        key: &str,
        found: impl Into<String>,
        known: &str,
    ) -> WeightsError {
        unsupported(
            self.base,
            format!("`{key}` in GGUF output of {}", self.model_type),
            found,
            known,
        )
    }

    /// The first of several names of a size.
    pub(super) fn number_of(&self, keys: &[&str]) -> Option<u64> {
        let own = keys.iter().find_map(|key| self.get(key)?.as_u64());
        own.or_else(|| keys.iter().find_map(|key| family_keys::default_size(self.model_type, key)))
    }

    pub(super) fn count(&self, key: &'static str) -> Result<Option<u32>, WeightsError> {
        let Some(value) = self.get(key) else {
            let usual = self.number_of(&[key]);
            return Ok(usual.and_then(|count| u32::try_from(count).ok()));
        };
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        let count = count.filter(|&count| count > 0);
        count.map(Some).ok_or_else(|| self.bad(key, format!("{value} is no size")))
    }

    /// A size that has one of some names.
    pub(super) fn required(&self, keys: &[&'static str]) -> Result<u32, WeightsError> {
        for key in keys {
            if let Some(count) = self.count(key)? {
                return Ok(count);
            }
        }
        Err(self.bad(keys.first().copied().unwrap_or_default(), "missing"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        let Some(value) = self.get(key) else {
            return Ok(family_keys::default_number(self.model_type, key));
        };
        value.as_f64().map(Some).ok_or_else(|| self.bad(key, format!("{value} is no number")))
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Value::as_bool)
    }

    /// The table of the rotary embedding: `rope_scaling`, or `rope_parameters` since
    /// transformers 5. Of several by kind of layer the one for the whole context.
    pub(super) fn rope_table(&self) -> Option<&'a Value> {
        let table = self.get("rope_scaling").or_else(|| self.get("rope_parameters"))?;
        Some(table.get("full_attention").unwrap_or(table))
    }

    fn scaling(&self) -> Result<Scaling, WeightsError> {
        let Some(table) = self.rope_table() else { return Ok(Scaling::None) };
        let named = table.get("rope_type").or_else(|| table.get("type")).and_then(Value::as_str);
        let table = ScalingTable { reader: self, table };
        match named.unwrap_or("default") {
            "default" => Ok(Scaling::None),
            "longrope" | "su" | "yarn" if self.model_type == "phi3" => table.long(),
            "linear" => Ok(Scaling::Linear(table.wanted("factor")?)),
            "llama3" => Ok(Scaling::Llama3(Llama3Scaling {
                factor: table.wanted("factor")?,
                low: table.wanted("low_freq_factor")?,
                high: table.wanted("high_freq_factor")?,
                original: f64::from(table.original()?),
            })),
            "yarn" => table.yarn(),
            other => Err(unsupported(
                self.base,
                format!("rotary scaling in GGUF output of {}", self.model_type),
                other,
                "default, linear, llama3, yarn, and longrope of phi3",
            )),
        }
    }
}

struct ScalingTable<'a> {
    reader: &'a Reader<'a>,
    table: &'a Value,
}

impl ScalingTable<'_> {
    fn number(&self, key: &str) -> Option<f64> {
        self.table.get(key).and_then(Value::as_f64)
    }

    fn wanted(&self, key: &str) -> Result<f64, WeightsError> {
        self.number(key)
            .ok_or_else(|| self.reader.bad("rope_scaling", format!("`{key}` is missing")))
    }

    /// Length of the first training.
    fn original(&self) -> Result<u32, WeightsError> {
        const KEY: &str = "original_max_position_embeddings";
        let inside = self.table.get(KEY).and_then(Value::as_u64);
        let outside = self.reader.get(KEY).and_then(Value::as_u64);
        match inside.or(outside).and_then(|length| u32::try_from(length).ok()) {
            Some(length) => Ok(length),
            None => self.reader.required(CONTEXT),
        }
    }

    fn yarn(&self) -> Result<Scaling, WeightsError> {
        for (key, is_usual) in [
            ("attention_factor", self.number("attention_factor").is_none()),
            ("truncate", self.table.get("truncate").and_then(Value::as_bool) != Some(false)),
        ] {
            if !is_usual {
                let found = self.table.get(key).unwrap_or(&Value::Null).to_string();
                let key = format!("rope_scaling.{key}");
                return Err(self.reader.inexpressible(&key, found, "the default"));
            }
        }
        let (above, below) = (self.number("mscale"), self.number("mscale_all_dim"));
        let is_latent = self.reader.model_type.starts_with("deepseek");
        let magnitude = match (above, below) {
            (Some(above), Some(below)) if is_latent && above.to_bits() == below.to_bits() => {
                Some(below)
            }
            (None, None) if !is_latent => None,
            _ => {
                let found = format!("{above:?} beside `mscale_all_dim` {below:?}");
                let known = if is_latent { "the same as `mscale_all_dim`" } else { "none" };
                return Err(self.reader.inexpressible("rope_scaling.mscale", found, known));
            }
        };
        Ok(Scaling::Yarn(Yarn {
            factor: self.wanted("factor")?,
            original: self.original()?,
            beta_fast: self.number("beta_fast"),
            beta_slow: self.number("beta_slow"),
            magnitude,
        }))
    }

    fn long(&self) -> Result<Scaling, WeightsError> {
        let original = self.original()?;
        let context = self.reader.required(CONTEXT)?;
        if let Some(found) = self.number("attention_factor") {
            let known = "none, so that it follows from the context lengths";
            let key = "rope_scaling.attention_factor";
            return Err(self.reader.inexpressible(key, found.to_string(), known));
        }
        let ratio = f64::from(context) / f64::from(original);
        let magnitude =
            if ratio <= 1.0 { 1.0 } else { (1.0 + ratio.ln() / f64::from(original).ln()).sqrt() };
        let divisors = |key: &str| {
            let items = self.table.get(key).and_then(Value::as_array);
            let numbers = items.and_then(|items| items.iter().map(Value::as_f64).collect());
            let numbers: Option<Vec<f64>> = numbers;
            let numbers =
                numbers.ok_or_else(|| self.reader.bad("rope_scaling", format!("no `{key}`")))?;
            Ok::<_, WeightsError>(numbers.into_iter().map(|number| number as f32).collect())
        };
        let (short, long) = (divisors("short_factor")?, divisors("long_factor")?);
        Ok(Scaling::Long(LongRope { original, short, long, magnitude }))
    }
}
