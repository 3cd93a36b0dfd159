//! A kernel's text and what it is started with.

use burn::tensor::DType;

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum File {
    Norms,
    Elementwise,
    CrossEntropy,
    Adamw,
    Dequantise,
    Attention,
    AttentionScalar,
}

impl File {
    fn text(self) -> &'static str {
        match self {
            Self::Norms => include_str!("../cuda/norms.cu"),
            Self::Elementwise => include_str!("../cuda/elementwise.cu"),
            Self::CrossEntropy => include_str!("../cuda/cross_entropy.cu"),
            Self::Adamw => include_str!("../cuda/adamw.cu"),
            Self::Dequantise => include_str!("../cuda/dequantise.cu"),
            Self::Attention => include_str!("../cuda/attention.cu"),
            Self::AttentionScalar => include_str!("../cuda/attention_scalar.cu"),
        }
    }
}

/// Number format of activations in a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    Bf16,
}

impl Element {
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Numbers in 16 bytes.
    pub(crate) fn per_load(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::Bf16 => "Bf16",
        }
    }
}

/// A kernel: its text follows from this.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Program {
    pub(crate) file: File,
    pub(crate) entry: &'static str,
    pub(crate) element: Element,
    /// Constants that the text is compiled with.
    pub(crate) constants: Vec<(&'static str, u32)>,
}

impl Program {
    pub(crate) fn new(file: File, entry: &'static str, element: Element) -> Self {
        Self { file, entry, element, constants: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: usize) -> Self {
        self.constants.push((name, value as u32));
        self
    }

    /// The whole text: constants, what all kernels share, the file.
    pub(crate) fn text(&self) -> String {
        let (element, entry) = (self.element.name(), self.entry);
        let mut text = format!("#define ELEMENT {element}\n#define FOR_{entry}\n");
        for (name, value) in &self.constants {
            text.push_str("#define ");
            text.push_str(name);
            text.push(' ');
            text.push_str(&value.to_string());
            text.push('\n');
        }
        text.push_str(include_str!("../cuda/common.cu"));
        text.push_str(self.file.text());
        text
    }
}

/// A program, its threads and its numbers; buffers come beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) program: Program,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) scalars: Scalars,
}

/// The fields of a kernel's last argument, a C struct.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scalars {
    bytes: Vec<u8>,
}

impl Scalars {
    pub(crate) fn word(mut self, value: usize) -> Self {
        self.bytes.extend((value as u32).to_le_bytes());
        self
    }

    pub(crate) fn float(mut self, value: f32) -> Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    /// An integer of 8 bytes: it stands on 8.
    pub(crate) fn long(mut self, value: u64) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    /// The struct in words of 8 bytes.
    pub(crate) fn words(&self) -> Vec<u64> {
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        };
        self.bytes.chunks(8).map(word).collect()
    }
}
