//! Running the commands of a page in one shell, as a reader copies them, and comparing what they print.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use espd::embedded::find_binaries;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::page::Block;
use crate::support::program::die_with_this_thread;

/// How long all commands of a page may take on a machine that has other things to do as well.
const PATIENCE: Duration = Duration::from_secs(180);
/// What separates the steps in the output.
const MARK: char = '\u{1e}';

/// One block of commands and what the page says that they print.
#[derive(Debug)]
pub struct Step {
    pub commands: String,
    pub expected: Option<String>,
    pub line: usize,
}

/// The steps of a page: each `sh` block, with the `text` block that follows it.
pub fn steps(blocks: &[Block]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut before = "";
    for block in blocks {
        match (block.language.as_str(), before) {
            ("sh", _) => steps.push(Step { commands: block.text.clone(), expected: None, line: block.line }),
            ("text", "sh") => steps.last_mut().unwrap().expected = Some(block.text.clone()),
            _ => {}
        }
        before = &block.language;
    }
    steps
}

/// A shell in a folder, with espd's programs and those of PostgreSQL at hand.
pub fn command(folder: &Path, script: &Path) -> Command {
    let built = Path::new(env!("CARGO_BIN_EXE_espd")).parent().unwrap().to_owned();
    let beside = find_binaries().unwrap().initdb().canonicalize().unwrap().parent().unwrap().to_owned();
    let inherited = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command
        .arg(script)
        .current_dir(folder)
        .env("PATH", format!("{}:{}:{inherited}", built.display(), beside.display()))
        .env("COLUMNS", "120")
        .env_remove("ESPD_CONFIG")
        .env_remove("DATABASE_URL")
        .env_remove("RUST_LOG")
        .process_group(0);
    die_with_this_thread(&mut command);
    command
}

/// A port that nobody listens on at this moment.
pub fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

/// Runs the steps in one shell, and requires that each prints what the page says. An error is meant where it says so.
pub async fn try_out(page: &str, folder: &Path, steps: &[Step], environment: &[(&str, String)]) {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("steps.sh");
    std::fs::write(&file, script(steps)).unwrap();
    let mut command = command(folder, &file);
    command.envs(environment.iter().cloned());
    let printed = run(command).await;
    let outputs: Vec<&str> = printed.split(MARK).collect();
    for (number, step) in steps.iter().enumerate() {
        let output = outputs.get(number).copied().unwrap_or_default();
        let ending = outputs.get(number + 1).and_then(|next| next.lines().next()).unwrap_or("no end");
        let output = if number == 0 { output } else { output.split_once('\n').unwrap_or_default().1 };
        judge(page, step, output, ending);
    }
}

fn script(steps: &[Step]) -> String {
    let mut script = "exec 2>&1\n".to_owned();
    for step in steps {
        let _ = write!(script, "{{\n{}\n}} < /dev/null\nprintf '\\036%s\\n' $?\n", step.commands);
    }
    script.push_str("kill $(jobs -p) 2>/dev/null; wait\n");
    script
}

fn judge(page: &str, step: &Step, output: &str, ending: &str) {
    let Step { commands, expected, line } = step;
    let told = format!("{page}:{line}, exit code {ending}\n{commands}--- printed\n{output}---");
    let fails = expected.as_deref().is_some_and(|text| text.lines().any(|line| line.starts_with("error:")));
    assert!(ending == "0" || (fails && ending != "no end"), "{told}");
    if let Some(expected) = expected {
        assert!(matches(expected, output), "{told} instead of\n{expected}---");
    }
}

/// The process group of the shell, which ends with this value.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

async fn run(mut command: Command) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    let _group = Group(Pid::from_raw(child.id().unwrap().cast_signed()));
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.expect("the commands of the page do not end").unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a text is what a page shows: `…` stands for anything in its line, a line of `…` for any lines. How wide the
/// columns of a table are does not matter.
pub fn matches(shown: &str, printed: &str) -> bool {
    let (shown, printed) = (lines(shown), lines(printed));
    lines_match(&shown, &printed)
}

fn lines(text: &str) -> Vec<String> {
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_ruler = |line: &String| line.chars().all(|c| c == '-' || c == '+');
    text.lines().map(squeezed).filter(|line| !is_ruler(line)).collect()
}

fn lines_match(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first == "…" => {
            (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..]))
        }
        Some((first, rest)) => printed
            .split_first()
            .is_some_and(|(line, others)| line_matches(first, line) && lines_match(rest, others)),
    }
}

fn line_matches(shown: &str, printed: &str) -> bool {
    let mut pieces = shown.split('…');
    let Some(mut rest) = printed.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, inner)) = pieces.split_last() else { return rest.is_empty() };
    for piece in inner {
        let Some((_, behind)) = rest.split_once(piece) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

#[test]
fn what_differs_from_the_page_is_noticed() {
    assert!(matches("NAME  AGE\ntodos …  live\n", "NAME   AGE\ntodos  3s  live\n\n"));
    assert!(matches("a\n…\nz\n", "a\nb\nc\nz\n") && matches("a\n…\nz\n", "a\nz\n"));
    for (shown, printed) in
        [("a\nb", "a"), ("a", "a\nb"), ("a … c", "a b d"), ("a …", "b a"), ("a\n…\nz", "a\nb")]
    {
        assert!(!matches(shown, printed), "{shown:?} {printed:?}");
    }
}
