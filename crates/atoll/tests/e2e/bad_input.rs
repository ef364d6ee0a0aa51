//! What a server refuses: every refusal is one sentence on standard error and an exit code, never a
//! panic, and it leaves other people's files and a running server as they were.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;

use atoll_encoding::checksum::{Place, seeded};
use redis::TypedCommands;
use rustix::process::Signal;

use crate::harness::{Server, assert_refused, atoll, run};

/// Runs `atoll start` on `data` with free ports; it is expected to end by itself.
fn start(data: &Path, flags: &[&str]) -> Output {
    let mut command = atoll(["start", "--resp", ":0", "--http", ":0", "--data"]);
    command.arg(data).args(flags).output().unwrap()
}

#[test]
fn wrong_flags_are_refused() {
    assert_refused(&run(&["start", "--threads", "2"]), 2, &["'--threads'", "atoll start --help"]);
    assert_refused(&run(&["start", "--memory", "much"]), 2, &["'much'", "512MiB"]);
    assert_refused(&run(&["start", "--memory", "1KiB"]), 1, &["1 KiB is too little", "4 MiB"]);
    assert_refused(&run(&["start", "--resp", "nowhere"]), 2, &["'nowhere'", "127.0.0.1:7379"]);
    assert_refused(&run(&["begin"]), 2, &["'begin'", "atoll --help"]);
    assert_refused(&run(&[]), 2, &["atoll --help"]);
    let mut wrong_variable = atoll(["start"]);
    wrong_variable.env("ATOLL_DURABILITY", "never");
    assert_refused(&wrong_variable.output().unwrap(), 2, &["'never'", "synced"]);
}

#[test]
fn a_wrong_configuration_file_is_refused_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("atoll.toml");
    std::fs::write(&file, "data = \"d\"\nmemroy = \"1GiB\"\n").unwrap();
    let file = file.to_str().unwrap();
    assert_refused(&run(&["start", "--config", file]), 1, &[file, "line 2", "memroy", "memory"]);
    assert_refused(&run(&["start", "--config", "/nowhere/x.toml"]), 1, &["/nowhere/x.toml"]);
}

#[test]
fn a_listener_beyond_loopback_without_a_password_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (flag, other) in [("--resp", "--http"), ("--http", "--resp")] {
        let mut command = atoll(["start", flag, "0.0.0.0:0", other, ":0", "--data"]);
        let output = command.arg(&data).output().unwrap();
        assert_refused(&output, 1, &[flag, "--requirepass", "--insecure"]);
    }
    assert!(!data.exists(), "a refused start creates nothing");
}

#[test]
fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("one"), &[]);
    for (flag, other, taken) in
        [("--resp", "--http", server.resp), ("--http", "--resp", server.http)]
    {
        let taken = taken.unwrap().to_string();
        let mut second = atoll(["start", flag, &taken, other, ":0", "--data"]);
        let output = second.arg(dir.path().join("two")).output().unwrap();
        assert_refused(&output, 1, &[&taken, "in use", flag]);
    }
}

#[test]
fn a_second_process_on_the_same_data_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    server.client().set("a", "1").unwrap();
    let path = data.to_str().unwrap();
    assert_refused(&start(&data, &[]), 1, &[path, "another process"]);
    for command in [&["verify"][..], &["compact"], &["repair", "--cut-log"]] {
        let output = run(&[command, &["--data", path]].concat());
        assert_refused(&output, 1, &[path, "another process"]);
    }
    // The same command line once more clashes with the ports too: the directory says why.
    let (resp, http) = (server.resp.unwrap().to_string(), server.http.unwrap().to_string());
    let output = run(&["start", "--data", path, "--resp", &resp, "--http", &http]);
    assert_refused(&output, 1, &[path, "another process"]);
    assert_eq!(server.client().get("a").unwrap().as_deref(), Some("1"));
}

#[test]
fn a_foreign_directory_is_refused_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("holiday.jpg"), "a picture").unwrap();
    let path = dir.path().to_str().unwrap();
    assert_refused(&start(dir.path(), &[]), 1, &[path]);
    for command in [&["verify"][..], &["compact"], &["repair", "--cut-log"]] {
        let output = run(&[command, &["--data", path]].concat());
        assert_refused(&output, 1, &[path]);
    }
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["holiday.jpg"]);
}

#[test]
fn a_newer_format_is_refused_with_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    assert_eq!(Server::start(&data, &[]).stop(Signal::TERM).code(), Some(0));
    let identity = data.join("ATOLL");
    let text = std::fs::read(&identity).unwrap();
    // A later program would sum up what it writes: a version that does not verify is damage.
    let words = String::from_utf8(text.clone()).unwrap();
    let newer = words.rsplit_once(' ').unwrap().0.replacen("atoll 1 ", "atoll 9 ", 1);
    let sum = seeded(Place { file: 0, salt: 0, offset: 0 }, &[newer.as_bytes()]);
    std::fs::write(&identity, format!("{newer} {sum:08x}\n")).unwrap();
    assert_refused(&start(&data, &[]), 1, &[data.to_str().unwrap(), "format 9", "reads 1"]);
    std::fs::write(&identity, text).unwrap();
    assert_eq!(Server::start(&data, &[]).stop(Signal::TERM).code(), Some(0));
}

#[test]
fn a_directory_that_lost_a_part_is_refused_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let path = data.to_str().unwrap();
    let flags = ["--stores", "2", "--memory", "16MiB"];
    let server = Server::start(&data, &flags);
    for n in 0..20 {
        server.client().set(format!("key {n}"), n).unwrap();
    }
    assert_eq!(server.stop(Signal::TERM).code(), Some(0));
    for part in ["ATOLL", "store-0", "store-1"] {
        let (from, away) = (data.join(part), dir.path().join("away"));
        std::fs::rename(&from, &away).unwrap();
        assert_refused(&start(&data, &[]), 1, &[path, "ATOLL", "missing", "backup"]);
        for command in [&["verify"][..], &["compact"], &["repair", "--cut-log"]] {
            let output = run(&[command, &["--data", path]].concat());
            assert_refused(&output, 1, &[path, "ATOLL", "missing"]);
        }
        assert!(!from.exists(), "nothing is put in its place");
        std::fs::rename(&away, &from).unwrap();
    }
    let server = Server::start(&data, &[]);
    assert_eq!(server.client().get("key 19").unwrap().as_deref(), Some("19"));
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data");
    std::fs::write(&file, "not a directory").unwrap();
    assert_refused(&start(&file, &[]), 1, &[file.to_str().unwrap()]);
    assert_eq!(std::fs::read(&file).unwrap(), b"not a directory");
}

#[test]
fn a_directory_below_a_file_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let data = file.join("data");
    let path = data.to_str().unwrap();
    assert_refused(&start(&data, &[]), 1, &[path, "Not a directory", "--data"]);
    for command in [&["verify"][..], &["compact"], &["repair", "--cut-log"]] {
        let output = run(&[command, &["--data", path]].concat());
        assert_refused(&output, 1, &[path]);
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"not a directory");
}

#[test]
fn a_directory_without_permission_is_refused_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    assert_eq!(Server::start(&data, &[]).stop(Signal::TERM).code(), Some(0));
    let set_mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(dir.path(), 0o755);
    for unreadable in [data.clone(), data.join("ATOLL")] {
        let before = std::fs::metadata(&unreadable).unwrap().permissions().mode();
        set_mode(&unreadable, 0o000);
        let mut command = atoll(["start", "--resp", ":0", "--http", ":0", "--data"]);
        command.arg(&data);
        if rustix::process::geteuid().is_root() {
            // Permissions do not bind root: the program is run as nobody.
            command.uid(65534).gid(65534);
        }
        let output = command.output();
        set_mode(&unreadable, before);
        match output {
            Ok(output) => {
                let path = data.to_str().unwrap();
                assert_refused(&output, 1, &[path, "Permission denied", "--data"]);
            }
            Err(e) => eprintln!("skipped: nobody cannot run the program: {e}"),
        }
    }
    assert_eq!(Server::start(&data, &[]).stop(Signal::TERM).code(), Some(0));
}

#[test]
fn offline_commands_do_not_create_what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    for command in [&["verify"][..], &["compact"], &["repair", "--cut-log"]] {
        let path = missing.to_str().unwrap();
        let output = run(&[command, &["--data", path]].concat());
        assert_refused(&output, 1, &[path]);
        assert!(!missing.exists());
    }
}

#[test]
fn commands_without_a_server_say_so() {
    // Port 1 of loopback: nobody listens there on a machine that runs tests.
    for command in
        [&["ping"][..], &["get", "a"], &["set", "a", "b"], &["scan"], &["stats"], &["bench"]]
    {
        let output = run(&[command, &["--resp", "127.0.0.1:1"]].concat());
        assert_refused(&output, 1, &["nothing listens on 127.0.0.1:1", "atoll start"]);
    }
}

/// Requests that lost their frame, and what each is told before its connection is closed.
const BROKEN: [(&[u8], &str); 9] = [
    (b"*1\r\n$999999999999\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
    (b"*2147483648\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
    (
        // A negative count is no request, as in Redis; the lines behind it are two.
        b"*-9223372036854775808\r\n$-1\r\n*x\r\n",
        "-ERR unknown command '$-1', with args beginning with: \r\n\
         -ERR Protocol error: invalid multibulk length\r\n",
    ),
    (b"*1\r\n:1\r\n", "-ERR Protocol error: expected '$', got ':'\r\n"),
    (b"*1\r\n$3\r\nPINGPONG\r\n", "-ERR Protocol error: expected CR LF\r\n"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_ON_THE_WRONG_PORT),
    (b"POST / HTTP/1.1\r\n\r\n", HTTP_ON_THE_WRONG_PORT),
    (b"\"unbalanced\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"),
    // Half a frame: the client went away, and there is nobody to tell.
    (b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$536870912\r\nxyz", ""),
];
const HTTP_ON_THE_WRONG_PORT: &str = "-ERR this port speaks the Redis protocol, not HTTP: use a \
     Redis client here, or send the request to the HTTP port\r\n";

#[test]
fn broken_requests_are_told_why_and_close_their_connection_only() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    for (request, told) in BROKEN {
        let mut socket = server.socket();
        socket.write_all(request).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, told, "{}", request.escape_ascii());
    }
    let mut client = server.client();
    client.set("still", "here").unwrap();
    assert_eq!(client.get("a").unwrap(), None);
    assert_eq!(server.stop(Signal::TERM).code(), Some(0));
}

#[test]
fn an_announced_length_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--memory", "32MiB"]);
    // The peak of the address space tells of an allocation that was never touched or did not last.
    let kib = |name: &str| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // The threads that a first write starts have stacks and heaps of their own.
    server.client().set("a", "1").unwrap();
    let before = [kib("VmHWM:"), kib("VmPeak:")];
    let mut held = Vec::new();
    for n in 0..64 {
        let mut socket = server.socket();
        let announcement: &[u8] = match n % 2 {
            0 => b"*2\r\n$4\r\nECHO\r\n$536870912\r\nabc",
            _ => b"*2147483647\r\n$4\r\nMGET\r\n$1\r\na\r\n",
        };
        socket.write_all(announcement).unwrap();
        held.push(socket);
    }
    server.client().ping().unwrap();
    let [touched, reserved] = [kib("VmHWM:") - before[0], kib("VmPeak:") - before[1]];
    assert!(touched < 32 << 10, "64 announcements of 512 MiB and more took {touched} KiB");
    assert!(reserved < 256 << 10, "64 announcements of 512 MiB and more reserved {reserved} KiB");
}
