//! Writes the HF `config.json` that a GGUF file's metadata stands for.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    architecture::{Architecture, LONG_ROPE, ROPE_FACTORS, has_bias},
    header::Header,
    metadata::Metadata,
    rope_factors,
};
use crate::weights::{StoredDtype, WeightsError};

/// Sizes of the model that the reader itself needs, checked against each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head_dim: u64,
    /// Elements of a head that the rotary embedding turns.
    pub(super) rotated: u64,
    /// Of latent attention: the keys' elements without position.
    pub(super) content: u64,
    /// Of latent attention: elements of a value.
    pub(super) value: u64,
}

/// Keys that would change the model's mathematics, with the values that leave it unchanged.
/// A file with another value is refused: no configuration of the family could express it.
const NEUTRAL: &[(&str, f64)] = &[
    ("expert_count", 0.0),
    ("expert_shared_count", 0.0),
    ("expert_group_count", 0.0),
    ("expert_group_used_count", 0.0),
    ("expert_weights_scale", 1.0),
    // Softmax.
    ("expert_gating_func", 1.0),
    ("leading_dense_block_count", 0.0),
    ("router_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("embedding_scale", 1.0),
    ("residual_scale", 1.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.sliding_window", 0.0),
    ("attention.temperature_scale", 0.0),
];

/// The metadata of one architecture, its keys without their prefix, and what goes with it.
pub(super) struct Keys<'a> {
    header: &'a Header,
    architecture: &'static Architecture,
    /// Values of the tensors that belong to the configuration.
    tables: &'a BTreeMap<String, Vec<f32>>,
}

impl Keys<'_> {
    fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    pub(super) fn table(&self, tensor: &str) -> Option<&Vec<f32>> {
        self.tables.get(tensor)
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    pub(super) fn damaged(&self, name: &str, problem: &str) -> WeightsError {
        self.metadata().damaged(&self.key(name), problem)
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, WeightsError> {
        self.metadata().bool(&self.key(name))
    }

    pub(super) fn required(&self, name: &str) -> Result<u64, WeightsError> {
        let key = self.key(name);
        let value = self.metadata().uniform_u64(&key)?;
        value.filter(|&n| n > 0).ok_or_else(|| self.metadata().damaged(&key, "missing or 0"))
    }

    pub(super) fn integer(&self, name: &str) -> Result<Option<u64>, WeightsError> {
        self.metadata().uniform_u64(&self.key(name))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, WeightsError> {
        self.metadata().number(&self.key(name))
    }

    pub(super) fn unsupported(
        &self,
        name: &str,
        found: impl Into<String>,
        known: &str,
    ) -> WeightsError {
        self.metadata().unsupported(format!("metadata `{}`", self.key(name)), found, known)
    }

    /// Added to the mean square, or to the variance, in norms.
    fn epsilon(&self) -> Result<f64, WeightsError> {
        const RMS: &str = "attention.layer_norm_rms_epsilon";
        let epsilon = self.number(RMS)?.or(self.number("attention.layer_norm_epsilon")?);
        epsilon.ok_or_else(|| self.damaged(RMS, "missing"))
    }

    fn check_neutral(&self) -> Result<(), WeightsError> {
        let expressed = self.architecture.expressed;
        for (name, neutral) in NEUTRAL.iter().filter(|(name, _)| !expressed.contains(name)) {
            if let Some(value) = self.number(name)?
                && value.to_bits() != neutral.to_bits()
            {
                return Err(self.unsupported(name, value.to_string(), &neutral.to_string()));
            }
        }
        Ok(())
    }

    fn sizes(&self) -> Result<Sizes, WeightsError> {
        let hidden = self.required("embedding_length")?;
        let heads = self.required("attention.head_count")?;
        if self.architecture.is_latent() {
            return self.latent_sizes(heads);
        }
        let kv_heads = self.integer("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = self.integer("attention.key_length")?.unwrap_or(hidden / heads);
        let value_dim = self.integer("attention.value_length")?.unwrap_or(head_dim);
        if value_dim != head_dim {
            return Err(self.unsupported(
                "attention.value_length",
                value_dim.to_string(),
                "the same as `attention.key_length`",
            ));
        }
        let rotated = self.integer("rope.dimension_count")?.unwrap_or(head_dim);
        if rotated == 0 || rotated > head_dim || rotated % 2 != 0 {
            let known = format!("an even number up to the head size, {head_dim}");
            return Err(self.unsupported("rope.dimension_count", rotated.to_string(), &known));
        }
        if kv_heads == 0 || heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 {
            let key = self.key("attention.head_count");
            let problem = format!("{heads} heads, {kv_heads} kv heads of size {head_dim}");
            return Err(self.metadata().damaged(&key, problem));
        }
        let scale = self.number("attention.scale")?;
        let scale = scale.filter(|_| !self.architecture.expressed.contains(&"attention.scale"));
        let usual = 1.0 / (head_dim as f64).sqrt();
        if let Some(scale) = scale.filter(|scale| (scale - usual).abs() > 1e-6 * usual) {
            return Err(self.unsupported("attention.scale", scale.to_string(), "1/√(head size)"));
        }
        Ok(Sizes { heads, kv_heads, head_dim, rotated, content: 0, value: 0 })
    }

    /// Latent attention: the plain lengths are those of the narrow row where there are others.
    fn latent_sizes(&self, heads: u64) -> Result<Sizes, WeightsError> {
        const KEY: &str = "attention.key_length_mla";
        let length = |name: &str, plain: &str| match self.integer(name)? {
            Some(length) if length > 0 => Ok(length),
            _ => self.required(plain),
        };
        let head_dim = length(KEY, "attention.key_length")?;
        let value = length("attention.value_length_mla", "attention.value_length")?;
        let rotated = self.required("rope.dimension_count")?;
        if rotated % 2 != 0 || rotated >= head_dim {
            let known = format!("an even number below the keys' size, {head_dim}");
            return Err(self.unsupported("rope.dimension_count", rotated.to_string(), &known));
        }
        let content = head_dim - rotated;
        Ok(Sizes { heads, kv_heads: heads, head_dim, rotated, content, value })
    }

    /// The HF `rope_scaling`, or `None` where positions are not scaled.
    fn rope_scaling(
        &self,
        factors: Option<&[f32]>,
        theta: f64,
    ) -> Result<Option<Value>, WeightsError> {
        let named = self.metadata().string(&self.key("rope.scaling.type"))?.unwrap_or("none");
        // Written by early converters in place of type and factor; 1 is "not scaled".
        let old_style = self.number("rope.scale_linear")?;
        let factor = self.number("rope.scaling.factor")?.or(old_style);
        if let Some(factors) = factors {
            if named != "none" {
                return Err(self.unsupported(
                    "rope.scaling.type",
                    named,
                    "none beside `rope_freqs`",
                ));
            }
            return rope_factors::llama3_scaling(factors, theta).map(Some).ok_or_else(|| {
                self.metadata().unsupported(
                    format!("tensor `{ROPE_FACTORS}`"),
                    "an unknown set of factors",
                    "Llama 3's scaling with low 1, high 4 and an original context of 8192",
                )
            });
        }
        match (named, factor) {
            ("none", None) => Ok(None),
            ("none", Some(factor)) if factor <= 1.0 => Ok(None),
            ("linear" | "none", Some(factor)) if factor > 0.0 => {
                Ok(Some(json!({"rope_type": "linear", "factor": factor})))
            }
            ("yarn", Some(factor)) if factor > 0.0 => self.yarn(factor).map(Some),
            ("linear" | "yarn", _) => {
                let key = self.key("rope.scaling.factor");
                Err(self.metadata().damaged(&key, "missing or not positive"))
            }
            // Phi-3 has its divisors in tensors.
            ("longrope", _) if self.table(LONG_ROPE[0]).is_some() => Ok(None),
            _ => Err(self.unsupported(
                "rope.scaling.type",
                named,
                "none, linear, yarn, and `rope_freqs`",
            )),
        }
    }

    fn yarn(&self, factor: f64) -> Result<Value, WeightsError> {
        const LOG: &str = "rope.scaling.yarn_log_multiplier";
        for name in [
            LOG,
            "rope.scaling.attn_factor",
            "rope.scaling.yarn_attn_factor",
            "rope.scaling.yarn_ext_factor",
        ] {
            let is_expressed = self.architecture.expressed.contains(&name);
            if let Some(found) = self.number(name)?.filter(|_| !is_expressed) {
                return Err(self.unsupported(name, found.to_string(), "none"));
            }
        }
        let mut scaling = json!({"rope_type": "yarn", "factor": factor});
        // Files hold a tenth of it.
        if let Some(tenth) = self.number(LOG)? {
            let weight = (tenth * 1e5).round() / 1e4;
            scaling["mscale"] = weight.into();
            scaling["mscale_all_dim"] = weight.into();
        }
        for (name, key) in [
            ("rope.scaling.original_context_length", "original_max_position_embeddings"),
            ("rope.scaling.yarn_beta_fast", "beta_fast"),
            ("rope.scaling.yarn_beta_slow", "beta_slow"),
        ] {
            if let Some(value) = self.number(name)? {
                let whole = value.fract() == 0.0;
                scaling[key] = if whole { (value as u64).into() } else { value.into() };
            }
        }
        Ok(scaling)
    }
}

pub(super) fn sizes(
    header: &Header,
    architecture: &'static Architecture,
) -> Result<Sizes, WeightsError> {
    Keys { header, architecture, tables: &BTreeMap::new() }.sizes()
}

/// The configuration. `tables` are the values of the tensors that belong to it.
pub(super) fn config(
    header: &Header,
    architecture: &'static Architecture,
    tables: &BTreeMap<String, Vec<f32>>,
) -> Result<Value, WeightsError> {
    let metadata = &header.metadata;
    let keys = Keys { header, architecture, tables };
    keys.check_neutral()?;
    let sizes = keys.sizes()?;
    let embedding = header.tensors.get("token_embd.weight").and_then(|info| info.shape.first());
    let vocab_size = embedding.ok_or_else(|| {
        metadata.damaged("general.architecture", "the file has no tensor `token_embd.weight`")
    })?;
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let epsilon = keys.epsilon()?;
    let rope_factors = tables.get(ROPE_FACTORS).map(Vec::as_slice);
    let mut config = json!({
        "architectures": [architecture.hf_class],
        "model_type": architecture.model_type,
        "hidden_act": "silu",
        "hidden_size": keys.required("embedding_length")?,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_hidden_layers": keys.required("block_count")?,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "max_position_embeddings": keys.required("context_length")?,
        "rms_norm_eps": epsilon,
        "rope_theta": theta,
        "rope_scaling": keys.rope_scaling(rope_factors, theta)?,
        "attention_bias": has_bias(&header.tensors, &["attn_q", "attn_k", "attn_v", "attn_output"]),
        "mlp_bias": has_bias(&header.tensors, &["ffn_gate", "ffn_up", "ffn_down"]),
        "tie_word_embeddings": !header.tensors.contains_key("output.weight"),
        "torch_dtype": torch_dtype(header),
        "use_cache": true,
        "vocab_size": vocab_size,
    });
    if let Some(config) = config.as_object_mut() {
        insert_token_ids(config, metadata)?;
        (architecture.configure)(&keys, sizes, config)?;
    }
    Ok(config)
}

fn insert_token_ids(
    config: &mut Map<String, Value>,
    metadata: &Metadata,
) -> Result<(), WeightsError> {
    for (hf, gguf) in
        [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")]
    {
        if let Some(id) = metadata.u64(&format!("tokenizer.ggml.{gguf}_token_id"))? {
            config.insert(hf.to_owned(), id.into());
        }
    }
    Ok(())
}

/// The 16-bit type of the weights; quantised ones count as f16, and f32 only where nothing is smaller.
fn torch_dtype(header: &Header) -> &'static str {
    let matrices = header.tensors.values().filter(|info| info.shape.len() > 1);
    let dtypes: Vec<StoredDtype> = matrices.map(|info| info.dtype).collect();
    if dtypes.iter().all(|&dtype| dtype == StoredDtype::F32) {
        "float32"
    } else if dtypes.iter().all(|dtype| matches!(dtype, StoredDtype::F32 | StoredDtype::Bf16)) {
        "bfloat16"
    } else {
        "float16"
    }
}
