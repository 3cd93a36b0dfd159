//! Killed anywhere and started again, a run ends in the same bytes.

use std::time::Duration;

use crate::program::Program;

const TABLES: &str = "[train]\nsteps = 12\n[checkpoint]\nevery_steps = 2\n\
                      [adapter.lora]\ndropout = 0.05\n";

/// Moments of a run, as shares of the time that a whole one takes.
const MOMENTS: [f64; 6] = [0.03, 0.2, 0.4, 0.55, 0.7, 0.9];

#[test]
fn a_run_killed_at_any_moment_ends_in_the_same_adapter() {
    let program = Program::new();
    let recipe = program.tiny_recipe("whole", "", TABLES);
    let start = std::time::Instant::now();
    program.run(&["train", &recipe]);
    let whole = start.elapsed();
    for (index, share) in MOMENTS.into_iter().enumerate() {
        let output = format!("killed-{index}");
        let dir = format!("output_dir=\"{output}\"");
        let arguments = ["train", &recipe, "--set", &dir];
        let mut child = program.spawn(&arguments);
        std::thread::sleep(whole.mul_f64(share));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        program.run(&arguments);
        assert_eq!(program.adapter("whole"), program.adapter(&output), "killed at {share}");
        let metrics = std::fs::read_to_string(program.path(&output).join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().count(), 12);
    }
}

#[test]
fn moments_in_8_bits_are_resumed_to_the_byte() {
    let program = Program::new();
    let wide = program.tiny_recipe("wide", "", TABLES);
    let text = std::fs::read_to_string(&wide).unwrap();
    let narrow =
        program.write("narrow.toml", &text.replace("optimizer.adamw", "optimizer.adamw_8bit"));
    let dir = |name: &str| format!("output_dir=\"{name}\"");
    let start = std::time::Instant::now();
    program.run(&["train", &narrow, "--set", &dir("whole")]);
    let whole = start.elapsed();
    let mut child = program.spawn(&["train", &narrow, "--set", &dir("killed")]);
    std::thread::sleep(whole.mul_f64(0.6));
    child.kill().unwrap();
    child.wait().unwrap();
    program.run(&["train", &narrow, "--set", &dir("killed")]);
    assert_eq!(program.adapter("whole"), program.adapter("killed"));
    // It learns what moments in f32 learn, by another adapter.
    program.run(&["train", &wide]);
    assert_ne!(program.adapter("whole"), program.adapter("wide"));
    let last_loss = |run: &str| {
        let metrics = std::fs::read_to_string(program.path(run).join("metrics.jsonl")).unwrap();
        let line: serde_json::Value =
            serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        line["loss"].as_f64().unwrap()
    };
    let (narrow, wide) = (last_loss("whole"), last_loss("wide"));
    assert!((narrow - wide).abs() < 0.02 * wide, "{narrow} against {wide}");
}

#[test]
fn a_save_cut_short_is_passed_over() {
    let program = Program::new();
    let recipe = program.tiny_recipe("whole", "", TABLES);
    program.run(&["train", &recipe]);
    let dir = "output_dir=\"cut\"";
    program.run(&[
        "train",
        &recipe,
        "--set",
        dir,
        "--set",
        "train.steps=8",
        "--set",
        "checkpoint.keep_last=9",
    ]);
    // As a kill inside a save and a later disk fault would leave it.
    std::fs::create_dir(program.path("cut/checkpoints/.step-000010.partial")).unwrap();
    let newest = program.path("cut/checkpoints/step-000008/optimizer.safetensors");
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    let output = program.output(&["train", &recipe, "--set", dir]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("damaged"), "{stderr}");
    // The schedule depends on the length of the run, so steps before the cut differ from `whole`.
    assert!(stderr.contains("resumed after step 6"), "{stderr}");
}

#[test]
fn a_signal_saves_and_exits_130() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", "[train]\nsteps = 400\n");
    let mut child = program.spawn(&["train", &recipe]);
    let metrics = program.path("run/metrics.jsonl");
    while std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 2 {
        std::thread::sleep(Duration::from_millis(20));
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let saved = std::fs::read_dir(program.path("run/checkpoints")).unwrap().count();
    assert_eq!(saved, 1);
    assert!(!program.path("run/adapter").exists());
}

#[test]
fn two_processes_cannot_share_a_run() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", "[train]\nsteps = 400\n");
    let mut child = program.spawn(&["train", &recipe]);
    while !program.path("run/metrics.jsonl").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let error = program.fail(&["train", &recipe]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(error.contains("another process"), "{error}");
}

#[test]
fn a_merge_killed_in_the_middle_leaves_nothing_under_its_name() {
    let program = Program::new();
    let recipe = program.tiny_recipe("run", "", "[train]\nsteps = 2\n");
    program.run(&["train", &recipe]);
    let start = std::time::Instant::now();
    program.run(&["merge", "run", "--output", "whole"]);
    let whole = start.elapsed();
    for share in [0.2, 0.5, 0.8] {
        let mut child = program.spawn(&["merge", "run", "--output", "killed"]);
        std::thread::sleep(whole.mul_f64(share));
        child.kill().unwrap();
        child.wait().unwrap();
        // It has its name only when it is whole: the kill may come after the rename.
        if !program.path("killed").exists() {
            program.run(&["merge", "run", "--output", "killed"]);
        }
        let weights =
            |dir: &str| std::fs::read(program.path(dir).join("model.safetensors")).unwrap();
        assert_eq!(weights("whole"), weights("killed"));
        std::fs::remove_dir_all(program.path("killed")).unwrap();
    }
}
