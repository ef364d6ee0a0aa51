//! Runs the golden scripts: conversations of clients with a server, each file a story, its name
//! the sentence it tells.
//!
//! A block is what clients send in one turn, a line `---`, and what they receive, one reply a
//! line, CR LF shown as a space. Blocks are separated by empty lines. Before the `---`:
//!
//! ```text
//!   GET key            client 1 sends this inline command
//!   @2 GET key         client 2 sends it
//!   !raw *1\r\n$4...   client 1 sends these bytes
//!   !clock 1500        1.5 seconds pass
//!   !disk REASON       commits fail from now on; without a reason they succeed again
//!   !password TEXT     the server was started with this password (first block only)
//! ```
//!
//! `UPDATE_SCRIPTS=1 cargo test -p atoll-redis` writes the replies as they are: read the diff.

use std::path::Path;

use crate::support::{Bench, replies_of};
use atoll_redis::Config;

#[test]
#[expect(clippy::disallowed_methods, reason = "the scripts are files of the source tree")]
fn every_script_tells_the_truth() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 10, "the scripts are there");
    let mut wrong = Vec::new();
    for path in paths {
        let script = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
        let played = play(&script);
        if played == script {
            continue;
        }
        if std::env::var_os("UPDATE_SCRIPTS").is_some() {
            std::fs::write(&path, played).unwrap();
        } else {
            let differs = script.lines().zip(played.lines()).find(|(old, new)| old != new);
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            wrong.push(format!("{name}: {differs:?}"));
        }
    }
    assert!(wrong.is_empty(), "(expected, got):\n{}", wrong.join("\n"));
}

/// Plays a script and returns it with the replies it got.
fn play(script: &str) -> String {
    let mut config = Config::default();
    if let Some(password) = script.lines().find_map(|line| line.strip_prefix("!password ")) {
        config.requirepass = password.into();
    }
    let mut bench = Bench::new(config);
    let mut played = Vec::new();
    for block in script.trim_end().split("\n\n") {
        let Some((sent, _)) = block.split_once("\n---") else {
            played.push(block.to_owned());
            continue;
        };
        let mut inputs = Vec::new();
        for line in sent.lines().filter(|line| !line.starts_with('#')) {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("!clock", ms) => bench.clock.advance(ms.parse().unwrap()),
                ("!disk", why) => {
                    *bench.store.failure.borrow_mut() =
                        Some(why.to_owned()).filter(|w| !w.is_empty());
                }
                ("!password", _) => {}
                ("!raw", bytes) => inputs.push((1, unescape(bytes))),
                (client, rest) if client.starts_with('@') => {
                    let number = client[1..].parse().unwrap();
                    inputs.push((number, format!("{rest}\r\n").into_bytes()));
                }
                _ => inputs.push((1, format!("{line}\r\n").into_bytes())),
            }
        }
        let mut received = format!("{sent}\n---");
        for (number, output, closed) in bench.turn(&inputs) {
            let prefix = if number == 1 { String::new() } else { format!("@{number} ") };
            for reply in replies_of(&output) {
                received.push_str(&format!("\n{prefix}{reply}"));
            }
            if closed {
                received.push_str(&format!("\n{prefix}(closed)"));
            }
        }
        played.push(received);
    }
    played.join("\n\n") + "\n"
}

fn unescape(text: &str) -> Vec<u8> {
    text.replace("\\r", "\r").replace("\\n", "\n").into_bytes()
}
