//! `espctl completions` and `espctl man`, which need neither configuration nor database.

use std::process::Command;

use crate::support::program::Installation;

#[tokio::test]
async fn completions_have_every_command_of_both_programs() {
    let installation = Installation::without_database("");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let espctl = installation.espctl(&["completions", shell]).await.printed();
        assert!(espctl.contains("import-positions"), "{shell}");
        let espd = installation.espctl(&["completions", shell, "--program", "espd"]).await.printed();
        assert!(espd.contains("demo") && !espd.contains("import-positions"), "{shell}");
    }
    let script = installation.path().join("espctl.bash");
    std::fs::write(&script, installation.espctl(&["completions", "bash"]).await.printed()).unwrap();
    let completing = format!(
        "source {}; COMP_WORDS=(espctl sta); COMP_CWORD=1; _espctl espctl sta espctl; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let completed = Command::new("bash").args(["-c", &completing]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&completed.stdout).trim(), "status");
}

#[tokio::test]
async fn every_command_has_a_page() {
    let installation = Installation::without_database("");
    let page = installation.espctl(&["man"]).await.printed();
    assert!(page.contains(".TH espctl 1") && page.contains("Exit codes"), "{page}");
    let folder = installation.path().join("man");
    installation.espctl(&["man", folder.to_str().unwrap()]).await.printed();
    for name in ["espctl.1", "espctl-status.1", "espctl-config-show.1", "espd.1", "espd-run.1"] {
        assert!(folder.join(name).exists(), "{name}");
    }
}
