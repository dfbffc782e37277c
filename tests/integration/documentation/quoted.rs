//! Pages whose code is that of an example: it is compiled and run there.

use std::process::Command;

use super::page::sections;
use super::read;

/// Each page with its example.
const QUOTING: &[(&str, &str)] = &[
    ("docs/aggregates.md", "library"),
    ("docs/commands.md", "commands"),
    ("docs/workflows.md", "orders"),
    ("docs/testing.md", "orders"),
];

/// Without indentation and empty lines: a page shows parts of functions.
fn lines(code: &str) -> String {
    let lines = code.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_code_of_a_page_is_that_of_its_example() {
    for (page, example) in QUOTING {
        let code = lines(&read(&format!("examples/{example}.rs")));
        let all = sections(&read(page));
        let blocks: Vec<_> =
            all.iter().flat_map(|section| &section.blocks).filter(|block| block.language == "rust").collect();
        assert!(blocks.len() > 3, "{page} has hardly any code");
        for block in blocks {
            assert!(
                code.contains(&lines(&block.text)),
                "{page}:{} is not in the example {example}",
                block.line
            );
        }
    }
}

#[test]
fn the_examples_run() {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(std::path::Path::parent).unwrap().join("examples");
    for (_, example) in QUOTING {
        let output = Command::new(folder.join(example)).output().unwrap();
        assert!(output.status.success(), "{example}: {output:?}");
    }
}
