//! What a page in Markdown consists of: sections with blocks of code, tables with cells, links.

/// What stands below one heading.
#[derive(Debug, Default)]
pub struct Section {
    pub title: String,
    pub blocks: Vec<Block>,
}

/// A block of code.
#[derive(Debug, Clone)]
pub struct Block {
    pub language: String,
    pub text: String,
    /// The line of the page that its first line is.
    pub line: usize,
}

impl Block {
    /// The file that the block is to be saved as, which its first line names in a comment.
    pub fn file(&self) -> Option<&str> {
        let first = self.text.lines().next()?;
        let name = first.strip_prefix("# ").or_else(|| first.strip_prefix("-- "))?;
        (name.contains('.') && !name.contains(' ')).then_some(name)
    }
}

/// The sections of a page, by its headings of the second level; what comes before the first of them has no title.
pub fn sections(markdown: &str) -> Vec<Section> {
    let mut sections = vec![Section::default()];
    let mut open: Option<Block> = None;
    for (number, line) in markdown.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block { language: language.to_owned(), text: String::new(), line: number + 2 });
            }
            (Some(_), Some(_)) => sections.last_mut().unwrap().blocks.extend(open.take()),
            (Some(block), None) => block.text.push_str(&format!("{line}\n")),
            (None, None) => {
                if let Some(title) = line.strip_prefix("## ") {
                    sections.push(Section { title: title.to_owned(), blocks: Vec::new() });
                }
            }
        }
    }
    assert!(open.is_none(), "a block of code has no end");
    sections
}

/// The lines of a page that are no code.
pub fn prose(markdown: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in markdown.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if !inside {
            kept.push_str(&format!("{line}\n"));
        }
    }
    kept
}

/// The rows of all tables of a page, without their heads, as cells. A `|` that is escaped is part of its cell.
pub fn rows(markdown: &str) -> Vec<Vec<String>> {
    let text = prose(markdown);
    let lines: Vec<&str> = text.lines().collect();
    let is_ruler = |line: &str| line.starts_with("|--");
    let of_a_table = |number: &usize| {
        let next = lines.get(number + 1).copied().unwrap_or_default();
        lines[*number].starts_with('|') && !is_ruler(lines[*number]) && !is_ruler(next)
    };
    (0..lines.len()).filter(of_a_table).map(|number| cells(lines[number])).collect()
}

fn cells(line: &str) -> Vec<String> {
    let escaped = line.trim().trim_matches('|').replace("\\|", "\u{1}");
    escaped.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
}

/// The texts between backticks.
pub fn code_spans(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The targets of the links in a text.
pub fn links(text: &str) -> Vec<String> {
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// The anchors of the headings of a page, as GitHub makes them.
pub fn anchors(markdown: &str) -> Vec<String> {
    prose(markdown).lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || ['-', '_', ' '].contains(c);
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

#[test]
fn blocks_belong_to_their_sections_and_name_their_files() {
    let page = "# T\n```sh\na\n```\n## One\n```toml\n# processors/x.toml\nb = 1\n## no heading\n```\n";
    let sections = sections(page);
    assert_eq!(sections.iter().map(|section| section.title.as_str()).collect::<Vec<_>>(), ["", "One"]);
    let [first, second] = [&sections[0].blocks[0], &sections[1].blocks[0]];
    assert_eq!((first.file(), first.line, first.text.as_str()), (None, 3, "a\n"));
    assert_eq!((second.file(), second.line), (Some("processors/x.toml"), 7));
}

#[test]
fn rows_and_anchors_are_read_as_they_are_shown() {
    let page = "## A `b` - c: d\n| x | y |\n|---|---|\n| `1 \\| 2` | [p](q.md#r) |\n";
    assert_eq!(rows(page), [["`1 | 2`", "[p](q.md#r)"]]);
    assert_eq!(anchors(page), ["a-b---c-d"]);
    assert_eq!(
        (code_spans("a `b` c `d`"), links("[p](q.md#r)")),
        (vec!["b".into(), "d".into()], vec!["q.md#r".into()])
    );
}
