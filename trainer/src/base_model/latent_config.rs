//! The shape of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

/// Sizes of queries, keys and values that come out of narrow layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentConfig {
    /// Width of what queries are made from; `None`: the residual stream itself.
    pub query_rank: Option<usize>,
    /// Width of what keys and values are made from.
    pub key_value_rank: usize,
    /// Elements of a head's queries and keys without position.
    pub content_dim: usize,
    /// Elements with position, which all heads' keys share; even.
    pub position_dim: usize,
    /// Elements of a head's values.
    pub value_dim: usize,
}

impl LatentConfig {
    /// Width of a head's queries and keys.
    pub fn query_dim(&self) -> usize {
        self.content_dim + self.position_dim
    }

    /// Width of a head in attention, where queries, keys and values lie in rows of one width.
    pub fn padded_dim(&self) -> usize {
        self.query_dim().max(self.value_dim)
    }
}
