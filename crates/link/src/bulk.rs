//! Bulk streams: chunks in order, as fast as their reader takes them.
//!
//! ```text
//!   sender                                    receiver
//!   open ------- Open n, header ----------->  Handler::stream(.., Receiver)
//!        <------ Grant n, window -----------
//!   send ------- Chunk n ------------------>  next
//!        <------ Grant n, what was taken ---
//!   finish ----- Finish n ----------------->  next: None
//!        <------ Done n --------------------
//!   abort ------ Abort n, sentence -------->  next: Aborted
//!   send: Stopped <----- Stop n, sentence --  stop, or dropped
//! ```
//!
//! A sender starts with nothing and may send what it is granted. A chunk costs its length and
//! [`CHUNK_COST`], which is what it takes to hold a short one: without that, a window of single bytes
//! would be a hundred times as large in memory.
//!
//! # Invariants
//! - What was received and not taken never costs more than the window; a peer that sends more breaks
//!   the protocol.
//! - A sender holds no chunk: [`Sender::send`] waits for credit and for room on the connection before
//!   it takes one.
//! - [`Sender::finish`] is [`Ok`] only if the reader has taken everything, the end too.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::conn::{Conn, End};
use crate::frame::{Frame, Kind};
use crate::id::Class;
use crate::options::Options;
use crate::refusal::{Refusal, cut, readable};
use crate::signal::Bell;
use crate::stats::Counters;

/// What a chunk costs beside its length, in bytes of credit. Part of the protocol.
pub const CHUNK_COST: usize = 128;
/// Bytes that may wait on a connection before senders wait.
const QUEUE_MAX: usize = 1 << 20;

/// Why a bulk stream did not reach its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BulkError {
    /// It could not begin: nothing was sent.
    NotSent(String),
    /// A chunk or header is longer than one can be: this many bytes. The stream goes on.
    TooLong(usize),
    /// Its receiver does not want more. Its sentence.
    Stopped(String),
    /// Its sender gave up. Its sentence.
    Aborted(String),
    /// The connection was lost. How much was taken is not known.
    Lost(String),
}

impl fmt::Display for BulkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BulkError::NotSent(why) => write!(f, "the stream could not begin: {why}"),
            BulkError::TooLong(max) => write!(f, "a chunk can have {max} bytes at most"),
            BulkError::Stopped(why) => write!(f, "the receiver stopped the stream: {why}"),
            BulkError::Aborted(why) => write!(f, "the sender gave the stream up: {why}"),
            BulkError::Lost(why) => write!(f, "the connection was lost ({why})"),
        }
    }
}

impl std::error::Error for BulkError {}

/// The bulk streams of a connection, in both directions.
#[derive(Default)]
pub(crate) struct Streams {
    last: Cell<u32>,
    outgoing: RefCell<BTreeMap<u32, Rc<Outgoing>>>,
    incoming: RefCell<BTreeMap<u32, Rc<Incoming>>>,
}

struct Outgoing {
    credit: Cell<usize>,
    /// Set once: how it ended.
    end: RefCell<Option<Result<(), BulkError>>>,
    bell: Bell,
}

impl Outgoing {
    fn end(&self, end: Result<(), BulkError>) {
        self.end.borrow_mut().get_or_insert(end);
        self.bell.ring();
    }
}

struct Incoming {
    chunks: RefCell<VecDeque<Bytes>>,
    /// What the sender may still send.
    allowed: Cell<usize>,
    /// What was taken and is to be granted again.
    taken: Cell<usize>,
    /// Set once: how it ended, as the other side or the connection says.
    end: RefCell<Option<Result<(), BulkError>>>,
    bell: Bell,
}

impl Incoming {
    fn end(&self, counters: &Counters, end: Result<(), BulkError>) {
        let is_early = self.end.borrow_mut().get_or_insert(end).is_err();
        if is_early {
            self.forget_chunks(counters);
        }
        self.bell.ring();
    }

    /// Drops what nobody will take.
    fn forget_chunks(&self, counters: &Counters) {
        let chunks = std::mem::take(&mut *self.chunks.borrow_mut());
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        counters.update(|stats| stats.unread_bytes -= bytes as u64);
    }
}

/// Opens a stream to the peer.
pub(crate) fn open(conn: Rc<Conn>, options: &Options, header: Bytes) -> Result<Sender, BulkError> {
    let max = Class::Bulk.payload_max();
    if header.len() > max {
        return Err(BulkError::TooLong(max));
    }
    let streams = &conn.streams;
    let mut outgoing = streams.outgoing.borrow_mut();
    // Headers wait on the connection without credit, so they need room there.
    let refused = match outgoing.len() {
        open if open >= options.streams_max => {
            Some(format!("{open} streams to this engine are open"))
        }
        _ => (conn.out.borrow().bytes() >= 2 * QUEUE_MAX).then(|| "too much waits".to_owned()),
    };
    if let Some(why) = refused {
        conn.counters.update(|stats| stats.drops += 1);
        return Err(BulkError::NotSent(why));
    }
    let mut stream = streams.last.get().wrapping_add(1);
    while stream == 0 || outgoing.contains_key(&stream) {
        stream = stream.wrapping_add(1);
    }
    streams.last.set(stream);
    let shared =
        Rc::new(Outgoing { credit: Cell::new(0), end: RefCell::default(), bell: Bell::default() });
    outgoing.insert(stream, shared.clone());
    drop(outgoing);
    conn.push(Kind::Open, stream, SmallVec::from_iter([header]));
    Ok(Sender { conn, stream, shared, is_finished: false })
}

impl Streams {
    /// The connection is gone.
    pub(crate) fn fail(&self, counters: &Counters, why: &str) {
        let lost = || Err(BulkError::Lost(why.to_owned()));
        let outgoing = std::mem::take(&mut *self.outgoing.borrow_mut());
        outgoing.values().for_each(|outgoing| outgoing.end(lost()));
        // What came whole can still be read; the rest is of no use to anybody.
        let incoming = std::mem::take(&mut *self.incoming.borrow_mut());
        incoming.values().for_each(|incoming| incoming.end(counters, lost()));
    }

    /// The connection has written something and `waiting` bytes are left: senders that wait for room
    /// look again if there is some.
    pub(crate) fn written(&self, waiting: usize) {
        if waiting < QUEUE_MAX {
            self.outgoing.borrow().values().for_each(|outgoing| outgoing.bell.ring());
        }
    }
}

/// Takes a frame of a bulk stream.
pub(crate) fn receive(conn: &Rc<Conn>, options: &Options, frame: Frame) -> Result<(), End> {
    let Frame { kind, stream, payload } = frame;
    let broken = |what| Err(End::Refuse(Refusal::Protocol(what)));
    // A stream that is not there has ended on this side, while the frame was on its way.
    let outgoing = || conn.streams.outgoing.borrow().get(&stream).cloned();
    let incoming = || conn.streams.incoming.borrow().get(&stream).cloned();
    match kind {
        Kind::Open => return accept(conn, options, stream, payload),
        Kind::Chunk => {
            let Some(incoming) = incoming() else { return Ok(()) };
            if payload.is_empty() || incoming.end.borrow().is_some() {
                return broken("an empty chunk, or one after the end of its stream");
            }
            let Some(allowed) = incoming.allowed.get().checked_sub(cost(&payload)) else {
                return broken("a chunk beyond what was granted");
            };
            incoming.allowed.set(allowed);
            conn.counters.update(|stats| stats.unread_bytes += payload.len() as u64);
            incoming.chunks.borrow_mut().push_back(payload);
            incoming.bell.ring();
        }
        Kind::Finish => {
            if let Some(incoming) = incoming() {
                incoming.end(&conn.counters, Ok(()));
            }
        }
        Kind::Abort => {
            if let Some(incoming) = incoming() {
                incoming.end(&conn.counters, Err(BulkError::Aborted(readable(&payload))));
            }
        }
        Kind::Grant => {
            let Some(granted) = payload.first_chunk::<4>() else {
                return broken("a grant without a number");
            };
            let granted = u32::from_le_bytes(*granted) as usize;
            if let Some(outgoing) = outgoing() {
                outgoing.credit.set(outgoing.credit.get().saturating_add(granted));
                outgoing.bell.ring();
            }
        }
        Kind::Stop | Kind::Done => {
            let ended = conn.streams.outgoing.borrow_mut().remove(&stream);
            if let Some(outgoing) = ended {
                conn.take_back_stream(stream);
                outgoing.end(match kind {
                    Kind::Done => Ok(()),
                    _ => Err(BulkError::Stopped(readable(&payload))),
                });
            }
        }
        _ => return broken("a frame of another class"),
    }
    Ok(())
}

fn accept(conn: &Rc<Conn>, options: &Options, stream: u32, header: Bytes) -> Result<(), End> {
    let mut incoming = conn.streams.incoming.borrow_mut();
    if incoming.contains_key(&stream) {
        return Err(End::Refuse(Refusal::Protocol("a stream under a number that is in use")));
    }
    let load = &conn.load;
    if load.streams.get() >= options.streams_max {
        drop(incoming);
        conn.counters.update(|stats| stats.declines += 1);
        let why = "too many streams of yours are under way";
        conn.urgent(Kind::Stop, stream, Bytes::from_static(why.as_bytes()));
        return Ok(());
    }
    let shared = Rc::new(Incoming {
        chunks: RefCell::default(),
        allowed: Cell::new(0),
        taken: Cell::new(0),
        end: RefCell::default(),
        bell: Bell::default(),
    });
    incoming.insert(stream, shared.clone());
    drop(incoming);
    load.streams.set(load.streams.get() + 1);
    let receiver = Receiver { conn: conn.clone(), stream, shared, is_over: false };
    receiver.grant(options.window);
    conn.handler.stream(conn.peer.engine, header, receiver);
    Ok(())
}

fn cost(chunk: &Bytes) -> usize {
    chunk.len() + CHUNK_COST
}

/// The sending end of a bulk stream. Dropped before [`Sender::finish`], it aborts the stream.
pub struct Sender {
    conn: Rc<Conn>,
    stream: u32,
    shared: Rc<Outgoing>,
    is_finished: bool,
}

impl Sender {
    /// Sends a chunk once its receiver allows it and the connection has room; an empty one is nothing.
    /// Dropping the future before it is done sends nothing.
    ///
    /// # Errors
    /// The chunk is too long (256 KiB at most), or the stream has ended.
    pub async fn send(&mut self, chunk: Bytes) -> Result<(), BulkError> {
        let max = Class::Bulk.payload_max();
        if chunk.len() > max {
            return Err(BulkError::TooLong(max));
        }
        let price = if chunk.is_empty() { 0 } else { cost(&chunk) };
        poll_fn(|cx| {
            self.shared.bell.listen(cx);
            if let Some(end) = &*self.shared.end.borrow() {
                let early = || BulkError::Stopped("it said that it has everything".to_owned());
                return Poll::Ready(Err(end.as_ref().err().cloned().unwrap_or_else(early)));
            }
            let credit = self.shared.credit.get().checked_sub(price);
            match credit.filter(|_| self.conn.out.borrow().bytes() < QUEUE_MAX) {
                Some(credit) => self.shared.credit.set(credit),
                None => return Poll::Pending,
            }
            Poll::Ready(Ok(()))
        })
        .await?;
        // Nothing is awaited from here on, so the credit was not taken for nothing.
        if price > 0 {
            self.conn.push(Kind::Chunk, self.stream, SmallVec::from_iter([chunk]));
        }
        Ok(())
    }

    /// Ends the stream and waits until its receiver has taken all of it. A future that is dropped after
    /// it was polled leaves the stream to end by itself.
    ///
    /// # Errors
    /// The stream ended otherwise before.
    pub async fn finish(mut self) -> Result<(), BulkError> {
        self.is_finished = true;
        if self.conn.is_open() && self.shared.end.borrow().is_none() {
            self.conn.push(Kind::Finish, self.stream, SmallVec::new());
        }
        poll_fn(|cx| {
            self.shared.bell.listen(cx);
            self.shared.end.borrow().clone().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Gives the stream up; the receiver is told why, in 1024 bytes at most.
    pub fn abort(mut self, sentence: &str) {
        self.give_up(sentence);
    }

    fn give_up(&mut self, sentence: &str) {
        if !std::mem::replace(&mut self.is_finished, true)
            && self.conn.is_open()
            && self.shared.end.borrow().is_none()
        {
            self.conn.take_back_stream(self.stream);
            let sentence = Bytes::from(cut(sentence).into_bytes());
            self.conn.push(Kind::Abort, self.stream, SmallVec::from_iter([sentence]));
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.give_up("its sender went away");
        self.conn.streams.outgoing.borrow_mut().remove(&self.stream);
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender({} to {})", self.stream, self.conn.peer.engine)
    }
}

/// The receiving end of a bulk stream. Dropped before its end, it stops the stream.
pub struct Receiver {
    conn: Rc<Conn>,
    stream: u32,
    shared: Rc<Incoming>,
    /// The end was taken, or the other side was told to stop.
    is_over: bool,
}

impl Receiver {
    /// Waits for the next chunk; `None` is the end, and all of the stream was taken. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// The stream ended early; chunks that were not taken are gone.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BulkError> {
        let shared = self.shared.clone();
        poll_fn(|cx| {
            shared.bell.listen(cx);
            if let Some(Err(end)) = &*shared.end.borrow() {
                return Poll::Ready(Err(end.clone()));
            }
            let chunk = shared.chunks.borrow_mut().pop_front();
            if let Some(chunk) = chunk {
                self.took(&chunk);
                return Poll::Ready(Ok(Some(chunk)));
            }
            if shared.end.borrow().is_none() {
                return Poll::Pending;
            }
            if !std::mem::replace(&mut self.is_over, true) && self.conn.is_open() {
                self.conn.urgent(Kind::Done, self.stream, Bytes::new());
            }
            Poll::Ready(Ok(None))
        })
        .await
    }

    /// Stops the stream; its sender is told why, in 1024 bytes at most.
    pub fn stop(mut self, sentence: &str) {
        self.leave(sentence);
    }

    /// Counts a chunk that was taken, and grants its cost again: a quarter of the window at a time,
    /// or when the reader has caught up, so that a sender that waits is never forgotten.
    fn took(&self, chunk: &Bytes) {
        let shared = &self.shared;
        self.conn.counters.update(|stats| stats.unread_bytes -= chunk.len() as u64);
        let taken = shared.taken.get() + cost(chunk);
        shared.taken.set(taken);
        if (taken >= self.conn.window / 4 || shared.chunks.borrow().is_empty())
            && shared.end.borrow().is_none()
        {
            shared.taken.set(0);
            self.grant(taken);
        }
    }

    fn grant(&self, bytes: usize) {
        let shared = &self.shared;
        shared.allowed.set(shared.allowed.get() + bytes);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
        self.conn.urgent(Kind::Grant, self.stream, Bytes::copy_from_slice(&bytes));
    }

    fn leave(&mut self, sentence: &str) {
        let is_lost = matches!(*self.shared.end.borrow(), Some(Err(_)));
        if !std::mem::replace(&mut self.is_over, true) && !is_lost && self.conn.is_open() {
            let sentence = Bytes::from(cut(sentence).into_bytes());
            self.conn.urgent(Kind::Stop, self.stream, sentence);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.leave("its receiver went away");
        self.conn.streams.incoming.borrow_mut().remove(&self.stream);
        self.shared.forget_chunks(&self.conn.counters);
        let load = &self.conn.load;
        load.streams.set(load.streams.get() - 1);
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver({} of {})", self.stream, self.conn.peer.engine)
    }
}
