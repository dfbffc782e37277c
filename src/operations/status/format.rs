//! How numbers, durations and rows read in a table for people.

use comfy_table::{CellAlignment, Table, presets};

use crate::visible::in_one_line;

/// A table without lines; `right` names the columns of numbers. A cell is one line, whatever its text.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, right: &[usize]) -> String {
    let rows = rows.iter().map(|cells| cells.iter().map(|cell| in_one_line(cell)).collect::<Vec<_>>());
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header).add_rows(rows);
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The least that is left of a text in the last column while another column can be left out, and in any case.
const TEXT_MIN: usize = 24;
const TEXT_LEAST: usize = 8;

/// As [`table`], with lines of at most `width` characters, if it is given: the texts of the last column are shortened, and
/// columns are left out in the order of `dispensable`.
pub(crate) fn table_within(
    width: Option<usize>,
    header: &[&str],
    rows: Vec<Vec<String>>,
    right: &[usize],
    dispensable: &[usize],
) -> String {
    let Some(width) = width else { return table(header, rows, right) };
    let rows: Vec<Vec<String>> =
        rows.iter().map(|cells| cells.iter().map(|cell| in_one_line(cell).into_owned()).collect()).collect();
    let widths: Vec<usize> = (0..header.len()).map(|column| column_width(header, &rows, column)).collect();
    let last = header.len() - 1;
    let mut shown: Vec<usize> = (0..header.len()).collect();
    let others = |shown: &[usize]| {
        shown.iter().filter(|column| **column != last).map(|column| widths[*column]).sum::<usize>()
    };
    let wanted = widths[last].min(TEXT_MIN);
    for column in dispensable {
        if others(&shown) + wanted > width {
            shown.retain(|kept| kept != column);
        }
    }
    let longest = width.saturating_sub(others(&shown) + GAP).max(TEXT_LEAST);
    let cell = |row: &[String], column: usize| {
        if column == last { shorten(&row[column], longest) } else { row[column].clone() }
    };
    let rows = rows.iter().map(|row| shown.iter().map(|column| cell(row, *column)).collect()).collect();
    let header: Vec<&str> = shown.iter().map(|column| header[*column]).collect();
    let is_right = |place: &usize| right.contains(&shown[*place]);
    let right: Vec<usize> = (0..shown.len()).filter(is_right).collect();
    table(&header, rows, &right)
}

/// The spaces of a column beside its text.
const GAP: usize = 2;

fn column_width(header: &[&str], rows: &[Vec<String>], column: usize) -> usize {
    let longest = rows.iter().map(|row| width_of(&row[column])).max().unwrap_or(0);
    longest.max(width_of(header[column])) + GAP
}

/// A text of at most `longest` characters.
pub(crate) fn shorten(text: &str, longest: usize) -> String {
    if width_of(text) <= longest {
        return text.to_owned();
    }
    text.chars().take(longest - 1).chain(['…']).collect()
}

/// The width of a text on a terminal, in characters.
pub(crate) fn width_of(text: &str) -> usize {
    text.chars().count()
}

/// A text in lines of at most `width` characters, each behind `indent`. What is in backticks stays whole, to be copied. No
/// line break of the text itself is one here.
pub(crate) fn wrap(text: &str, width: Option<usize>, indent: &str) -> String {
    let text = &in_one_line(text);
    let mut lines = vec![indent.to_owned()];
    for word in words(text) {
        let last = lines.last().map_or(0, |line| width_of(line));
        let is_first = last == indent.len();
        if width.is_some_and(|width| !is_first && last + 1 + width_of(word) > width) {
            lines.push(format!("{indent}{word}"));
        } else if let Some(line) = lines.last_mut() {
            line.push_str(if is_first { "" } else { " " });
            line.push_str(word);
        }
    }
    lines.join("\n")
}

/// The parts of a text between spaces that are not in backticks.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |character| {
        quoted ^= character == '`';
        character == ' ' && !quoted
    })
}

/// A number with separated thousands: `12,345`.
pub(crate) fn thousands(number: impl Into<i64>) -> String {
    let number: i64 = number.into();
    let digits = number.unsigned_abs().to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group).into_owned());
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", groups.collect::<Vec<_>>().join(","))
}

/// How far something is, in percent: rounded down, so that it is 100 only once all is done.
pub(crate) fn format_share(done: impl Into<i64>, of: impl Into<i64>) -> String {
    let (done, of) = (i128::from(done.into()), i128::from(of.into()));
    let percent = if of > 0 { (100 * done / of).clamp(0, 100) } else { 100 };
    format!("{percent} %")
}

/// A duration in its two largest units: `0.4s`, `12s`, `3m 20s`, `5h 3m`, `2d 4h`.
pub(crate) fn format_duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{:.1}s", seconds.max(0.0)),
        10..60 => format!("{whole}s"),
        60..3_600 => format!("{}m {}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h {}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d {}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// A size in its largest unit: `512 B`, `8 KiB`, `312 MiB`, `1.4 GiB`.
pub(crate) fn format_size(bytes: i64) -> String {
    let mut size = bytes.max(0) as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1_024.0 {
            let digits = usize::from(unit == "GiB" && size < 10.0);
            return format!("{size:.digits$} {unit}");
        }
        size /= 1_024.0;
    }
    format!("{size:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_durations_read_well() {
        assert_eq!([0, 999, 1_000, -1_234_567].map(thousands), ["0", "999", "1,000", "-1,234,567"]);
        assert_eq!(
            [0.04, 12.0, 200.0, 18_180.0, 187_200.0].map(format_duration),
            ["0.0s", "12s", "3m 20s", "5h 3m", "2d 4h"]
        );
        assert_eq!(
            [512, 8 << 10, 312 << 20, 1_503_238_553, 3 << 40].map(format_size),
            ["512 B", "8 KiB", "312 MiB", "1.4 GiB", "3.0 TiB"]
        );
    }

    #[test]
    fn a_table_fits_the_width_that_there_is() {
        let header = ["NAME", "AGGREGATE", "TRIES", "ERROR"];
        let row = || ["notes", &"a".repeat(36), "1", &"e".repeat(70)].map(str::to_owned).to_vec();
        for (width, columns) in [(200, 4), (80, 4), (60, 3), (40, 3)] {
            let shown = table_within(Some(width), &header, vec![row()], &[2], &[1, 2]);
            assert!(shown.lines().all(|line| width_of(line) <= width), "{width}: {shown}");
            let heading = shown.lines().next().unwrap_or_default().split_whitespace().count();
            assert_eq!(heading, columns, "{width}: {shown}");
        }
        let whole = table_within(None, &header, vec![row()], &[2], &[1, 2]);
        assert!(whole.contains(&"e".repeat(70)), "{whole}");
    }

    #[test]
    fn a_text_is_wrapped_between_words_and_a_command_stays_whole() {
        let text = "Fix this, then run `espctl retry notes` or wait.";
        assert_eq!(wrap(text, None, "  "), format!("  {text}"));
        assert_eq!(wrap(text, Some(25), "  "), "  Fix this, then run\n  `espctl retry notes` or\n  wait.");
        assert_eq!(wrap("Last attempt 3s ago.  Next.", None, ""), "Last attempt 3s ago.  Next.");
        assert_eq!(wrap("", Some(10), "  "), "  ");
    }
}
