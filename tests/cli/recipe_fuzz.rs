//! Damaged recipes: errors with a place, never a panic.

use recipes::recipe::{Draft, RecipeError};

const RECIPE: &str = r#"
base_model = "models/tiny"      # ü
output_dir = "runs/tiny"
seed = 42
[[dataset]]
path = "data/train.jsonl"
columns = { prompt = "question" }
[validation]
fraction = 0.02
[adapter.lora]
rank = 16
rank_pattern = { "q_proj" = 8 }
target_modules = ["q_proj", "up_proj"]
[optimizer.adamw]
betas = [0.9, 0.999]
[schedule.cosine]
warmup_steps = 10
[train]
epochs = 1
"#;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

fn read(bytes: &[u8], overrides: &[String]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    std::fs::write(&path, bytes).unwrap();
    match Draft::read(&path, overrides) {
        Ok(draft) => {
            let findings = draft.findings();
            assert_eq!(findings.is_empty(), draft.recipe().is_some());
            assert!(findings.to_string().len() < 100_000);
            let _ = draft.warnings().to_string();
        }
        Err(error) => assert!(matches!(error, RecipeError::Unreadable { .. }), "{error}"),
    }
}

#[test]
fn the_undamaged_recipe_is_read() {
    Draft::parse("recipe.toml", RECIPE, &[]).finish().unwrap();
}

#[test]
fn a_recipe_cut_anywhere_is_an_error_or_a_recipe() {
    for length in 0..RECIPE.len() {
        read(&RECIPE.as_bytes()[..length], &[]);
    }
}

#[test]
fn flipped_bits_are_an_error_or_a_recipe() {
    let mut numbers = Numbers(2);
    for _ in 0..400 {
        let mut bytes = RECIPE.as_bytes().to_vec();
        for _ in 0..=numbers.below(3) {
            let position = numbers.below(bytes.len());
            bytes[position] ^= 1 << numbers.below(8);
        }
        read(&bytes, &[]);
    }
}

#[test]
fn damaged_overrides_are_an_error_or_a_recipe() {
    let override_text = r#"dataset.0.columns."a.b" = ["x", { y = 1e3 }, 'ü']"#;
    for length in 0..=override_text.len() {
        let cut = String::from_utf8_lossy(&override_text.as_bytes()[..length]).into_owned();
        read(RECIPE.as_bytes(), &[cut]);
    }
    for text in [
        "=",
        "a=",
        ".=1",
        "a..b=1",
        "\n=1",
        "a\n=1",
        "[x]=1",
        "seed.x=1",
        "dataset.9.path=x",
        "dataset.x=1",
        "\"=1",
        "a=\"",
        "a=[[[[[",
        "seed=0x8000000000000000",
    ] {
        read(RECIPE.as_bytes(), &[text.to_owned()]);
    }
}

#[test]
fn deep_nesting_is_refused_without_running_out_of_stack() {
    let text = format!("base_model = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    read(text.as_bytes(), &[]);
    let text = format!("{}x = 1", "a.".repeat(100_000));
    read(text.as_bytes(), &[]);
    read(RECIPE.as_bytes(), &[format!("{}x=1", "a.".repeat(100_000))]);
}
