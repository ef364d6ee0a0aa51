//! The REST API over a real socket: keys, scans, batches, keyspaces, and who may use them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value as Json, json};

use crate::harness::{PATIENCE, Server};

/// An answer.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(of, _)| of.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn json(&self) -> Json {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The code of an error, whose form is checked.
    fn code(&self) -> String {
        let json = self.json();
        assert!(json["error"]["message"].as_str().is_some_and(|m| m.len() > 10), "{json}");
        json["error"]["code"].as_str().unwrap().to_owned()
    }
}

/// Asks the API.
fn ask(server: &Server, first: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut socket = TcpStream::connect(server.http.unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("{first} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !first.starts_with("GET") && !first.starts_with("HEAD") {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    // The server may refuse before it has read everything.
    let _ = socket.write_all(body);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer to {first}"));
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_owned(), value.to_owned())
    });
    Answer { status, headers: headers.collect(), body: answer[end + 4..].to_vec() }
}

fn get(server: &Server, path: &str) -> Answer {
    ask(server, &format!("GET {path}"), &[], b"")
}

fn put(server: &Server, path: &str, body: &[u8]) -> Answer {
    ask(server, &format!("PUT {path}"), &[], body)
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn send(server: &Server, first: &str, body: &Json) -> Answer {
    ask(server, first, &[JSON], body.to_string().as_bytes())
}

fn server(flags: &[&str]) -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let flags = [&["--stores", "2"], flags].concat();
    let server = Server::start(&dir.path().join("data"), &flags);
    (dir, server)
}

fn make(server: &Server, name: &str, options: &Json) {
    let made = send(server, &format!("PUT /v1/keyspaces/{name}"), options);
    assert_eq!(made.status, 201, "{}", made.json());
}

#[test]
fn a_value_is_kept_as_it_is_and_has_a_version() {
    let (_dir, server) = server(&[]);
    make(&server, "a%2Fb", &json!({ "kind": "hashed" }));
    let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let written = put(&server, "/v1/kv/a%2Fb/%00%ff/x", &value);
    assert_eq!(written.status, 204);
    let version = written.header("atoll-version").unwrap().to_owned();
    let tag = format!("\"{version}\"");
    assert_eq!(written.header("etag"), Some(tag.as_str()));
    let read = get(&server, "/v1/kv/a%2fb/%00%FF%2Fx");
    assert_eq!((read.status, read.header("etag")), (200, Some(tag.as_str())));
    assert!(read.body == value);
    assert_eq!(read.header("x-content-type-options"), Some("nosniff"));
    let head = ask(&server, "HEAD /v1/kv/a%2Fb/%00%ff/x", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some("100000"));
    let known = ask(&server, "GET /v1/kv/a%2Fb/%00%ff/x", &[("If-None-Match", &tag)], b"");
    assert_eq!((known.status, known.body.len()), (304, 0));
    let deleted = ask(&server, "DELETE /v1/kv/a%2Fb/%00%ff/x", &[], b"");
    assert_eq!(deleted.status, 204);
    assert_eq!(get(&server, "/v1/kv/a%2Fb/%00%ff/x").code(), "key_not_found");
    assert_eq!(ask(&server, "DELETE /v1/kv/a%2Fb/%00%ff/x", &[], b"").code(), "key_not_found");
    assert_eq!(get(&server, "/v1/kv/nothing/x").code(), "keyspace_not_found");
}

#[test]
fn conditions_make_of_many_writers_one_after_the_other() {
    const WRITERS: usize = 4;
    const EACH: usize = 15;
    let (_dir, server) = server(&[]);
    make(&server, "n", &json!({}));
    let first = ask(&server, "PUT /v1/kv/n/sum", &[("If-None-Match", "*")], b"0");
    assert_eq!(first.status, 204);
    let second = ask(&server, "PUT /v1/kv/n/sum", &[("If-None-Match", "*")], b"0");
    assert_eq!((second.status, second.code().as_str()), (412, "precondition_failed"));
    assert_eq!(second.header("etag"), first.header("etag"), "what is there");
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                let mut done = 0;
                while done < EACH {
                    let read = get(&server, "/v1/kv/n/sum");
                    let sum: usize = String::from_utf8(read.body.clone()).unwrap().parse().unwrap();
                    let tag = read.header("etag").unwrap();
                    let next = (sum + 1).to_string();
                    let written =
                        ask(&server, "PUT /v1/kv/n/sum", &[("If-Match", tag)], next.as_bytes());
                    match written.status {
                        204 => done += 1,
                        412 => {}
                        other => panic!("{other}: {}", written.json()),
                    }
                }
            });
        }
    });
    assert_eq!(get(&server, "/v1/kv/n/sum").body, (WRITERS * EACH).to_string().as_bytes());
    let gone = ask(&server, "DELETE /v1/kv/n/none", &[("If-Match", "*")], b"");
    assert_eq!(gone.status, 412);
}

#[test]
fn pages_of_a_scan_are_all_of_it_in_order_in_both_kinds() {
    let (_dir, server) = server(&[]);
    let mut all: Vec<String> = (0..40).map(|n| format!("k{:02}", n * 7 % 40)).collect();
    for (name, options) in
        [("ordered", json!({})), ("hashed", json!({ "kind": "hashed", "buckets": 4 }))]
    {
        make(&server, name, &options);
        let actions: Vec<Json> = all
            .iter()
            .map(|key| json!({ "op": "put", "keyspace": name, "key": key, "value": key }))
            .collect();
        assert_eq!(send(&server, "POST /v1/txn", &json!({ "success": actions })).status, 200);
    }
    all.sort();
    for name in ["ordered", "hashed"] {
        for (query, expected) in [
            ("limit=7", all.clone()),
            ("limit=7&reverse=true", all.iter().rev().cloned().collect()),
            ("limit=3&prefix=k1", all[10..20].to_vec()),
            ("limit=100&start=k05&end=k07", all[5..7].to_vec()),
        ] {
            let mut found: Vec<String> = Vec::new();
            let mut cursor = String::new();
            loop {
                let page = get(&server, &format!("/v1/kv/{name}?{query}{cursor}")).json();
                for row in page["rows"].as_array().unwrap() {
                    assert_eq!((&row["key"], &row["encoding"]), (&row["value"], &json!("utf8")));
                    found.push(row["key"].as_str().unwrap().to_owned());
                }
                match page["cursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            assert_eq!(found, expected, "{name} {query}");
        }
        put(&server, &format!("/v1/kv/{name}/%ff"), b"\0");
        let page = get(&server, &format!("/v1/kv/{name}?start=%ff")).json();
        assert_eq!(
            page["rows"][0],
            json!({ "key": "/w==", "value": "AA==", "encoding": "base64" })
        );
    }
}

#[test]
fn a_batch_is_one_transaction_with_two_branches() {
    let (_dir, server) = server(&[]);
    make(&server, "accounts", &json!({ "kind": "hashed" }));
    make(&server, "log", &json!({}));
    let open = json!({
        "compare": [{ "keyspace": "accounts", "key": "a", "exists": false }],
        "success": [
            { "op": "put", "keyspace": "accounts", "key": "a", "value": "100" },
            { "op": "put", "keyspace": "accounts", "key": "Yg==", "value": "/w==",
              "encoding": "base64" },
            { "op": "put", "keyspace": "log", "key": "1", "value": "opened", "ttl_ms": 60_000 },
            { "op": "get", "keyspace": "accounts", "key": "b" },
        ],
        "failure": [
            { "op": "get", "keyspace": "accounts", "key": "a" },
            { "op": "scan", "keyspace": "log", "limit": 10 },
            { "op": "delete", "keyspace": "log", "key": "1" },
            { "op": "delete", "keyspace": "log", "key": "1" },
        ],
    });
    let first = send(&server, "POST /v1/txn", &open).json();
    assert_eq!(first["succeeded"], true);
    let expected = json!({ "op": "get", "found": true, "value": "/w==", "encoding": "base64", "version": null });
    assert_eq!(first["results"][3], expected);
    let second = send(&server, "POST /v1/txn", &open).json();
    assert_eq!(second["succeeded"], false);
    let results = second["results"].as_array().unwrap();
    assert_eq!(results[0]["value"], "100");
    assert_eq!(results[0]["version"], first["version"]);
    assert_eq!(results[1]["rows"][0]["value"], "opened");
    assert!(results[1]["rows"][0]["deadline_ms"].is_u64());
    assert_eq!(results[2], json!({ "op": "delete", "deleted": true }));
    assert_eq!(results[3], json!({ "op": "delete", "deleted": false }));
    for (test, holds) in [
        (json!({ "version": first["version"] }), true),
        (json!({ "version": "0", "is": "greater" }), true),
        (json!({ "value": "100" }), true),
        (json!({ "value": "100", "is": "not_equal" }), false),
        (json!({ "value": "2", "is": "less" }), true),
        (json!({ "exists": true }), true),
    ] {
        let mut compare = test.clone();
        compare["keyspace"] = "accounts".into();
        compare["key"] = "a".into();
        let outcome = send(&server, "POST /v1/txn", &json!({ "compare": [compare] })).json();
        assert_eq!(outcome["succeeded"], holds, "{test}");
    }
}

#[test]
fn a_value_with_a_time_to_live_goes_by_itself() {
    let (_dir, server) = server(&[]);
    make(&server, "cache", &json!({ "ttl_ms": 600_000 }));
    assert_eq!(put(&server, "/v1/kv/cache/soon?ttl_ms=300", b"x").status, 204);
    assert_eq!(put(&server, "/v1/kv/cache/later", b"x").status, 204);
    assert!(get(&server, "/v1/kv/cache/later").header("atoll-deadline-ms").is_some());
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(get(&server, "/v1/kv/cache/soon").status, 404);
    assert_eq!(get(&server, "/v1/keyspaces/cache").json()["keys"], 1);
    assert_eq!(put(&server, "/v1/kv/cache/soon?ttl_ms=0", b"x").status, 400);
}

#[test]
fn keyspaces_are_made_listed_and_dropped_with_what_is_below_them() {
    let (_dir, server) = server(&[]);
    for name in ["a", "a/b", "a/b/c", "ab"] {
        let made = ask(&server, &format!("PUT /v1/keyspaces/{name}"), &[], b"");
        assert_eq!((made.status, &made.json()["kind"]), (201, &json!("ordered")));
        put(&server, &format!("/v1/kv/{}/k", name.replace('/', "%2F")), b"v");
    }
    assert_eq!(ask(&server, "PUT /v1/keyspaces/a", &[], b"").status, 200);
    let other = send(&server, "PUT /v1/keyspaces/a", &json!({ "kind": "hashed" }));
    assert_eq!((other.status, other.code().as_str()), (409, "keyspace_exists"));
    for bad in
        [json!({ "kind": "hashed", "buckets": 3 }), json!({ "buckets": 4 }), json!({ "x": 1 })]
    {
        assert_eq!(send(&server, "PUT /v1/keyspaces/new", &bad).code(), "bad_request", "{bad}");
    }
    let names = |query: &str| -> Vec<String> {
        let listed = get(&server, &format!("/v1/keyspaces{query}")).json();
        let all = listed["keyspaces"].as_array().unwrap().iter();
        all.map(|of| of["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(""), ["a", "a/b", "a/b/c", "ab"]);
    assert_eq!(names("?prefix=a%2F"), ["a/b", "a/b/c"]);
    let page = get(&server, "/v1/keyspaces?limit=3").json();
    let rest = format!("?limit=3&cursor={}", page["cursor"].as_str().unwrap());
    assert_eq!(names(&rest), ["ab"]);
    let dropped = ask(&server, "DELETE /v1/keyspaces/a", &[], b"");
    assert_eq!(dropped.json(), json!({ "dropped": ["a", "a/b", "a/b/c"] }));
    assert_eq!(names(""), ["ab"]);
    assert_eq!(get(&server, "/v1/kv/a%2Fb/k").code(), "keyspace_not_found");
    assert_eq!(ask(&server, "DELETE /v1/keyspaces/a", &[], b"").status, 404);
    assert_eq!(ask(&server, "PUT /v1/keyspaces/a/b", &[], b"").status, 201);
    assert_eq!(get(&server, "/v1/kv/a%2Fb/k").code(), "key_not_found", "as new");
    assert_eq!(get(&server, "/v1/kv/ab/k").status, 200);
}

#[test]
fn with_a_password_data_is_shown_and_changed_only_to_who_gives_it() {
    let (_dir, server) = server(&["--requirepass", "open sesame"]);
    let right = ("Authorization", "Bearer open sesame");
    // anybody:open sesame
    let basic = ("Authorization", "Basic YW55Ym9keTpvcGVuIHNlc2FtZQ==");
    assert_eq!(ask(&server, "PUT /v1/keyspaces/k", &[right], b"").status, 201);
    assert_eq!(ask(&server, "PUT /v1/kv/k/a", &[basic], b"1").status, 204);
    for first in [
        "GET /v1/kv/k/a",
        "PUT /v1/kv/k/a",
        "DELETE /v1/kv/k/a",
        "GET /v1/kv/k",
        "POST /v1/txn",
        "GET /v1/keyspaces",
        "GET /v1/keyspaces/k",
        "PUT /v1/keyspaces/k",
        "DELETE /v1/keyspaces/k",
    ] {
        for headers in [&[][..], &[("Authorization", "Bearer wrong")]] {
            let refused = ask(&server, first, headers, b"");
            assert_eq!((refused.status, refused.code().as_str()), (401, "unauthorized"), "{first}");
            assert!(refused.header("www-authenticate").is_some());
        }
    }
    assert_eq!(ask(&server, "GET /v1/kv/k/a", &[right], b"").body, b"1");
    assert_eq!(get(&server, "/openapi.json").status, 200);
    assert_eq!(get(&server, "/health").status, 200);
    let named = [("Host", "db.example"), right];
    assert_eq!(ask(&server, "GET /v1/kv/k/a", &named, b"").status, 200, "the password is proof");
}

#[test]
fn a_password_that_is_set_while_the_server_runs_holds_at_once() {
    let (_dir, server) = server(&[]);
    make(&server, "k", &json!({}));
    put(&server, "/v1/kv/k/a", b"1");
    let mut client = server.client();
    let set = |client: &mut redis::Connection, password: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("requirepass").arg(password).exec(client).unwrap();
    };
    set(&mut client, "open sesame");
    let right = ("Authorization", "Bearer open sesame");
    assert_eq!(ask(&server, "PUT /v1/kv/k/a", &[], b"2").status, 401);
    assert_eq!(ask(&server, "GET /v1/kv/k/a", &[right], b"").body, b"1");
    set(&mut client, "other");
    assert_eq!(ask(&server, "GET /v1/kv/k/a", &[right], b"").status, 401);
    set(&mut client, "");
    assert_eq!(ask(&server, "GET /v1/kv/k/a", &[], b"").body, b"1");
}

#[test]
fn names_and_pages_of_others_are_refused() {
    let (_dir, server) = server(&[]);
    make(&server, "k", &json!({}));
    put(&server, "/v1/kv/k/a", b"1");
    for first in ["GET /v1/kv/k/a", "PUT /v1/kv/k/a", "GET /openapi.json"] {
        let refused = ask(&server, first, &[("Host", "evil.example")], b"");
        assert_eq!((refused.status, refused.code().as_str()), (403, "forbidden_host"), "{first}");
    }
    let addr = server.http.unwrap().to_string();
    assert_eq!(ask(&server, "GET /v1/kv/k/a", &[("Host", &addr)], b"").status, 200);
    let origin = ("Origin", "http://evil.example");
    assert_eq!(ask(&server, "GET /v1/kv/k/a", &[origin], b"").code(), "forbidden_host");
    // What a form of a foreign page could send without asking.
    let form = [("Content-Type", "text/plain")];
    let refused = ask(&server, "POST /v1/txn", &form, br#"{"success":[]}"#);
    assert_eq!((refused.status, refused.code().as_str()), (415, "unsupported_media_type"));
}

#[test]
fn what_is_wrong_is_said_in_json() {
    let (_dir, server) = server(&[]);
    make(&server, "k", &json!({}));
    let large = vec![b'x'; (8 << 20) + 1];
    let long = format!("/v1/kv/k/{}", "x".repeat(20_000));
    for (first, body, status, code) in [
        ("GET /v1/nothing", &b""[..], 404, "not_found"),
        ("POST /v1/kv/k/a", b"", 405, "method_not_allowed"),
        ("GET /v1/kv/k/a?x=1", b"", 400, "bad_request"),
        ("GET /v1/kv/k/%zz", b"", 400, "bad_request"),
        ("GET /v1/kv/k?cursor=abc", b"", 400, "bad_request"),
        ("PUT /v1/kv/k/a", &large, 413, "too_large"),
        ("POST /v1/txn", b"{", 400, "bad_request"),
        ("POST /v1/txn", b"[]", 400, "bad_request"),
        ("POST /v1/txn", br#"{"sucess":[]}"#, 400, "bad_request"),
        (
            "POST /v1/txn",
            br#"{"success":[{"op":"get","keyspace":"none","key":"a"}]}"#,
            404,
            "keyspace_not_found",
        ),
        (
            "POST /v1/txn",
            br#"{"success":[{"op":"get","keyspace":"k","key":"?","encoding":"base64"}]}"#,
            400,
            "bad_request",
        ),
        ("POST /v1/txn", br#"{"compare":[{"keyspace":"k","key":"a"}]}"#, 400, "bad_request"),
        ("PUT /v1/keyspaces/a//b", b"", 400, "bad_request"),
    ] {
        let refused = ask(&server, first, &[JSON], body);
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{first}");
        assert_eq!(refused.header("content-type"), Some("application/json"));
        assert!(status != 405 || refused.header("allow") == Some("GET, HEAD, PUT, DELETE"));
    }
    assert_eq!(get(&server, &long).status, 431, "longer than a head may be");
    let many: Vec<Json> =
        (0..1_100).map(|_| json!({ "op": "get", "keyspace": "k", "key": "a" })).collect();
    assert_eq!(send(&server, "POST /v1/txn", &json!({ "success": many })).status, 413);
    assert_eq!(get(&server, "/health").status, 200);
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill_and_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let first = Server::start(&data, &["--stores", "2"]);
    make(&first, "k", &json!({ "kind": "hashed" }));
    for n in 0..50 {
        assert_eq!(put(&first, &format!("/v1/kv/k/{n}"), b"kept").status, 204);
    }
    first.kill();
    let second = Server::start(&data, &[]);
    assert_eq!(get(&second, "/v1/keyspaces/k").json()["keys"], 50);
    assert_eq!(put(&second, "/v1/kv/k/50", b"kept").status, 204);
    assert!(second.stop(Signal::TERM).success());
    let third = Server::start(&data, &[]);
    for n in 0..=50 {
        assert_eq!(get(&third, &format!("/v1/kv/k/{n}")).body, b"kept", "{n}");
    }
}

#[test]
fn the_server_answers_as_its_own_description_says() {
    let (_dir, server) = server(&[]);
    let description = get(&server, "/openapi.json");
    assert_eq!(description.header("content-type"), Some("application/json"));
    let mut asked = 0;
    for (path, item) in description.json()["paths"].as_object().unwrap() {
        let target = path.replace(['{', '}'], "");
        for (method, operation) in item.as_object().unwrap() {
            if method == "parameters" {
                continue;
            }
            for body in [&b"{}"[..], b"nonsense"] {
                let first = format!("{} {target}", method.to_uppercase());
                let answer = ask(&server, &first, &[JSON], body);
                let status = answer.status.to_string();
                let described = operation["responses"].as_object().unwrap();
                assert!(described.contains_key(&status), "{first} answers {status}");
                assert!(answer.status < 400 || answer.code() != "not_found", "{first}");
                asked += 1;
            }
        }
    }
    assert!(asked >= 24, "{asked}");
}
