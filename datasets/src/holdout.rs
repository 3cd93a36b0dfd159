//! Holds back rows for validation.
//!
//! Rows are ranked by SHA-256 of `"tunesmith/validation/v1\0"`, the seed and their token ids, all
//! as little-endian integers, and the first ones are held back: `fraction` of all rows, at least
//! one, and never all. Equal rows rank equally and go together, so that a row that stands twice in
//! the data is not both learned and scored. The order of files and rows has no influence.

use sha2::{Digest, Sha256};

use crate::error::DatasetError;
use crate::example::TokenizedExample;
use crate::load::Dataset;

const DOMAIN: &[u8] = b"tunesmith/validation/v1\0";

/// Moves a share of the training rows to the validation examples.
pub(crate) fn hold_back(
    dataset: &mut Dataset,
    fraction: f64,
    seed: u64,
) -> Result<(), DatasetError> {
    let rows: Vec<&[TokenizedExample]> = dataset.train.chunk_by(same_row).collect();
    if rows.len() < 2 {
        return Err(DatasetError::NothingLeft {
            pattern: dataset.counts.first().map(|counts| counts.path.clone()).unwrap_or_default(),
            reason: "`validation.fraction` holds back its only row".to_owned(),
        });
    }
    let mut ranked: Vec<_> =
        rows.iter().enumerate().map(|(row, parts)| (rank(parts, seed), row)).collect();
    ranked.sort_unstable();
    let mut count = ((rows.len() as f64 * fraction).round() as usize).clamp(1, rows.len() - 1);
    while count + 1 < rows.len() && ranked[count].0 == ranked[count - 1].0 {
        count += 1;
    }
    let mut held_back = vec![false; rows.len()];
    for (_, row) in ranked.into_iter().take(count) {
        held_back[row] = true;
    }
    let parts: Vec<usize> = rows.iter().map(|parts| parts.len()).collect();
    let mut examples = std::mem::take(&mut dataset.train).into_iter();
    for (parts, held_back) in parts.into_iter().zip(held_back) {
        let row = examples.by_ref().take(parts);
        if held_back {
            let first = dataset.validation.len();
            dataset.validation.extend(row);
            let number = dataset.validation.get(first).map_or(0, |example| example.dataset);
            if let Some(counts) = dataset.counts.get_mut(number as usize) {
                counts.held_back += 1;
            }
        } else {
            dataset.train.extend(row);
        }
    }
    Ok(())
}

fn same_row(a: &TokenizedExample, b: &TokenizedExample) -> bool {
    (a.dataset, a.origin.file, a.origin.line) == (b.dataset, b.origin.file, b.origin.line)
}

fn rank(parts: &[TokenizedExample], seed: u64) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(seed.to_le_bytes());
    for id in parts.iter().flat_map(|part| &part.token_ids) {
        hasher.update(id.to_le_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::example::Origin;

    /// Rows with these contents, each in two parts.
    fn dataset(contents: &[u32]) -> Dataset {
        let mut train = Vec::new();
        for (row, &content) in contents.iter().enumerate() {
            for part in 0..2 {
                let origin = Origin { file: 0, line: row as u64 + 1, part };
                let (token_ids, labels) = (vec![content, part], vec![1, 2]);
                train.push(TokenizedExample { token_ids, labels, dataset: 0, origin });
            }
        }
        Dataset { train, ..Dataset::default() }
    }

    fn lines(examples: &[TokenizedExample]) -> Vec<u64> {
        examples.chunk_by(same_row).map(|row| row[0].origin.line).collect()
    }

    proptest! {
        #[test]
        fn every_row_lands_on_one_side_with_all_its_parts(
            rows in 2_u32..200, fraction in 0.001_f64..0.999, seed: u64,
        ) {
            let mut data = dataset(&(0..rows).collect::<Vec<_>>());
            hold_back(&mut data, fraction, seed).unwrap();
            let (train, validation) = (lines(&data.train), lines(&data.validation));
            prop_assert_eq!(data.train.len() + data.validation.len(), 2 * rows as usize);
            prop_assert!(train.is_sorted() && validation.is_sorted());
            prop_assert_eq!(train.len() + validation.len(), rows as usize);
            let wanted = (f64::from(rows) * fraction).round().clamp(1.0, f64::from(rows - 1));
            prop_assert_eq!(validation.len(), wanted as usize);
        }
    }

    #[test]
    fn equal_rows_go_together_and_something_is_left_to_train_on() {
        for seed in 0..20 {
            let mut data = dataset(&[1, 2, 3, 1, 2, 3, 1, 2, 3]);
            hold_back(&mut data, 0.4, seed).unwrap();
            let trained: Vec<_> = data.train.iter().map(|example| example.token_ids[0]).collect();
            let scored: Vec<_> =
                data.validation.iter().map(|example| example.token_ids[0]).collect();
            assert!(scored.iter().all(|row| !trained.contains(row)), "{trained:?} {scored:?}");
        }
        let mut data = dataset(&[1, 1, 1]);
        hold_back(&mut data, 0.1, 0).unwrap();
        assert_eq!(lines(&data.train).len(), 1);
    }

    #[test]
    fn the_seed_decides() {
        let held_back = |seed| {
            let mut data = dataset(&(0..100).collect::<Vec<_>>());
            hold_back(&mut data, 0.1, seed).unwrap();
            lines(&data.validation)
        };
        assert_eq!(held_back(1), held_back(1));
        assert_ne!(held_back(1), held_back(2));
    }

    #[test]
    fn one_row_cannot_be_divided() {
        let error = hold_back(&mut dataset(&[1]), 0.5, 0).unwrap_err();
        assert!(error.to_string().contains("only row"), "{error}");
    }
}
