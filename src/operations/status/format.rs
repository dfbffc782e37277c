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
