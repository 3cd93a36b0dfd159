//! The hub against a server of our own on this machine.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use super::*;
use crate::weights::ModelFiles;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the files of one repository; answers with `status` instead where one is set.
struct Server {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

fn serve(status: Option<u16>, files: BTreeMap<&'static str, Vec<u8>>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&requests);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(&stream.unwrap(), status, &files, &log);
        }
    });
    Server { endpoint, requests }
}

fn answer(
    stream: &TcpStream,
    status: Option<u16>,
    files: &BTreeMap<&'static str, Vec<u8>>,
    log: &Mutex<Vec<String>>,
) {
    let lines: Vec<String> = BufReader::new(stream)
        .lines()
        .map(Result::unwrap_or_default)
        .take_while(|line| !line.is_empty())
        .collect();
    let Some(target) = lines.first().and_then(|line| line.split(' ').nth(1)) else { return };
    let header = |name: &str| {
        let prefix = format!("{name}: ");
        lines.iter().find_map(|line| line.to_lowercase().strip_prefix(&prefix).map(str::to_owned))
    };
    log.lock().unwrap().push(format!("{target} {}", header("authorization").unwrap_or_default()));
    let (status, headers, body) = match status {
        Some(status) => (status, String::new(), b"no".to_vec()),
        None => content(target, header("range"), files),
    };
    let mut stream = stream;
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
}

fn content(
    target: &str,
    range: Option<String>,
    files: &BTreeMap<&'static str, Vec<u8>>,
) -> (u16, String, Vec<u8>) {
    if target == "/api/models/acme/tiny/revision/main" {
        let siblings: Vec<_> =
            files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"siblings": siblings, "sha": COMMIT}).to_string();
        return (200, "Content-Type: application/json\r\n".to_owned(), body.into_bytes());
    }
    let file = target
        .strip_prefix("/acme/tiny/resolve/main/")
        .and_then(|name| Some((name, files.get(name)?)));
    let Some((name, bytes)) = file else { return (404, String::new(), Vec::new()) };
    let range = range.unwrap();
    let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(bytes.len(), |end: usize| end + 1);
    let headers = format!(
        "ETag: \"etag-{}\"\r\nx-repo-commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        name.replace('.', "-"),
        end - 1,
        bytes.len()
    );
    (206, headers, bytes[start..end].to_vec())
}

fn safetensors(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &1.5_f32.to_le_bytes()].concat()
}

fn repository() -> BTreeMap<&'static str, Vec<u8>> {
    let index = br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    BTreeMap::from([
        ("config.json", b"{\"model_type\":\"llama\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("LICENSE.txt", b"terms".to_vec()),
        ("README.md", b"---\nlicense: mit\n---\n".to_vec()),
        ("additional_chat_templates/rag.jinja", b"grounded".to_vec()),
        ("assets/figure.png", b"not fetched".to_vec()),
        ("pytorch_model.bin", b"not fetched".to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("model-1.safetensors", safetensors("a")),
        ("model-2.safetensors", safetensors("b")),
    ])
}

fn settings(network: Network, endpoint: &str, home: &Path) -> HubSettings {
    let home = home.to_str().unwrap().to_owned();
    let endpoint = endpoint.to_owned();
    HubSettings::from_variables(network, move |name| match name {
        "HF_ENDPOINT" => Some(endpoint.clone()),
        "HF_HOME" => Some(home.clone()),
        "HF_TOKEN" => Some("hf_secret".to_owned()),
        _ => None,
    })
}

fn tiny() -> HubId {
    HubId::parse("acme/tiny").unwrap()
}

#[test]
fn a_model_is_downloaded_once_and_found_offline_afterwards() {
    let home = tempfile::tempdir().unwrap();
    let server = serve(None, repository());
    let folder =
        resolve(&tiny(), &settings(Network::Allowed, &server.endpoint, home.path())).unwrap();
    assert!(folder.starts_with(home.path().join("hub/models--acme--tiny/snapshots")));
    let model = ModelFiles::open(folder.to_str().unwrap(), Network::Offline).unwrap();
    assert_eq!(model.weights().read_f32("b").unwrap(), [1.5]);
    assert_eq!(
        model.side_files().unwrap(),
        ["LICENSE.txt", "tokenizer.json", "additional_chat_templates/rag.jinja"]
    );
    assert!(model.side_file("README.md").unwrap().is_some());
    let requests = server.requests.lock().unwrap().clone();
    assert!(requests.iter().all(|line| line.contains("bearer hf_secret")), "{requests:?}");
    assert!(!requests.iter().any(|line| line.contains(".png") || line.contains(".bin")));

    let dead = "http://127.0.0.1:9";
    for network in [Network::Allowed, Network::Offline] {
        assert_eq!(resolve(&tiny(), &settings(network, dead, home.path())).unwrap(), folder);
    }
}

#[test]
fn an_interrupted_download_is_completed() {
    let home = tempfile::tempdir().unwrap();
    let mut files = repository();
    files.remove("model-2.safetensors");
    let server = serve(None, files);
    let settings_of = |network, server: &Server| settings(network, &server.endpoint, home.path());
    let error = resolve(&tiny(), &settings_of(Network::Allowed, &server)).unwrap_err();
    assert!(matches!(error, WeightsError::NotOnHub { .. }), "{error}");
    let error = resolve(&tiny(), &settings_of(Network::Offline, &server)).unwrap_err();
    assert!(error.to_string().contains("without `model-2.safetensors`"), "{error}");
    let server = serve(None, repository());
    assert!(resolve(&tiny(), &settings_of(Network::Allowed, &server)).is_ok());
    let requests = server.requests.lock().unwrap().clone();
    assert!(!requests.iter().any(|line| line.contains("model-1.safetensors")), "{requests:?}");
}

#[test]
fn offline_is_an_error_that_names_what_forbids_it() {
    let home = tempfile::tempdir().unwrap();
    let error = resolve(&tiny(), &settings(Network::Offline, "http://127.0.0.1:9", home.path()))
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`acme/tiny`") && text.contains("`--offline`"), "{text}");
    assert!(error.hint().unwrap().contains("hf download acme/tiny"));
    let by_variable = HubSettings::from_variables(Network::Allowed, |name| {
        (name == "HF_HUB_OFFLINE").then(|| "1".to_owned())
    });
    assert_eq!(by_variable.offline, Some("`HF_HUB_OFFLINE`"));
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    for (status, part, hint) in [
        (401, "HTTP 401", "HF_TOKEN"),
        (403, "the token has no access", "accept the licence"),
        (404, "has no model of that name", "spelling"),
        (500, "500", "run it again"),
    ] {
        let server = serve(Some(status), BTreeMap::new());
        let settings = settings(Network::Allowed, &server.endpoint, home.path());
        let error = resolve(&tiny(), &settings).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
    }
}

#[test]
fn repositories_without_safetensors_are_refused_with_their_files() {
    let home = tempfile::tempdir().unwrap();
    let mut files = repository();
    files.remove("model.safetensors.index.json");
    let server = serve(None, files);
    let settings = settings(Network::Allowed, &server.endpoint, home.path());
    let error = resolve(&tiny(), &settings).unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin"), "{error}");
}

#[test]
fn ids_are_told_from_paths() {
    for id in ["meta-llama/Llama-2-7b-hf", "a/b.c_d", "acme/tiny@v1.0"] {
        assert_eq!(HubId::parse(id).unwrap().to_string(), id);
    }
    for path in
        ["model", "./a/b", "../b", "a/b/c", "/a/b", "a/", "models/x.gguf", "a/b@../c", "~/b"]
    {
        assert_eq!(HubId::parse(path), None, "{path}");
    }
}

#[test]
fn caches_are_found_where_the_variables_say() {
    let cache = |pairs: &[(&str, &str)]| {
        let pairs: BTreeMap<String, String> =
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        HubSettings::from_variables(Network::Allowed, |name| pairs.get(name).cloned()).cache
    };
    assert_eq!(cache(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
    assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
    assert_eq!(cache(&[("HF_HOME", "/f"), ("HOME", "/h")]), Path::new("/f/hub"));
    assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")]), Path::new("/c"));
}
