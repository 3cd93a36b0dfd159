//! Texts that share beginnings, laid out so that each shared token is computed once.

use std::ops::Range;

use kernels::Segments;

use super::context::pieces;

/// Tokens of some texts as a tree: a branch stands once, however many texts begin with it.
///
/// Attention of a branch sees the branches it hangs on and itself, as if its text stood alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenTree {
    pub(super) token_ids: Vec<u32>,
    branches: Vec<Branch>,
}

/// Some tokens that follow the end of another branch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Branch {
    /// Rows of the branches before it, then its own.
    rows: Vec<usize>,
    /// Tokens of its own, the last of `rows`.
    own: usize,
}

/// Whether texts share their beginnings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// They do.
    Beginnings,
    /// Each text is a branch of its own.
    Nothing,
}

impl TokenTree {
    /// The tree of some texts, and for each text the row of each of its tokens.
    pub fn of_texts(texts: &[&[u32]], sharing: Sharing) -> (Self, Vec<Vec<usize>>) {
        if sharing == Sharing::Nothing {
            return Self::apart(texts);
        }
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| texts[text]);
        let (mut tree, mut rows) = (Self::default(), vec![Vec::new(); texts.len()]);
        let borders = borders(&order, texts);
        let mut before: &[u32] = &[];
        let mut path: Vec<usize> = Vec::new();
        for (place, &text) in order.iter().enumerate() {
            path.truncate(shared(before, texts[text]));
            // Branches end where a later text turns off, so that it hangs on a whole branch.
            let ends = borders[place].iter().filter(|&&end| end > path.len()).copied();
            for end in ends.collect::<Vec<_>>() {
                tree.push(&mut path, &texts[text][..end]);
            }
            rows[text].clone_from(&path);
            before = texts[text];
        }
        (tree, rows)
    }

    fn apart(texts: &[&[u32]]) -> (Self, Vec<Vec<usize>>) {
        let mut tree = Self::default();
        let rows = texts.iter().map(|text| {
            let mut path = Vec::new();
            if !text.is_empty() {
                tree.push(&mut path, text);
            }
            path
        });
        let rows = rows.collect();
        (tree, rows)
    }

    /// Adds the tokens of `text` that `path` does not hold yet.
    fn push(&mut self, path: &mut Vec<usize>, text: &[u32]) {
        let first = self.token_ids.len();
        self.token_ids.extend_from_slice(&text[path.len()..]);
        let own = self.token_ids.len() - first;
        path.extend(first..first + own);
        self.branches.push(Branch { rows: path.clone(), own });
    }

    /// Tokens that are computed.
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Positions of each branch.
    pub(super) fn positions(&self) -> impl Iterator<Item = Range<usize>> + Clone {
        self.branches.iter().map(|branch| branch.rows.len() - branch.own..branch.rows.len())
    }

    /// What each branch sees: its text up to there, or of it the chunk of so many positions that
    /// it stands in.
    pub(super) fn segments(&self, chunk: Option<usize>) -> Segments {
        let of_branch = |(branch, positions): (&Branch, Range<usize>)| {
            let rows = branch.rows.clone();
            let pieces = pieces(positions, chunk).into_iter();
            pieces.map(move |(start, piece)| (piece.len(), rows[start..piece.end].to_vec()))
        };
        let branches = self.branches.iter().zip(self.positions());
        Segments::sharing(&branches.flat_map(of_branch).collect::<Vec<_>>())
    }
}

/// Tokens at which two texts begin alike.
pub fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// For each text in order, where its branches end: ascending, the text's own end last.
fn borders(order: &[usize], texts: &[&[u32]]) -> Vec<Vec<usize>> {
    let mut open: Vec<usize> = Vec::new();
    let mut borders = vec![Vec::new(); order.len()];
    // From the last text back, `open` holds the places at which later texts turn off.
    for place in (0..order.len()).rev() {
        let text = texts[order[place]];
        let next = order.get(place + 1).map_or(0, |&next| shared(text, texts[next]));
        open.retain(|&end| end < next);
        open.push(next);
        borders[place].clone_from(&open);
        borders[place].push(text.len());
        borders[place].dedup();
    }
    borders
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_shared_beginning_stands_once() {
        let texts: [&[u32]; 4] = [&[1, 2, 3, 4], &[1, 2, 5], &[1, 2], &[7]];
        let (tree, rows) = TokenTree::of_texts(&texts, Sharing::Beginnings);
        assert_eq!(tree.token_ids, [1, 2, 3, 4, 5, 7]);
        assert_eq!(rows, [vec![0, 1, 2, 3], vec![0, 1, 4], vec![0, 1], vec![5]]);
        let own: Vec<usize> = tree.branches.iter().map(|branch| branch.own).collect();
        assert_eq!(own, [2, 2, 1, 1]);
        assert_eq!(tree.positions().collect::<Vec<_>>(), [0..2, 2..4, 2..3, 0..1]);
    }

    #[test]
    fn without_sharing_every_text_is_a_branch() {
        let texts: [&[u32]; 3] = [&[1, 2], &[1, 2], &[]];
        let (tree, rows) = TokenTree::of_texts(&texts, Sharing::Nothing);
        assert_eq!(rows, [vec![0, 1], vec![2, 3], vec![]]);
        assert_eq!(tree.branches.len(), 2);
    }

    proptest! {
        #[test]
        fn every_text_is_found_along_its_rows_and_no_beginning_stands_twice(
            texts in prop::collection::vec(prop::collection::vec(0_u32..3, 0..8), 0..12)
        ) {
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let (tree, rows) = TokenTree::of_texts(&texts, Sharing::Beginnings);
            for (text, rows) in texts.iter().zip(&rows) {
                let found: Vec<u32> = rows.iter().map(|&row| tree.token_ids[row]).collect();
                prop_assert_eq!(&found, text);
            }
            let mut beginnings: Vec<&[u32]> =
                texts.iter().flat_map(|text| (1..=text.len()).map(|end| &text[..end])).collect();
            beginnings.sort_unstable();
            beginnings.dedup();
            prop_assert_eq!(tree.tokens(), beginnings.len());
            let own: usize = tree.branches.iter().map(|branch| branch.own).sum();
            prop_assert_eq!(own, tree.tokens());
            for (branch, range) in tree.branches.iter().zip(tree.positions()) {
                prop_assert!(branch.own > 0 && range.len() == branch.own);
            }
        }
    }
}
