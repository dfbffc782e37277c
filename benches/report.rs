//! Makes a page of the results that the benches have left, the tables of docs/benchmarks.md, and comparisons of two commits.
//!
//! ```console
//! $ cargo bench --bench report                      # target/bench/report.html
//! $ cargo bench --bench report -- docs              # the tables and pictures of docs/benchmarks.md
//! $ cargo bench --bench report -- compare A B       # two commits, or two files
//! ```
//!
//! `--quick` takes the results of quick runs instead.

#[path = "report/compare.rs"]
mod compare;
#[path = "report/page.rs"]
mod page;
#[path = "report/peers.rs"]
mod peers;
#[path = "support/results.rs"]
#[expect(dead_code, reason = "the benches write, this only reads")]
mod results;
#[path = "report/svg.rs"]
mod svg;
#[path = "report/tables.rs"]
mod tables;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use results::{Outcome, folder};

const USAGE: &str =
    "report [--quick] [docs | compare A B], where A and B are commits that were measured, or files";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "--quick").collect();
    match words[..] {
        [] => write_page(quick),
        ["docs"] => write_docs(quick),
        ["compare", before, after] => print_comparison(before, after),
        _ => bail!(USAGE),
    }
}

fn write_page(quick: bool) -> anyhow::Result<()> {
    let path = results::newest(&folder(), quick);
    let outcomes = results::read(&path)?;
    if outcomes.is_empty() {
        // As one of all benches this one may come before the others.
        println!("no results in {} yet; run a bench, then this again", path.display());
        return Ok(());
    }
    let page = folder().join("report.html");
    std::fs::write(&page, page::write(&outcomes, &peers::known()?))?;
    println!("{} figures of {}\n{}", outcomes.len(), path.display(), page.display());
    for missed in outcomes.iter().filter(|outcome| outcome.met == Some(false)) {
        println!("missed: {}", tables::in_words(missed));
    }
    Ok(())
}

fn write_docs(quick: bool) -> anyhow::Result<()> {
    let path = results::newest(&folder(), quick);
    let outcomes = results::read(&path)?;
    ensure!(!outcomes.is_empty(), "no results in {}", path.display());
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = docs.join("benchmarks.md");
    let text = tables::fill_in(&std::fs::read_to_string(&page)?, &outcomes)?;
    std::fs::write(&page, text)?;
    for (bench, picture) in svg::lines_of(&outcomes) {
        let pictures = docs.join("benchmarks");
        std::fs::create_dir_all(&pictures)?;
        std::fs::write(pictures.join(format!("{bench}.svg")), picture)?;
    }
    println!("{} figures of {} are in {}", outcomes.len(), path.display(), page.display());
    Ok(())
}

fn print_comparison(before: &str, after: &str) -> anyhow::Result<()> {
    print!("{}", compare::table(&measured(before)?, &measured(after)?));
    Ok(())
}

/// The results in a file, or of a commit whose name begins like this.
fn measured(name: &str) -> anyhow::Result<Vec<Outcome>> {
    let path = if Path::new(name).is_file() { PathBuf::from(name) } else { file_of(name)? };
    let outcomes = results::read(&path)?;
    ensure!(!outcomes.is_empty(), "no results in {}", path.display());
    Ok(outcomes)
}

fn file_of(commit: &str) -> anyhow::Result<PathBuf> {
    let commits = folder().join("commits");
    let there =
        || format!("{commit} is neither a file nor a commit of which results are in {}", commits.display());
    let files = std::fs::read_dir(&commits).with_context(there)?;
    let mut files: Vec<PathBuf> = files.map(|file| Ok(file?.path())).collect::<anyhow::Result<_>>()?;
    // A name of ten digits is kept; a longer one means the same commit.
    files.retain(|file| {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        stem.starts_with(commit) || commit.starts_with(&stem)
    });
    match &files[..] {
        [file] => Ok(file.clone()),
        [] => bail!(there()),
        _ => bail!("{commit} begins {} names in {}", files.len(), commits.display()),
    }
}
