//! What `atoll-bench server` says where it cannot measure, by running it. No server is needed.

#![expect(clippy::unwrap_used, reason = "a test helper fails its test by panicking")]

use std::process::Command;

/// Runs the program in an empty directory and returns what it says on standard error.
fn failure(args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_atoll-bench"))
        .arg("server")
        .args(args)
        .arg("--dir")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "something is left behind");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_missing_program_is_a_sentence_that_says_how_to_get_it() {
    let said = failure(&["--atoll", "/no/such/atoll"]);
    assert!(
        said.contains("no AtollDB at /no/such/atoll") && said.contains("cargo build"),
        "{said}"
    );
    // Any program will do where another one is missing.
    let said = failure(&["--atoll", "true", "--redis", "no-such-redis"]);
    assert!(
        said.contains("apt-get install redis-server") && said.contains("--peers none"),
        "{said}"
    );
    let tools = ["--tool", "redis-benchmark", "--redis-benchmark", "no-such-tool"];
    let said = failure(&[&["--atoll", "true", "--peers", "none"][..], &tools].concat());
    assert!(said.contains("apt-get install redis-tools"), "{said}");
}

#[test]
fn a_server_that_ends_at_once_has_its_words_repeated() {
    let args = ["--atoll", "/bin/echo", "--peers", "none", "--workload", "set", "--durability"];
    let said = failure(&[&args[..], &["synced"]].concat());
    assert!(said.contains("ended before it answered"), "{said}");
    assert!(said.contains("--durability synced"), "echo repeats its arguments: {said}");
}

#[test]
fn nothing_to_measure_is_said() {
    let args = ["--atoll", "true", "--peers", "none", "--workload", "get-under-writes"];
    let said = failure(&[&args[..], &["--durability", "interval"]].concat());
    assert!(said.contains("needs synced"), "{said}");
}
