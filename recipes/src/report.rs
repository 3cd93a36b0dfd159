//! One HTML page about runs and evaluations: no script, no font, no picture from elsewhere.
//!
//! The page states what runs and `tunesmith evaluate` wrote down, and computes nothing but the plan.
//! Rows of the data are on it only where a file of samples was named. The template escapes every text,
//! and the page's own policy forbids a browser to load anything.

mod curve;
mod evaluations;
mod run;
mod sections;
mod table;

use anyhow::Context;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

pub(crate) use evaluations::{EvaluationFile, Samples};
pub(crate) use run::RunFacts;

use curve::{Chart, Series, chart};
use evaluations::{EvaluationView, SamplesView};
use sections::RunView;
use table::Table;

/// What a page is made of.
pub(crate) struct Page {
    /// Runs, each with what its plan says today.
    pub(crate) runs: Vec<RunFacts>,
    /// Files of `tunesmith evaluate --json`.
    pub(crate) evaluations: Vec<EvaluationFile>,
    /// Files of `tunesmith evaluate --samples`, where they were asked for.
    pub(crate) samples: Vec<Samples>,
}

/// The page in the template's words.
#[derive(Debug, Serialize)]
struct PageView {
    title: String,
    style: &'static str,
    version: &'static str,
    together: Option<Together>,
    evaluations: Vec<EvaluationView>,
    runs: Vec<RunView>,
    samples: Vec<SamplesView>,
}

/// Several runs in one picture and one table.
#[derive(Debug, Serialize)]
struct Together {
    loss: Option<Chart>,
    table: Table,
}

/// Its ending makes the template engine escape.
const TEMPLATE: &str = "page.html";

impl Page {
    /// The page as one text.
    pub(crate) fn html(&self) -> anyhow::Result<String> {
        let names: Vec<&str> = self.runs.iter().map(|run| run.name.as_str()).collect();
        let view = PageView {
            title: format!("Tunesmith: {}", names.join(", ")),
            style: include_str!("report/style.css"),
            version: env!("CARGO_PKG_VERSION"),
            together: (self.runs.len() > 1).then(|| self.together()),
            evaluations: self.evaluations.iter().map(EvaluationFile::view).collect(),
            runs: self.runs.iter().map(RunView::of).collect(),
            samples: self.samples.iter().map(Samples::view).collect(),
        };
        let mut templates = Environment::new();
        // A name that the view does not have is a mistake of the template.
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        templates.add_template(TEMPLATE, include_str!("report/page.html"))?;
        let page = templates.get_template(TEMPLATE)?.render(Serde(view));
        page.context("the template of the report")
    }

    fn together(&self) -> Together {
        let losses: Vec<Series> =
            self.runs.iter().map(|run| run.smoothed_loss(&run.name)).collect();
        Together {
            loss: chart("Training loss, smoothed", "step", &losses),
            table: sections::runs_table(&self.runs),
        }
    }
}
