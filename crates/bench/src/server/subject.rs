//! The servers that are measured: how each is started, asked, watched and stopped.
//!
//! ```text
//!   Spec (what and how)  --start-->  Server { process, address, directory }
//!                                      |  cpu, resident      from /proc
//!                                      |  stop, kill, start  the directory stays
//!                                      +- dropped: killed and reaped
//! ```
//!
//! Promises are matched, not settings: `synced` answers a write after it is on stable storage, which
//! is `appendfsync always`; `interval` within a second after, which is `everysec`. Redis takes no
//! snapshots meanwhile (`--save ""`), for the log is what makes the promise. Everything else is each
//! server's default.
//!
//! A server listens on a loopback port that was free a moment ago, so two benchmarks can run at the
//! same time; one that ends before it answers has its own words repeated.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use atoll_resp::{ReplyDecoder, Value};
use rustix::process::{Pid, Signal, kill_process};

use super::exec;
use super::interrupt::Interrupt;
use super::proc;
use crate::Failure;
use crate::cgroup::MemoryCgroup;

/// How long a server may take to answer: recovery of a large log is part of what is measured.
const STARTUP: Duration = Duration::from_secs(300);

/// How long a server may take to end in order: it may write back all its memory.
const SHUTDOWN: Duration = Duration::from_secs(120);

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// Power cuts: on stable storage before the answer.
    Synced,
    /// The death of the process; a power cut but for the last second.
    Interval,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Durability::Synced => "synced",
            Durability::Interval => "interval",
        })
    }
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// AtollDB with this many serving threads.
    Atoll {
        /// `--cores`.
        cores: u32,
    },
    /// Redis.
    Redis,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Atoll { cores } => f.pad(&format!("atoll/{cores}")),
            Which::Redis => f.pad("redis"),
        }
    }
}

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Which one.
    pub which: Which,
    /// The program.
    pub program: PathBuf,
    /// What it promises.
    pub durability: Durability,
    /// Bytes it may use, where it knows such a limit; `None` leaves the default.
    pub memory: Option<u64>,
}

impl Spec {
    /// Returns the arguments after the program's name.
    fn arguments(&self, dir: &Path, port: u16) -> Vec<String> {
        let data = dir.display();
        let text = match self.which {
            Which::Atoll { cores } => {
                let memory =
                    self.memory.map_or(String::new(), |bytes| format!(" --memory {bytes}"));
                format!(
                    "start --resp 127.0.0.1:{port} --http off --cores {cores} --durability {}{memory} \
                     --data",
                    self.durability
                )
            }
            Which::Redis => {
                let fsync = match self.durability {
                    Durability::Synced => "always",
                    Durability::Interval => "everysec",
                };
                format!(
                    "--port {port} --bind 127.0.0.1 --daemonize no --appendonly yes \
                     --appendfsync {fsync} --dir"
                )
            }
        };
        let mut arguments: Vec<String> = text.split(' ').map(String::from).collect();
        arguments.push(data.to_string());
        if self.which == Which::Redis {
            arguments.extend(["--save".into(), String::new()]);
        }
        arguments
    }
}

/// A server with its data.
pub struct Server {
    /// How it was started.
    pub spec: Spec,
    /// Where it listens.
    pub addr: SocketAddr,
    dir: PathBuf,
    log: PathBuf,
    process: Option<Child>,
    group: Option<MemoryCgroup>,
}

impl Server {
    /// Starts a server on an empty directory, which is made below `root`, and waits until it answers.
    pub fn start(
        spec: &Spec,
        root: &Path,
        group: Option<MemoryCgroup>,
        interrupt: &Interrupt,
    ) -> Result<Server, Failure> {
        let name = spec.which.to_string().replace('/', "-");
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(root)?.keep();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = dir.with_extension("log");
        let mut server = Server { spec: spec.clone(), addr, dir, log, process: None, group };
        server.begin()?;
        server.first_reply(&["PING"], interrupt)?;
        Ok(server)
    }

    /// Starts the process.
    pub fn begin(&mut self) -> Result<(), Failure> {
        let join = self.group.as_ref().map(MemoryCgroup::processes);
        let mut command = exec::command(&self.spec.program, join)?;
        command.args(self.spec.arguments(&self.dir, self.addr.port()));
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().map_err(|e| format!("starting {}: {e}", self.spec.which))?;
        self.process = Some(process);
        Ok(())
    }

    /// Asks a starting server until it gives a reply that is not about its loading.
    pub fn first_reply(&mut self, words: &[&str], interrupt: &Interrupt) -> Result<Value, Failure> {
        let started = Instant::now();
        loop {
            interrupt.check()?;
            match ask(self.addr, words) {
                Ok(Value::Error(text)) if text.starts_with(b"LOADING") => {}
                Ok(reply) => return Ok(reply),
                // Nobody listens yet.
                Err(_) if self.is_alive() => {}
                Err(_) => return Err(self.last_words("ended before it answered").into()),
            }
            if started.elapsed() > STARTUP {
                return Err(self.last_words("does not answer").into());
            }
            // Short beside the milliseconds that a start takes.
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Asks the running server once.
    pub fn ask(&self, words: &[&str]) -> Result<Value, Failure> {
        ask(self.addr, words)
    }

    /// Returns whether the process has not ended.
    pub fn is_alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// Returns whether the server was killed for want of memory in its cgroup.
    pub fn ran_out_of_memory(&self) -> bool {
        self.group.as_ref().is_some_and(MemoryCgroup::has_killed)
    }

    /// Returns the processor time of all threads so far, in seconds.
    pub fn cpu_s(&self) -> Result<f64, Failure> {
        proc::cpu_s(self.id()?)
    }

    /// Returns the resident set, in bytes.
    pub fn resident(&self) -> Result<u64, Failure> {
        proc::resident(self.id()?)
    }

    fn id(&self) -> Result<u32, Failure> {
        Ok(self.process.as_ref().ok_or("the server is not running")?.id())
    }

    /// Ends the server in order.
    pub fn stop(&mut self, interrupt: &Interrupt) -> Result<(), Failure> {
        if let Some(id) = i32::try_from(self.id()?).ok().and_then(Pid::from_raw) {
            kill_process(id, Signal::TERM)?;
        }
        let started = Instant::now();
        while self.is_alive() {
            interrupt.check()?;
            if started.elapsed() > SHUTDOWN {
                return Err(self.last_words("does not end when asked to").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.process = None;
        Ok(())
    }

    /// Ends the server as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself, which is as good.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// What happened, and the end of what the server said itself.
    pub fn last_words(&self, what: &str) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n    ");
        format!("{} {what}; its last words:\n    {tail}", self.spec.which)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        // The directory is inside of one that is removed in the end; this frees the disk sooner.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Sends one request on a connection of its own and waits for the reply.
fn ask(addr: SocketAddr, words: &[&str]) -> Result<Value, Failure> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = Vec::new();
    atoll_resp::request(&mut request, words);
    stream.write_all(&request)?;
    let mut decoder = ReplyDecoder::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(reply) = decoder.next_reply()? {
            return Ok(reply);
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err("the server closed the connection".into());
        }
        decoder.feed(&buffer[..count]);
    }
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Finds a program by a path, or by a name in PATH.
pub fn find_program(name: &Path) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| path.is_file();
    if name.components().count() > 1 {
        return Some(name.to_owned()).filter(is_program);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(which: Which, durability: Durability, memory: Option<u64>) -> String {
        let spec = Spec { which, program: "server".into(), durability, memory };
        spec.arguments(Path::new("/d a/ta"), 7).join("|")
    }

    #[test]
    fn promises_are_matched() {
        let redis = arguments(Which::Redis, Durability::Synced, None);
        assert!(redis.contains("--appendfsync|always|--dir|/d a/ta|--save|"), "{redis}");
        let redis = arguments(Which::Redis, Durability::Interval, Some(1 << 20));
        assert!(redis.contains("--appendfsync|everysec|--dir"), "{redis}");
        let atoll = arguments(Which::Atoll { cores: 2 }, Durability::Interval, Some(1 << 20));
        assert_eq!(
            atoll,
            "start|--resp|127.0.0.1:7|--http|off|--cores|2|--durability|interval|\
             --memory|1048576|--data|/d a/ta"
        );
        let atoll = arguments(Which::Atoll { cores: 1 }, Durability::Synced, None);
        assert!(atoll.ends_with("--durability|synced|--data|/d a/ta"), "{atoll}");
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        assert!(find_program(Path::new("sh")).is_some());
        assert!(find_program(Path::new("no-such-server")).is_none());
        assert!(find_program(Path::new("/no/such/server")).is_none());
        assert!(find_program(&std::env::current_exe().unwrap()).is_some());
    }
}
