//! Printing for people and for programs.

use std::io::{self, IsTerminal as _, Write as _};

use crate::own_name::in_own_name;
use crate::visible::in_lines;

/// Prints a text for people and a line break to standard output. Nothing in it reaches the terminal as more than text. A
/// closed pipe is an error, which ends the program silently.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{}", in_lines(&in_own_name(text)))?)
}

/// Prints JSON, or another text for programs, as it is.
pub(crate) fn print_verbatim(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Prints to standard error something that is not the command's result.
pub(crate) fn print_note(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stderr().lock(), "{}", in_lines(&in_own_name(text)))?)
}

/// Whether there is a terminal to ask a question on.
pub(crate) fn has_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Asks a question on the terminal. Without a terminal it is an error that names `--yes`.
pub(crate) fn confirm(question: &str) -> anyhow::Result<bool> {
    if !has_terminal() {
        anyhow::bail!("nothing was done: add --yes to do this without being asked:\n{question}");
    }
    eprint!("{} [y/N] ", in_lines(question));
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The person who runs the command, as far as the system knows: `alice@host`.
pub(crate) fn operator() -> String {
    let name = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    format!("{}@{}", name.as_deref().unwrap_or("?"), host.as_deref().unwrap_or("?"))
}

/// The narrowest terminal that is written for.
const WIDTH_MIN: usize = 40;

/// How many characters a line may have: what `COLUMNS` says, or the width of the terminal; `None` where the output goes
/// elsewhere, for programs to read.
pub(crate) fn width() -> Option<usize> {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse::<usize>().ok());
    let terminal = || {
        let out = io::stdout();
        let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok()).flatten()?;
        Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
    };
    told.filter(|columns| *columns > 0).or_else(terminal).map(|columns| columns.max(WIDTH_MIN))
}
