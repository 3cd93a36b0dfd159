//! `--help`, `--version`, and mistakes on the command line.

use crate::context::{TestContext, expect_status};

#[test]
fn help_lists_the_commands() {
    let outcome = TestContext::new().run(&["--help"]);
    expect_status(&outcome, 0);
    insta::assert_snapshot!(outcome.stdout, @"");
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
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let is_command = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
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
