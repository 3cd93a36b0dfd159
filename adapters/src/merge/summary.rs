//! What a merge did, for `merge_report.json`.

use serde::Serialize;

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergeSummary {
    /// Type of the merged weights, as `config.json` or llama.cpp names it.
    pub dtype: &'static str,
    /// Tensors in the adapter: two for each module.
    pub adapter_tensors: usize,
    /// Tensors of the adapter that went into the output, each once.
    pub adapter_tensors_consumed: usize,
    /// Modules whose update is zero.
    pub zero_deltas: Vec<String>,
    /// Adapted tensors in which rounding to the output type lost the whole update.
    pub lost_to_rounding: Vec<String>,
    /// Tensors of the base that were left out: a stored head that is tied to the embedding.
    pub left_out: Vec<String>,
    /// Bytes of all tensors.
    pub total_bytes: u64,
    /// Files written, weights first.
    pub files: Vec<String>,
    /// Every tensor of the output, in order.
    pub tensors: Vec<MergedTensor>,
}

/// A tensor of the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergedTensor {
    /// HF name.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Type in the output.
    pub dtype: &'static str,
    /// Whether the adapter changed any element after rounding.
    pub changed: bool,
    /// What the adapter did here; nothing where it has no module.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub update: Option<MergedUpdate>,
    /// Root mean square of what quantising changed, over that of the values; nothing where the
    /// type is not quantised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_rounding_error: Option<f64>,
}

/// What an adapter did to a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergedUpdate {
    /// Inner dimension; nothing where the adapter's tensor takes the place of the base's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Factor on `B·A`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Frobenius norm of what is added: `scale·B·A`, with DoRA and whole tensors all that changed.
    pub delta_norm: f64,
    /// The same over the norm of the base's tensor; nothing where that is zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_delta: Option<f64>,
    /// Elements that differ from the base's, both rounded; in a GGUF file, before rounding.
    pub changed_elements: u64,
}
