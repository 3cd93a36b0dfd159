//! Reads a whole text file as one row with the column `text`: prose, Markdown, source code.

use std::path::Path;

use serde_json::{Map, Value};

use super::source::{Source, utf8};
use super::{Reader, Row, Rows};
use crate::error::{DatasetError, RowProblem};

/// Most bytes of one file: it is tokenized as a whole.
const MAX_FILE_BYTES: u64 = 256 << 20;

pub(super) const READER: Reader = Reader {
    endings: &[
        "txt", "text", "md", "markdown", "rst", "tex", "org", "adoc", "py", "pyi", "rs", "js",
        "mjs", "cjs", "ts", "tsx", "jsx", "vue", "svelte", "c", "h", "cc", "cpp", "cxx", "hh",
        "hpp", "hxx", "cu", "cuh", "cl", "metal", "wgsl", "glsl", "hlsl", "go", "java", "kt",
        "kts", "scala", "groovy", "swift", "m", "mm", "cs", "fs", "fsi", "vb", "rb", "php", "pl",
        "pm", "lua", "r", "jl", "sh", "bash", "zsh", "fish", "ps1", "bat", "sql", "hs", "lhs",
        "ml", "mli", "elm", "ex", "exs", "erl", "hrl", "clj", "cljs", "lisp", "el", "scm", "rkt",
        "dart", "zig", "nim", "d", "v", "sv", "vhd", "vhdl", "asm", "s", "f", "f90", "f95", "pas",
        "ada", "adb", "ads", "cob", "sol", "tf", "nix", "proto", "graphql", "html", "htm", "css",
        "scss", "less", "xml", "yaml", "yml", "toml", "ini", "cmake", "mk", "gradle",
    ],
    open,
};

fn open(path: &Path) -> Result<Rows, DatasetError> {
    let mut source = Source::open(path)?;
    let offset = source.offset;
    let bytes = source.read_rest(MAX_FILE_BYTES)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(source.error(1, RowProblem::TooLong { limit: MAX_FILE_BYTES }));
    }
    let text = match utf8(&bytes, offset) {
        Ok(text) => text.to_owned(),
        Err(problem) => {
            let valid =
                std::str::from_utf8(&bytes).map_or_else(|error| error.valid_up_to(), str::len);
            let line = 1 + bytes.iter().take(valid).filter(|&&byte| byte == b'\n').count();
            return Err(source.error(line as u64, problem));
        }
    };
    let mut fields = Map::new();
    fields.insert("text".to_owned(), Value::String(text));
    Ok(Box::new(std::iter::once(Ok(Row { line: 1, fields, bytes: bytes.len() }))))
}

#[cfg(test)]
mod tests {
    use super::super::json_lines::tests::{gzip, lines_and_field, read};
    use super::*;

    #[test]
    fn a_text_file_is_one_row_without_its_byte_order_mark() {
        let expected = [(1, Value::from("# A\r\nb\n"))];
        for (name, content) in [
            ("x.md", b"\xef\xbb\xbf# A\r\nb\n".to_vec()),
            ("x.py", b"# A\r\nb\n".to_vec()),
            ("x.rs.gz", gzip(b"# A\r\nb\n")),
        ] {
            assert_eq!(lines_and_field(&read(name, &content), "text"), expected, "{name}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_names_line_and_byte() {
        let rows = read("x.txt", b"a\nb\n\xe9\n");
        assert_eq!(rows[0].as_ref().unwrap_err(), "x.txt:3: byte 4 of the file is not UTF-8");
    }
}
