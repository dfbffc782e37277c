//! Numbers for people: a table, printed row by row. Each row is left for programs as well.

use chrono::Utc;

use super::machine::machine;
use super::results::{self, Outcome, Reference, Spread, folder, is_met};

/// Whether this run only shows that the benchmark works.
pub(crate) fn is_quick() -> bool {
    std::env::args().any(|argument| argument == "--quick")
}

/// Keeps a figure in the file of the newest ones, and in that of its commit. `at` is its place on the scale of a line.
pub(crate) fn record(
    title: &str,
    what: &str,
    unit: &str,
    (figure, reference): (Spread, Option<Spread>),
    target: &str,
    at: Option<f64>,
) {
    let (name, beside) = what.split_once("; ").unwrap_or((what, "reference"));
    let ratio = reference.map(|reference| figure.median / reference.median).filter(|ratio| ratio.is_finite());
    let outcome = Outcome {
        bench: env!("CARGO_CRATE_NAME").to_owned(),
        name: name.to_owned(),
        unit: unit.to_owned(),
        figure,
        reference: reference.map(|spread| Reference { name: beside.to_owned(), spread }),
        ratio,
        target: target.to_owned(),
        met: is_met(target, figure.median, ratio),
        at,
        conditions: title.to_owned(),
        when: Utc::now(),
        machine: machine(),
    };
    let newest = results::newest(&folder(), is_quick());
    let mut files = vec![newest];
    if !is_quick() {
        files.push(results::of_commit(&folder(), &outcome.machine.commit));
    }
    for path in files {
        if let Err(error) = results::put(&path, outcome.clone()) {
            eprintln!("this figure is not kept: {error:#}");
        }
    }
}

fn tell_where() {
    let path = results::newest(&folder(), is_quick());
    println!("\nkept in {}; cargo bench --bench report makes a page of it", path.display());
}

/// A table of figures beside references.
pub(crate) struct Report {
    title: String,
    unit: &'static str,
}

impl Report {
    /// Prints the title and the heads of the columns. Figures are in `unit`.
    pub(crate) fn begin(title: &str, unit: &'static str) -> Self {
        println!("\n{title}\n");
        println!("{:<46} {:>26} {:>26} {:>6}  target", unit, "figure", "reference", "ratio");
        Self { title: title.to_owned(), unit }
    }

    /// A figure beside its reference. `what` names the figure, and after `; ` the reference.
    pub(crate) fn row(&self, what: &str, figure: Spread, reference: Spread, target: &str) {
        self.point(what, None, figure, reference, target);
    }

    /// A figure that is also a point of a line, at a place on its scale.
    pub(crate) fn point(&self, what: &str, at: Option<f64>, figure: Spread, reference: Spread, target: &str) {
        let ratio = figure.median / reference.median;
        record(&self.title, what, self.unit, (figure, Some(reference)), target, at);
        let (figure, reference) = (figure.to_string(), reference.to_string());
        println!("{what:<46} {figure:>26} {reference:>26} {ratio:>6.2}  {target}");
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        tell_where();
    }
}

/// A table of figures that have a limit instead of a reference.
pub(crate) struct Limits {
    title: String,
}

impl Limits {
    /// Prints the title and the heads of the columns.
    pub(crate) fn begin(title: &str) -> Self {
        println!("\n{title}\n");
        println!("{:<64} {:>26}  limit", "", "figure");
        Self { title: title.to_owned() }
    }

    /// A figure with its unit, and what it must not exceed.
    pub(crate) fn row(&self, what: &str, figure: Spread, unit: &str, limit: &str) {
        record(&self.title, what, unit, (figure, None), limit, None);
        let figure = format!("{figure} {unit}");
        println!("{what:<64} {figure:>26}  {limit}");
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        tell_where();
    }
}
