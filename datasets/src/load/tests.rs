use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::config::{FormatName, OnOverlong};
use crate::example::IGNORED;
use crate::sampler::Sampler;
use crate::tokenizer::tests::byte_tokenizer;

/// `<s>` is 256 and `</s>` 257; every other token is a byte.
const BOS: u32 = 256;
const EOS: u32 = 257;

struct Setup {
    dir: tempfile::TempDir,
    tokenizer: Tokenizer,
    datasets: Vec<DatasetConfig>,
    validation: Option<ValidationConfig>,
    batch: BatchConfig,
    cache_dir: Option<PathBuf>,
    row_limit: Option<usize>,
}

impl Setup {
    fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setup = Self {
            datasets: vec![DatasetConfig::new(dir.path().join(name).to_str().unwrap())],
            dir,
            tokenizer: byte_tokenizer(
                &["<s>", "</s>"],
                &json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true,
                    "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\
                        {{ m.content }}{{ eos_token }}{% endfor %}\
                        {% if add_generation_prompt %}[assistant]{% endif %}"}),
            ),
            validation: None,
            batch: BatchConfig::default(),
            cache_dir: None,
            row_limit: None,
        };
        setup.write(name, content);
        setup
    }

    fn lines(rows: &[Value]) -> Self {
        Self::new("data.jsonl", rows.iter().map(Value::to_string).collect::<Vec<_>>().join("\n"))
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.dir.path().join(name), content).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn sequence_length(mut self, tokens: usize, on_overlong: OnOverlong) -> Self {
        self.batch.sequence_length = NonZeroUsize::new(tokens).unwrap();
        self.batch.on_overlong = on_overlong;
        self
    }

    fn load(&self) -> Result<Dataset, DatasetError> {
        load(&LoadRequest {
            datasets: &self.datasets,
            validation: self.validation.as_ref(),
            batch: &self.batch,
            seed: 42,
            tokenizer: &self.tokenizer,
            vocab_size: 258,
            cache_dir: self.cache_dir.as_deref(),
            row_limit: self.row_limit,
        })
    }

    fn error(&self) -> String {
        let error = self.load().unwrap_err().to_string();
        error.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn a_text_begins_and_ends_as_the_tokenizer_says_and_all_of_it_is_learned() {
    let data = Setup::lines(&[json!({"text": "ab"}), json!({"text": "a</s>"})]).load().unwrap();
    assert_eq!(data.train[0].token_ids, [BOS, 97, 98, EOS]);
    assert_eq!(data.train[0].labels, [256, 97, 98, 257]);
    assert_eq!(data.train[0].trained_tokens(), 3);
    assert_eq!(data.train[1].token_ids, [BOS, 97, EOS], "the end is not doubled");
    let counts = &data.counts[0];
    assert_eq!((counts.rows, counts.kept, counts.tokens, counts.trained_tokens), (2, 2, 7, 5));
    assert_eq!((counts.masked_tokens, counts.longest, counts.median_length), (2, 4, 3));
    assert_eq!(counts.format, FormatName::Text);
    assert_eq!((data.files[0].rows, data.files[0].bytes), (2, 30));
    assert_eq!(data.place(data.train[1].origin).line, 2);
}

#[test]
fn a_completion_carries_loss_and_its_prompt_does_not() {
    let rows = [json!({"prompt": "ab", "completion": "cd"})];
    let mut setup = Setup::lines(&rows);
    let train = setup.load().unwrap().train;
    assert_eq!(train[0].token_ids, [BOS, 97, 98, 99, 100, EOS]);
    assert_eq!(train[0].labels, [IGNORED, IGNORED, IGNORED, 99, 100, 257]);
    setup.datasets[0].loss_on = LossOn::All;
    assert_eq!(setup.load().unwrap().train[0].labels, [256, 97, 98, 99, 100, 257]);
    setup.datasets[0].loss_on = LossOn::LastMessage;
    assert!(setup.error().contains("`dataset.loss_on` = \"last_message\" means nothing"));
}

#[test]
fn a_conversation_goes_through_the_template_and_loss_on_decides() {
    let rows = [json!({"messages": [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "y"},
    ]})];
    let mut setup = Setup::lines(&rows);
    let data = setup.load().unwrap();
    let trained = |data: &Dataset| -> Vec<i32> {
        let labels = &data.train[0].labels;
        labels.iter().copied().filter(|&label| label != IGNORED).collect()
    };
    assert_eq!(data.train[0].token_ids.iter().filter(|&&id| id == BOS).count(), 1);
    assert_eq!(trained(&data), [120, 257, 121, 257]);
    setup.datasets[0].loss_on = LossOn::LastMessage;
    assert_eq!(trained(&setup.load().unwrap()), [121, 257]);
    setup.datasets[0].chat_template = Some("no-such-template".to_owned());
    assert!(setup.error().contains("no-such-template"));
}

#[test]
fn conversations_over_a_base_without_template_list_the_built_in_ones() {
    let mut setup = Setup::lines(&[json!({"instruction": "i", "output": "o"})]);
    setup.tokenizer =
        byte_tokenizer(&["<s>", "</s>"], &json!({"bos_token": "<s>", "eos_token": "</s>"}));
    let error = setup.load().unwrap_err();
    assert!(error.to_string().contains("has no chat template"), "{error}");
    assert!(error.hint().unwrap().contains("`chatml`"), "{:?}", error.hint());
    setup.datasets[0].chat_template = Some("vicuna".to_owned());
    assert_eq!(setup.load().unwrap().counts[0].format, FormatName::Alpaca);
}

#[test]
fn tokens_stay_as_they_are_and_are_checked_against_the_vocabulary() {
    let row = |ids: Value, labels: Value| json!({"input_ids": ids, "labels": labels});
    let setup = Setup::lines(&[row(json!([256, 256, 3]), json!([-100, 4, -100]))]);
    let train = setup.load().unwrap().train;
    assert_eq!(
        (train[0].token_ids.as_slice(), train[0].trained_tokens()),
        ([256, 256, 3].as_slice(), 1)
    );
    let setup =
        Setup::lines(&[row(json!([1, 258]), json!([1, 2])), row(json!([1, 2]), json!([1, 258]))]);
    let error = setup.error();
    assert!(error.starts_with("2 errors in the data"), "{error}");
    assert!(
        error.contains("data.jsonl:1: `input_ids` 1 is outside the vocabulary of 258"),
        "{error}"
    );
    assert!(error.contains("data.jsonl:2: `labels` 1 is outside the vocabulary of 258"), "{error}");
}

#[test]
fn a_second_begin_of_sequence_token_is_an_error_by_name() {
    let error = Setup::lines(&[json!({"text": "<s>a"})]).error();
    assert!(error.contains("data.jsonl:1: starts with two begin-of-sequence tokens"), "{error}");
}

#[test]
fn every_broken_row_is_listed_without_its_content() {
    let mut rows = vec![json!({"text": "fine"})];
    rows.extend((0..30).map(|_| json!({"text": 3, "note": "secret"})));
    let error = Setup::lines(&rows).error();
    assert!(error.starts_with("30 errors in the data\n  data.jsonl:2: field `text` is a number"));
    assert!(error.ends_with("and 10 more") && !error.contains("secret"), "{error}");
}

#[test]
fn errors_of_all_datasets_come_at_once() {
    let mut setup = Setup::lines(&[json!({"text": 3})]);
    setup.datasets.push(DatasetConfig::new(setup.path("missing.jsonl")));
    setup.write("pairs.jsonl", "{\"prompt\": \"\", \"chosen\": \"\", \"rejected\": \"\"}\n");
    setup.datasets.push(DatasetConfig::new(setup.path("pairs.jsonl")));
    let error = setup.error();
    for part in ["3 errors", "data.jsonl:1", "`missing.jsonl` names no file", "format `preference`"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn overlong_rows_are_refused_with_their_places_and_the_longest() {
    let rows: Vec<_> = (1..=9).map(|i| json!({"text": "x".repeat(i * 10)})).collect();
    let setup = Setup::lines(&rows).sequence_length(22, OnOverlong::Error);
    assert_eq!(
        setup.error(),
        "7 of 9 rows of `data.jsonl` are longer than `sequence_length` = 22 tokens; the longest \
         has 92 (first: data.jsonl:3, data.jsonl:4, data.jsonl:5, data.jsonl:6, data.jsonl:7)"
    );
    assert!(setup.load().unwrap_err().hint().unwrap().contains("to 92 or more"));
}

#[test]
fn overlong_rows_are_dropped_cut_or_split_and_counted() {
    let rows: Vec<_> = (1..=3).map(|i| json!({"text": "x".repeat(i * 10)})).collect();
    let counts = |on_overlong| {
        let setup = Setup::lines(&rows).sequence_length(12, on_overlong);
        setup.load().unwrap().counts.remove(0)
    };
    let dropped = counts(OnOverlong::Drop);
    assert_eq!((dropped.kept, dropped.dropped_overlong, dropped.tokens), (1, 2, 12));
    let cut = counts(OnOverlong::Truncate);
    assert_eq!((cut.kept, cut.truncated, cut.tokens, cut.cut_tokens), (3, 2, 36, 30));
    let split = counts(OnOverlong::Split);
    assert_eq!((split.kept, split.split, split.examples, split.tokens), (3, 2, 6, 66));
    assert_eq!((split.cut_tokens, split.longest), (0, 32));
}

#[test]
fn rows_without_a_trained_token_are_refused_unless_allowed() {
    let row = json!({"input_ids": [1, 2], "labels": [1, -100]});
    let fine = json!({"input_ids": [1, 2], "labels": [1, 2]});
    let mut setup = Setup::lines(&[fine, row]);
    assert_eq!(
        setup.error(),
        "1 of 2 rows of `data.jsonl` have no token that carries loss (first: data.jsonl:2)"
    );
    setup.datasets[0].allow_untrained_rows = true;
    let data = setup.load().unwrap();
    assert_eq!((data.train.len(), data.counts[0].untrained), (2, 1));
}

#[test]
fn columns_are_mapped_and_unknown_ones_refused() {
    let mut setup = Setup::lines(&[json!({"question": "a", "answer": "b"})]);
    assert!(setup.error().contains("not clear from its columns (`question`, `answer`)"));
    setup.datasets[0].columns.insert("prompt".into(), "question".into());
    setup.datasets[0].columns.insert("completion".into(), "answer".into());
    assert_eq!(setup.load().unwrap().train[0].token_ids, [BOS, 97, 98, EOS]);
    setup.datasets[0].columns.insert("promt".into(), "question".into());
    let error = setup.error();
    assert!(error.contains("maps `promt`, which format `completion` does not have"), "{error}");
}

#[test]
fn empty_texts_are_left_out_and_counted_and_nothing_else_is_an_error() {
    let data = Setup::lines(&[json!({"text": ""}), json!({"text": "a"})]).load().unwrap();
    assert_eq!((data.train.len(), data.counts[0].empty), (1, 1));
    let error = Setup::lines(&[json!({"text": ""})]).error();
    assert!(error.contains("of 1 rows, 1 are empty"), "{error}");
    assert!(Setup::new("data.jsonl", "\n").error().contains("has no rows"));
}

#[test]
fn a_folder_is_read_in_order_with_a_file_number_for_each_example() {
    let mut setup = Setup::new("b.txt", "bb");
    setup.write("a.md", "a");
    setup.write("c.bin", "");
    setup.datasets[0].path = setup.dir.path().to_str().unwrap().to_owned();
    let data = setup.load().unwrap();
    assert_eq!(data.train.iter().map(|e| e.origin.file).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(data.train[1].token_ids, [[BOS].as_slice(), &bytes("bb"), &[EOS]].concat());
    assert_eq!((data.counts[0].files, data.counts[0].skipped_files), (2, 1));
}

#[test]
fn a_fraction_is_held_back_and_a_path_is_read() {
    let rows: Vec<_> = (0..20).map(|i| json!({"text": format!("row {i}")})).collect();
    let mut setup = Setup::lines(&rows);
    let validation = |path: Option<String>, fraction| ValidationConfig {
        path,
        fraction,
        format: None,
        every_steps: None,
    };
    setup.validation = Some(validation(None, Some(0.1)));
    let data = setup.load().unwrap();
    assert_eq!((data.train.len(), data.validation.len(), data.counts[0].held_back), (18, 2, 2));
    setup.write("held.jsonl", "{\"text\": \"held\"}\n");
    setup.validation = Some(validation(Some(setup.path("held.jsonl")), None));
    let data = setup.load().unwrap();
    assert_eq!((data.train.len(), data.validation.len()), (20, 1));
    assert_eq!(data.place(data.validation[0].origin).path, setup.dir.path().join("held.jsonl"));
    assert_eq!(data.counts[1].role, DatasetRole::Validation);
    for wrong in [validation(None, Some(1.0)), validation(None, None)] {
        setup.validation = Some(wrong);
        assert!(setup.error().contains("`validation"), "{}", setup.error());
    }
}

#[test]
fn the_cache_gives_what_reading_gives_and_notices_every_change() {
    let rows: Vec<_> = (0..50).map(|i| json!({"text": "x".repeat(i + 1)})).collect();
    let mut setup = Setup::lines(&rows).sequence_length(20, OnOverlong::Split);
    let fresh = setup.load().unwrap();
    let cache = setup.dir.path().join("cache");
    setup.cache_dir = Some(cache.clone());
    let entries = || std::fs::read_dir(&cache).unwrap().count();
    assert_eq!(setup.load().unwrap(), fresh);
    assert_eq!(setup.load().unwrap(), fresh);
    assert_eq!(entries(), 1);
    let entry = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    let mut damaged = std::fs::read(&entry).unwrap();
    damaged[500] ^= 1;
    std::fs::write(&entry, damaged).unwrap();
    assert_eq!(setup.load().unwrap(), fresh, "a damaged entry is rebuilt");
    setup.batch.on_overlong = OnOverlong::Drop;
    assert_ne!(setup.load().unwrap().train, fresh.train);
    setup.write("data.jsonl", "{\"text\": \"other\"}\n");
    assert_eq!(setup.load().unwrap().train.len(), 1);
    assert_eq!(entries(), 3);
    setup.write("not-a-folder", "");
    setup.cache_dir = Some(setup.dir.path().join("not-a-folder"));
    assert_eq!(setup.load().unwrap().warnings.len(), 1);
}

#[test]
fn a_weight_that_takes_no_row_is_an_error() {
    let mut setup = Setup::lines(&[json!({"text": "a"})]);
    setup.datasets[0].weight = 0.3;
    assert!(setup.error().contains("`weight` = 0.3 of its examples is less than one"));
    for weight in [0.0, -1.0, f64::NAN, 1e9] {
        setup.datasets[0].weight = weight;
        assert!(setup.error().contains("`dataset[0].weight`"), "{weight}");
    }
}

#[test]
fn a_preview_shows_tokens_loss_and_borders() {
    let rows = [
        json!({"prompt": "a", "completion": "é"}),
        json!({"prompt": "bc", "completion": "d"}),
        json!({"prompt": "not", "completion": "read"}),
    ];
    let mut setup = Setup::lines(&rows);
    setup.row_limit = Some(2);
    setup.batch.shuffle = false;
    let data = setup.load().unwrap();
    assert_eq!(data.counts[0].rows, 2);
    let plan = Sampler::new(&data, &setup.datasets, &setup.batch, 42).epoch(0);
    let shown = crate::preview(&data, &plan, &setup.tokenizer, 5).unwrap();
    assert_eq!(shown.len(), 1);
    assert_eq!((shown[0].segments.len(), shown[0].tokens()), (2, 10));
    let first = &shown[0].segments[0];
    assert!(first.place.ends_with("data.jsonl:1"), "{}", first.place);
    let texts: Vec<_> = first.tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(texts.concat(), "<s>aé</s>");
    let trained: Vec<_> = first.tokens.iter().map(|token| token.trained).collect();
    assert_eq!(trained, [false, false, true, true, true]);
}

#[test]
fn damaged_json_lines_never_panic_and_always_name_the_file() {
    let rows: Vec<_> = (0..8)
        .map(|i| {
            json!({"messages": [{"role": "user", "content": format!("q{i}")},
            {"role": "assistant", "content": "é"}]})
        })
        .collect();
    let setup = Setup::lines(&rows);
    let whole = std::fs::read(setup.path("data.jsonl")).unwrap();
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 1 << (place % 8);
        setup.write("data.jsonl", &damaged);
        if setup.load().is_err() {
            assert!(setup.error().contains("data.jsonl"), "byte {place}");
        }
        setup.write("data.jsonl", &whole[..place]);
        if setup.load().is_err() {
            assert!(setup.error().contains("data.jsonl"), "first {place} bytes");
        }
    }
}
