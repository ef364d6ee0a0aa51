//! The server on real sockets and a real disk.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use atoll_env::os;
use atoll_env::sync::oneshot;
use atoll_kv::NodeOptions;
use atoll_redis::{Config, Identity};
use atoll_server::{Engine, Server};

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Opens a directory on two cores.
async fn engine(dir: &std::path::Path, config: Config) -> Engine {
    let mut options = NodeOptions::new(os::env().unwrap(), dir);
    options.cores = 2;
    options.stores = 2;
    options.memory = 32 << 20;
    options.engine.log_segment_size = 4 << 20;
    let identity =
        Identity { version: "test", process_id: 1, run_id: 1, measure: None, allocator: "" };
    Engine::start(options, config, identity).await.unwrap()
}

/// A server on a thread of its own.
struct Running {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[expect(clippy::disallowed_methods, reason = "a real server needs a real thread")]
fn start(dir: &std::path::Path, config: Config) -> Running {
    let (stop, stopped) = oneshot::channel();
    let (tell, told) = mpsc::channel();
    let dir = dir.to_owned();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let engine = engine(&dir, config).await;
            let server = Server::bind(&engine, LOCAL).await.unwrap();
            tell.send(server.local_addr()).unwrap();
            let stop = async {
                let _ = stopped.await;
            };
            server.run(stop).await;
            engine.stop().await.unwrap();
        });
    });
    let addr = told.recv_timeout(Duration::from_secs(30)).expect("the server starts");
    Running { addr, stop: Some(stop), thread: Some(thread) }
}

impl Running {
    fn connect(&self) -> TcpStream {
        #[expect(clippy::disallowed_methods, reason = "the client is not part of the database")]
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server's thread panicked");
        }
    }
}

/// Sends bytes and expects exactly these in return.
fn exchange(stream: &mut TcpStream, sent: &[u8], expected: &[u8]) {
    stream.write_all(sent).unwrap();
    let mut received = vec![0; expected.len()];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[test]
fn a_restarted_server_has_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(3 << 20);
    {
        let server = start(dir.path(), Config::default());
        let mut client = server.connect();
        exchange(&mut client, b"SET k v EX 1000\r\nGET k\r\n", b"+OK\r\n$1\r\nv\r\n");
        let mut request = Vec::new();
        atoll_resp::request(&mut request, &["SET", "long", &long]);
        exchange(&mut client, &request, b"+OK\r\n");
    }
    let server = start(dir.path(), Config::default());
    let mut client = server.connect();
    exchange(&mut client, b"TTL k\r\nDBSIZE\r\n", b":1000\r\n:2\r\n");
    let reply = format!("${}\r\n{long}\r\n", long.len());
    exchange(&mut client, b"GET long\r\n", reply.as_bytes());
    exchange(&mut client, b"SELECT 3\r\nDBSIZE\r\n", b"+OK\r\n:0\r\n");
    exchange(&mut client, b"FLUSHALL\r\nSELECT 0\r\nGET k\r\n", b"+OK\r\n+OK\r\n$-1\r\n");
}

#[test]
fn the_last_words_of_a_connection_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Config::default());
    for (sent, expected) in [
        ("PING\r\nQUIT\r\nPING\r\n", "+PONG\r\n+OK\r\n"),
        ("*1\r\n:3\r\n", "-ERR Protocol error: expected '$', got ':'\r\n"),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: a browser\r\n\r\n",
            "-ERR this port speaks the Redis protocol, not HTTP: use a Redis client here, or send \
             the request to the HTTP port\r\n",
        ),
    ] {
        let mut client = server.connect();
        client.write_all(sent.as_bytes()).unwrap();
        // More than the server will read: closing with it unread would reset the connection.
        let _ = client.write_all(&[b'x'; 4096]);
        let mut received = String::new();
        client.read_to_string(&mut received).unwrap();
        assert_eq!(received, expected);
    }
}

#[test]
fn an_address_in_use_is_one_clear_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Config::default());
    let taken = server.addr;
    let other = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let error = tokio::task::LocalSet::new().block_on(&runtime, async {
        let engine = engine(other.path(), Config::default()).await;
        let bound = Server::bind(&engine, taken).await;
        let error = bound.err().expect("the address is taken").to_string();
        engine.stop().await.unwrap();
        error
    });
    let expected =
        format!("{taken} is in use by another process; stop it or choose another address");
    assert_eq!(error, expected);
}
