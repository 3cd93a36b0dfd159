//! Prepares one dataset: finds and hashes its files, reads, tokenizes and checks its rows.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::cache;
use crate::chat_template::{BUILTIN_TEMPLATES, ChatTemplate};
use crate::collect::{Collector, Outcome};
use crate::config::DatasetConfig;
use crate::counts::{DatasetCounts, DatasetRole};
use crate::encode::Encoder;
use crate::error::{DatasetError, Place, RowProblem};
use crate::example::TokenizedExample;
use crate::fill_in_the_middle::{Cutter, SentinelIds};
use crate::format::{self, Columns, DatasetFormat, Detected, Mapping, Needs, quoted};
use crate::load::{DataFile, LoadRequest};
use crate::overlong::{UntrainedRows, fit, joined};
use crate::read::{self, ContentHash, Found, Row};

/// Rows that are held and tokenized at once, and about how many bytes of them.
const ROWS_AT_ONCE: usize = 1024;
const BYTES_AT_ONCE: usize = 16 << 20;

/// Broken rows after which reading ends.
const MOST_ERRORS: usize = 1000;

/// One dataset to prepare.
pub(crate) struct Job<'a> {
    pub(crate) config: Cow<'a, DatasetConfig>,
    pub(crate) role: DatasetRole,
    /// Its number among the datasets.
    pub(crate) index: u32,
}

/// One dataset, ready for training.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prepared {
    /// `origin.file` counts the files of this dataset.
    pub(crate) examples: Vec<TokenizedExample>,
    pub(crate) counts: DatasetCounts,
    pub(crate) files: Vec<DataFile>,
    pub(crate) warnings: Vec<String>,
}

/// Reads and tokenizes a dataset, or takes it from the cache.
pub(crate) fn prepare(job: &Job, request: &LoadRequest) -> Result<Prepared, DatasetError> {
    let config = job.config.as_ref();
    let found = read::find(&config.path)?;
    let hashes: Vec<ContentHash> =
        found.files.par_iter().map(|path| read::hash_file(path)).collect::<Result<_, _>>()?;
    let mapping = Mapping::new(&config.columns);
    let format = choose_format(config, &mapping, &found)?;
    let encoder = encoder(config, format, request)?;
    let pipeline = Pipeline { config, request, mapping, format, encoder };
    let entry = request.cache_dir.filter(|_| request.row_limit.is_none()).map(|folder| {
        folder.join(format!("{}.tokens", cache::key(&pipeline.cache_identity(&found, &hashes))))
    });
    if let Some(cached) = entry.as_deref().and_then(cache::read) {
        return Ok(pipeline.unpack(job, &found, &hashes, cached));
    }
    let mut prepared = pipeline.read_all(job, &found, &hashes)?;
    if let Some(Err(error)) = entry.map(|entry| cache::write(&entry, &prepared)) {
        prepared.warnings.push(format!("tokenized data is not kept for the next run: {error}"));
    }
    Ok(prepared)
}

/// The format that the recipe names, or that the first row's columns give away.
fn choose_format(
    config: &DatasetConfig,
    mapping: &Mapping,
    found: &Found,
) -> Result<&'static dyn DatasetFormat, DatasetError> {
    let not_available = |name: crate::FormatName| DatasetError::FormatNotAvailable {
        format: name.as_str(),
        path: config.path.clone(),
        available: format::available(),
    };
    let format = if let Some(name) = config.format {
        format::by_name(name).ok_or_else(|| not_available(name))?
    } else {
        let (path, row) = first_row(config, found)?;
        match format::detect(&row.fields, mapping) {
            Detected::One(format) => format,
            Detected::NotAvailable(name) => return Err(not_available(name)),
            Detected::Unclear(reason) => {
                let columns: Vec<_> = row.fields.keys().map(String::as_str).collect();
                let columns = quoted(&columns);
                return Err(DatasetError::UnclearFormat { path, columns, reason });
            }
        }
    };
    match mapping.unknown_in(format) {
        None => Ok(format),
        Some(column) => Err(DatasetError::UnknownColumn {
            path: config.path.clone(),
            column: column.to_owned(),
            format: format.name().as_str(),
            known: quoted(&[format.required(), format.optional()].concat()),
        }),
    }
}

fn first_row(config: &DatasetConfig, found: &Found) -> Result<(PathBuf, Row), DatasetError> {
    for path in &found.files {
        if let Some(row) = read::open(path)?.next() {
            return Ok((path.clone(), row?));
        }
    }
    Err(DatasetError::NoRows { pattern: config.path.clone() })
}

/// What turns samples into tokens, once everything it needs is there and every option has a meaning.
fn encoder<'a>(
    config: &DatasetConfig,
    format: &dyn DatasetFormat,
    request: &LoadRequest<'a>,
) -> Result<Encoder<'a>, DatasetError> {
    let tokenizer = request.tokenizer;
    let name = format.name().as_str();
    let meaningless = |key: &str, value: String| DatasetError::BadSetting {
        key: format!("dataset.{key}"),
        value,
        problem: format!("means nothing for `{}`, which is read as format `{name}`", config.path),
    };
    if !format.loss_on().contains(&config.loss_on) {
        let value = serde_json::to_string(&config.loss_on).unwrap_or_default();
        return Err(meaningless("loss_on", value));
    }
    let template = match (format.needs(), &config.chat_template) {
        (Needs::ChatTemplate, Some(name)) => Some(ChatTemplate::named_or_file(name, tokenizer)?),
        (Needs::ChatTemplate, None) => {
            let template = ChatTemplate::of_base(tokenizer)?;
            Some(template.ok_or_else(|| DatasetError::NoChatTemplate {
                pattern: config.path.clone(),
                builtins: quoted(&BUILTIN_TEMPLATES.iter().map(|own| own.name).collect::<Vec<_>>()),
            })?)
        }
        (_, Some(template)) => {
            return Err(meaningless("chat_template", format!("\"{template}\"")));
        }
        (_, None) => None,
    };
    if format.needs() == Needs::EndOfSequence && tokenizer.eos().is_none() {
        return Err(DatasetError::NoEndOfSequence { format: name });
    }
    Ok(Encoder {
        tokenizer,
        template,
        loss_on: config.loss_on,
        vocab_size: request.vocab_size,
        cutter: cutter(config, format, request)?,
        rows: (request.batch.sequence_length.get(), request.batch.on_overlong),
    })
}

/// What cuts texts in three, for the format that is about it.
fn cutter(
    config: &DatasetConfig,
    format: &dyn DatasetFormat,
    request: &LoadRequest,
) -> Result<Option<Cutter>, DatasetError> {
    let name = format.name().as_str();
    if format.needs() != Needs::Sentinels {
        return match &config.fill_in_the_middle {
            None => Ok(None),
            Some(_) => Err(DatasetError::BadSetting {
                key: "dataset.fill_in_the_middle".to_owned(),
                value: "{ ... }".to_owned(),
                problem: format!(
                    "means nothing for `{}`, which is read as format `{name}`",
                    config.path
                ),
            }),
        };
    }
    let own = config.fill_in_the_middle.clone().unwrap_or_default();
    for (key, value) in [("rate", own.rate), ("spm_rate", own.spm_rate)] {
        if !(0.0..=1.0).contains(&value) {
            return Err(DatasetError::BadSetting {
                key: format!("dataset.fill_in_the_middle.{key}"),
                value: value.to_string(),
                problem: "is not possible; it must be from 0 to 1".to_owned(),
            });
        }
    }
    let ids = SentinelIds::of(request.tokenizer, own.sentinels.as_ref());
    let ids =
        ids.map_err(|reason| DatasetError::NoSentinels { pattern: config.path.clone(), reason })?;
    Ok(Some(Cutter { ids, config: own, seed: request.seed }))
}

/// Everything that decides what a row becomes.
struct Pipeline<'a> {
    config: &'a DatasetConfig,
    request: &'a LoadRequest<'a>,
    mapping: Mapping,
    format: &'static dyn DatasetFormat,
    encoder: Encoder<'a>,
}

impl Pipeline<'_> {
    fn read_all(
        &self,
        job: &Job,
        found: &Found,
        hashes: &[ContentHash],
    ) -> Result<Prepared, DatasetError> {
        let mut counts = DatasetCounts::new(&self.config.path, job.role, self.format.name());
        counts.skipped_files = found.skipped;
        counts.files = found.files.len() as u64;
        let mut collector = Collector::new(counts);
        let mut files = Vec::with_capacity(found.files.len());
        for (number, (path, hash)) in found.files.iter().zip(hashes).enumerate() {
            let rows_before = collector.counts.rows;
            self.read_file(path, number as u32, &mut collector);
            hash.check_unchanged(path)?;
            files.push(data_file(path, hash, collector.counts.rows - rows_before));
        }
        let sequence_length = self.request.batch.sequence_length.get();
        let (examples, counts) =
            collector.finish(sequence_length, self.request.batch.on_overlong)?;
        Ok(Prepared { examples, counts, files, warnings: Vec::new() })
    }

    /// Reads one file, a few rows at a time, each lot tokenized by all cores.
    fn read_file(&self, path: &Path, file: u32, collector: &mut Collector) {
        let mut rows = match read::open(path) {
            Ok(rows) => rows,
            // The other files may have faults too, and all of them are told at once.
            Err(error) => {
                collector.add(path, file, Err(error));
                return;
            }
        };
        let limit = self.request.row_limit.map_or(u64::MAX, |limit| limit as u64);
        loop {
            let left = limit.saturating_sub(collector.counts.rows);
            let lot = next_lot(&mut rows, usize::try_from(left).unwrap_or(usize::MAX));
            if lot.is_empty() || collector.errors() > MOST_ERRORS {
                return;
            }
            let outcomes: Vec<_> = lot.into_par_iter().map(|row| self.outcome(path, row)).collect();
            for outcome in outcomes {
                collector.add(path, file, outcome);
            }
        }
    }

    fn outcome(
        &self,
        path: &Path,
        row: Result<Row, DatasetError>,
    ) -> Result<Outcome, DatasetError> {
        let row = row?;
        let line = row.line;
        self.row_outcome(&row).map_err(|problem| DatasetError::Row {
            place: Place { path: path.to_path_buf(), line },
            problem,
        })
    }

    fn row_outcome(&self, row: &Row) -> Result<Outcome, RowProblem> {
        let sample = self.format.sample(&Columns::new(&row.fields, &self.mapping))?;
        let line = row.line;
        let parts = self.encoder.encode_parts(sample)?;
        if parts.is_empty() {
            return Ok(Outcome::Empty);
        }
        let untrained = if self.config.allow_untrained_rows {
            UntrainedRows::Keep
        } else {
            UntrainedRows::Refuse
        };
        let batch = self.request.batch;
        Ok(Outcome::Row {
            line,
            length: parts.iter().map(|part| part.token_ids.len() + part.left_out).sum(),
            turns_without_end: parts.iter().map(|part| part.turns_without_end).sum(),
            fitted: joined(
                parts.iter().map(|part| {
                    fit(part, batch.sequence_length.get(), batch.on_overlong, untrained)
                }),
            ),
        })
    }

    /// What the cached result depends on; `weight`, `path` and places of files are not among it.
    fn cache_identity<'b>(
        &'b self,
        found: &'b Found,
        hashes: &'b [ContentHash],
    ) -> Vec<Cow<'b, [u8]>> {
        let batch = self.request.batch;
        let mut options = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "format": self.format.name(),
            "columns": self.config.columns,
            "loss_on": self.config.loss_on,
            "allow_untrained_rows": self.config.allow_untrained_rows,
            "vocab_size": self.request.vocab_size,
            "sequence_length": batch.sequence_length,
            "on_overlong": batch.on_overlong,
        });
        if let Some(cutter) = &self.encoder.cutter {
            options["fill_in_the_middle"] = serde_json::json!([cutter.config, cutter.seed]);
        }
        let template = self.encoder.template.as_ref().map_or("", ChatTemplate::source);
        let mut identity = vec![
            Cow::Owned(options.to_string().into_bytes()),
            Cow::Borrowed(self.request.tokenizer.fingerprint().as_slice()),
            Cow::Borrowed(template.as_bytes()),
        ];
        for (path, hash) in found.files.iter().zip(hashes) {
            // The ending decides the reader.
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            identity.push(Cow::Borrowed(name));
            identity.push(Cow::Borrowed(hash.sha256.as_bytes()));
        }
        identity
    }

    fn unpack(
        &self,
        job: &Job,
        found: &Found,
        hashes: &[ContentHash],
        cached: cache::Entry,
    ) -> Prepared {
        let files = found.files.iter().zip(hashes).zip(&cached.rows);
        Prepared {
            examples: cached.examples,
            counts: DatasetCounts {
                path: self.config.path.clone(),
                role: job.role,
                skipped_files: found.skipped,
                ..cached.counts
            },
            files: files.map(|((path, hash), &rows)| data_file(path, hash, rows)).collect(),
            warnings: Vec::new(),
        }
    }
}

fn data_file(path: &Path, hash: &ContentHash, rows: u64) -> DataFile {
    DataFile { path: path.to_path_buf(), sha256: hash.sha256.clone(), bytes: hash.bytes, rows }
}

/// The next rows, few enough to hold.
fn next_lot(rows: &mut read::Rows, most: usize) -> Vec<Result<Row, DatasetError>> {
    let mut lot = Vec::new();
    let mut bytes = 0;
    while lot.len() < most.min(ROWS_AT_ONCE) && bytes < BYTES_AT_ONCE {
        match rows.next() {
            Some(row) => {
                bytes += row.as_ref().map_or(0, |row| row.bytes);
                lot.push(row);
            }
            None => break,
        }
    }
    lot
}
