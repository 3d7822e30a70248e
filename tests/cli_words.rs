//! What the real binary says of itself: its version, completions for shells, manual pages.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::process::Command;

/// Runs it; its exit code and what it printed.
fn majorityd(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_majorityd")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_version_says_of_which_commit_and_day_it_is() {
    let (code, out, err) = majorityd(&["--version"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    // Whoever builds says both, or they are unknown.
    let start = format!("majorityd {} (commit ", env!("CARGO_PKG_VERSION"));
    let rest = out.strip_prefix(&start).unwrap_or_else(|| panic!("{out}"));
    let (commit, day) = rest.trim_end().strip_suffix(')').unwrap().split_once(", built ").unwrap();
    assert!(!commit.is_empty() && !commit.contains(char::is_whitespace), "{out}");
    let is_day = |day: &str| day.len() == 10 && day.split('-').all(|part| part.parse::<u32>().is_ok());
    assert!(day == "unknown" || is_day(day), "{out}");
    assert_eq!(majorityd(&["-V"]).1, out);
}

#[test]
fn every_shell_gets_completions_that_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, err) = majorityd(&["completions", shell]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{shell}");
        for word in ["serve", "queue", "configure", "log-filter"] {
            assert!(out.contains(word), "{shell} does not know {word}");
        }
    }
    assert_eq!(majorityd(&["completions", "cmd"]).0, Some(64));
}

/// The script, read by the shell itself.
#[test]
fn bash_completes_a_command() {
    let script = format!(
        "source <('{}' completions bash) && COMP_WORDS=(majorityd stat) && COMP_CWORD=1 && \
         _majorityd majorityd stat majorityd && echo \"${{COMPREPLY[*]}}\"",
        env!("CARGO_BIN_EXE_majorityd")
    );
    let output = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "status\n", "{output:?}");
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let (code, out, err) = majorityd(&["man"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains(".TH majorityd 1") && out.contains("majorityd\\-status(1)"), "{out}");

    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("man1");
    assert_eq!(majorityd(&["man", "--all", to.to_str().unwrap()]), (Some(0), String::new(), String::new()));
    for page in ["majorityd.1", "majorityd-lock.1", "majorityd-queue-work.1", "majorityd-man.1"] {
        let text = std::fs::read_to_string(to.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    let lock = std::fs::read_to_string(to.join("majorityd-lock.1")).unwrap();
    assert!(lock.contains("MAJORITYD_FENCING_TOKEN") && lock.contains("Exit codes"), "{lock}");

    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, _, err) = majorityd(&["man", "--all", file.to_str().unwrap()]);
    assert!(code == Some(1) && err.contains("can't write to"), "{code:?} {err}");
}
