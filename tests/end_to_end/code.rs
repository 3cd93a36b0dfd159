//! Programs of a model in the sandbox: right and broken answers, and a hostile set.
//!
//! Every attack carries a bound of its own, so that it does no harm where the sandbox fails. Where
//! the kernel gives no sandbox, the tests say so and pass.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::program::{Program, root};

/// Two programs in the format of `HumanEval`.
const QUESTIONS: [(&str, &str, &str, &str); 2] = [
    (
        "def double(x):\n    \"\"\"Twice x.\"\"\"\n",
        "    return 2 * x\n",
        "def check(candidate):\n    assert candidate(4) == 8\n",
        "double",
    ),
    (
        "def longest(words):\n    \"\"\"The longest word.\"\"\"\n",
        "    return max(words, key=len)\n",
        "def check(candidate):\n    assert candidate(['a', 'abc']) == 'abc'\n",
        "longest",
    ),
];

fn rows() -> Vec<Value> {
    let row = |(prompt, solution, test, name): (&str, &str, &str, &str)| {
        json!({
            "prompt": prompt, "canonical_solution": solution, "test": test, "entry_point": name,
            "broken": "    return None\n", "early": "    raise SystemExit(0)\n",
            "endless": "    while True: pass\n", "nonsense": "    return (\n",
        })
    };
    QUESTIONS.into_iter().map(row).collect()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
}

/// Figures and ends of a task over rows; `None`, with a word, where nothing can be confined.
fn judged(
    program: &Program,
    task: &str,
    data: &Path,
    more: &[&str],
) -> Option<(Value, Vec<Value>)> {
    judged_by(program, task, data, more, |command| command)
}

/// The same by a command that is started otherwise.
fn judged_by(
    program: &Program,
    task: &str,
    data: &Path,
    more: &[&str],
    start: impl Fn(Command) -> Command,
) -> Option<(Value, Vec<Value>)> {
    let (task, base) = (program.write("task.toml", task), root().join("recipes/tiny_llama"));
    let (base, data) = (base.display().to_string(), data.display().to_string());
    let mut arguments = vec!["-q", "evaluate", &base, "--task", &task, "--data", &data];
    arguments.extend(["--device", "cpu", "--json", "out.json", "--samples", "samples.jsonl"]);
    arguments.extend(more);
    // Scratch folders of its own: other tests run programs at the same time.
    let scratch = program.path("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let mut command = program.command(&arguments);
    command.env("TMPDIR", scratch);
    let output = start(command).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("cannot run programs of a model safely") || stderr.contains("need `") {
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        #[expect(clippy::print_stderr, reason = "the reason for a test that is skipped")]
        {
            eprintln!("skipped: {stderr}");
        }
        return None;
    }
    assert!(output.status.success(), "{stderr}");
    let samples = std::fs::read_to_string(program.path("samples.jsonl")).unwrap();
    let samples = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    Some((program.json("out.json")["targets"][0]["tasks"]["task"].clone(), samples))
}

fn shipped_with(more: &str) -> String {
    let text = std::fs::read_to_string(root().join("recipes/tasks/humaneval.toml")).unwrap();
    format!("{text}\n{more}\n")
}

#[test]
fn right_answers_pass_and_others_do_not() {
    let program = Program::new();
    program.write("rows.jsonl", &lines(&rows()));
    let data = program.path("rows.jsonl");
    let cases = [
        ("canonical_solution", 20.0, 1.0, "passed"),
        ("broken", 20.0, 0.0, "failed"),
        ("nonsense", 20.0, 0.0, "failed"),
        // An end before the tests is no pass, whatever the exit code.
        ("early", 20.0, 0.0, "failed"),
        ("endless", 1.0, 0.0, "timed_out"),
    ];
    for (column, seconds, expected, end) in cases {
        let task = shipped_with(&format!("completion = \"{column}\"\ntimeout_seconds = {seconds}"));
        let Some((figures, samples)) = judged(&program, &task, &data, &[]) else { return };
        assert_eq!(figures["pass@1"], expected, "{column}: {samples:?}");
        assert_eq!(figures[end], 2, "{column}: {figures}");
        assert_eq!(figures["items"], 2);
    }
}

#[test]
fn a_model_is_asked_and_its_samples_are_counted() {
    let program = Program::new();
    program.write("rows.jsonl", &lines(&rows()));
    let more = "samples = 3\ntemperature = 0.8\nk = [1, 2]";
    let task = shipped_with(more).replace("max_tokens = 1024", "max_tokens = 6");
    let data = program.path("rows.jsonl");
    let Some((figures, samples)) = judged(&program, &task, &data, &[]) else { return };
    assert_eq!(samples.len(), 6);
    assert!(figures["pass@1"].is_number() && figures["pass@2"].is_number(), "{figures}");
    assert_eq!(samples[0]["prompt"], rows()[0]["prompt"]);
    let generated: Vec<&Value> = samples.iter().map(|sample| &sample["generated"]).collect();
    assert!(generated.windows(2).any(|pair| pair[0] != pair[1]), "samples are drawn apart");
}

/// A program that passes if it is stopped at what it tries.
fn attack(body: &str) -> Value {
    let text = format!(
        "import os, sys, time, socket, signal, mmap, subprocess\n\
         def refused(act):\n    try:\n        act()\n    except OSError:\n        return\n    \
         raise AssertionError('allowed')\n{body}\n"
    );
    json!({ "attack": text })
}

const ATTACK_TASK: &str = "kind = \"code\"\nlanguage = \"python\"\nprompt = \"attack\"\n\
                           program = \"completion\"\ncompletion = \"attack\"\n";

#[test]
fn what_a_hostile_program_tries_is_refused() {
    let program = Program::new();
    let secret = program.write("secret.txt", "kept");
    let folder = program.folder.path().display().to_string();
    let attacks = [
        // Reading: the user's files, the home folder, other processes.
        format!("refused(lambda: open({secret:?}).read())"),
        "import pwd\nrefused(lambda: os.listdir('/root'))\nrefused(lambda: os.listdir('/home'))\n\
         refused(lambda: open('/etc/passwd').read())"
            .to_owned(),
        "refused(lambda: open('/proc/%d/environ' % os.getppid()).read())".to_owned(),
        // Writing: new files, old files, their modes and times.
        format!(
            "refused(lambda: open({secret:?}, 'w'))\nrefused(lambda: open('{folder}/new', 'w'))\n\
             refused(lambda: os.open({secret:?}, os.O_RDONLY | os.O_TRUNC))\n\
             refused(lambda: os.truncate({secret:?}, 0))\nrefused(lambda: os.unlink({secret:?}))\n\
             refused(lambda: os.chmod({secret:?}, 0))\nrefused(lambda: os.utime({secret:?}))\n\
             refused(lambda: os.rename({secret:?}, 'here'))\n\
             refused(lambda: os.link({secret:?}, 'here'))\nrefused(lambda: os.mkdir('/tmp/x-made'))"
        ),
        // The network.
        "refused(lambda: socket.socket())\nrefused(lambda: socket.socket(socket.AF_UNIX))\n\
         refused(lambda: socket.create_connection(('127.0.0.1', 80), 1))"
            .to_owned(),
        // Other processes: signals, and a group that would outlive this one.
        "refused(lambda: os.kill(os.getppid(), 0))\nrefused(lambda: os.kill(1, 0))\n\
         refused(lambda: os.kill(os.getppid(), signal.SIGTERM))\n\
         refused(os.setsid)\nrefused(lambda: os.setpgid(0, 0))"
            .to_owned(),
        // Processes: fifty of them sleep, which the end of the program must not leave behind.
        "made = 0\ntry:\n    for _ in range(200):\n        if os.fork() == 0:\n            \
         time.sleep(60)\n            os._exit(0)\n        made += 1\nexcept OSError:\n    pass\n\
         assert 0 < made < 64, made"
            .to_owned(),
        // What it may do: write in its folder, start a program, use threads.
        "open('mine', 'w').write('x')\nassert open('mine').read() == 'x'\n\
         assert subprocess.run(['/bin/echo', 'a'], capture_output=True).stdout == b'a\\n'\n\
         import threading\nt = threading.Thread(target=lambda: None)\nt.start()\nt.join()"
            .to_owned(),
    ];
    let attacks: Vec<Value> = attacks.iter().map(|body| attack(body)).collect();
    program.write("attacks.jsonl", &lines(&attacks));
    let task = format!("{ATTACK_TASK}timeout_seconds = 30\n");
    let data = program.path("attacks.jsonl");
    let Some((_, samples)) = judged(&program, &task, &data, &[]) else { return };
    for sample in &samples {
        assert_eq!(sample["end"], "passed", "{}\n{}", sample["program"], sample["detail"]);
    }
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "kept");
    assert!(!program.path("new").exists());
    assert_eq!(programs_below(&folder), 0, "processes were left behind");
}

/// Landlock looks at files as they are opened; what the program was started with is open already.
#[test]
fn descriptors_that_were_inherited_are_closed() {
    let program = Program::new();
    let secret = program.write("secret.txt", "kept");
    let body = "refused(lambda: os.fstat(9))\nrefused(lambda: os.write(9, b'x'))";
    program.write("attacks.jsonl", &lines(&[attack(body)]));
    let task = format!("{ATTACK_TASK}timeout_seconds = 30\n");
    let data = program.path("attacks.jsonl");
    let with_secret = |command: Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" 9<>secret.txt"]).arg(command.get_program());
        shell.args(command.get_args()).current_dir(command.get_current_dir().unwrap());
        for (name, value) in command.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell
    };
    let Some((_, samples)) = judged_by(&program, &task, &data, &[], with_secret) else { return };
    assert_eq!(samples[0]["end"], "passed", "{}", samples[0]["detail"]);
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "kept");
}

/// Processes that run a program of the sandbox in a folder.
fn programs_below(folder: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(folder)).count()
}

#[test]
fn what_a_hostile_program_uses_up_is_bounded() {
    let program = Program::new();
    let attacks = [
        // 2 GiB at most, against a limit of 256 MiB.
        (
            "held = []\nfor _ in range(64):\n    held.append(b'x' * (32 << 20))",
            &["failed", "out_of_memory"][..],
        ),
        // Each within the limit, together far above it.
        (
            "for _ in range(6):\n    if os.fork() == 0:\n        held = b'x' * (150 << 20)\n        \
             time.sleep(60)\n        os._exit(0)\ntime.sleep(60)",
            &["out_of_memory"],
        ),
        (
            "shared = mmap.mmap(-1, 1 << 30)\nfor i in range(0, 1 << 30, 4096):\n    shared[i] = 1\n\
             time.sleep(60)",
            &["out_of_memory"],
        ),
        // 256 MiB in files, in one file, and 20000 files.
        (
            "for i in range(256):\n    open(str(i), 'wb').write(b'x' * (1 << 20))\ntime.sleep(60)",
            &["disk_full"],
        ),
        (
            "f = open('one', 'wb')\nfor _ in range(256):\n    f.write(b'x' * (1 << 20))\n    f.flush()",
            &["disk_full", "failed"],
        ),
        ("for i in range(20000):\n    open(str(i), 'w').close()\ntime.sleep(60)", &["disk_full"]),
        ("for _ in range(16):\n    print('x' * (1 << 20))\ntime.sleep(60)", &["output_too_long"]),
    ];
    let start = std::time::Instant::now();
    // Long enough for a slow machine: each ends when it is over its limit.
    check_ends(&program, 40.0, &attacks);
    check_ends(
        &program,
        2.0,
        &[("while True: pass", &["timed_out"]), ("time.sleep(60)", &["timed_out"])],
    );
    assert!(start.elapsed().as_secs() < 240, "{:?}", start.elapsed());
}

/// Runs programs against a limit of 256 MiB and looks how they ended.
fn check_ends(program: &Program, seconds: f64, attacks: &[(&str, &[&str])]) {
    let rows: Vec<Value> = attacks.iter().map(|(body, _)| attack(body)).collect();
    program.write("attacks.jsonl", &lines(&rows));
    let task = format!("{ATTACK_TASK}timeout_seconds = {seconds:?}\nmemory_mebibytes = 256\n");
    let data = program.path("attacks.jsonl");
    let Some((figures, samples)) = judged(program, &task, &data, &[]) else { return };
    for (sample, (body, ends)) in samples.iter().zip(attacks) {
        let end = sample["end"].as_str().unwrap();
        assert!(ends.contains(&end), "{body}: {end} {}", sample["detail"]);
    }
    assert_eq!(figures["pass@1"], 0.0);
}

#[test]
fn every_language_of_this_machine_runs_and_is_judged() {
    let cases = [
        (
            "javascript",
            "const assert = require('assert');\nassert(1 + 1 === 2);",
            "process.exit(0);",
        ),
        ("rust", "fn main() { assert_eq!(1 + 1, 2); }", "fn main() { assert_eq!(1, 2); }"),
        ("c", "#include <assert.h>\nint main(void) { assert(1 + 1 == 2); }", "int main( {"),
        (
            "cpp",
            "#include <vector>\nint main() { return std::vector<int>{0}[0]; }",
            "int main() { return 1; }",
        ),
        ("go", "package main\nfunc main() {}", "package main\nfunc main() { panic(1) }"),
    ];
    for (language, right, wrong) in cases {
        let program = Program::new();
        program.write("rows.jsonl", &lines(&[json!({"code": right}), json!({"code": wrong})]));
        let task = format!(
            "kind = \"code\"\nlanguage = \"{language}\"\nprompt = \"code\"\ncompletion = \"code\"\n\
             program = \"completion\"\ntimeout_seconds = 30\n"
        );
        let data = program.path("rows.jsonl");
        let Some((_, samples)) = judged(&program, &task, &data, &[]) else { continue };
        assert_eq!(samples[0]["end"], "passed", "{language}: {}", samples[0]["detail"]);
        let expected = if wrong == "int main( {" { "not_compiled" } else { "failed" };
        assert_eq!(samples[1]["end"], expected, "{language}: {}", samples[1]["detail"]);
    }
}

/// The file of `HumanEval` itself, where `scripts/fetch_test_material.sh` has put it.
#[test]
fn the_right_answers_of_humaneval_all_pass() {
    let folder = std::env::var_os("TUNESMITH_TEST_MATERIAL");
    let folder = folder.map_or_else(|| root().join("target/test-material"), Into::into);
    let data = folder.join("HumanEval.jsonl.gz");
    if !data.exists() {
        #[expect(clippy::print_stderr, reason = "the reason for a test that is skipped")]
        {
            eprintln!("skipped: no {}", data.display());
        }
        return;
    }
    let program = Program::new();
    let task = shipped_with("completion = \"canonical_solution\"\ntimeout_seconds = 30");
    let Some((figures, samples)) = judged(&program, &task, &data, &[]) else { return };
    let failed: Vec<_> = samples.iter().filter(|sample| sample["end"] != "passed").collect();
    assert_eq!(figures["passed"], 164, "{failed:?}");
    assert_eq!(figures["pass@1"], 1.0);
}
