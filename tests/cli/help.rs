//! `--help`, `--version`, and mistakes on the command line.

use crate::context::{TestContext, expect_status};

#[test]
fn help_lists_the_commands() {
    let outcome = TestContext::new().run(&["--help"]);
    expect_status(&outcome, 0);
    insta::assert_snapshot!(outcome.stdout, @r#"
    Fine-tunes language models with low-rank adapters: recipe, train, adapter, merge, evaluate

    Usage: tunesmith [OPTIONS] <COMMAND>

    Commands:
      train     Run a recipe to a finished adapter; goes on by itself where a run was interrupted
      plan      Say what a run takes, before any weight is read: tokens, steps, time, memory, disk
      check     Validate a recipe and everything it names; runs and downloads nothing
      preview   Show rows exactly as training will see them: tokens, and which of them carry loss
      merge     Merge an adapter into its base: a model folder for inference, with a parity report
      adapter   Convert adapters, make one of several, take one out of a merged model
      lint      Say what inference programs would refuse of an adapter or model, and how to fix it
      evaluate  Measure models, adapters and runs side by side
      generate  Write text with a model, adapter or run; `--chat` to talk
      verify    Re-hash everything that the lock file of a run names, and say what changed
      report    Write one HTML page about runs: curves, plan, data, scores, comparisons, licence duties
      new       Write a commented recipe to start from
      schema    Print the JSON schema of recipes, for editors
      doctor    Say what this machine offers: processor, memory, disk, GPU, caches
      help      Print this message or the help of the given subcommand(s)

    Options:
      -q, --quiet        Say nothing but errors on stderr
          --threads <N>  Threads of the CPU to use; all where it is not given
          --offline      Use no network, as with `HF_HUB_OFFLINE=1`; hub ids must be in the cache
      -h, --help         Print help
      -V, --version      Print version

    Exit codes: 0 done, 1 something to fix, 2 a fault of the program or machine, 130 interrupted.
    "#);
}

#[test]
fn an_unknown_command_is_the_users_mistake() {
    let outcome = TestContext::new().run(&["trian"]);
    expect_status(&outcome, 1);
    assert_eq!(outcome.stdout, "");
    assert!(outcome.stderr.contains("unrecognized subcommand 'trian'"), "{}", outcome.stderr);
}

#[test]
fn every_command_has_help() {
    let context = TestContext::new();
    let help = context.run(&["--help"]).stdout;
    let commands = help.split("Commands:").nth(1).unwrap().split("\nOptions:").next().unwrap();
    let is_command = |line: &&str| {
        line.starts_with("  ") && !line.starts_with("   ") && !line.starts_with("  help")
    };
    for line in commands.lines().filter(is_command) {
        let command = line.split_whitespace().next().unwrap();
        let outcome = context.run(&[command, "--help"]);
        expect_status(&outcome, 0);
        assert!(outcome.stdout.contains("Usage: tunesmith"), "{}", outcome.stdout);
    }
}

#[test]
fn version_is_the_packages() {
    let outcome = TestContext::new().run(&["--version"]);
    assert_eq!(outcome.stdout, format!("tunesmith {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    use std::process::{Command, Stdio};
    let mut program = Command::new(env!("CARGO_BIN_EXE_tunesmith"))
        .arg("schema")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(program.stdout.take());
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
