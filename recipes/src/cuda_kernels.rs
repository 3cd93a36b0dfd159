//! Which operations may go their faster way on an NVIDIA GPU.
//!
//! Before a kernel is trusted on a GPU, it is compared there with its reference, in a process of its
//! own: one that writes where it must not takes nothing down but itself. What came out is kept in
//! the cache, for this program, driver and GPU. `TUNESMITH_CUDA_KERNELS=reference` takes none.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::printer::write_atomically;

/// Variable that forces the references.
pub(crate) const VARIABLE: &str = "TUNESMITH_CUDA_KERNELS";

/// How long one operation's check may take: NVRTC compiles its kernels meanwhile.
const LONGEST: Duration = Duration::from_mins(2);

/// What the check of an operation found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CheckedKernel {
    /// Its name.
    pub(crate) operation: String,
    /// Largest error over what is allowed; none where nothing could be compared.
    pub(crate) error: Option<f64>,
    /// Why nothing could be.
    pub(crate) problem: Option<String>,
}

impl CheckedKernel {
    fn failed(operation: &str, problem: impl Into<String>) -> Self {
        Self { operation: operation.to_owned(), error: None, problem: Some(problem.into()) }
    }

    /// Whether the faster way may be taken.
    pub(crate) fn is_on(&self) -> bool {
        self.problem.is_none() && self.error.is_some_and(|error| error <= 1.0)
    }
}

impl std::fmt::Display for CheckedKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.problem, self.error) {
            (None, Some(error)) if self.is_on() => {
                write!(f, "{}: on, {error:.2} of the allowed error", self.operation)
            }
            (None, Some(error)) => {
                write!(f, "{}: off, {error:.1} times the allowed error", self.operation)
            }
            (problem, _) => {
                let why = problem.as_deref().unwrap_or("nothing was compared");
                write!(f, "{}: off, {why}", self.operation)
            }
        }
    }
}

/// What the variable asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// What passes its check.
    Auto,
    /// Nothing.
    Reference,
}

impl Mode {
    /// # Errors
    /// A value that means nothing.
    pub(crate) fn of_variable(value: Option<&str>) -> Result<Self, String> {
        match value {
            None | Some("" | "auto") => Ok(Self::Auto),
            Some("reference") => Ok(Self::Reference),
            Some(other) => {
                Err(format!("`{VARIABLE}={other}` is not known; set it to auto or reference"))
            }
        }
    }
}

/// What a result was found for: another program, driver or GPU is checked anew.
pub(crate) type Key = BTreeMap<String, String>;

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: Key,
    checked: Vec<CheckedKernel>,
}

/// Results for the wanted operations: those that the cache has, and those of `child`, which is
/// asked for the names that are left.
pub(crate) fn checked(
    wanted: &[String],
    key: &Key,
    cache: Option<PathBuf>,
    child: impl Fn(&[String]) -> Command,
) -> Vec<CheckedKernel> {
    let mut known = cache.as_deref().and_then(|path| kept(path, key)).unwrap_or_default();
    let is_known = |known: &[CheckedKernel], name: &String| {
        known.iter().any(|checked| checked.operation == *name)
    };
    let mut left: Vec<String> =
        wanted.iter().filter(|name| !is_known(&known, name)).cloned().collect();
    let is_new = !left.is_empty();
    while !left.is_empty() {
        let found = run(child(&left), &left);
        known.extend(found);
        left.retain(|name| !is_known(&known, name));
    }
    if let Some(path) = cache.filter(|_| is_new) {
        let kept = Kept { key: key.clone(), checked: known.clone() };
        // A cache that cannot be written costs the next run its time, nothing else.
        if let (Some(folder), Ok(text)) = (path.parent(), serde_json::to_vec_pretty(&kept)) {
            let _ = std::fs::create_dir_all(folder);
            let _ = write_atomically(&path, &text);
        }
    }
    known.retain(|checked| wanted.contains(&checked.operation));
    known
}

fn kept(path: &Path, key: &Key) -> Option<Vec<CheckedKernel>> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (kept.key == *key).then_some(kept.checked)
}

/// What a child said before it ended. Its lines are `begin NAME` and then `error NAME NUMBER` or
/// `problem NAME WORDS`; the operation it ended in is named as the cause. At least one operation of
/// `names` is among the results.
fn run(mut command: Command, names: &[String]) -> Vec<CheckedKernel> {
    let first = names.first().map(String::as_str).unwrap_or_default();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return vec![CheckedKernel::failed(first, format!("no check: {error}"))],
    };
    let (sender, lines) = channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
    }
    let (mut found, mut at) = (Vec::new(), None);
    let mut ending = "its check ended early";
    loop {
        match lines.recv_timeout(LONGEST) {
            Ok(line) => note(&line, names, &mut found, &mut at),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                ending = "its check took too long";
                let _ = child.kill();
                break;
            }
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    match at {
        Some(name) => found.push(CheckedKernel::failed(&name, ending)),
        None if found.is_empty() => found.push(CheckedKernel::failed(first, ending)),
        None => {}
    }
    found
}

fn note(line: &str, names: &[String], found: &mut Vec<CheckedKernel>, at: &mut Option<String>) {
    let mut words = line.splitn(3, ' ');
    let (Some(kind), Some(name), rest) = (words.next(), words.next(), words.next()) else { return };
    if !names.iter().any(|wanted| wanted == name) {
        return;
    }
    let result = match kind {
        "begin" => {
            *at = Some(name.to_owned());
            return;
        }
        "error" => {
            let error = rest.and_then(|text| text.parse().ok());
            CheckedKernel { operation: name.to_owned(), error, problem: None }
        }
        "problem" => CheckedKernel::failed(name, rest.unwrap_or_default()),
        _ => return,
    };
    *at = None;
    found.push(result);
}

/// The GPU that this process opened, and what its kernels' checks found.
#[cfg(feature = "cuda")]
static STATE: std::sync::Mutex<Option<(usize, Vec<CheckedKernel>)>> = std::sync::Mutex::new(None);

/// Checks the operations of models with heads of these widths on GPU `index`, as far as that was not
/// done before, and lets those that passed go their faster way. Gives those that are new here.
///
/// # Errors
/// A variable that means nothing.
#[cfg(feature = "cuda")]
pub(crate) fn prepare(index: usize, head_dims: &[usize]) -> Result<Vec<CheckedKernel>, String> {
    let variable = std::env::var(VARIABLE).ok();
    if Mode::of_variable(variable.as_deref())? == Mode::Reference {
        kernels::cuda::allow([]);
        return Ok(Vec::new());
    }
    let mut state = STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (_, known) = state.get_or_insert_with(|| (index, Vec::new()));
    let wanted: Vec<String> = kernels::cuda::operations(head_dims)
        .iter()
        .map(ToString::to_string)
        .filter(|name| known.iter().all(|checked| checked.operation != *name))
        .collect();
    let cache = crate::machine::cache_dir().map(|cache| cache.join("cuda-kernels.json"));
    let found = checked(&wanted, &key(index), cache, |names| child(index, names));
    known.extend(found.iter().cloned());
    let on = known.iter().filter(|checked| checked.is_on());
    kernels::cuda::allow(on.filter_map(|checked| kernels::Operation::of_name(&checked.operation)));
    Ok(found)
}

/// The GPU that this process opened.
#[cfg(feature = "cuda")]
pub(crate) fn opened() -> Option<usize> {
    let state = STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    state.as_ref().map(|(index, _)| *index)
}

/// Operations that are on, in the order of their names; they can change the bits of a result.
#[cfg(feature = "cuda")]
pub(crate) fn in_use() -> Option<String> {
    let state = STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (_, known) = state.as_ref()?;
    let mut on: Vec<&str> =
        known.iter().filter(|checked| checked.is_on()).map(|c| c.operation.as_str()).collect();
    on.sort_unstable();
    Some(on.join(" "))
}

/// [`prepare`] for a model that is about to be read onto the GPU that was opened.
#[cfg(feature = "cuda")]
pub(crate) fn prepare_for(head_dim: usize) -> Result<Vec<CheckedKernel>, String> {
    opened().map_or(Ok(Vec::new()), |index| prepare(index, &[head_dim]))
}

#[cfg(feature = "cuda")]
fn key(index: usize) -> Key {
    let program = std::env::current_exe().and_then(std::fs::metadata);
    let written = program.as_ref().ok().and_then(|file| file.modified().ok());
    let written = written.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let bytes = program.map_or(0, |file| file.len());
    Key::from([
        ("program".to_owned(), format!("{} {bytes} {written:?}", env!("CARGO_PKG_VERSION"))),
        ("driver".to_owned(), format!("{:?}", kernels::cuda::driver_version())),
        ("gpu".to_owned(), format!("{index} {:?}", kernels::cuda::compute_capability(index))),
        ("models".to_owned(), crate::cuda_device::models().join(", ")),
    ])
}

#[cfg(feature = "cuda")]
fn child(index: usize, names: &[String]) -> Command {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("tunesmith"));
    let mut command = Command::new(program);
    command.args(["internal-check-cuda", &index.to_string()]).args(names);
    command
}

/// What the child does: checks operations one after the other and says how each went.
#[cfg(feature = "cuda")]
pub(crate) fn check_here(
    index: usize,
    names: &[String],
    printer: &mut crate::printer::Printer,
) -> anyhow::Result<()> {
    let opened = crate::cuda_device::open(index).map_err(anyhow::Error::msg)?;
    for name in names {
        let Some(operation) = kernels::Operation::of_name(name) else { continue };
        printer.data(&format!("begin {name}"))?;
        let checked = || kernels::check_operation(&opened.device, operation);
        printer.data(&match crate::cuda_device::caught(checked) {
            Ok(Some(checked)) => format!("error {name} {:e}", checked.error),
            Ok(None) => format!("problem {name} this GPU's tensors are not what it takes"),
            Err(words) => format!("problem {name} {words}"),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// A child that goes through its names and dies in `gate`.
    fn script(text: &str) -> impl Fn(&[String]) -> Command + '_ {
        move |names| {
            let mut command = Command::new("sh");
            command.args(["-c", text, "sh"]).args(names);
            command
        }
    }

    const DIES_IN_GATE: &str = r#"for name; do
        echo "begin $name"
        [ "$name" != gate ] || kill -9 $$
        [ "$name" != rope ] || { echo "problem rope no such kernel"; continue; }
        echo "error $name 0.25"
    done"#;

    #[test]
    fn a_kernel_that_kills_its_check_is_off_and_the_others_are_checked() {
        let wanted = names(&["rms-norm", "gate", "rope", "adamw"]);
        let mut found = checked(&wanted, &Key::new(), None, script(DIES_IN_GATE));
        found.sort_by(|a, b| a.operation.cmp(&b.operation));
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "adamw: on, 0.25 of the allowed error",
                "gate: off, its check ended early",
                "rms-norm: on, 0.25 of the allowed error",
                "rope: off, no such kernel",
            ]
        );
        assert_eq!(
            found.iter().map(CheckedKernel::is_on).collect::<Vec<_>>(),
            [true, false, true, false]
        );
    }

    #[test]
    fn a_child_that_says_nothing_switches_everything_off() {
        let found = checked(&names(&["a", "b"]), &Key::new(), None, script("exit 2"));
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|checked| !checked.is_on()));
    }

    #[test]
    fn errors_above_one_and_no_numbers_are_off() {
        let text = r#"echo "begin a"; echo "error a 1.5"; echo "begin b"; echo "error b NaN""#;
        let found = checked(&names(&["a", "b"]), &Key::new(), None, script(text));
        assert!(found.iter().all(|checked| !checked.is_on()));
        assert_eq!(found[0].to_string(), "a: off, 1.5 times the allowed error");
    }

    #[test]
    fn results_are_kept_for_the_same_program_driver_and_gpu() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper").join("kernels.json");
        let key = Key::from([("driver".to_owned(), "13.0".to_owned())]);
        let ask = |wanted: &[&str], key: &Key, text: &str| {
            checked(&names(wanted), key, Some(path.clone()), script(text))
        };
        assert!(ask(&["a"], &key, r#"echo "begin a"; echo "error a 0.5""#)[0].is_on());
        // Another operation is added; the first is not asked again.
        let more = ask(&["a", "b"], &key, r#"[ $# = 1 ] && echo "error b 0.5""#);
        assert_eq!(more.iter().filter(|checked| checked.is_on()).count(), 2);
        let other = Key::from([("driver".to_owned(), "12.8".to_owned())]);
        assert!(!ask(&["a"], &other, "exit 1")[0].is_on());
    }

    #[test]
    fn the_variable_takes_two_values() {
        assert_eq!(Mode::of_variable(None), Ok(Mode::Auto));
        assert_eq!(Mode::of_variable(Some("reference")), Ok(Mode::Reference));
        assert!(Mode::of_variable(Some("fast")).unwrap_err().contains("auto or reference"));
    }
}
