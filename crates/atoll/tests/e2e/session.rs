//! What a user does on the first day: start, use it with a stock client and with the program's own
//! commands, look at it, stop it, start it again.

use std::io::{Read, Write};

use redis::TypedCommands;
use rustix::process::Signal;

use crate::harness::{Server, assert_refused, atoll, run};

/// Runs a client command against `server` and returns its exit code, output and complaint.
fn ask(server: &Server, args: &[&str]) -> (Option<i32>, String, String) {
    let addr = server.resp.unwrap().to_string();
    let output = run(&[args, &["--resp", &addr]].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Sets a key that expires after some seconds.
fn set_for(client: &mut redis::Connection, key: &str, value: &str, seconds: u64) {
    redis::cmd("SET").arg(key).arg(value).arg("EX").arg(seconds).exec(client).unwrap();
}

#[test]
fn a_stock_client_reads_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let mut client = server.client();
    client.set("greeting", "hello").unwrap();
    assert_eq!(client.get("greeting").unwrap().as_deref(), Some("hello"));
    assert_eq!(client.incr("visits", 5).unwrap(), 5);
    assert_eq!(client.get("nothing").unwrap(), None);
    assert_eq!(client.del(&["greeting", "nothing"]).unwrap(), 1);
    assert!(!client.exists("greeting").unwrap());
    set_for(&mut client, "soon", "gone", 100);
    let ttl: i64 = redis::cmd("TTL").arg("soon").query(&mut client).unwrap();
    assert!((90..=100).contains(&ttl), "{ttl}");
    let large = vec![7_u8; 3 << 20];
    client.set("large", &large).unwrap();
    let read: Vec<u8> = redis::cmd("GET").arg("large").query(&mut client).unwrap();
    assert!(read == large);
    let mut keys: Vec<String> = client.scan::<String>().unwrap().map(Result::unwrap).collect();
    keys.sort();
    assert_eq!(keys, ["large", "soon", "visits"]);
}

#[test]
fn replies_of_a_pipeline_come_in_the_order_of_its_commands() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let mut socket = server.socket();
    let requests: String = (0..1000).map(|i| format!("ECHO {i}\r\nINCR n\r\n")).collect();
    let expected: String = (0..1000)
        .map(|i: u32| format!("${}\r\n{i}\r\n:{}\r\n", i.to_string().len(), i + 1))
        .collect();
    let mut writer = socket.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(requests.as_bytes()).unwrap());
    let mut replies = vec![0; expected.len()];
    socket.read_exact(&mut replies).unwrap();
    sender.join().unwrap();
    assert_eq!(String::from_utf8(replies).unwrap(), expected);
}

#[test]
fn the_programs_own_commands_work_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (code, out, _) = ask(&server, &["ping"]);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("PONG from 127.0.0.1:"), "{out}");
    assert_eq!(ask(&server, &["set", "a", "1"]), (Some(0), "OK\n".into(), "".into()));
    assert_eq!(ask(&server, &["set", "b", "-2", "--ttl", "1h"]).0, Some(0));
    assert_eq!(ask(&server, &["get", "b"]), (Some(0), "-2\n".into(), "".into()));
    let (code, out, complaint) = ask(&server, &["get", "c"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(complaint.contains("the key c does not exist"), "{complaint}");
    let (code, out, _) = ask(&server, &["scan", "--match", "[ab]", "--values"]);
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort();
    assert_eq!((code, lines), (Some(0), vec!["a\t1", "b\t-2"]));
    let (_, out, _) = ask(&server, &["scan", "--limit", "1"]);
    assert_eq!(out.lines().count(), 1, "{out}");
    let (code, out, _) = ask(&server, &["stats"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("redis_version"), "{out}");
    let http = server.http.unwrap().to_string();
    let (code, out, _) = ask(&server, &["stats", "--metrics", "--http", &http]);
    assert_eq!(code, Some(0));
    assert!(out.lines().count() > 10 && !out.contains('#'), "{out}");
    let bench =
        ["bench", "-n", "2000", "-c", "5", "-P", "4", "-r", "100", "--tests", "set,get,incr"];
    let (code, out, complaint) = ask(&server, &bench);
    assert_eq!(code, Some(0), "{complaint}");
    for test in ["set        2000 ", "get        2000 ", "incr       2000 "] {
        assert!(out.contains(test), "{out}");
    }
}

#[test]
fn a_reader_that_closes_early_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let mut client = server.client();
    let mut pipe = redis::pipe();
    (0..20_000).for_each(|i| {
        pipe.set(format!("key:{i:08}"), "v").ignore();
    });
    pipe.query::<()>(&mut client).unwrap();
    let mut scan = atoll(["scan", "--resp", &server.resp.unwrap().to_string()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    scan.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = scan.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn http_shows_metrics_and_health() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    assert_eq!(server.page("GET", "/health"), (200, "{\"status\":\"ready\"}\n".to_owned()));
    let counted = |page: &str| -> f64 {
        let name = "atoll_command_seconds_count{command=\"incr\"}";
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    };
    let (status, before) = server.page("GET", "/metrics");
    assert_eq!(status, 200);
    let mut client = server.client();
    for _ in 0..7 {
        redis::cmd("INCR").arg("n").exec(&mut client).unwrap();
    }
    let (_, after) = server.page("GET", "/metrics");
    assert_eq!(counted(&after) - counted(&before), 7.0, "{after}");
    for line in after.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("atoll_"), "{line}");
        value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
    }
    assert_eq!(server.page("GET", "/").0, 404);
    assert_eq!(server.page("POST", "/metrics").0, 405);
}

#[test]
fn a_password_is_asked_for_and_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--requirepass", "open sesame"]);
    let error = redis::cmd("GET").arg("a").query::<()>(&mut server.client()).unwrap_err();
    assert_eq!(error.code(), Some("NOAUTH"));
    let (code, _, complaint) = ask(&server, &["get", "a"]);
    assert_eq!(code, Some(1));
    assert!(complaint.contains("NOAUTH") && complaint.contains("--password"), "{complaint}");
    let (code, _, complaint) = ask(&server, &["get", "a", "--password", "wrong"]);
    assert_eq!(code, Some(1));
    assert!(complaint.contains("WRONGPASS"), "{complaint}");
    assert_eq!(ask(&server, &["set", "a", "1", "--password", "open sesame"]).0, Some(0));
    assert!(!server.banner.contains("sesame"), "{}", server.banner);
}

#[test]
fn a_graceful_stop_exits_0_and_a_restart_has_the_data_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    for (mode, signal) in
        [("synced", Signal::TERM), ("interval", Signal::INT), ("buffered", Signal::TERM)]
    {
        let data = dir.path().join(mode);
        let server = Server::start(&data, &["--durability", mode]);
        let mut client = server.client();
        let mut pipe = redis::pipe();
        (0..1000).for_each(|i| {
            pipe.set(format!("key:{i}"), format!("{mode} {i}")).ignore();
        });
        pipe.query::<()>(&mut client).unwrap();
        set_for(&mut client, "lease", "kept", 1000);
        // A connection that stays open, and one in the middle of a request, do not hold up a stop.
        let mut half = server.socket();
        half.write_all(b"*2\r\n$3\r\nGET\r\n$5\r\nke").unwrap();
        assert_eq!(server.stop(signal).code(), Some(0), "{mode}");

        let server = Server::start(&data, &["--durability", mode]);
        let mut client = server.client();
        for i in 0..1000 {
            let value = client.get(format!("key:{i}")).unwrap();
            assert_eq!(value, Some(format!("{mode} {i}")));
        }
        let ttl: i64 = redis::cmd("TTL").arg("lease").query(&mut client).unwrap();
        assert!((900..=1000).contains(&ttl), "{ttl}");
        assert_eq!(redis::cmd("DBSIZE").query::<u64>(&mut client).unwrap(), 1001);
    }
}

#[test]
fn settings_come_from_flags_over_variables_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("atoll.toml");
    std::fs::write(&file, "resp = \":0\"\nhttp = \"off\"\nrequirepass = \"from the file\"\n")
        .unwrap();
    let mut command = atoll(["start", "--requirepass", "from the flag", "--config"]);
    command.arg(&file).env("ATOLL_DATA", dir.path().join("data"));
    command.env("ATOLL_REQUIREPASS", "from the variable");
    let server = Server::spawn(command);
    assert_eq!(server.http, None);
    assert!(dir.path().join("data").is_dir());
    assert_eq!(ask(&server, &["ping", "--password", "from the flag"]).0, Some(0));
    assert_eq!(ask(&server, &["ping", "--password", "from the file"]).0, Some(1));
}

#[test]
fn a_stopped_directory_can_be_verified_compacted_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    let mut client = server.client();
    for i in 0..100 {
        client.set(format!("key:{i}"), "value").unwrap();
    }
    assert_eq!(server.stop(Signal::TERM).code(), Some(0));
    let data = data.to_str().unwrap();
    for command in [&["verify"][..], &["compact"], &["repair", "--cut-log"], &["verify"]] {
        let output = run(&[command, &["--data", data]].concat());
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{command:?}: {complaint}");
    }
    let server = Server::start(data.as_ref(), &[]);
    assert_eq!(redis::cmd("DBSIZE").query::<u64>(&mut server.client()).unwrap(), 100);
}

#[test]
fn a_damaged_log_is_refused_named_and_repaired_at_a_price_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    let mut client = server.client();
    for i in 0..200 {
        client.set(format!("key:{i:03}"), "value").unwrap();
    }
    server.kill();
    // One byte in the middle of what the log holds.
    let log = data.join("store-0/log");
    let segments = std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    let holds = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|e| e == "log")
            && std::fs::read(path).unwrap().windows(7).any(|window| window == b"key:100")
    };
    let segment = segments.filter(holds).min().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = find(&bytes, b"key:100");
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();

    let path = data.to_str().unwrap();
    let name = segment.to_str().unwrap();
    let start = run(&["start", "--resp", ":0", "--http", "off", "--data", path]);
    assert_refused(&start, 1, &["corruption", name, "offset", "--cut-log"]);
    let verify = run(&["verify", "--data", path]);
    assert_refused(&verify, 1, &["is damaged", "atoll repair"]);
    assert!(String::from_utf8(verify.stdout).unwrap().contains(name));
    let repair = run(&["repair", "--data", path, "--cut-log"]);
    assert_eq!(repair.status.code(), Some(0));
    assert!(String::from_utf8(repair.stdout).unwrap().contains("cut the log"));

    let server = Server::start(&data, &[]);
    let mut keys: Vec<String> =
        server.client().scan::<String>().unwrap().map(Result::unwrap).collect();
    keys.sort();
    let expected: Vec<String> = (0..100).map(|i| format!("key:{i:03}")).collect();
    assert_eq!(keys, expected, "what lies before the damage is kept");
}

/// Returns where `text` is in `bytes`.
fn find(bytes: &[u8], text: &[u8]) -> usize {
    bytes.windows(text.len()).position(|window| window == text).unwrap()
}
