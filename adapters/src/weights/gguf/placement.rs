//! How a tensor of the file becomes a tensor of HF.
//!
//! Mostly one becomes one. The experts of a block are one tensor in the file and many in HF; latent
//! attention's keys and values are two in the file and one in HF.

use crate::peft::transposed;
use crate::weights::decode::RowOrder;

/// How a tensor is brought into the HF layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Row for row, in this order.
    Rows(RowOrder),
    /// The file holds `1 + w`.
    MinusOne,
    /// The file holds `[columns, rows]`.
    Transposed,
    /// The file holds this half of the columns, as `[columns / 2, rows]`.
    HalfTransposed(Half),
    /// The rows of keys: the file holds `[heads, columns, content]`.
    LatentKeys(LatentHeads),
    /// The rows of values: the file holds `[heads, value, columns]`.
    LatentValues(LatentHeads),
}

/// Which half of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    First,
    Second,
}

/// Rows of the HF tensor that expands latent keys and values: of each head first the keys' part
/// without position, then the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LatentHeads {
    pub(crate) heads: usize,
    pub(crate) content: usize,
    pub(crate) value: usize,
}

impl LatentHeads {
    fn rows_of_head(self) -> usize {
        self.content.saturating_add(self.value)
    }

    fn rows(self) -> Option<usize> {
        self.heads.checked_mul(self.content.checked_add(self.value)?)
    }
}

/// Where a tensor of HF lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FilePlace {
    pub(super) name: String,
    /// Which of the experts that the file's tensor holds, where it holds several.
    pub(super) expert: Option<usize>,
    pub(super) reading: Reading,
}

impl FilePlace {
    pub(super) fn whole(name: String, reading: Reading) -> Self {
        Self { name, expert: None, reading }
    }
}

impl Reading {
    /// Whether rows of the tensor are not rows of the file, so that it is put together as a whole.
    pub(super) fn is_assembled(self) -> bool {
        !matches!(self, Self::Rows(_) | Self::MinusOne)
    }

    /// Pieces of the file that make one tensor.
    pub(super) fn pieces(self) -> usize {
        match self {
            Self::Rows(_) | Self::MinusOne | Self::Transposed => 1,
            Self::HalfTransposed(_) | Self::LatentKeys(_) | Self::LatentValues(_) => 2,
        }
    }

    /// The HF shape of what the file holds as `stored`, or why there is none.
    pub(super) fn hf_shape(self, stored: &[usize]) -> Result<Vec<usize>, String> {
        let unfit = || format!("shape {stored:?} in place of that of its part of the model");
        match (self, stored) {
            (Self::Rows(_) | Self::MinusOne, _) => Ok(stored.to_vec()),
            (Self::Transposed, &[columns, rows]) => Ok(vec![rows, columns]),
            (Self::HalfTransposed(_), &[half, rows]) => {
                half.checked_mul(2).map(|columns| vec![rows, columns]).ok_or_else(unfit)
            }
            (Self::LatentKeys(latent), &[heads, rank, content])
                if (heads, content) == (latent.heads, latent.content) =>
            {
                latent.rows().map(|rows| vec![rows, rank]).ok_or_else(unfit)
            }
            (Self::LatentValues(latent), &[heads, value, rank])
                if (heads, value) == (latent.heads, latent.value) =>
            {
                latent.rows().map(|rows| vec![rows, rank]).ok_or_else(unfit)
            }
            _ => Err(unfit()),
        }
    }

    /// The file's shape of a tensor that is `shape` in HF; [`unfit`] has nothing against it.
    pub(super) fn stored_shape(self, shape: &[usize]) -> Vec<usize> {
        match (self, shape) {
            (Self::Transposed, &[rows, columns]) => vec![columns, rows],
            (Self::HalfTransposed(_), &[rows, columns]) => vec![columns / 2, rows],
            (Self::LatentKeys(latent), &[_, rank]) => vec![latent.heads, rank, latent.content],
            (Self::LatentValues(latent), &[_, rank]) => vec![latent.heads, latent.value, rank],
            _ => shape.to_vec(),
        }
    }

    /// Rows of the HF tensor that are brought into the file's order together: whole attention heads
    /// where these are reordered, and the whole tensor where its rows go to all ends of it.
    pub(crate) fn rows_together(self) -> Together {
        match self {
            Self::Rows(RowOrder::AsStored) | Self::MinusOne => Together::Rows(1),
            Self::Rows(RowOrder::Interleaved { head_dim }) => Together::Rows(head_dim),
            _ => Together::All,
        }
    }

    /// Rows of the model, of `columns` each, as the file has them.
    pub(crate) fn to_stored(self, mut values: Vec<f32>, columns: usize) -> Vec<f32> {
        match self {
            Self::Rows(RowOrder::AsStored) => values,
            Self::Rows(order) => order.to_stored(&values, columns),
            Self::MinusOne => {
                for value in &mut values {
                    *value += 1.0;
                }
                values
            }
            Self::Transposed => transposed(&values, columns),
            Self::HalfTransposed(half) => {
                let first = half.first_column(columns);
                let rows = values.chunks_exact(columns.max(1));
                let half: Vec<f32> =
                    rows.flat_map(|row| &row[first..first + columns / 2]).copied().collect();
                transposed(&half, columns / 2)
            }
            Self::LatentKeys(latent) => heads_of(&values, latent, columns)
                .flat_map(|head| transposed(&head[..latent.content * columns], columns))
                .collect(),
            Self::LatentValues(latent) => heads_of(&values, latent, columns)
                .flat_map(|head| head[latent.content * columns..].iter().copied())
                .collect(),
        }
    }

    /// Puts what the file holds into the whole HF tensor of rows of `columns`: the inverse of
    /// [`Self::to_stored`] for readings that are assembled.
    pub(super) fn assemble(self, stored: &[f32], whole: &mut [f32], columns: usize) {
        let rows = whole.len() / columns.max(1);
        match self {
            Self::Rows(_) | Self::MinusOne => whole.copy_from_slice(stored),
            Self::Transposed => scatter_columns(stored, whole, (rows, columns), 0),
            Self::HalfTransposed(half) => {
                scatter_columns(stored, whole, (rows, columns), half.first_column(columns));
            }
            Self::LatentKeys(latent) => {
                let heads = whole.chunks_exact_mut((latent.rows_of_head() * columns).max(1));
                let pieces = stored.chunks_exact((latent.content * columns).max(1));
                for (head, piece) in heads.zip(pieces) {
                    let keys = transposed(piece, latent.content);
                    head[..keys.len()].copy_from_slice(&keys);
                }
            }
            Self::LatentValues(latent) => {
                let heads = whole.chunks_exact_mut((latent.rows_of_head() * columns).max(1));
                let pieces = stored.chunks_exact((latent.value * columns).max(1));
                for (head, piece) in heads.zip(pieces) {
                    head[latent.content * columns..].copy_from_slice(piece);
                }
            }
        }
    }
}

/// How many rows belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Together {
    Rows(usize),
    All,
}

impl Half {
    fn first_column(self, columns: usize) -> usize {
        match self {
            Self::First => 0,
            Self::Second => columns / 2,
        }
    }
}

fn heads_of(values: &[f32], latent: LatentHeads, columns: usize) -> impl Iterator<Item = &[f32]> {
    values.chunks_exact((latent.rows_of_head() * columns).max(1))
}

/// Rows of the file become columns from `first` on.
fn scatter_columns(
    stored: &[f32],
    whole: &mut [f32],
    (rows, columns): (usize, usize),
    first: usize,
) {
    for (column, values) in stored.chunks_exact(rows.max(1)).enumerate() {
        for (row, value) in values.iter().enumerate() {
            whole[row * columns + first + column] = *value;
        }
    }
}

/// Why a tensor of `rows` and `axes` in HF has no place in the file, if it has none.
pub(super) fn unfit(reading: Reading, rows: usize, axes: usize) -> Option<String> {
    match reading {
        Reading::Rows(RowOrder::Interleaved { head_dim }) if !rows.is_multiple_of(head_dim) => {
            Some(format!("{rows} rows are not whole heads of {head_dim}"))
        }
        Reading::Rows(RowOrder::ByHead { heads, head_dim })
            if heads.checked_mul(3).and_then(|n| n.checked_mul(head_dim)) != Some(rows) =>
        {
            Some(format!("{rows} rows are not query, key and value of {heads} heads of {head_dim}"))
        }
        Reading::LatentKeys(latent) | Reading::LatentValues(latent)
            if latent.rows() != Some(rows) =>
        {
            let LatentHeads { heads, content, value } = latent;
            Some(format!("{rows} rows are not {heads} heads of {content} and {value}"))
        }
        _ if reading.is_assembled() && axes != 2 => Some(format!("{axes} axes in place of 2")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_apart_is_put_together() {
        let latent = LatentHeads { heads: 2, content: 3, value: 1 };
        let pairs = [
            [Reading::HalfTransposed(Half::First), Reading::HalfTransposed(Half::Second)],
            [Reading::LatentKeys(latent), Reading::LatentValues(latent)],
        ];
        let shape = [8, 4];
        let values: Vec<f32> = (0..32).map(|n| n as f32).collect();
        for pair in pairs {
            let mut whole = vec![f32::NAN; values.len()];
            for reading in pair {
                let stored = reading.to_stored(values.clone(), 4);
                let stored_shape = reading.stored_shape(&shape);
                assert_eq!(stored.len(), stored_shape.iter().product::<usize>(), "{reading:?}");
                assert_eq!(reading.hf_shape(&stored_shape).unwrap(), shape, "{reading:?}");
                reading.assemble(&stored, &mut whole, 4);
            }
            assert_eq!(whole, values);
        }
    }

    #[test]
    fn keys_of_a_head_lie_by_column() {
        let latent = LatentHeads { heads: 1, content: 2, value: 1 };
        let stored = Reading::LatentKeys(latent).to_stored((0..6).map(|n| n as f32).collect(), 2);
        assert_eq!(stored, [0.0, 2.0, 1.0, 3.0]);
    }
}
