//! The load generator: closed-loop connections on one thread, by epoll.
//!
//! ```text
//!   connection 1   [ batch of requests ] --> server --> [ replies ]   and again
//!   connection 2        [ batch ]        -->        -->    [ replies ]
//!   ...
//!   writers        one SET each 1/rate seconds, on whichever is free  (optional, open loop)
//! ```
//!
//! A connection sends its next batch when the last reply of the one before is there, and the
//! latency of an operation is the time between that write and that reply: with a pipeline of 64 it
//! is that of 64 operations. A closed loop measures how fast a server can answer; a stall of a
//! second shows once for each connection. The writers beside it do not slow down with the server:
//! a write's latency counts from when it was due.
//!
//! The generator shares the machine with the server, so it must be cheap: batches are patched, not
//! made (`encode.rs`), replies counted, not parsed (`replies.rs`), and the clock is read once for a
//! batch. What it used itself is in the outcome: near one whole processor, the row says little about
//! the server.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::encode::{Batches, Keys, Kind};
use super::interrupt::Interrupt;
use super::replies::Replies;
use crate::Failure;

/// The longest latency that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(100);

/// A server that gives no reply at all for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often an otherwise idle loop looks at the clock and the interrupt.
const TICK: Duration = Duration::from_millis(100);

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Extent {
    /// This many operations.
    Operations(u64),
    /// As many as fit into this time.
    Time(Duration),
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// What an operation is.
    pub kind: Kind,
    /// Which keys it names.
    pub keys: Keys,
    /// Bytes of a value.
    pub value_size: usize,
    /// Operations a connection sends at a time.
    pub pipeline: u64,
    /// Connections, each waiting for its replies.
    pub connections: usize,
    /// When it ends.
    pub extent: Extent,
    /// Writes beside it.
    pub writers: Option<Writers>,
    /// Names the sequence of keys and values.
    pub seed: u64,
}

/// SETs at a steady rate.
#[derive(Clone, Debug)]
pub struct Writers {
    /// Connections they share.
    pub connections: usize,
    /// Writes a second, all connections together.
    pub rate: u64,
    /// Which keys they name.
    pub keys: Keys,
}

/// What came of it.
pub struct Outcome {
    /// Operations answered.
    pub operations: u64,
    /// Replies that were errors.
    pub errors: u64,
    /// Values that were not there.
    pub nulls: u64,
    /// What the first error said.
    pub first_error: Option<String>,
    /// From the first request to the last reply.
    pub seconds: f64,
    /// Of operations, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Of the writes beside them, in nanoseconds.
    pub write_latency: Histogram<u64>,
    /// Processor time of this process meanwhile.
    pub client_cpu_s: f64,
}

struct Connection {
    stream: TcpStream,
    batches: Batches,
    replies: Replies,
    /// Bytes of the batch that are not written yet begin here.
    written: usize,
    /// Whether epoll also tells when there is room to write.
    awaits_room: bool,
    /// Operations under way, and the number of complete replies that ends them.
    operations: u64,
    ends_at: u64,
    since: Instant,
    is_writer: bool,
}

/// Connections that are open and known to be served.
pub struct Session<'a> {
    load: &'a Load,
    connections: Vec<Connection>,
    poll: OwnedFd,
}

impl<'a> Session<'a> {
    /// Connects, which is not part of what is measured.
    pub fn connect(addr: SocketAddr, load: &'a Load) -> Result<Session<'a>, Failure> {
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        let writers = load.writers.as_ref();
        let count = load.connections + writers.map_or(0, |writers| writers.connections);
        let mut connections = Vec::with_capacity(count);
        for i in 0..count {
            let is_writer = i >= load.connections;
            let (kind, keys) = match writers {
                Some(writers) if is_writer => (Kind::Set, writers.keys.clone()),
                _ => (load.kind, load.keys.clone()),
            };
            let stream = open(addr).map_err(|e| format!("connection {} of {count}: {e}", i + 1))?;
            epoll::add(&poll, &stream, EventData::new_u64(i as u64), EventFlags::IN)?;
            // Far apart, so that no connection repeats another one's sequence.
            let seed = load.seed.wrapping_mul(1 << 20) + i as u64;
            connections.push(Connection {
                stream,
                batches: Batches::new(kind, keys, load.value_size, seed),
                replies: Replies::default(),
                written: 0,
                awaits_room: false,
                operations: 0,
                ends_at: 0,
                since: Instant::now(),
                is_writer,
            });
        }
        Ok(Session { load, connections, poll })
    }

    /// Sends the load. `progress` is told the operations done about once in a second.
    pub fn run(
        self,
        interrupt: &Interrupt,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Outcome, Failure> {
        let Session { load, connections, poll } = self;
        let pipeline = load.pipeline;
        let mut run = Run {
            pipeline,
            poll,
            connections,
            left: match load.extent {
                Extent::Operations(operations) => operations,
                Extent::Time(_) => u64::MAX,
            },
            deadline: match load.extent {
                Extent::Operations(_) => None,
                Extent::Time(time) => Some(Instant::now() + time),
            },
            done: 0,
            under_way: 0,
            idle_writers: Vec::new(),
            writes_under_way: 0,
            latency: histogram()?,
            write_latency: histogram()?,
            buffer: vec![0; 256 << 10],
        };
        run.all(load, interrupt, progress)
    }
}

/// A session that is sending.
struct Run {
    pipeline: u64,
    poll: OwnedFd,
    connections: Vec<Connection>,
    /// Operations that are not given to a connection yet.
    left: u64,
    deadline: Option<Instant>,
    done: u64,
    /// Connections that wait for replies, without the writers.
    under_way: usize,
    idle_writers: Vec<usize>,
    writes_under_way: usize,
    latency: Histogram<u64>,
    write_latency: Histogram<u64>,
    buffer: Vec<u8>,
}

impl Run {
    fn all(
        &mut self,
        load: &Load,
        interrupt: &Interrupt,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Outcome, Failure> {
        let cpu_before = own_cpu();
        let started = Instant::now();
        let mut pace = load.writers.as_ref().map(|writers| Pace {
            next: started,
            interval: Duration::from_secs_f64(1.0 / writers.rate.max(1) as f64),
        });
        self.idle_writers = (load.connections..self.connections.len()).collect();
        for i in 0..load.connections {
            self.begin(i, started)?;
        }
        let mut events: Vec<Event> = Vec::with_capacity(256);
        let (mut last_event, mut last_progress) = (started, started);
        while self.under_way > 0 || self.writes_under_way > 0 {
            let wait = match &mut pace {
                Some(pace) if self.under_way > 0 => self.write_what_is_due(pace)?,
                _ => TICK,
            };
            match epoll::wait(&self.poll, spare_capacity(&mut events), Some(&timespec(wait))) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(format!("waiting for replies: {e}").into()),
            }
            interrupt.check()?;
            let now = Instant::now();
            if !events.is_empty() {
                last_event = now;
            } else if now - last_event > PATIENCE {
                return Err(format!("no reply for {} seconds", PATIENCE.as_secs()).into());
            }
            if now - last_progress > Duration::from_secs(1) {
                last_progress = now;
                progress(self.done);
            }
            for event in events.drain(..) {
                let (data, flags) = (event.data, event.flags);
                let i = data.u64() as usize;
                if flags.contains(EventFlags::OUT) {
                    self.write(i)?;
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.read(i)?;
                }
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let replies = || self.connections.iter().map(|connection| &connection.replies);
        Ok(Outcome {
            operations: self.done,
            errors: replies().map(|replies| replies.errors).sum(),
            nulls: replies().map(|replies| replies.nulls).sum(),
            first_error: replies().find_map(|replies| replies.first_error.clone()),
            seconds,
            latency: self.latency.clone(),
            write_latency: self.write_latency.clone(),
            client_cpu_s: own_cpu() - cpu_before,
        })
    }

    /// Sends a connection's next batch, unless all is done.
    fn begin(&mut self, i: usize, now: Instant) -> Result<(), Failure> {
        let is_over = self.deadline.is_some_and(|deadline| now >= deadline);
        let operations = if is_over { 0 } else { self.left.min(self.pipeline) };
        if operations == 0 {
            return Ok(());
        }
        self.left -= operations;
        self.under_way += 1;
        self.send(i, operations, now)
    }

    fn send(&mut self, i: usize, operations: u64, since: Instant) -> Result<(), Failure> {
        let connection = &mut self.connections[i];
        connection.batches.next(operations);
        connection.written = 0;
        connection.operations = operations;
        let replies = operations * connection.batches.kind().replies();
        connection.ends_at = connection.replies.complete + replies;
        connection.since = since;
        self.write(i)
    }

    /// Writes what the socket takes of a batch.
    fn write(&mut self, i: usize) -> Result<(), Failure> {
        let connection = &mut self.connections[i];
        let bytes = connection.batches.bytes();
        while connection.written < bytes.len() {
            match (&connection.stream).write(&bytes[connection.written..]) {
                Ok(count) => connection.written += count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(format!("sending: {e}").into()),
            }
        }
        let awaits_room = connection.written < bytes.len();
        if awaits_room != connection.awaits_room {
            connection.awaits_room = awaits_room;
            let flags = if awaits_room { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.poll, &connection.stream, EventData::new_u64(i as u64), flags)?;
        }
        Ok(())
    }

    /// Reads once; epoll tells again if there is more.
    fn read(&mut self, i: usize) -> Result<(), Failure> {
        let connection = &mut self.connections[i];
        match (&connection.stream).read(&mut self.buffer) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(count) => connection
                .replies
                .feed(&self.buffer[..count])
                .map_err(|malformed| format!("a reply is malformed: {}", malformed.0))?,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(format!("receiving: {e}").into()),
        }
        if connection.operations == 0 || connection.replies.complete < connection.ends_at {
            return Ok(());
        }
        let now = Instant::now();
        let nanos = u64::try_from((now - connection.since).as_nanos()).unwrap_or(u64::MAX).max(1);
        let operations = std::mem::take(&mut connection.operations);
        if connection.is_writer {
            self.write_latency.saturating_record(nanos);
            self.writes_under_way -= 1;
            self.idle_writers.push(i);
            return Ok(());
        }
        self.latency.saturating_record_n(nanos, operations);
        self.done += operations;
        self.under_way -= 1;
        self.begin(i, now)
    }

    /// Sends the writes whose time has come as far as a connection is free, and returns how long
    /// there is nothing to do.
    fn write_what_is_due(&mut self, pace: &mut Pace) -> Result<Duration, Failure> {
        loop {
            let until = pace.next.saturating_duration_since(Instant::now());
            if !until.is_zero() {
                return Ok(until.min(TICK));
            }
            // Without a free one the wait ends with a reply; what is overdue then counts as such.
            let Some(i) = self.idle_writers.pop() else { return Ok(TICK) };
            self.writes_under_way += 1;
            self.send(i, 1, pace.next)?;
            pace.next += pace.interval;
        }
    }
}

/// When the next write is due.
struct Pace {
    next: Instant,
    interval: Duration,
}

/// Opens a connection and waits for a first reply: the kernel connects before the server accepts.
fn open(addr: SocketAddr) -> Result<TcpStream, Failure> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"*1\r\n$4\r\nPING\r\n")?;
    let mut replies = Replies::default();
    let mut buffer = [0; 256];
    while replies.complete == 0 {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err("the server closed the connection".into());
        }
        replies.feed(&buffer[..count]).map_err(|malformed| malformed.0)?;
    }
    if let Some(error) = replies.first_error {
        return Err(format!("PING is refused: {error}").into());
    }
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)?)
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

/// Returns the processor time of this process so far, in seconds.
fn own_cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
pub mod tests {
    use super::*;

    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use atoll_resp::{Limits, Protocol, ReplyWriter, Request, RequestParser};

    /// A server that answers each request by what `answer` writes, in writes of `cut` bytes. Returns
    /// its address and the number of requests it has seen. Its threads end with the connections.
    pub fn fake(
        cut: usize,
        answer: fn(Request<'_>, &mut ReplyWriter<'_>),
    ) -> (SocketAddr, Arc<AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let count = Arc::clone(&count);
                std::thread::spawn(move || serve(stream.unwrap(), cut, answer, &count));
            }
        });
        (addr, seen)
    }

    fn serve(
        mut stream: TcpStream,
        cut: usize,
        answer: fn(Request<'_>, &mut ReplyWriter<'_>),
        seen: &AtomicU64,
    ) {
        let (mut buffer, mut input) = ([0; 4096], Vec::new());
        while let Ok(count) = stream.read(&mut buffer)
            && count > 0
        {
            input.extend_from_slice(&buffer[..count]);
            let mut output = Vec::new();
            loop {
                let mut parser = RequestParser::new();
                let Some(len) = parser.parse(&input, &Limits::CLIENT).unwrap() else { break };
                let request = parser.request(&input);
                let mut writer = ReplyWriter::new(&mut output, Protocol::Resp2);
                match request.get(0).unwrap() {
                    b"PING" => writer.simple("PONG"),
                    _ => {
                        seen.fetch_add(1, Ordering::Relaxed);
                        answer(request, &mut writer);
                    }
                }
                input.drain(..len);
            }
            for part in output.chunks(cut) {
                if stream.write_all(part).is_err() {
                    return;
                }
            }
        }
    }

    pub fn polite(request: Request<'_>, reply: &mut ReplyWriter<'_>) {
        match request.get(0).unwrap() {
            b"GET" => reply.bulk(b"value"),
            b"INCR" => reply.int(7),
            b"EXEC" => {
                reply.array(5);
                (0..5).for_each(|_| reply.ok());
            }
            _ => reply.ok(),
        }
    }

    fn load(kind: Kind) -> Load {
        Load {
            kind,
            keys: Keys::Uniform(10),
            value_size: 64,
            pipeline: 4,
            connections: 3,
            extent: Extent::Operations(50),
            writers: None,
            seed: 1,
        }
    }

    fn run(addr: SocketAddr, load: &Load) -> Result<Outcome, Failure> {
        Session::connect(addr, load)?.run(&Interrupt::default(), &mut |_| {})
    }

    #[test]
    fn exactly_the_operations_asked_for_are_sent_and_answered() {
        for (kind, requests) in [
            (Kind::Set, 50),
            (Kind::Get, 50),
            (Kind::Incr, 50),
            (Kind::Mset, 50),
            (Kind::Mix, 50),
            (Kind::Multi, 7 * 50),
        ] {
            let (addr, seen) = fake(3, polite);
            let outcome = run(addr, &load(kind)).unwrap();
            assert_eq!((outcome.operations, outcome.errors, outcome.nulls), (50, 0, 0), "{kind:?}");
            assert_eq!(seen.load(Ordering::Relaxed), requests, "{kind:?}");
            assert_eq!(outcome.latency.len(), 50);
            assert!(outcome.seconds > 0.0);
        }
    }

    #[test]
    fn batches_larger_than_a_socket_s_buffer_arrive() {
        let (addr, seen) = fake(4096, polite);
        let load = Load { pipeline: 25, value_size: 1 << 20, connections: 1, ..load(Kind::Set) };
        assert_eq!(run(addr, &load).unwrap().operations, 50);
        assert_eq!(seen.load(Ordering::Relaxed), 50);
    }

    #[test]
    fn refusals_and_absent_values_are_counted() {
        let (addr, _) = fake(64, |request, reply| match request.get(0).unwrap() {
            b"GET" => reply.null(),
            _ => reply.error(b"OOM command not allowed"),
        });
        assert_eq!(run(addr, &load(Kind::Get)).unwrap().nulls, 50);
        let refused = run(addr, &load(Kind::Set)).unwrap();
        assert_eq!(refused.errors, 50);
        assert_eq!(refused.first_error.as_deref(), Some("OOM command not allowed"));
    }

    #[test]
    fn writers_write_beside_and_a_time_ends_it() {
        let (addr, _) = fake(64, polite);
        let load = Load {
            extent: Extent::Time(Duration::from_millis(50)),
            writers: Some(Writers { connections: 2, rate: 1000, keys: Keys::Uniform(10) }),
            ..load(Kind::Get)
        };
        let outcome = run(addr, &load).unwrap();
        assert!(outcome.operations > 0 && !outcome.write_latency.is_empty());
    }

    #[test]
    fn a_server_that_hangs_up_or_an_interrupt_ends_it() {
        let (addr, _) = fake(64, |_, _| panic!("this connection ends"));
        let failure = run(addr, &load(Kind::Set)).err().unwrap().to_string();
        assert!(failure.contains("closed") || failure.contains("reset"), "{failure}");

        let (addr, _) = fake(64, |_, _| {});
        let load = load(Kind::Set);
        let session = Session::connect(addr, &load).unwrap();
        let interrupt = Interrupt::raised();
        assert!(session.run(&interrupt, &mut |_| {}).is_err());
    }
}
