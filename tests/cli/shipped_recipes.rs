//! Every recipe in `recipes/`, at any depth; `recipes/tasks/` holds tasks, `recipes/src/` none.

use std::path::{Path, PathBuf};

fn recipes_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let holds_none = |name: &std::ffi::OsStr| name == "tasks" || name == "src";
        if path.is_dir() && path.file_name().is_some_and(holds_none) {
            continue;
        }
        if path.is_dir() {
            recipes_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "toml")
            && path.file_name().is_some_and(|name| name != "Cargo.toml")
        {
            found.push(path);
        }
    }
}

fn shipped() -> Vec<PathBuf> {
    let mut found = Vec::new();
    recipes_below(Path::new(env!("CARGO_MANIFEST_DIR")), &mut found);
    found
}

#[test]
fn every_shipped_recipe_loads_and_gives_a_reason_for_what_is_warned_about() {
    for path in shipped() {
        let loaded = recipes::recipe::load(&path, &[])
            .unwrap_or_else(|error| panic!("{}:\n{error}", path.display()));
        let text = std::fs::read_to_string(&path).unwrap();
        for (warning, position) in loaded.warnings.located() {
            let line = position.and_then(|(line, _)| text.lines().nth(line - 1));
            let has_reason = line.is_some_and(|line| line.contains('#'));
            assert!(has_reason, "{}: {warning}", path.display());
        }
    }
}

#[test]
fn every_shipped_recipe_opens_with_its_purpose_and_its_command() {
    for path in shipped() {
        let text = std::fs::read_to_string(&path).unwrap();
        let head: Vec<_> = text.lines().take_while(|line| line.starts_with('#')).collect();
        let head = head.join("\n");
        assert!(head.len() > 80, "{}: no purpose at its top", path.display());
        assert!(head.contains("tunesmith train"), "{}: no command at its top", path.display());
    }
}
