//! Packs examples into rows of bounded length.
//!
//! Padding wastes compute: most examples are short. Best fit decreasing puts the longest first,
//! each into the row with the least room that still holds it; segment borders keep the examples of
//! a row from seeing each other.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Indices of `lengths` by row, the first index of each row being that of its longest example.
///
/// Examples of equal length keep their order, and so the result depends on `lengths` alone. One
/// longer than `capacity` has a row of its own. Takes O(n log n).
pub(crate) fn best_fit(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..lengths.len()).collect();
    longest_first.sort_by_key(|&index| Reverse(lengths[index]));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut rows_by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for index in longest_first {
        let length = lengths[index];
        let (row, room) = take_tightest(&mut rows_by_room, length).unwrap_or_else(|| {
            rows.push(Vec::new());
            (rows.len() - 1, capacity)
        });
        rows[row].push(index);
        if let Some(room) = room.checked_sub(length).filter(|&room| room > 0) {
            rows_by_room.entry(room).or_default().push(row);
        }
    }
    rows
}

/// Removes the row with the least room that holds `length` tokens, with its room.
fn take_tightest(
    rows_by_room: &mut BTreeMap<usize, Vec<usize>>,
    length: usize,
) -> Option<(usize, usize)> {
    let (&room, rows) = rows_by_room.range_mut(length..).next()?;
    let row = rows.pop()?;
    if rows.is_empty() {
        rows_by_room.remove(&room);
    }
    Some((row, room))
}

/// Indices of `lengths` by row, in order: a row ends where the next example does not fit.
pub(crate) fn next_fit(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for (index, &length) in lengths.iter().enumerate() {
        match rows.last_mut() {
            Some(row) if length <= room => row.push(index),
            _ => {
                rows.push(vec![index]);
                room = capacity;
            }
        }
        room = room.saturating_sub(length);
    }
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sums(rows: &[Vec<usize>], lengths: &[usize]) -> Vec<usize> {
        rows.iter().map(|row| row.iter().map(|&index| lengths[index]).sum()).collect()
    }

    proptest! {
        #[test]
        fn packing_keeps_every_example_once_and_never_exceeds_a_row(
            lengths in prop::collection::vec(1_usize..=64, 0..300),
        ) {
            for rows in [best_fit(&lengths, 64), next_fit(&lengths, 64)] {
                let mut indices: Vec<_> = rows.iter().flatten().copied().collect();
                indices.sort_unstable();
                prop_assert_eq!(indices, (0..lengths.len()).collect::<Vec<_>>());
                prop_assert!(sums(&rows, &lengths).iter().all(|&sum| 0 < sum && sum <= 64));
            }
        }

        #[test]
        fn no_two_rows_would_fit_into_one(lengths in prop::collection::vec(1_usize..=64, 0..300)) {
            let mut sums = sums(&best_fit(&lengths, 64), &lengths);
            sums.sort_unstable();
            prop_assert!(sums.len() < 2 || sums[0] + sums[1] > 64);
        }

        #[test]
        fn next_fit_keeps_the_order(lengths in prop::collection::vec(1_usize..=64, 0..300)) {
            let flat: Vec<_> = next_fit(&lengths, 64).into_iter().flatten().collect();
            prop_assert!(flat.is_sorted());
        }
    }

    #[test]
    fn the_tightest_row_is_taken() {
        assert_eq!(best_fit(&[5, 7, 3, 2, 3], 10), [vec![1, 2], vec![0, 4, 3]]);
    }

    #[test]
    fn an_example_longer_than_a_row_stands_alone() {
        assert_eq!(best_fit(&[3, 12, 4], 10), [vec![1], vec![2, 0]]);
        assert_eq!(next_fit(&[3, 12, 4], 10), [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn many_short_examples_leave_hardly_any_room() {
        let lengths: Vec<_> = (0..200_000_usize).map(|i| 1 + i * 7919 % 500).collect();
        let rows = best_fit(&lengths, 2048);
        let tokens: usize = lengths.iter().sum();
        assert!(rows.len() <= tokens.div_ceil(2048) + 1, "{} rows", rows.len());
    }
}
