//! What the demo shows: one page of 80 by 24 characters on a terminal, and lines one after the other elsewhere.

use std::io::{IsTerminal as _, Write as _};

use super::read_model::OutstandingTodo;
use crate::operations::status::ProcessorStatus;
use crate::operations::status::format::thousands;
use crate::supervision::Snapshot;

/// Lines of the story that fit on the page: 24, without those of everything else and one for the cursor.
const STORY_LINES: usize = 6;

/// Everything that is on the page.
pub(super) struct Page<'p> {
    pub(super) statuses: &'p [ProcessorStatus],
    pub(super) workers: &'p [Snapshot],
    pub(super) todos: &'p [OutstandingTodo],
    pub(super) story: &'p [String],
    pub(super) hints: &'p [String],
}

impl Page<'_> {
    /// At most 23 lines, so that the cursor has one of its own.
    fn lines(&self) -> Vec<String> {
        let mut lines = self.processors();
        lines.push(String::new());
        lines.push(format!("READ MODEL outstanding_todos, changed last{}", self.thanked()));
        lines.extend(self.todos.iter().map(|todo| {
            format!("  {:<32.32} due {:<10}  {:<24.24}", todo.title, todo.due, todo.stakeholder)
        }));
        lines.push(String::new());
        lines.push("WHAT HAPPENS".to_owned());
        lines.extend(self.story.iter().skip(self.story.len().saturating_sub(STORY_LINES)).cloned());
        lines.push(String::new());
        lines.extend(self.hints.iter().cloned());
        lines
    }

    fn processors(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<20}{:<13}{:>10}{:>9}{:>10}{:>9}",
            "PROCESSOR", "STATE", "POSITION", "BEHIND", "RATE/S", "PROCESS"
        )];
        for status in self.statuses {
            let process = self.workers.iter().find(|worker| worker.name == status.name);
            lines.push(format!(
                "{:<20}{:<13}{:>10}{:>9}{:>10}{:>9}",
                status.name,
                status.state.as_str(),
                thousands(i64::from(status.position)),
                thousands(status.lag_events),
                thousands(status.rate.round() as i64),
                process.and_then(|worker| worker.pid).map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            ));
        }
        lines
    }

    /// What the reactor has done.
    fn thanked(&self) -> String {
        let reactor = self.statuses.iter().find(|status| status.kind == "reactor");
        reactor.map_or_else(String::new, |reactor| {
            format!("; StakeholderThanked: {} emitted", thousands(reactor.handled))
        })
    }
}

/// The terminal, or whatever takes its place.
pub(super) struct Screen {
    terminal: bool,
    /// How much of the story was printed.
    printed: usize,
    frames: usize,
}

/// Without a terminal, the table is printed with every so many frames.
const FRAMES_PER_TABLE: usize = 10;

impl Screen {
    /// Opens a page of its own on a terminal, which leaves what was there before.
    pub(super) fn open() -> Self {
        let terminal = std::io::stdout().is_terminal();
        if terminal {
            // The alternate page, without a cursor; a line that is too long is cut off instead of continued on the next.
            write("\x1b[?1049h\x1b[?25l\x1b[?7l");
        }
        Self { terminal, printed: 0, frames: 0 }
    }

    pub(super) fn show(&mut self, page: &Page<'_>) {
        if self.terminal {
            let lines: Vec<_> = page.lines().iter().map(|line| format!("{line}\x1b[K")).collect();
            write(&format!("\x1b[H{}\x1b[J", lines.join("\r\n")));
        } else {
            self.show_news(page);
        }
        self.frames += 1;
    }

    fn show_news(&mut self, page: &Page<'_>) {
        if self.frames == 0 {
            write(&format!("{}\n\n", page.hints.join("\n")));
        }
        for line in &page.story[self.printed..] {
            write(&format!("{line}\n"));
        }
        self.printed = page.story.len();
        if self.frames % FRAMES_PER_TABLE == FRAMES_PER_TABLE - 1 {
            write(&format!("{}\n\n", page.processors().join("\n")));
        }
    }

    /// Closes the page, and prints what has happened where it stays.
    pub(super) fn close(self, story: &[String]) {
        let terminal = self.terminal;
        drop(self);
        if terminal {
            write(&format!("{}\n", story.join("\n")));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            write("\x1b[?7h\x1b[?25h\x1b[?1049l");
        }
    }
}

/// Prints a text at once.
pub(super) fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    // An error means that the reader has closed the pipe; the demo goes on until it is stopped.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
