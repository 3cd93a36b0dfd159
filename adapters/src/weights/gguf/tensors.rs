//! Gives every tensor of a file its HF name, and the pieces that it is made of.

use std::{collections::BTreeMap, ops::Range, path::Path};

use super::architecture::{Architecture, is_rope_table};
use super::config::Sizes;
use super::experts::is_stack;
use super::header::{Header, TensorInfo};
use super::placement::{Reading, unfit};
use crate::weights::{StoredDtype, TensorEntry, TensorPart, WeightsError};

/// The tensors of a model by HF name.
#[derive(Default)]
pub(super) struct Tensors {
    pub(super) entries: BTreeMap<String, TensorEntry>,
    /// What each lies in.
    pub(super) places: BTreeMap<String, Vec<Piece>>,
    /// Those that HF files hold as one of several.
    pub(super) parts: BTreeMap<String, TensorPart>,
}

/// Bytes of the file that a tensor, or a part of one, is read from.
pub(super) struct Piece {
    pub(super) range: Range<usize>,
    pub(super) dtype: StoredDtype,
    /// Sizes in the file, outermost first.
    pub(super) shape: Vec<usize>,
    pub(super) reading: Reading,
}

pub(super) fn name_tensors(
    path: &Path,
    header: &Header,
    architecture: &'static Architecture,
    sizes: Sizes,
) -> Result<Tensors, WeightsError> {
    let mut tensors = Tensors::default();
    let mut unknown = Vec::new();
    for (name, info) in header.tensors.iter().filter(|(name, _)| !is_rope_table(name)) {
        let damaged = |problem| WeightsError::damaged(path, format!("tensor `{name}`"), problem);
        if info.shape.len() == 1 && info.dtype.is_quantised() {
            return Err(damaged("a vector in quantised blocks".to_owned()));
        }
        let stack = stack_of(name, info).map_err(damaged)?;
        let Some(places) = architecture.hf_places(name, stack, sizes) else {
            unknown.push(name.as_str());
            continue;
        };
        let shape = if is_stack(name) { &info.shape[1..] } else { &info.shape[..] };
        let bytes = info.range.len() / places.len().max(1);
        for (place, (hf_name, reading)) in places.into_iter().enumerate() {
            let start = info.range.start + place * bytes;
            let range = start..start + bytes;
            let piece = Piece { range, dtype: info.dtype, shape: shape.to_vec(), reading };
            tensors.add(hf_name, piece).map_err(damaged)?;
        }
    }
    if !unknown.is_empty() {
        return Err(unknown_tensors(path, architecture, &unknown));
    }
    tensors.check_whole(path)?;
    tensors.find_parts();
    Ok(tensors)
}

/// Tensors in one: the experts of a stack, or 1.
fn stack_of(name: &str, info: &TensorInfo) -> Result<usize, String> {
    match info.shape.as_slice() {
        // Each expert has bytes, so a header cannot ask for more names than the file could hold.
        &[experts, _, _] if is_stack(name) && experts <= info.range.len() => Ok(experts),
        shape if is_stack(name) => Err(format!("shape {shape:?} in place of a stack of matrices")),
        _ => Ok(1),
    }
}

impl Tensors {
    fn add(&mut self, hf_name: String, piece: Piece) -> Result<(), String> {
        let shape = piece.reading.hf_shape(&piece.shape)?;
        let rows = shape.first().copied().unwrap_or(1);
        if let Some(problem) = unfit(piece.reading, rows, shape.len()) {
            return Err(problem);
        }
        match self.entries.get(&hf_name) {
            Some(other) if other.shape != shape => {
                return Err(format!(
                    "makes `{hf_name}` {shape:?}, its other half {:?}",
                    other.shape
                ));
            }
            Some(_) => {}
            None => {
                let entry = TensorEntry { shape, dtype: piece.dtype };
                self.entries.insert(hf_name.clone(), entry);
            }
        }
        self.places.entry(hf_name).or_default().push(piece);
        Ok(())
    }

    /// What is made of two pieces has both, and they are different ones.
    fn check_whole(&self, path: &Path) -> Result<(), WeightsError> {
        for (name, pieces) in &self.places {
            let wanted = pieces.first().map_or(1, |piece| piece.reading.pieces());
            let is_twice = |piece: &Piece| {
                pieces.iter().filter(|other| other.reading == piece.reading).count() > 1
            };
            if pieces.len() != wanted || pieces.iter().any(is_twice) {
                let problem = format!("{} of {wanted} pieces", pieces.len());
                return Err(WeightsError::damaged(path, format!("tensor `{name}`"), problem));
            }
        }
        Ok(())
    }

    /// Experts that lie transposed are one tensor in HF files.
    fn find_parts(&mut self) {
        let is_assembled =
            |pieces: &[Piece]| pieces.iter().any(|piece| piece.reading.is_assembled());
        let found: Vec<(String, String, usize)> = self
            .places
            .iter()
            .filter(|(_, pieces)| is_assembled(pieces))
            .filter_map(|(name, _)| {
                let (before, after) = name.split_once(".experts.")?;
                let (index, layer) = after.strip_suffix(".weight")?.split_once('.')?;
                let whole = format!("{before}.experts.{layer}");
                Some((name.clone(), whole, index.parse().ok()?))
            })
            .collect();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (_, whole, _) in &found {
            *counts.entry(whole.clone()).or_default() += 1;
        }
        for (name, whole, index) in found {
            let count = counts.get(&whole).copied().unwrap_or_default();
            self.parts.insert(name, TensorPart { whole, index, count });
        }
    }
}

fn unknown_tensors(path: &Path, architecture: &Architecture, unknown: &[&str]) -> WeightsError {
    let shown = unknown.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    let more = unknown.len().saturating_sub(8);
    let found = if more > 0 { format!("{shown} and {more} more") } else { shown };
    WeightsError::Unsupported {
        path: path.to_owned(),
        what: format!("tensor of architecture `{}`", architecture.name),
        found,
        known: "the tensors of its HF counterpart".to_owned(),
    }
}
