//! Cuts, drops or refuses examples that are longer than a row.

use crate::config::OnOverlong;
use crate::encode::Encoded;
use crate::example::IGNORED;

/// What became of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fitted {
    /// It fits, or was cut to fit.
    Kept(Kept),
    /// Left out by `on_overlong = "drop"`.
    Dropped,
    /// Refused by `on_overlong = "error"`.
    TooLong,
    /// No token carries loss, and that is not allowed.
    Untrained,
}

/// A row that became examples.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Kept {
    /// Token ids and labels of each example, with its place among the parts of the row.
    pub(crate) parts: Vec<(u32, Vec<u32>, Vec<i32>)>,
    /// Tokens that no example holds.
    pub(crate) cut_tokens: usize,
    /// Kept although no token carries loss.
    pub(crate) untrained: u64,
}

/// What becomes of a row whose parts were fitted one by one.
pub(crate) fn joined(parts: impl IntoIterator<Item = Fitted>) -> Fitted {
    let mut all = Kept::default();
    let mut refused = None;
    for fitted in parts {
        match fitted {
            Fitted::Kept(kept) => {
                all.cut_tokens += kept.cut_tokens;
                all.untrained = all.untrained.max(kept.untrained);
                for (_, token_ids, labels) in kept.parts {
                    all.parts.push((all.parts.len() as u32, token_ids, labels));
                }
            }
            other => refused = Some(other),
        }
    }
    match refused {
        // A part of one token, beside others that teach something.
        Some(Fitted::Untrained) if !all.parts.is_empty() => Fitted::Kept(all),
        Some(refused) => refused,
        None => Fitted::Kept(all),
    }
}

/// What to do with rows that teach nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UntrainedRows {
    Refuse,
    Keep,
}

/// Makes a row fit `sequence_length` tokens.
///
/// `split` cuts after every `sequence_length` tokens; the first token of a part is predicted by
/// nothing, and so each cut costs one label. Parts in which no token carries loss are left out
/// where the row has parts that do.
pub(crate) fn fit(
    encoded: &Encoded,
    sequence_length: usize,
    on_overlong: OnOverlong,
    untrained: UntrainedRows,
) -> Fitted {
    let length = encoded.token_ids.len();
    let part_length = match on_overlong {
        _ if length <= sequence_length => length,
        OnOverlong::Error => return Fitted::TooLong,
        OnOverlong::Drop => return Fitted::Dropped,
        OnOverlong::Truncate | OnOverlong::Split => sequence_length,
    };
    let most_parts = if on_overlong == OnOverlong::Split { usize::MAX } else { 1 };
    let tokens = encoded.token_ids.chunks(part_length.max(1));
    let labels = encoded.labels.chunks(part_length.max(1));
    let mut parts: Vec<_> = (0..).zip(tokens.zip(labels)).take(most_parts).collect();
    let is_trained = |labels: &[i32]| labels.iter().skip(1).any(|&label| label != IGNORED);
    let any_trained = parts.iter().any(|(_, (_, labels))| is_trained(labels));
    if any_trained {
        parts.retain(|(_, (_, labels))| is_trained(labels));
    } else if untrained == UntrainedRows::Refuse {
        return Fitted::Untrained;
    }
    let kept: usize = parts.iter().map(|(_, (tokens, _))| tokens.len()).sum();
    let part = |(part, (tokens, labels)): (u32, (&[u32], &[i32]))| {
        (part, tokens.to_vec(), labels.to_vec())
    };
    Fitted::Kept(Kept {
        cut_tokens: length - kept + encoded.left_out,
        untrained: u64::from(!any_trained),
        parts: parts.into_iter().map(part).collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A row of `length` tokens of which those from `first` on carry loss.
    fn row(length: usize, first: usize) -> Encoded {
        let token_ids: Vec<u32> = (0..length as u32).collect();
        let label = |&id: &u32| if (id as usize) < first { IGNORED } else { id as i32 };
        let labels = token_ids.iter().map(label).collect();
        Encoded { token_ids, labels, turns_without_end: 0, left_out: 0 }
    }

    fn kept(fitted: Fitted) -> Kept {
        match fitted {
            Fitted::Kept(kept) => kept,
            other => panic!("{other:?}"),
        }
    }

    fn lengths(kept: &Kept) -> Vec<(u32, usize)> {
        kept.parts.iter().map(|(part, tokens, _)| (*part, tokens.len())).collect()
    }

    #[test]
    fn each_policy_does_what_it_says() {
        use OnOverlong::{Drop, Error, Split, Truncate};
        let fit = |policy| fit(&row(25, 3), 10, policy, UntrainedRows::Refuse);
        assert_eq!(fit(Error), Fitted::TooLong);
        assert_eq!(fit(Drop), Fitted::Dropped);
        let cut = kept(fit(Truncate));
        assert_eq!((lengths(&cut), cut.cut_tokens), (vec![(0, 10)], 15));
        let split = kept(fit(Split));
        assert_eq!((lengths(&split), split.cut_tokens), (vec![(0, 10), (1, 10), (2, 5)], 0));
    }

    #[test]
    fn a_row_that_fits_is_left_alone_by_every_policy() {
        for policy in [OnOverlong::Error, OnOverlong::Drop, OnOverlong::Truncate, OnOverlong::Split]
        {
            let whole = kept(fit(&row(10, 9), 10, policy, UntrainedRows::Refuse));
            assert_eq!((lengths(&whole), whole.cut_tokens), (vec![(0, 10)], 0));
        }
    }

    #[test]
    fn parts_without_loss_are_left_out_and_counted() {
        let split = kept(fit(&row(25, 21), 10, OnOverlong::Split, UntrainedRows::Keep));
        assert_eq!((lengths(&split), split.cut_tokens), (vec![(2, 5)], 20));
    }

    #[test]
    fn rows_that_teach_nothing_are_refused_or_kept() {
        // One token has nothing before it that could predict it; 20 of 25 are cut off.
        for (row, policy) in [(row(1, 0), OnOverlong::Error), (row(25, 20), OnOverlong::Truncate)] {
            let refused = fit(&row, 10, policy, UntrainedRows::Refuse);
            assert_eq!(refused, Fitted::Untrained);
            assert_eq!(kept(fit(&row, 10, policy, UntrainedRows::Keep)).untrained, 1);
        }
    }

    proptest! {
        #[test]
        fn split_keeps_every_token_once_and_in_order(length in 1_usize..200, most in 1_usize..50) {
            let split = kept(fit(&row(length, 0), most, OnOverlong::Split, UntrainedRows::Keep));
            let tokens: Vec<_> = split.parts.iter().flat_map(|(_, tokens, _)| tokens.clone()).collect();
            prop_assert_eq!(tokens.len() + split.cut_tokens, length);
            for (_, tokens, labels) in &split.parts {
                prop_assert!(tokens.len() <= most && tokens.len() == labels.len());
            }
            prop_assert!(tokens.is_sorted());
        }
    }
}
