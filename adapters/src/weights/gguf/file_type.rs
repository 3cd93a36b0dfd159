//! What the number formats of a whole GGUF file are called, and which one each tensor gets.
//!
//! The mixes, such as `Q4_K_M`, give more bits to the tensors that lose most by few: values and
//! down projections of the first and last layers, and the head. The choices are llama.cpp's, so a
//! file has the size and quality that its name promises there.

use crate::weights::StoredDtype;

/// The type of a whole file, as llama.cpp names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufFileType {
    /// 32-bit floats.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
    /// 8 bit.
    Q8_0,
    /// 4 bit with a scale.
    Q4_0,
    /// 4 bit with scale and minimum.
    Q4_1,
    /// 5 bit with a scale.
    Q5_0,
    /// 5 bit with scale and minimum.
    Q5_1,
    /// Mostly `Q4_K`.
    Q4KS,
    /// Mostly `Q4_K`, more tensors in more bits.
    Q4KM,
    /// Mostly `Q5_K`.
    Q5KS,
    /// Mostly `Q5_K`, more tensors in more bits.
    Q5KM,
    /// 6 bit.
    Q6K,
}

/// (type, name, `general.file_type`, type of most tensors)
type Row = (GgufFileType, &'static str, u32, StoredDtype);

const FILE_TYPES: &[Row] = &[
    (GgufFileType::F32, "F32", 0, StoredDtype::F32),
    (GgufFileType::F16, "F16", 1, StoredDtype::F16),
    (GgufFileType::Bf16, "BF16", 32, StoredDtype::Bf16),
    (GgufFileType::Q8_0, "Q8_0", 7, StoredDtype::Q8_0),
    (GgufFileType::Q6K, "Q6_K", 18, StoredDtype::Q6K),
    (GgufFileType::Q5KM, "Q5_K_M", 17, StoredDtype::Q5K),
    (GgufFileType::Q5KS, "Q5_K_S", 16, StoredDtype::Q5K),
    (GgufFileType::Q5_1, "Q5_1", 9, StoredDtype::Q5_1),
    (GgufFileType::Q5_0, "Q5_0", 8, StoredDtype::Q5_0),
    (GgufFileType::Q4KM, "Q4_K_M", 15, StoredDtype::Q4K),
    (GgufFileType::Q4KS, "Q4_K_S", 14, StoredDtype::Q4K),
    (GgufFileType::Q4_1, "Q4_1", 3, StoredDtype::Q4_1),
    (GgufFileType::Q4_0, "Q4_0", 2, StoredDtype::Q4_0),
];

/// Names without a letter for the size of the mix mean the middle one, as in llama.cpp.
const ALIASES: &[(&str, GgufFileType)] =
    &[("Q4_K", GgufFileType::Q4KM), ("Q5_K", GgufFileType::Q5KM)];

impl GgufFileType {
    /// The type of that name, in capitals or not.
    pub fn named(name: &str) -> Option<Self> {
        let known = FILE_TYPES.iter().map(|row| (row.1, row.0)).chain(ALIASES.iter().copied());
        known.into_iter().find(|row| row.0.eq_ignore_ascii_case(name)).map(|row| row.1)
    }

    /// Every name, for a message.
    pub fn all_names() -> String {
        let names: Vec<String> = FILE_TYPES.iter().map(|row| row.1.to_lowercase()).collect();
        names.join(", ")
    }

    /// Its name in capitals: `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Whether weights are packed in blocks.
    pub fn is_quantised(self) -> bool {
        self.row().3.is_quantised()
    }

    /// `general.file_type`.
    pub(super) fn id(self) -> u32 {
        self.row().2
    }

    fn row(self) -> Row {
        // Every variant has its row: `every_type_has_its_row` below.
        let row = FILE_TYPES.iter().copied().find(|row| row.0 == self);
        row.unwrap_or((self, "?", 0, StoredDtype::F32))
    }
}

/// What the choice of a tensor's type depends on besides the tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelShape {
    pub(super) layers: usize,
    /// Whether the embedding serves as head.
    pub(super) head: Head,
    /// Whether several queries share a value.
    pub(super) grouped_queries: GroupedQueries,
    /// Experts of a block; 0 where it has none.
    pub(super) experts: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Tied,
    Own,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupedQueries {
    No,
    Yes,
}

impl GgufFileType {
    /// The type of the tensor of that name in GGUF.
    pub(super) fn tensor_dtype(
        self,
        name: &str,
        shape: &[usize],
        model: &ModelShape,
    ) -> StoredDtype {
        let is_matrix = shape.len() > 1 && name.ends_with(".weight");
        // Norms, biases, positions and routers are small, and used in f32 anyway.
        let is_kept = name.ends_with("_norm.weight")
            || name.ends_with("ffn_gate_inp.weight")
            || name == "position_embd.weight";
        if !is_matrix || is_kept {
            return StoredDtype::F32;
        }
        let usual = self.row().3;
        if !usual.is_quantised() {
            return usual;
        }
        let columns = shape.last().copied().unwrap_or_default();
        fitting(self.mixed(name, columns, model), columns)
    }

    /// The type by the tensor's part in the model.
    fn mixed(self, name: &str, columns: usize, model: &ModelShape) -> StoredDtype {
        let usual = self.row().3;
        let is_head =
            name == "output.weight" || (model.head == Head::Tied && name == "token_embd.weight");
        if is_head {
            let fits = columns.is_multiple_of(usual.block_elements());
            return if fits && usual != StoredDtype::Q8_0 {
                StoredDtype::Q6K
            } else {
                StoredDtype::Q8_0
            };
        }
        let mut parts = name.split('.').skip(1);
        let layer = parts.next().and_then(|number| number.parse().ok()).unwrap_or_default();
        match parts.next() {
            // Beside eight experts attention is small, and more bits for it cost little.
            Some("attn_k" | "attn_v") if model.experts == 8 => StoredDtype::Q8_0,
            Some("attn_output") if model.experts == 8 && usual == StoredDtype::Q4K => {
                StoredDtype::Q5K
            }
            Some("attn_v" | "attn_qkv") => self.values(layer, model),
            Some("ffn_down" | "ffn_down_exps" | "ffn_down_shexp") => {
                self.down_projection(layer, model.layers)
            }
            _ => usual,
        }
    }

    fn values(self, layer: usize, model: &ModelShape) -> StoredDtype {
        let chosen = match self {
            Self::Q4KM | Self::Q5KM if needs_bits(layer, model.layers) => StoredDtype::Q6K,
            Self::Q4KS if layer < 4 => StoredDtype::Q5K,
            _ => self.row().3,
        };
        // In a model of the shape of Llama 2 70B values are an eighth of the queries' size.
        let is_70b = model.layers == 80 && model.grouped_queries == GroupedQueries::Yes;
        if is_70b && chosen == StoredDtype::Q4K { StoredDtype::Q5K } else { chosen }
    }

    fn down_projection(self, layer: usize, layers: usize) -> StoredDtype {
        match self {
            Self::Q4KM | Self::Q5KM if needs_bits(layer, layers) => StoredDtype::Q6K,
            Self::Q4KS if layer < layers / 8 => StoredDtype::Q5K,
            _ => self.row().3,
        }
    }
}

/// The first and the last eighth of the layers, and every third between them.
fn needs_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// What takes a type's place where rows are not whole blocks of it.
fn fitting(dtype: StoredDtype, columns: usize) -> StoredDtype {
    if columns.is_multiple_of(dtype.block_elements()) {
        return dtype;
    }
    let smaller = match dtype {
        StoredDtype::Q4K => StoredDtype::Q5_0,
        StoredDtype::Q5K => StoredDtype::Q5_1,
        StoredDtype::Q6K => StoredDtype::Q8_0,
        _ => StoredDtype::F16,
    };
    if columns.is_multiple_of(smaller.block_elements()) { smaller } else { StoredDtype::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(layers: usize, head: Head) -> ModelShape {
        ModelShape { layers, head, grouped_queries: GroupedQueries::Yes, experts: 0 }
    }

    #[test]
    fn every_type_has_its_row() {
        use GgufFileType::{
            Bf16, F16, F32, Q4_0, Q4_1, Q4KM, Q4KS, Q5_0, Q5_1, Q5KM, Q5KS, Q6K, Q8_0,
        };
        for file_type in [Bf16, F16, F32, Q4_0, Q4_1, Q4KM, Q4KS, Q5_0, Q5_1, Q5KM, Q5KS, Q6K, Q8_0]
        {
            assert_eq!(GgufFileType::named(&file_type.name().to_lowercase()), Some(file_type));
        }
        assert_eq!(GgufFileType::named("q4_k"), Some(Q4KM));
        assert_eq!(GgufFileType::named("Q3_K"), None);
    }

    #[test]
    fn rows_of_576_fall_back_as_in_llama_cpp() {
        let model = shape(30, Head::Tied);
        let of = |file_type: GgufFileType, name: &str, columns: usize| {
            file_type.tensor_dtype(name, &[64, columns], &model).name()
        };
        assert_eq!(of(GgufFileType::Q4KM, "blk.5.attn_q.weight", 576), "Q5_0");
        assert_eq!(of(GgufFileType::Q4KM, "blk.0.attn_v.weight", 576), "Q8_0");
        assert_eq!(of(GgufFileType::Q5KM, "blk.4.attn_v.weight", 576), "Q5_1");
        assert_eq!(of(GgufFileType::Q4KM, "blk.0.ffn_down.weight", 1536), "Q6_K");
        assert_eq!(of(GgufFileType::Q4KM, "token_embd.weight", 576), "Q8_0");
        assert_eq!(of(GgufFileType::Q4_0, "token_embd.weight", 576), "Q8_0");
        assert_eq!(of(GgufFileType::Q4_0, "token_embd.weight", 2048), "Q6_K");
        assert_eq!(of(GgufFileType::Q4_0, "blk.0.ffn_up.weight", 36), "F16");
        assert_eq!(of(GgufFileType::Q8_0, "token_embd.weight", 2048), "Q8_0");
        assert_eq!(of(GgufFileType::F16, "blk.0.attn_norm.weight", 576), "F32");
    }

    #[test]
    fn attention_beside_eight_experts_gets_more_bits() {
        let model = ModelShape { experts: 8, ..shape(32, Head::Own) };
        let of = |name: &str, shape: &[usize]| {
            GgufFileType::Q4KM.tensor_dtype(name, shape, &model).name()
        };
        assert_eq!(of("blk.9.attn_v.weight", &[64, 4096]), "Q8_0");
        assert_eq!(of("blk.9.attn_k.weight", &[64, 4096]), "Q8_0");
        assert_eq!(of("blk.9.attn_output.weight", &[64, 4096]), "Q5_K");
        assert_eq!(of("blk.0.ffn_down_exps.weight", &[8, 64, 4096]), "Q6_K");
        assert_eq!(of("blk.0.ffn_gate_inp.weight", &[8, 4096]), "F32");
    }

    #[test]
    fn an_own_head_leaves_the_embedding_as_it_is() {
        let model = shape(32, Head::Own);
        let of = |name: &str| GgufFileType::Q4KM.tensor_dtype(name, &[64, 4096], &model).name();
        assert_eq!(of("token_embd.weight"), "Q4_K");
        assert_eq!(of("output.weight"), "Q6_K");
    }
}
