//! What the program is called: a program with processors of its own does what `espctl` and `espd` do, and its messages name
//! the command that its user has.

use std::borrow::Cow;
use std::sync::OnceLock;

static NAME: OnceLock<String> = OnceLock::new();

/// The commands of espd's own programs, as messages write them.
const COMMANDS: [&str; 2] = ["`espctl ", "`espd "];

/// Has the messages of this process name this program.
pub(crate) fn call_itself(name: &str) {
    // A second program in the same process keeps the name of the first.
    let _ = NAME.set(name.to_owned());
}

/// A message with the commands that this program has.
pub(crate) fn in_own_name(message: &str) -> Cow<'_, str> {
    match NAME.get() {
        Some(name) => rename(message, name),
        None => Cow::Borrowed(message),
    }
}

fn rename<'m>(message: &'m str, name: &str) -> Cow<'m, str> {
    if !COMMANDS.iter().any(|command| message.contains(command)) {
        return Cow::Borrowed(message);
    }
    let own = format!("`{name} ");
    let said = COMMANDS.iter().fold(message.to_owned(), |said, command| said.replace(command, &own));
    // Only espd has the demo.
    Cow::Owned(said.replace(&format!("{own}demo"), "`espd demo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_command_that_there_is() {
        let said = rename("see `espd demo`, run `espctl migrate`, then `espd run`; espctl is a word", "todo");
        assert_eq!(said, "see `espd demo`, run `todo migrate`, then `todo run`; espctl is a word");
        assert!(matches!(rename("nothing to do", "todo"), Cow::Borrowed(_)));
        assert!(matches!(in_own_name("run `espctl migrate`"), Cow::Borrowed(_)), "nobody has named it");
    }
}
