use super::*;
use crate::processing::declaration::HandledEvents;

fn declare(command: &[&str]) -> ProgramDeclaration {
    let command = command.iter().map(ToString::to_string).collect();
    ProgramDeclaration::new(HandledEvents::All, command, std::env::temp_dir())
}

fn shell(script: &str) -> ProgramDeclaration {
    declare(&["sh", "-c", script])
}

async fn read_line(process: &mut ProgramProcess) -> Result<String, ProcessError> {
    process.read_line(Instant::now(), Duration::from_secs(20)).await.map(str::to_owned)
}

/// Waits until a process that was killed is gone.
async fn wait_until_gone(pid: &str) {
    let is_gone = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_gone() {
        assert!(Instant::now() < deadline, "{pid} is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_program_is_sent_more_than_a_pipe_holds_while_it_writes_more_than_a_pipe_holds() {
    let mut process = ProgramProcess::start("p", &declare(&["cat"])).unwrap();
    process.send(b"0123456789\n".repeat(100_000));
    for _ in 0..100_000 {
        assert_eq!(read_line(&mut process).await.unwrap(), "0123456789");
    }
    assert!(!process.has_unread_input());
    process.input = None;
    assert!(matches!(read_line(&mut process).await, Err(ProcessError::Ended(status)) if status.success()));
}

#[tokio::test]
async fn what_a_program_wrote_before_it_ended_is_read() {
    let script = "sleep 600 & echo $!; echo two; echo why >&2; exit 3";
    let mut process = ProgramProcess::start("p", &shell(script)).unwrap();
    let started = read_line(&mut process).await.unwrap();
    assert_eq!(read_line(&mut process).await.unwrap(), "two");
    // The process that it has started holds its output open, but does not outlive it.
    let error = read_line(&mut process).await.unwrap_err();
    assert_eq!(error.to_string(), "ended with exit code 3");
    assert_eq!(process.kill().await.as_deref(), Some("why"));
    wait_until_gone(&started).await;
}

#[tokio::test]
async fn neither_silence_nor_chatter_lasts_longer_than_the_timeout() {
    let mut process = ProgramProcess::start("p", &shell("sleep 600")).unwrap();
    process.send(vec![b'\n'; 1_000_000]);
    let since = Instant::now();
    let error = process.read_line(since, Duration::from_millis(100)).await.map(str::to_owned).unwrap_err();
    assert!(error.to_string().starts_with("gave no answer within 0.1 s"), "{error}");
    assert!(process.has_unread_input());

    let mut process = ProgramProcess::start("p", &shell("yes")).unwrap();
    let since = Instant::now();
    while process.read_line(since, Duration::from_millis(100)).await.is_ok() {}
    assert!(since.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_program_is_stopped_in_order_or_else_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (file, script) = (folder.path().join("ended"), "echo ready; cat >/dev/null; sleep 0.1; echo > ended");
    let mut orderly = ProgramDeclaration { folder: folder.path().to_owned(), ..shell(script) };
    let mut process = ProgramProcess::start("p", &orderly).unwrap();
    read_line(&mut process).await.unwrap();
    process.stop(Duration::from_secs(20)).await;
    assert!(file.exists());

    orderly.command[2] = "echo $$; sleep 600".into();
    let mut process = ProgramProcess::start("p", &orderly).unwrap();
    let pid = read_line(&mut process).await.unwrap();
    process.stop(Duration::from_millis(50)).await;
    wait_until_gone(&pid).await;
}

#[tokio::test]
async fn the_memory_of_a_program_and_of_what_it_has_started_is_bounded() {
    let hoard = "x=$(head -c 50000000 /dev/zero | tr '\\0' x); echo $x | sleep 600";
    let mut declaration = shell(&format!("({hoard}) & wait"));
    declaration.memory_max = Some(40 << 20);
    let mut process = ProgramProcess::start("p", &declaration).unwrap();
    let read = read_line(&mut process).await;
    assert!(matches!(read, Err(ProcessError::TooLarge { used, .. }) if used > 40 << 20));
}
