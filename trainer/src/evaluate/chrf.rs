//! Corpus chrF and chrF++ as sacreBLEU computes them by default.

use std::collections::BTreeMap;

use super::encode::is_space;

/// Longest n-grams of characters.
const CHARACTERS: usize = 6;
const BETA_SQUARED: f64 = 4.0;

/// Numbers a triple of an order has: n-grams of the answer, of the reference, of both.
const TRIPLE: usize = 3;

fn count<T: Ord>(items: impl Iterator<Item = T>) -> BTreeMap<T, u64> {
    let mut counts = BTreeMap::new();
    for item in items {
        *counts.entry(item).or_insert(0) += 1;
    }
    counts
}

fn triple<T: Ord>(answer: &BTreeMap<T, u64>, reference: &BTreeMap<T, u64>) -> [f64; TRIPLE] {
    let matched: u64 = answer
        .iter()
        .map(|(ngram, count)| reference.get(ngram).map_or(0, |other| *count.min(other)))
        .sum();
    let total = |counts: &BTreeMap<T, u64>| counts.values().sum::<u64>() as f64;
    // Without a reference there is nothing that an answer could have missed.
    let answered = if reference.is_empty() { 0.0 } else { total(answer) };
    [answered, total(reference), matched as f64]
}

/// Words with the punctuation at one end of them apart.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        let (first, last) = (word.chars().next(), word.chars().next_back());
        match (first, last) {
            (Some(_), Some(last)) if word.chars().count() > 1 && last.is_ascii_punctuation() => {
                let rest = &word[..word.len() - last.len_utf8()];
                words.extend([rest.to_owned(), last.to_string()]);
            }
            (Some(first), _) if word.chars().count() > 1 && first.is_ascii_punctuation() => {
                words.extend([first.to_string(), word[first.len_utf8()..].to_owned()]);
            }
            _ => words.push(word.to_owned()),
        }
    }
    words
}

fn against(answer: &str, reference: &str, word_orders: usize) -> Vec<f64> {
    let letters = |text: &str| -> Vec<char> { text.chars().filter(|&c| !is_space(c)).collect() };
    let (answer_letters, reference_letters) = (letters(answer), letters(reference));
    let mut numbers = Vec::new();
    for order in 1..=CHARACTERS {
        let (answer, reference) =
            (count(answer_letters.windows(order)), count(reference_letters.windows(order)));
        numbers.extend(triple(&answer, &reference));
    }
    let (answer_words, reference_words) = (words(answer), words(reference));
    for order in 1..=word_orders {
        let (answer, reference) =
            (count(answer_words.windows(order)), count(reference_words.windows(order)));
        numbers.extend(triple(&answer, &reference));
    }
    numbers
}

/// Counts of each order against the reference that fits best; `word_orders` is 0 for chrF, 2 for
/// chrF++.
pub(super) fn statistics(answer: &str, references: &[String], word_orders: usize) -> Vec<f64> {
    let mut best = (f64::NEG_INFINITY, vec![0.0; TRIPLE * (CHARACTERS + word_orders)]);
    for reference in references {
        let numbers = against(answer, reference, word_orders);
        let score = score(&numbers);
        if score > best.0 {
            best = (score, numbers);
        }
    }
    best.1
}

/// chrF of summed counts, 0 to 100.
pub(super) fn score(sums: &[f64]) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for order in sums.chunks_exact(TRIPLE) {
        if order[0] > 0.0 && order[1] > 0.0 {
            precision += order[2] / order[0];
            recall += order[2] / order[1];
            orders += 1.0;
        }
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    100.0 * (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_answer_scores_100_and_a_foreign_one_0() {
        let text = "the quick (brown) fox.".to_owned();
        for orders in [0, 2] {
            assert!(
                (score(&statistics(&text, std::slice::from_ref(&text), orders)) - 100.0).abs()
                    < 1e-9
            );
            assert_eq!(score(&statistics("zzz", std::slice::from_ref(&text), orders)), 0.0);
        }
        assert_eq!(words("(hi) a! ! x"), ["(hi", ")", "a", "!", "!", "x"]);
    }
}
