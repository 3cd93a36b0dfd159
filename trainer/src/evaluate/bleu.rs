//! Corpus BLEU as sacreBLEU computes it by default: `13a` tokens, 4-grams, exponential smoothing.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use fancy_regex::Regex;

use super::encode::is_space;

const ORDERS: usize = 4;

/// The rules of `mteval-v13a`: punctuation, periods and commas beside digits, dashes after digits.
static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    [
        (r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", " $1 "),
        (r"([^0-9])([\.,])", "$1 $2 "),
        (r"([\.,])([^0-9])", " $1 $2"),
        (r"([0-9])(-)", "$1 $2 "),
    ]
    .map(|(pattern, replacement)| (Regex::new(pattern).expect("a fixed pattern"), replacement))
});

fn tokens(text: &str) -> Vec<String> {
    let mut line = text.trim_end_matches(is_space).replace("<skipped>", "");
    line = line.replace("-\n", "").replace('\n', " ");
    line = line.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<");
    line = format!(" {} ", line.replace("&gt;", ">"));
    for (rule, replacement) in RULES.iter() {
        line = rule.replace_all(&line, *replacement).into_owned();
    }
    line.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn ngrams(tokens: &[String]) -> BTreeMap<&[String], u64> {
    let mut counts = BTreeMap::new();
    for order in 1..=ORDERS {
        for ngram in tokens.windows(order) {
            *counts.entry(ngram).or_insert(0) += 1;
        }
    }
    counts
}

/// Length, reference length, and of each order the matched and all n-grams of one answer.
pub(super) fn statistics(answer: &str, references: &[String]) -> Vec<f64> {
    let answer = tokens(answer);
    let references: Vec<Vec<String>> = references.iter().map(|text| tokens(text)).collect();
    let mut allowed: BTreeMap<&[String], u64> = BTreeMap::new();
    for reference in &references {
        for (ngram, count) in ngrams(reference) {
            let most = allowed.entry(ngram).or_insert(0);
            *most = count.max(*most);
        }
    }
    let (mut matched, mut all) = ([0_u64; ORDERS], [0_u64; ORDERS]);
    for (ngram, count) in ngrams(&answer) {
        all[ngram.len() - 1] += count;
        matched[ngram.len() - 1] += count.min(allowed.get(ngram).copied().unwrap_or(0));
    }
    let distance = |length: &usize| (length.abs_diff(answer.len()), *length);
    let closest = references.iter().map(Vec::len).min_by_key(distance).unwrap_or(0);
    let lengths = [answer.len() as f64, closest as f64];
    lengths.into_iter().chain(matched.map(|n| n as f64)).chain(all.map(|n| n as f64)).collect()
}

/// BLEU of summed statistics, 0 to 100.
pub(super) fn score(sums: &[f64]) -> f64 {
    let (lengths, counts) = sums.split_at(2);
    let (matched, all) = counts.split_at(ORDERS);
    if matched.iter().all(|&count| count == 0.0) {
        return 0.0;
    }
    let (mut smoothing, mut logarithms) = (1.0, 0.0);
    for (&matched, &all) in matched.iter().zip(all) {
        if all == 0.0 {
            // An order that no answer is long enough for: sacreBLEU's logarithm of 0.
            logarithms += -9_999_999_999.0;
            continue;
        }
        let precision = if matched == 0.0 {
            smoothing *= 2.0;
            100.0 / (smoothing * all)
        } else {
            100.0 * matched / all
        };
        logarithms += f64::ln(precision);
    }
    let brevity = if lengths[0] < lengths[1] { (1.0 - lengths[1] / lengths[0]).exp() } else { 1.0 };
    brevity * (logarithms / ORDERS as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_those_of_13a() {
        assert_eq!(
            tokens("Hello, world! 3.5-4 it's (ok)."),
            ["Hello", ",", "world", "!", "3.5", "-", "4", "it's", "(", "ok", ")", "."]
        );
        assert_eq!(tokens("a&amp;b &lt;x&gt;"), ["a", "&", "b", "<", "x", ">"]);
    }

    #[test]
    fn a_perfect_answer_scores_100_and_a_foreign_one_0() {
        let text = "the quick brown fox jumps".to_owned();
        let perfect = score(&statistics(&text, std::slice::from_ref(&text)));
        assert!((perfect - 100.0).abs() < 1e-9);
        assert_eq!(score(&statistics("zzz", std::slice::from_ref(&text))), 0.0);
        assert_eq!(score(&statistics("", &[text])), 0.0);
    }
}
