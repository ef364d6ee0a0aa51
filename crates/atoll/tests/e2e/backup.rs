//! Backups by the program: of a killed server's directory, once more, and back.

use redis::TypedCommands;
use rustix::process::Signal;

use crate::harness::{Server, assert_refused, run};

fn ok(args: &[&str]) -> String {
    let output = run(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_backup_restores_what_a_killed_server_had_and_the_next_one_copies_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (data, backup) = (path("data"), path("backup"));
    let server = Server::start(dir.path().join("data").as_path(), &[]);
    let refused = run(&["backup", "--data", &data, "--to", &backup]);
    assert_refused(&refused, 1, &["in use by another process"]);
    let mut client = server.client();
    for n in 0..200 {
        client.set(format!("key:{n}"), format!("value {n}")).unwrap();
    }
    server.kill();
    let first = ok(&["backup", "--data", &data, "--to", &backup]);
    assert!(first.starts_with("generation 1, "), "{first}");
    // Stores and shards are where they were.
    let server = Server::start(dir.path().join("data").as_path(), &[]);
    let mut client = server.client();
    client.set("key:0", "changed").unwrap();
    server.stop(Signal::TERM);
    ok(&["compact", "--data", &data]);
    ok(&["backup", "--data", &data, "--to", &backup]);
    let third = ok(&["backup", "--data", &data, "--to", &backup, "--trust"]);
    assert!(third.starts_with("generation 3, "), "{third}");
    let listed = ok(&["backups", "--from", &backup, "--verify"]);
    assert!(listed.contains("3 generations") && listed.contains(", 0 problems"), "{listed}");

    for (generation, expected) in [("1", "value 0"), ("3", "changed")] {
        let to = path(&format!("restored-{generation}"));
        ok(&["restore", "--from", &backup, "--generation", generation, "--to", &to]);
        ok(&["verify", "--data", &to]);
        let server = Server::start(dir.path().join(&to).as_path(), &[]);
        let mut client = server.client();
        assert_eq!(client.get("key:0").unwrap().as_deref(), Some(expected));
        assert_eq!(client.get("key:199").unwrap().as_deref(), Some("value 199"));
        server.stop(Signal::TERM);
    }

    let again = run(&["restore", "--from", &backup, "--to", &data]);
    assert_refused(&again, 1, &["is not empty", "name a new or an empty directory"]);
    let pruned = ok(&["backups", "--from", &backup, "--keep", "1"]);
    assert!(pruned.starts_with("2 generations") && pruned.contains("generation 3, "), "{pruned}");
    // A damaged file is named, refused, and copied again by the next backup.
    let files = std::fs::read_dir(dir.path().join("backup/files")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "sst"));
    let victim = files.first().unwrap();
    let mut bytes = std::fs::read(victim).unwrap();
    bytes[10] ^= 1;
    std::fs::write(victim, bytes).unwrap();
    let name = victim.file_name().unwrap().to_str().unwrap();
    let to = path("never");
    assert_refused(&run(&["restore", "--from", &backup, "--to", &to]), 1, &[name, "offset 0"]);
    let damaged = run(&["backups", "--from", &backup, "--verify"]);
    assert_refused(&damaged, 1, &["is damaged", "copies again"]);
    let healed = ok(&["backup", "--data", &data, "--to", &backup]);
    assert!(healed.contains("copied again") && healed.contains(name), "{healed}");
    ok(&["backups", "--from", &backup, "--verify"]);
    let nothing = run(&["backups", "--from", &path("nothing")]);
    assert_refused(&nothing, 1, &["there is no backup here"]);
}

#[test]
fn what_is_exported_is_imported_with_its_deadlines() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.jsonl").to_str().unwrap().to_owned();
    let server = Server::start(dir.path().join("a").as_path(), &[]);
    let mut client = server.client();
    for n in 0..1200 {
        client.set(format!("key:{n}"), format!("value {n}")).unwrap();
    }
    redis::cmd("SET").arg("soon").arg("gone").arg("EX").arg(1000).exec(&mut client).unwrap();
    client.set(&[0xff_u8, 0, 10][..], &[0x80_u8, 13][..]).unwrap();
    let resp = server.resp.unwrap().to_string();
    ok(&["export", "--resp", &resp, "--to", &file]);
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 1202);
    let refused = run(&["export", "--resp", &resp, "--to", &file]);
    assert_eq!(refused.status.code(), Some(1));
    let some = ok(&["export", "--resp", &resp, "--match", "key:7"]);
    assert_eq!(some, "{\"key\":\"key:7\",\"value\":\"value 7\"}\n");

    let other = Server::start(dir.path().join("b").as_path(), &[]);
    let resp = other.resp.unwrap().to_string();
    for _ in 0..2 {
        ok(&["import", "--resp", &resp, &file]);
    }
    let mut client = other.client();
    let size: u64 = redis::cmd("DBSIZE").query(&mut client).unwrap();
    assert_eq!(size, 1202);
    let ttl: i64 = redis::cmd("TTL").arg("soon").query(&mut client).unwrap();
    assert!((900..=1000).contains(&ttl), "{ttl}");
    let value: Vec<u8> = redis::cmd("GET").arg(&[0xff_u8, 0, 10][..]).query(&mut client).unwrap();
    assert_eq!(value, [0x80, 13]);
    std::fs::write(&file, "{\"key\":\"last\",\"value\":\"1\"}\n\nnonsense\n").unwrap();
    assert_refused(&run(&["import", "--resp", &resp, &file]), 1, &["line 3 of", "is no JSON"]);
    assert_eq!(client.get("last").unwrap().as_deref(), Some("1"));
}
