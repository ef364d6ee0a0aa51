//! One connection that has passed its handshake: what waits on it, and the task that moves its bytes.
//!
//! ```text
//!   Link::send, call, ...  -- push --> Outbox --+             +--> Handler::raft, request, stream
//!                             ring              |             |
//!                                               v   Driver    |
//!                                    poll_write --> socket --> poll_read --> Decoder
//! ```
//!
//! A single task does both directions, so a stream needs to know one waker only (TLS reads when it
//! wants to write). It goes once round after it was woken to write, before it writes: tasks that are
//! ready in this turn of the loop add their frames to the same write.
//!
//! # Invariants
//! - Nothing of the connection is borrowed while the owner's [`Handler`] runs: it may come back.
//! - Reading never waits for writing. What reading makes us write is short and counted.
//! - Each poll moves a bounded number of bytes, then other tasks have their turn.
//! - After [`Conn::close`] nothing that arrives is delivered and nothing that waits is sent: what the
//!   handler has seen is a first part of the stream.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use atoll_env::net::Stream;
use atoll_env::sync::timeout;
use atoll_env::time::{Clock, Instant};
use bytes::Bytes;

use crate::bulk::{self, Streams};
use crate::frame::{Decoder, Frame, Kind, Lane, close_payload};
use crate::handler::{Handler, Peer};
use crate::id::{Class, Role};
use crate::options::Options;
use crate::outbox::{Outbox, Parts};
use crate::refusal::{Code, Refusal, readable};
use crate::rpc::{self, Calls};
use crate::signal::Bell;
use crate::stats::Counters;

/// Bytes that one poll reads or writes before other tasks have their turn.
const BUDGET: usize = 256 << 10;
/// The buffer of a read, shared by all connections of a link.
pub(crate) const SCRATCH: usize = 64 << 10;
/// How long a side that closes waits for its last words to be taken.
const FAREWELL: Duration = Duration::from_millis(500);
/// What is read meanwhile at most, and thrown away: what the network may hold of a peer's bytes.
const LINGER_BYTES: usize = 4 << 20;

/// Why a connection ends.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// The network says so, or says nothing.
    Lost(String),
    /// The other side said why, in its last frame.
    Told(Code, String),
    /// This side does not want it any more.
    Refuse(Refusal),
}

impl End {
    pub(crate) fn why(&self, peer: &Peer) -> String {
        match self {
            End::Lost(why) | End::Told(_, why) => why.clone(),
            End::Refuse(refusal) => refusal.ours(peer.address),
        }
    }
}

/// What a peer has given this engine to do and to hold, over all its connections: those that are lost
/// leave work behind, and a peer that connects again and again must not pile it up.
#[derive(Default)]
pub(crate) struct Load {
    /// Its calls whose responders live, and the bytes of their requests.
    pub(crate) calls: Cell<usize>,
    pub(crate) call_bytes: Cell<usize>,
    /// Its bulk streams whose receivers live.
    pub(crate) streams: Cell<usize>,
}

impl Load {
    /// Returns whether nothing is left.
    pub(crate) fn is_none(&self) -> bool {
        self.calls.get() == 0 && self.streams.get() == 0
    }
}

/// A connection, as everything but its own task sees it.
pub(crate) struct Conn {
    pub(crate) peer: Peer,
    pub(crate) class: Class,
    /// Drawn by the peer's process.
    pub(crate) boot: u64,
    /// Which end this side is.
    pub(crate) role: Role,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) handler: Rc<dyn Handler>,
    pub(crate) counters: Rc<Counters>,
    pub(crate) load: Rc<Load>,
    pub(crate) out: RefCell<Outbox>,
    pub(crate) calls: Calls,
    pub(crate) streams: Streams,
    /// What the peer may be ahead on a bulk stream.
    pub(crate) window: usize,
    options: Rc<Options>,
    bell: Bell,
    /// Why this side closes it, once it does.
    closing: RefCell<Option<Refusal>>,
    /// The task has ended or is about to.
    is_over: Cell<bool>,
}

impl Conn {
    #[expect(clippy::too_many_arguments, reason = "the one call names each of them")]
    pub(crate) fn new(
        peer: Peer,
        boot: u64,
        class: Class,
        role: Role,
        salt: u64,
        clock: Arc<dyn Clock>,
        handler: Rc<dyn Handler>,
        counters: Rc<Counters>,
        load: Rc<Load>,
        options: Rc<Options>,
    ) -> Conn {
        let lane = Lane { class, version: peer.version, salt, sender: role };
        Conn {
            peer,
            class,
            boot,
            role,
            clock,
            handler,
            counters,
            load,
            out: RefCell::new(Outbox::new(lane)),
            calls: Calls::default(),
            streams: Streams::default(),
            window: options.window,
            options,
            bell: Bell::default(),
            closing: RefCell::default(),
            is_over: Cell::new(false),
        }
    }

    /// Returns whether something queued now may still leave.
    pub(crate) fn is_open(&self) -> bool {
        !self.is_over.get() && self.closing.borrow().is_none()
    }

    /// Queues data; the caller has seen to its room.
    pub(crate) fn push(&self, kind: Kind, stream: u32, parts: Parts) {
        self.out.borrow_mut().push(kind, stream, parts);
        self.note_queue();
        self.bell.ring();
    }

    /// Queues something short that goes before data. A peer that does not take it is given up.
    pub(crate) fn urgent(&self, kind: Kind, stream: u32, payload: Bytes) {
        if !self.is_open() {
            return;
        }
        let pushed = self.out.borrow_mut().push_urgent(kind, stream, payload);
        if !pushed {
            self.close(Refusal::Protocol("it asks and does not read the answers"));
        }
        self.note_queue();
        self.bell.ring();
    }

    /// Takes chunks of a bulk stream back that did not begin to leave.
    pub(crate) fn take_back_stream(&self, stream: u32) {
        self.out.borrow_mut().take_back(Kind::Chunk, stream);
        self.note_queue();
        // Room that comes without a write is announced too.
        self.streams.written(self.out.borrow().bytes());
    }

    /// Puts what waits into the statistics.
    pub(crate) fn note_queue(&self) {
        let bytes = self.out.borrow().bytes() as u64;
        self.counters.update(|stats| stats.queue_bytes = bytes);
    }

    /// Closes the connection from this side. The first reason stays.
    pub(crate) fn close(&self, refusal: Refusal) {
        self.closing.borrow_mut().get_or_insert(refusal);
        self.bell.ring();
    }

    /// Ends everything that waits on the connection; nothing is queued after it.
    pub(crate) fn fail(&self, why: &str) {
        self.is_over.set(true);
        let unsent: Vec<u32> = self.out.borrow().waiting(Kind::Request).collect();
        self.calls.fail(&unsent, why);
        self.streams.fail(&self.counters, why);
        let dropped = self.out.borrow_mut().clear();
        if self.class == Class::Raft {
            self.counters.update(|stats| stats.drops += dropped as u64);
        }
    }

    fn silence(&self) -> Duration {
        self.options.silence[self.class.index()]
    }
}

/// The task's part of a connection.
pub(crate) struct Driver {
    conn: Rc<Conn>,
    stream: Box<dyn Stream>,
    decoder: Decoder,
    scratch: Rc<RefCell<Vec<u8>>>,
    /// What came with the end of the handshake.
    rest: Vec<u8>,
    /// Something waits, and one round was left to others since.
    has_waited: bool,
    /// When anything was last read.
    heard: Instant,
    /// When anything was last written, or nothing waited.
    wrote: Instant,
    /// The last ping, and when it was asked.
    ping: Option<(u32, Instant)>,
    pings: u32,
    tick: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Driver {
    pub(crate) fn new(
        conn: Rc<Conn>,
        stream: Box<dyn Stream>,
        salt: u64,
        rest: Vec<u8>,
        scratch: Rc<RefCell<Vec<u8>>>,
    ) -> Driver {
        let sender = conn.role.other();
        let lane = Lane { class: conn.class, version: conn.peer.version, salt, sender };
        let now = conn.clock.now();
        let tick = conn.clock.sleep(conn.silence() / 8);
        Driver {
            stream,
            decoder: Decoder::new(lane),
            scratch,
            rest,
            has_waited: false,
            heard: now,
            wrote: now,
            ping: None,
            pings: 0,
            tick,
            conn,
        }
    }

    /// Moves bytes until the connection ends.
    pub(crate) async fn drive(&mut self) -> End {
        let rest = std::mem::take(&mut self.rest);
        if let Err(end) = self.feed(&rest) {
            return end;
        }
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.conn.bell.listen(cx);
        match self.turn(cx) {
            Err(end) => Poll::Ready(end),
            Ok(()) => match &*self.conn.closing.borrow() {
                // Looked at after reading: the handler may have closed it.
                Some(refusal) => Poll::Ready(End::Refuse(refusal.clone())),
                None => Poll::Pending,
            },
        }
    }

    /// Moves what can be moved now.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if let Some(refusal) = &*self.conn.closing.borrow() {
            return Err(End::Refuse(refusal.clone()));
        }
        self.read(cx)?;
        self.write(cx)?;
        // Judged after reading: a machine that slept finds what came meanwhile first.
        while self.tick.as_mut().poll(cx).is_ready() {
            self.tick = self.conn.clock.sleep(self.conn.silence() / 8);
            self.judge()?;
            self.write(cx)?;
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let scratch = self.scratch.clone();
        // Nobody else borrows it: handlers do not poll connections.
        let mut buffer = scratch.borrow_mut();
        let mut budget = BUDGET;
        while self.conn.is_open() {
            let n = match self.stream.poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => {
                    return Err(End::Lost("the other engine closed the connection".to_owned()));
                }
                Poll::Ready(Ok(n)) => n.min(buffer.len()),
                Poll::Ready(Err(error)) => {
                    return Err(End::Lost(format!("reading from it failed: {error}")));
                }
            };
            self.heard = self.conn.clock.now();
            self.conn.counters.update(|stats| stats.bytes_in += n as u64);
            self.feed(&buffer[..n])?;
            budget = budget.saturating_sub(n);
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Delivers the frames in some bytes.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        while self.conn.is_open() {
            match self.decoder.next(&mut bytes) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    self.conn.counters.update(|stats| stats.frames_in += 1);
                    self.receive(frame)?;
                }
                Err(bad) => return Err(End::Refuse(Refusal::BadFrame(bad))),
            }
        }
        Ok(())
    }

    fn receive(&mut self, frame: Frame) -> Result<(), End> {
        match frame.kind {
            Kind::Ping => self.conn.urgent(Kind::Pong, frame.stream, Bytes::new()),
            Kind::Pong => {
                if let Some((_, asked)) = self.ping.take_if(|(number, _)| *number == frame.stream) {
                    let rtt = self.conn.clock.now().since(asked);
                    self.conn.counters.update(|stats| stats.rtt = Some(rtt));
                }
            }
            Kind::Close => {
                let (code, sentence) = match frame.payload.split_first() {
                    Some((&code, sentence)) => (Code::from_byte(code), readable(sentence)),
                    None => (Code::Unknown, "the other engine gave no reason".to_owned()),
                };
                return Err(End::Told(code, sentence));
            }
            Kind::Message => self.conn.handler.raft(self.conn.peer.engine, frame.payload),
            _ => match self.conn.class {
                Class::Rpc => rpc::receive(&self.conn, &self.conn.options, frame)?,
                _ => bulk::receive(&self.conn, &self.conn.options, frame)?,
            },
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let conn = self.conn.clone();
        let mut out = conn.out.borrow_mut();
        if out.is_empty() {
            self.has_waited = false;
            return Ok(());
        }
        if !self.has_waited && !out.is_full_write() {
            self.has_waited = true;
            cx.waker().wake_by_ref();
            return Ok(());
        }
        let (mut written, mut writes) = (0, 0);
        while written < BUDGET {
            let bytes = out.next_bytes();
            if bytes.is_empty() {
                break;
            }
            match self.stream.poll_write(cx, bytes) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(End::Lost("it takes no more bytes".to_owned())),
                Poll::Ready(Ok(n)) => {
                    let n = n.min(bytes.len());
                    out.advance(n);
                    written += n;
                    writes += 1;
                }
                Poll::Ready(Err(error)) => {
                    return Err(End::Lost(format!("writing to it failed: {error}")));
                }
            }
        }
        if written >= BUDGET {
            cx.waker().wake_by_ref();
        }
        self.has_waited = !out.is_empty();
        let (frames, waiting) = (out.take_frames(), out.bytes());
        drop(out);
        if written > 0 || waiting == 0 {
            self.wrote = conn.clock.now();
        }
        conn.counters.update(|stats| {
            stats.writes += writes;
            stats.bytes_out += written as u64;
            stats.frames_out += frames;
            stats.queue_bytes = waiting as u64;
        });
        if conn.class == Class::Bulk && written > 0 {
            conn.streams.written(waiting);
        }
        Ok(())
    }

    /// Decides by the clock: is the other side there, and does it take what is sent?
    fn judge(&mut self) -> Result<(), End> {
        let (now, silence) = (self.conn.clock.now(), self.conn.silence());
        let unheard = now.since(self.heard);
        if unheard >= silence {
            return Err(End::Lost(format!("nothing was heard of it for {unheard:?}")));
        }
        if self.conn.out.borrow().is_empty() {
            self.wrote = now;
        } else if now.since(self.wrote) >= silence {
            let stalled = now.since(self.wrote);
            return Err(End::Lost(format!("it has taken nothing for {stalled:?}")));
        }
        let asked = self.ping.map_or(Duration::MAX, |(_, asked)| now.since(asked));
        if unheard >= silence / 4 && asked >= silence / 4 {
            self.pings = self.pings.wrapping_add(1);
            self.ping = Some((self.pings, now));
            self.conn.urgent(Kind::Ping, self.pings, Bytes::new());
        }
        Ok(())
    }

    /// Tells the other side why the connection ends, if it takes that soon. After [`Conn::fail`].
    pub(crate) async fn farewell(mut self, refusal: &Refusal) {
        let clock = self.conn.clock.clone();
        let payload = close_payload(refusal.code(), &refusal.theirs());
        let bytes = self.conn.out.borrow_mut().last_bytes(Kind::Close, payload);
        let _ = timeout(&*clock, FAREWELL, last_words(&mut *self.stream, &bytes)).await;
    }
}

/// Writes all of `bytes`.
pub(crate) async fn write_all(stream: &mut dyn Stream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = poll_fn(|cx| stream.poll_write(cx, bytes)).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(n..).unwrap_or_default();
    }
    Ok(())
}

/// Writes `bytes` and reads what still comes until the other side closes: a socket that is closed
/// with unread bytes is reset, and a reset can overtake the last words. To be bounded by a timeout.
pub(crate) async fn last_words(stream: &mut dyn Stream, bytes: &[u8]) {
    if write_all(stream, bytes).await.is_err()
        || poll_fn(|cx| stream.poll_shutdown(cx)).await.is_err()
    {
        return;
    }
    let (mut ignored, mut left) = ([0; 4096], LINGER_BYTES);
    while left > 0 {
        match poll_fn(|cx| stream.poll_read(cx, &mut ignored)).await {
            Ok(n @ 1..) => left = left.saturating_sub(n),
            _ => return,
        }
    }
}
