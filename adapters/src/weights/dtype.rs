//! How numbers are stored in a weight file.

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoredDtype {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// Brain float: the upper half of an `F32`.
    Bf16,
    /// GGUF: 4 bit, blocks of 32, scale.
    Q4_0,
    /// GGUF: 4 bit, blocks of 32, scale and minimum.
    Q4_1,
    /// GGUF: 5 bit, blocks of 32, scale.
    Q5_0,
    /// GGUF: 5 bit, blocks of 32, scale and minimum.
    Q5_1,
    /// GGUF: 8 bit, blocks of 32, scale.
    Q8_0,
    /// GGUF: 4 bit, blocks of 256 in 8 sub-blocks.
    Q4K,
    /// GGUF: 5 bit, blocks of 256 in 8 sub-blocks.
    Q5K,
    /// GGUF: 6 bit, blocks of 256 in 16 sub-blocks.
    Q6K,
}

/// Facts of one dtype: (dtype, name, GGUF type id, elements of a block, bytes of a block).
type Row = (StoredDtype, &'static str, u32, usize, usize);

/// Every dtype. A new one needs its row here and its decoder in `gguf/blocks.rs`.
const DTYPES: &[Row] = &[
    (StoredDtype::F32, "F32", 0, 1, 4),
    (StoredDtype::F16, "F16", 1, 1, 2),
    (StoredDtype::Bf16, "BF16", 30, 1, 2),
    (StoredDtype::Q4_0, "Q4_0", 2, 32, 18),
    (StoredDtype::Q4_1, "Q4_1", 3, 32, 20),
    (StoredDtype::Q5_0, "Q5_0", 6, 32, 22),
    (StoredDtype::Q5_1, "Q5_1", 7, 32, 24),
    (StoredDtype::Q8_0, "Q8_0", 8, 32, 34),
    (StoredDtype::Q4K, "Q4_K", 12, 256, 144),
    (StoredDtype::Q5K, "Q5_K", 13, 256, 176),
    (StoredDtype::Q6K, "Q6_K", 14, 256, 210),
];

/// Names of GGUF types that are not read, so that a refusal can say which one was met.
const UNREAD_GGML_TYPES: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl StoredDtype {
    fn row(self) -> Row {
        // Every variant has its row: `every_dtype_has_its_row` below.
        DTYPES.iter().copied().find(|row| row.0 == self).unwrap_or((self, "?", u32::MAX, 1, 1))
    }

    /// The name used in file formats: `BF16`, `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Whether the numbers are packed in quantised blocks.
    pub fn is_quantised(self) -> bool {
        self.block_elements() > 1
    }

    /// Elements that are stored together.
    pub fn block_elements(self) -> usize {
        self.row().3
    }

    /// Bytes of one such group.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// The type's number in GGUF files.
    pub(in crate::weights) fn ggml_id(self) -> u32 {
        self.row().2
    }

    pub(super) fn from_ggml(id: u32) -> Option<Self> {
        DTYPES.iter().find(|row| row.2 == id).map(|row| row.0)
    }

    pub(super) fn from_safetensors(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.3 == 1 && row.1 == name).map(|row| row.0)
    }

    pub(super) fn ggml_type_name(id: u32) -> String {
        let known = UNREAD_GGML_TYPES.iter().find(|row| row.0 == id);
        known.map_or_else(|| format!("type {id}"), |row| row.1.to_owned())
    }

    pub(super) fn all_names() -> String {
        DTYPES.iter().map(|row| row.1).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_has_its_row() {
        use StoredDtype::{Bf16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        for dtype in [F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K] {
            assert_ne!(dtype.name(), "?");
            assert_eq!(StoredDtype::from_ggml(dtype.row().2), Some(dtype));
        }
    }

    #[test]
    fn refused_types_are_named() {
        assert_eq!(StoredDtype::ggml_type_name(10), "Q2_K");
        assert_eq!(StoredDtype::ggml_type_name(77), "type 77");
    }
}
