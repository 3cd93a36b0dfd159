//! Scores of the tiny base against lm-eval's, item by item, on the same rows and with the shipped
//! task files (`tests/fixtures/evaluate`, written by `scripts/make_evaluate_fixtures.py`).

use std::path::{Path, PathBuf};

use adapters::weights::{ModelFiles, Network};
use burn::tensor::{DType, Device};
use datasets::{Tokenizer, TokenizerFiles};
use serde_json::{Value, json};
use trainer::base_model::{Decoder, ModelLoader};
use trainer::evaluate::{
    CodeRunner, Definition, EvaluateError, GenerationRequest, Limits, Measured, Model, Program,
    ProgramEnd, ProgramOutcome, generate_all,
};
use trainer::generate::Sampling;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn tiny() -> (Decoder, Tokenizer) {
    let folder = root().join("recipes/tiny_llama");
    let files = ModelFiles::open(folder.to_str().unwrap(), Network::Offline).unwrap();
    let decoder = ModelLoader::new(&files, &Device::flex(), DType::F32).unwrap().decoder().unwrap();
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let tokenizer = Tokenizer::from_files(&TokenizerFiles {
        tokenizer_json: read("tokenizer.json"),
        tokenizer_config_json: Some(read("tokenizer_config.json")),
        config_json: Some(read("config.json")),
        generation_config_json: Some(read("generation_config.json")),
        ..TokenizerFiles::default()
    });
    (decoder, tokenizer.unwrap())
}

fn fixtures() -> PathBuf {
    root().join("tests/fixtures/evaluate")
}

fn reference() -> Value {
    let path = fixtures().join("reference.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A shipped task file over the fixture's rows, with some keys changed.
fn shipped(name: &str, changes: &Value) -> Value {
    let text = std::fs::read_to_string(root().join(format!("recipes/tasks/{name}.toml"))).unwrap();
    let table: toml::Table = toml::from_str(&text).unwrap();
    let mut task = serde_json::to_value(table).unwrap();
    task["data"] = json!(fixtures().join(format!("{name}.jsonl")));
    for (key, value) in changes.as_object().unwrap() {
        match value.as_object() {
            Some(inner) => inner.iter().for_each(|(k, v)| task[key][k] = v.clone()),
            None => task[key] = value.clone(),
        }
    }
    task
}

fn run(task: &Value, (decoder, tokenizer): &(Decoder, Tokenizer)) -> Measured {
    let definition = Definition::read(task).unwrap();
    let items = definition.items().unwrap();
    let model = Model { decoder, tokenizer, chat: None, runner: None };
    let mut last = 0;
    let measured = definition.task().run(&model, &items, &mut |done| last = done).unwrap();
    assert_eq!(last, items.rows.len() as u64);
    measured
}

fn figure(measured: &Measured, name: &str) -> f64 {
    measured.metrics.iter().find(|metric| metric.name == name).unwrap().value()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Log-likelihoods are sums of f32 logarithms there and of f64 ones here.
const TOLERANCE: f64 = 2e-3;

#[test]
fn multiple_choice_equals_lm_eval_item_by_item() {
    let (model, reference) = (tiny(), reference());
    let examples =
        json!({"few_shot": {"count": 5, "data": fixtures().join("mmlu_examples.jsonl")}});
    let tasks = [
        ("arc", json!({})),
        ("hellaswag", json!({})),
        ("winogrande", json!({})),
        ("truthfulqa_mc1", json!({})),
        ("truthfulqa_mc2", json!({})),
        ("medqa", json!({})),
        ("pubmedqa", json!({})),
        ("mmlu", examples),
    ];
    for (name, changes) in tasks {
        let measured = run(&shipped(name, &changes), &model);
        let expected = reference[name]["items"].as_array().unwrap();
        assert_eq!(measured.samples.len(), expected.len());
        for (index, (sample, expected)) in measured.samples.iter().zip(expected).enumerate() {
            let pairs = |value: &Value| -> Vec<f64> {
                value["log_likelihoods"].as_array().unwrap().iter().map(number).collect()
            };
            for (actual, expected) in pairs(sample).iter().zip(pairs(expected)) {
                assert!(
                    (actual - expected).abs() < TOLERANCE,
                    "{name} {index}: {actual} {expected}"
                );
            }
            for key in ["acc", "acc_norm"] {
                if let (Some(actual), Some(expected)) = (sample.get(key), expected.get(key)) {
                    assert_eq!(number(actual), number(expected), "{name} {index}: {key}");
                }
            }
        }
        let own = if name == "truthfulqa_mc2" { "probability_mass" } else { "acc" };
        let ours = figure(&measured, own);
        let theirs = number(&reference[name]["figures"]["acc,none"]);
        assert!((ours - theirs).abs() < 1e-4, "{name}: {ours} {theirs}");
    }
}

#[test]
fn perplexities_a_word_and_a_byte_equal_lm_evals() {
    let (model, reference) = (tiny(), reference());
    let measured = run(&shipped("wikitext", &json!({})), &model);
    for name in ["word_perplexity", "byte_perplexity", "bits_per_byte"] {
        let expected = number(&reference["wikitext"]["figures"][format!("{name},none")]);
        let ratio = figure(&measured, name) / expected;
        assert!((ratio - 1.0).abs() < 1e-4, "{name}: {} {expected}", figure(&measured, name));
    }
}

#[test]
fn generated_answers_and_exact_matches_equal_lm_evals() {
    let (model, reference) = (tiny(), reference());
    let changes = json!({"max_tokens": 24, "few_shot":
        {"count": 3, "data": fixtures().join("gsm8k_examples.jsonl")}});
    let measured = run(&shipped("gsm8k", &changes), &model);
    let expected = reference["gsm8k"]["items"].as_array().unwrap();
    // lm-eval gives each item once a filter.
    assert_eq!(2 * measured.samples.len(), expected.len());
    for (index, item) in expected.iter().enumerate() {
        let sample = &measured.samples[index % measured.samples.len()];
        assert_eq!(sample["generated"], item["generated"], "item {index}");
    }
    for name in ["exact_match,strict-match", "exact_match,flexible-extract"] {
        assert_eq!(figure(&measured, name), number(&reference["gsm8k"]["figures"][name]), "{name}");
    }
}

/// Passes every program, and remembers none.
#[derive(Debug)]
struct Obliging;

impl CodeRunner for Obliging {
    fn describe(&self, language: &str) -> Result<String, EvaluateError> {
        Ok(language.to_owned())
    }

    fn run(&self, _: &Program) -> Result<ProgramOutcome, EvaluateError> {
        Ok(ProgramOutcome { end: ProgramEnd::Passed, detail: String::new() })
    }
}

#[test]
fn prompts_and_programs_of_code_tasks_are_lm_evals() {
    let (decoder, tokenizer) = tiny();
    let path = fixtures().join("code_prompts.json");
    let expected: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let examples = fixtures().join("mbpp_examples.jsonl");
    for (name, changes) in
        [("humaneval", json!({})), ("mbpp", json!({"few_shot": {"data": examples, "count": 3}}))]
    {
        let mut task = shipped(name, &changes);
        let expected = &expected[name];
        assert_eq!(task["stop"], expected["until"], "{name}");
        // lm-eval's own default where a task names none.
        let most = expected["max_gen_toks"].as_u64().unwrap_or(256);
        assert_eq!(task["max_tokens"], most, "{name}");
        task["max_tokens"] = json!(2);
        let definition = Definition::read(&task).unwrap();
        let runner: Option<&dyn CodeRunner> = Some(&Obliging);
        let model = Model { decoder: &decoder, tokenizer: &tokenizer, chat: None, runner };
        let items = definition.items().unwrap();
        let measured = definition.task().run(&model, &items, &mut |_| ()).unwrap();
        assert_eq!(measured.samples.len(), 2, "{name}");
        for (index, sample) in measured.samples.iter().enumerate() {
            assert_eq!(sample["prompt"], expected["prompts"][index], "{name} {index}");
            // lm-eval runs the answer (HumanEval's after its prompt) and the target after it.
            let before = if name == "humaneval" { sample["prompt"].as_str().unwrap() } else { "" };
            let answer = sample["generated"].as_str().unwrap();
            let target = expected["targets"][index].as_str().unwrap();
            assert_eq!(sample["program"], format!("{before}{answer}\n{target}"), "{name} {index}");
        }
    }
}

/// More requests than slots, of very different lengths: each gets what it gets alone, and a new one
/// enters as soon as another leaves.
#[test]
fn sequences_leave_a_batch_and_new_ones_enter() {
    const MOST: usize = 24;
    let (decoder, tokenizer) = tiny();
    let greedy = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
    let texts = [
        "The bear lives in",
        "Clara walked to the school on Saturday.",
        "What is",
        "Anna sees a red",
    ];
    let prompt = |index: usize| {
        let text = format!("{} {}", texts[index % 4], "and then ".repeat(index % 7));
        tokenizer.encode(text.trim_end()).unwrap()
    };
    let sampling = |index: usize| match index % 3 {
        0 => greedy.clone(),
        _ => Sampling { temperature: 1.0, seed: index as u64, ..greedy.clone() },
    };
    let requests: Vec<GenerationRequest> = (0..100)
        .map(|index| GenerationRequest { prompt: prompt(index), sampling: sampling(index) })
        .collect();
    let limits =
        Limits { max_tokens: MOST, stop: vec![".".to_owned()], stop_ids: tokenizer.stop_ids() };
    let (mut passes, mut finished) = (0, 0);
    let together = generate_all(&decoder, &tokenizer, &requests, &limits, &mut |done| {
        passes += 1;
        assert!(done >= finished);
        finished = done;
    })
    .unwrap();
    assert_eq!(finished, 100);
    for (request, generated) in requests.iter().zip(&together) {
        let alone = [request.clone()];
        let alone = generate_all(&decoder, &tokenizer, &alone, &limits, &mut |_| ()).unwrap();
        assert_eq!(generated, &alone[0]);
    }
    // Batches of 32 that wait for their longest would take a pass for each of its tokens.
    let mut lengths: Vec<(usize, usize)> = requests
        .iter()
        .zip(&together)
        .map(|(request, one)| (request.prompt.len(), one.token_ids.len()))
        .collect();
    lengths.sort_by_key(|&(prompt, _)| std::cmp::Reverse(prompt));
    let longest = |batch: &[(usize, usize)]| batch.iter().map(|one| one.1).max().unwrap_or(0);
    let waiting: usize = lengths.chunks(32).map(longest).sum();
    assert!(together.iter().any(|one| one.token_ids.len() < MOST / 3), "answers differ in length");
    assert!(passes < waiting, "{passes} passes, {waiting} in batches that wait");
}

#[test]
fn translations_equal_lm_evals() {
    let (model, reference) = (tiny(), reference());
    let measured = run(
        &json!({
            "kind": "translation", "data": fixtures().join("translation.jsonl"),
            "prompt": "Sentence: {{source}}\nAgain:", "answer": "target", "stop": ["\n"],
            "max_tokens": 24, "metrics": ["bleu", "chrf", "chrf++"],
        }),
        &model,
    );
    for (sample, item) in
        measured.samples.iter().zip(reference["translation"]["items"].as_array().unwrap())
    {
        assert_eq!(sample["generated"], item["generated"]);
    }
    for name in ["bleu", "chrf", "chrf++"] {
        let expected = number(&reference["translation"]["figures"][format!("{name},none")]);
        let actual = figure(&measured, name);
        assert!((actual - expected).abs() < 0.01, "{name}: {actual} {expected}");
    }
}

#[test]
fn corpus_scores_equal_sacrebleus() {
    let path = fixtures().join("corpus_scores.json");
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (count, scores) in file["scores"].as_object().unwrap() {
        let rows: Vec<(String, Vec<String>)> = file["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                let references = row["references"].as_array().unwrap().iter();
                let references = references.map(|text| text.as_str().unwrap().to_owned());
                let answer = row["answer"].as_str().unwrap().to_owned();
                (answer, references.take(count.parse().unwrap()).collect())
            })
            .collect();
        for name in ["bleu", "chrf", "chrf++"] {
            let actual = trainer::evaluate::corpus_score(name, &rows).unwrap();
            let expected = number(&scores[name]);
            assert!((actual - expected).abs() < 1e-6, "{name}, {count}: {actual} {expected}");
        }
    }
}

#[test]
fn classification_chooses_the_most_probable_label() {
    let model = tiny();
    let data = fixtures().join("pubmedqa.jsonl");
    let prompt = "Question: {{QUESTION}}\nAnswer:";
    let measured = run(
        &json!({"kind": "classification", "data": data, "prompt": prompt, "answer": "final_decision",
            "labels": ["yes", "no", "maybe"]}),
        &model,
    );
    let choice = run(
        &json!({"kind": "multiple_choice", "data": data, "prompt": prompt, "answer": "final_decision",
            "choices": ["yes", "no", "maybe"], "metrics": ["acc"]}),
        &model,
    );
    assert_eq!(figure(&measured, "acc"), figure(&choice, "acc"));
    // Precision and recall of each label, from the answers.
    let label = |sample: &Value, key: &str| sample[key].as_str().unwrap().to_owned();
    let pairs: Vec<(String, String)> = measured
        .samples
        .iter()
        .map(|sample| (label(sample, "answer"), label(sample, "label")))
        .collect();
    let count = |test: &dyn Fn(&str, &str) -> bool| {
        pairs.iter().filter(|(right, chosen)| test(right, chosen)).count() as f64
    };
    let f1 = ["yes", "no", "maybe"].map(|one| {
        let both = count(&|right, chosen| right == one && chosen == one);
        let (precision, recall) =
            (both / count(&|_, chosen| chosen == one), both / count(&|right, _| right == one));
        if both > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
    });
    let expected = f1.iter().sum::<f64>() / 3.0;
    let macro_f1 = figure(&measured, "macro_f1");
    assert!(macro_f1 > 0.0 && (macro_f1 - expected).abs() < 1e-12, "{macro_f1} {expected}");
}

#[test]
fn a_stop_rate_counts_the_answers_that_end() {
    const MOST: usize = 40;
    let model = tiny();
    let (decoder, tokenizer) = (&model.0, &model.1);
    let task = json!({"kind": "stop_rate", "data": fixtures().join("arc.jsonl"),
        "prompt": "<|im_start|>user\n{{question}}<|im_end|>\n<|im_start|>assistant\n", "max_tokens": MOST});
    let measured = run(&task, &model);
    // Each prompt by itself, through the other way to generate.
    let (mut stopped, mut tokens) = (0, 0);
    for sample in &measured.samples {
        let mut ids: Vec<u32> =
            tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().collect();
        ids.extend(tokenizer.encode(sample["prompt"].as_str().unwrap()).unwrap());
        let sampling =
            trainer::generate::Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
        let mut generator = trainer::generate::Generator::new(decoder, sampling);
        let ending = generator.run(&ids, MOST, &tokenizer.stop_ids(), &mut |_| {
            tokens += 1;
            trainer::generate::Next::Continue
        });
        stopped += usize::from(matches!(ending, trainer::generate::Ending::Stopped(_)));
    }
    let items = measured.samples.len() as f64;
    assert!(stopped > 0, "no answer of the tiny base ends");
    assert_eq!(figure(&measured, "stop_rate"), stopped as f64 / items);
    assert_eq!(figure(&measured, "tokens_per_answer"), f64::from(tokens) / items);
}

#[test]
fn memorised_rows_are_those_the_model_goes_on_with() {
    let model = tiny();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    // What the model itself says after a beginning is memorised; another end is not.
    let start = "Clara walked to the school on Saturday.";
    let ids = model.1.encode(start).unwrap();
    let sampling = trainer::generate::Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
    let mut said = Vec::new();
    trainer::generate::Generator::new(&model.0, sampling).run(&ids, 12, &[], &mut |token| {
        said.push(token);
        trainer::generate::Next::Continue
    });
    let said = model.1.decode(&said, datasets::SpecialTokens::Keep).unwrap();
    let rows =
        [format!("{start}{said}"), format!("{start} Nobody said zebra, zebra or zebra again.")];
    let line = |text: &String| format!("{}\n", json!({ "text": text }));
    std::fs::write(&path, rows.iter().map(line).collect::<String>() + &line(&"short".to_owned()))
        .unwrap();
    let measured = run(
        &json!({"kind": "memorisation", "data": path, "text": "text",
            "prefix_tokens": ids.len(), "suffix_tokens": 8}),
        &model,
    );
    assert_eq!(figure(&measured, "memorised"), 0.5);
    assert_eq!(measured.counts["too_short"], 1);
}

#[test]
fn the_language_of_an_answer_is_told_and_unknown_codes_are_refused() {
    let model = tiny();
    let task = |language: &str| {
        json!({"kind": "language", "data": fixtures().join("arc.jsonl"), "limit": 3,
            "prompt": "{{question}}\n", "language": language, "max_tokens": 24})
    };
    let measured = run(&task("eng"), &model);
    assert_eq!(measured.samples.len(), 3);
    let told = measured.samples.iter().filter(|sample| sample["language"] == "eng").count();
    assert_eq!(figure(&measured, "in_language"), told as f64 / 3.0);
    let definition = Definition::read(&task("klingon")).unwrap();
    let (decoder, tokenizer) = (&model.0, &model.1);
    let model = Model { decoder, tokenizer, chat: None, runner: None };
    let error =
        definition.task().run(&model, &definition.items().unwrap(), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("arc.jsonl:1: `language` is no ISO 639-3 code"), "{error}");
}

#[test]
fn a_middle_is_filled_between_the_sentinels_that_are_named() {
    let model = tiny();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, "{\"a\": \"Tom saw\", \"m\": \" a sheep\", \"z\": \" there.\"}\n")
        .unwrap();
    let mut task = json!({"kind": "fill_in_the_middle", "data": path, "prefix": "a",
        "suffix": "z", "middle": "m", "max_tokens": 6});
    let definition = Definition::read(&task).unwrap();
    let tested = Model { decoder: &model.0, tokenizer: &model.1, chat: None, runner: None };
    let error =
        definition.task().run(&tested, &definition.items().unwrap(), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("no fill-in-the-middle tokens"), "{error}");
    task["sentinels"] =
        json!({"prefix": "<|im_start|>", "suffix": "<|im_end|>", "middle": "<|endoftext|>"});
    for order in ["psm", "spm"] {
        task["order"] = json!(order);
        let measured = run(&task, &model);
        let similarity = figure(&measured, "edit_similarity");
        assert!((0.0..=1.0).contains(&similarity));
    }
    task["sentinels"]["middle"] = json!("<none>");
    let definition = Definition::read(&task).unwrap();
    let error =
        definition.task().run(&tested, &definition.items().unwrap(), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("`<none>`"), "{error}");
}
