//! A server process under test: started, spoken to, stopped, killed.
//!
//! The binary is the one cargo built for these tests, or the one `ATOLL_BIN` names (`cargo xtask
//! e2e` names the release build). The server's own banner tells its addresses: tests never choose a
//! port, so they run side by side.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Time for anything that a healthy server does at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Returns a command that runs the program under test, without this process's ATOLL_ settings.
pub fn atoll<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let binary =
        std::env::var_os("ATOLL_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_atoll").into());
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ATOLL_") {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Output {
    atoll(args).output().unwrap()
}

/// Asserts that the program refused with `code` and one sentence holding all `parts`.
pub fn assert_refused(output: &Output, code: i32, parts: &[&str]) {
    let complaint = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{complaint}");
    assert!(complaint.starts_with("atoll: "), "{complaint}");
    assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
    assert!(!complaint.contains("panicked"), "{complaint}");
    for part in parts {
        assert!(complaint.contains(part), "'{part}' is not in: {complaint}");
    }
}

/// Returns a size that an environment variable may raise for long runs.
pub fn size(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => default,
    }
}

/// A running server. Killed when dropped.
pub struct Server {
    child: Child,
    /// Where Redis clients connect.
    pub resp: Option<SocketAddr>,
    /// Where the HTTP pages are.
    pub http: Option<SocketAddr>,
    /// What the server said before it was ready.
    pub banner: String,
}

impl Server {
    /// Starts a server on `data` with free ports and waits for its banner.
    pub fn start(data: &Path, flags: &[&str]) -> Server {
        let mut command = atoll(["start", "--resp", ":0", "--http", ":0", "--data"]);
        command.arg(data).args(flags);
        Server::spawn(command)
    }

    /// Starts a server by `command` and waits for its banner.
    pub fn spawn(mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Server { child, resp: None, http: None, banner: String::new() };
        for line in &mut lines {
            let line = line.unwrap();
            server.banner.push_str(&line);
            server.banner.push('\n');
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("redis"), Some(addr)) => server.resp = addr.parse().ok(),
                (Some("http"), Some(url)) => {
                    server.http = url.strip_prefix("http://").and_then(|addr| addr.parse().ok());
                }
                (Some("try"), _) => return server,
                _ => {}
            }
        }
        panic!("the server ended before it was ready:\n{}", server.banner);
    }

    /// Connects the stock client.
    pub fn client(&self) -> redis::Connection {
        let url = format!("redis://{}/", self.resp.unwrap());
        redis::Client::open(url).unwrap().get_connection_with_timeout(PATIENCE).unwrap()
    }

    /// Connects a plain socket to the Redis port.
    pub fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.resp.unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// Gets an HTTP page: status and body.
    pub fn page(&self, method: &str, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.http.unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(socket, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        (status.unwrap_or_else(|| panic!("no HTTP answer: {answer}")), body.to_owned())
    }

    /// Returns the process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` and waits for the end.
    pub fn stop(mut self, signal: rustix::process::Signal) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only when the process has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
