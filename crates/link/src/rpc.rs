//! Calls: questions with a deadline, many at once on one connection, each answered at most once.
//!
//! ```text
//!   caller                                        callee
//!   call ---- Request n, milliseconds left -----> Handler::request(.., Responder)
//!        <--- Answer n ------------------------- Responder::answer
//!        <--- Decline n, code, sentence --------  refuse | dropped | not looked at
//!   dropped, or out of time:
//!        ---- Cancel n -----------------------> Responder::cancelled
//! ```
//!
//! Errors say what the caller may do next ([`CallError`]). *Not sent* is said only if no byte of the
//! request was handed to the network, or if the callee itself says that it did not look at it.
//!
//! # Invariants
//! - Each side has at most `calls_max` calls under way in each direction, and `call_bytes` bytes of
//!   them. At the callee a call counts until its responder is gone, even if it was cancelled or its
//!   connection lost, since until then it costs something there.
//! - No side stops reading because the other one does not: both would wait for ever. What is too
//!   much is declined, and answers that find no room are lost with a word about it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use atoll_env::sync::timeout;
use atoll_env::time::Instant;
use bytes::Bytes;
use smallvec::SmallVec;

use crate::conn::{Conn, End};
use crate::frame::{Frame, HEADER_LEN, Kind};
use crate::id::Class;
use crate::options::Options;
use crate::refusal::{Refusal, cut, readable};
use crate::signal::Bell;

/// Bytes before a request: what is left of its time.
const PREFIX: usize = 4;

/// Why a call has no answer, sorted by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Nobody has looked at the request, and nobody will: it may be sent again, here or elsewhere.
    NotSent(String),
    /// It was sent, and whether it took effect is not known: ask again only what may be done twice.
    Unknown(String),
    /// The callee looked at it and does not want it. Its sentence.
    Refused(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NotSent(why) => write!(f, "the request was not sent: {why}"),
            CallError::Unknown(why) => write!(f, "the outcome is not known: {why}"),
            CallError::Refused(why) => write!(f, "the request was refused: {why}"),
        }
    }
}

impl std::error::Error for CallError {}

/// What a decline means. The numbers are on the wire.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Decline {
    NotLookedAt = 1,
    Refused = 2,
    Lost = 3,
}

/// The calls of a connection, in both directions.
#[derive(Default)]
pub(crate) struct Calls {
    last: Cell<u32>,
    /// Those of ours that have no outcome yet.
    waiting: RefCell<BTreeMap<u32, Rc<Waiting>>>,
    /// All of ours whose callers still wait, and the bytes of their requests.
    count: Cell<usize>,
    bytes: Cell<usize>,
    /// Bytes of answers that came and were not taken.
    unread: Cell<usize>,
    /// Those of the peer whose responders live.
    served: RefCell<BTreeMap<u32, Rc<Served>>>,
}

struct Waiting {
    size: usize,
    outcome: RefCell<Option<Result<Bytes, CallError>>>,
    bell: Bell,
}

impl Waiting {
    fn set(&self, outcome: Result<Bytes, CallError>) {
        *self.outcome.borrow_mut() = Some(outcome);
        self.bell.ring();
    }
}

struct Served {
    size: usize,
    cancelled: Cell<bool>,
    bell: Bell,
}

impl Served {
    fn cancel(&self) {
        self.cancelled.set(true);
        self.bell.ring();
    }
}

/// Asks the peer and waits for the outcome. Dropping the future cancels the call.
pub(crate) async fn call(
    conn: Rc<Conn>,
    options: &Options,
    request: Bytes,
    deadline: Instant,
) -> Result<Bytes, CallError> {
    let left = deadline.since(conn.clock.now());
    let ticket = match begin(conn.clone(), options, request, left) {
        Ok(ticket) => ticket,
        Err(why) => {
            conn.counters.update(|stats| stats.drops += 1);
            return Err(CallError::NotSent(why));
        }
    };
    let clock = conn.clock.clone();
    match timeout(&*clock, left, ticket.outcome()).await {
        Ok(outcome) => outcome,
        Err(_) if ticket.cancel() => {
            Err(CallError::NotSent("its deadline passed before it could be sent".to_owned()))
        }
        Err(_) => Err(CallError::Unknown("its deadline passed without an answer".to_owned())),
    }
}

fn begin(
    conn: Rc<Conn>,
    options: &Options,
    request: Bytes,
    left: Duration,
) -> Result<Ticket, String> {
    let calls = &conn.calls;
    let max = Class::Rpc.payload_max() - PREFIX;
    let size = request.len();
    // A deadline is rounded down, so that the callee never has more time than the caller.
    let millis = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    if size > max {
        return Err(format!("it has {size} bytes, and {max} are the most that a request can have"));
    }
    if millis == 0 {
        return Err("its deadline has passed".to_owned());
    }
    if calls.count.get() >= options.calls_max {
        return Err(format!("{} calls to this engine are under way", calls.count.get()));
    }
    if calls.bytes.get() + size > options.call_bytes {
        return Err(format!("calls with {} bytes are under way", calls.bytes.get()));
    }
    let mut waiting = calls.waiting.borrow_mut();
    let mut stream = calls.last.get().wrapping_add(1);
    while stream == 0 || waiting.contains_key(&stream) {
        stream = stream.wrapping_add(1);
    }
    calls.last.set(stream);
    let entry = Rc::new(Waiting { size, outcome: RefCell::default(), bell: Bell::default() });
    waiting.insert(stream, entry.clone());
    drop(waiting);
    calls.count.set(calls.count.get() + 1);
    calls.bytes.set(calls.bytes.get() + size);
    let prefix = Bytes::copy_from_slice(&millis.to_le_bytes());
    conn.push(Kind::Request, stream, SmallVec::from_iter([prefix, request]));
    Ok(Ticket { conn, stream, waiting: entry })
}

/// A call of ours that is under way. Dropped without an outcome, it is cancelled.
struct Ticket {
    conn: Rc<Conn>,
    stream: u32,
    waiting: Rc<Waiting>,
}

impl Ticket {
    async fn outcome(&self) -> Result<Bytes, CallError> {
        poll_fn(|cx| {
            self.waiting.bell.listen(cx);
            match self.waiting.outcome.borrow_mut().take() {
                Some(outcome) => {
                    self.taken(&outcome);
                    Poll::Ready(outcome)
                }
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Cancels the call if it has no outcome; returns whether no byte of it had left.
    fn cancel(&self) -> bool {
        let had_none = self.conn.calls.waiting.borrow_mut().remove(&self.stream).is_some();
        if !had_none || !self.conn.is_open() {
            return false;
        }
        let was_taken = self.conn.out.borrow_mut().take_back(Kind::Request, self.stream) > 0;
        match was_taken {
            true => self.conn.note_queue(),
            false => self.conn.urgent(Kind::Cancel, self.stream, Bytes::new()),
        }
        was_taken
    }

    /// Counts an outcome that is held no longer.
    fn taken(&self, outcome: &Result<Bytes, CallError>) {
        if let Ok(answer) = outcome {
            let calls = &self.conn.calls;
            calls.unread.set(calls.unread.get() - answer.len());
            self.conn.counters.update(|stats| stats.unread_bytes -= answer.len() as u64);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let calls = &self.conn.calls;
        calls.count.set(calls.count.get() - 1);
        calls.bytes.set(calls.bytes.get() - self.waiting.size);
        if let Some(outcome) = self.waiting.outcome.borrow_mut().take() {
            self.taken(&outcome);
        }
        self.cancel();
    }
}

impl Calls {
    /// The connection is gone: sorts our calls by whether their requests had begun to leave.
    pub(crate) fn fail(&self, unsent: &[u32], why: &str) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (stream, waiting) in waiting {
            let why = format!("the connection was lost ({why})");
            waiting.set(Err(match unsent.contains(&stream) {
                true => CallError::NotSent(why),
                false => CallError::Unknown(why),
            }));
        }
        let served = self.served.borrow().values().cloned().collect::<Vec<_>>();
        served.iter().for_each(|served| served.cancel());
    }

    fn finish(
        &self,
        conn: &Conn,
        options: &Options,
        stream: u32,
        outcome: Result<Bytes, CallError>,
    ) {
        // One that is not there was cancelled.
        let Some(waiting) = self.waiting.borrow_mut().remove(&stream) else { return };
        let outcome = match outcome {
            Ok(answer) if self.unread.get() + answer.len() > options.call_bytes => Err(
                CallError::Unknown("too many answers were not taken by their callers".to_owned()),
            ),
            outcome => outcome,
        };
        if let Ok(answer) = &outcome {
            self.unread.set(self.unread.get() + answer.len());
            conn.counters.update(|stats| stats.unread_bytes += answer.len() as u64);
        }
        waiting.set(outcome);
    }
}

/// Takes a frame of a call.
pub(crate) fn receive(conn: &Rc<Conn>, options: &Options, frame: Frame) -> Result<(), End> {
    let Frame { kind, stream, payload } = frame;
    let calls = &conn.calls;
    match kind {
        Kind::Request => return serve(conn, options, stream, payload),
        Kind::Answer => calls.finish(conn, options, stream, Ok(payload)),
        Kind::Decline => {
            let Some((&code, sentence)) = payload.split_first() else {
                return Err(End::Refuse(Refusal::Protocol("a decline without a code")));
            };
            let sentence = readable(sentence);
            calls.finish(
                conn,
                options,
                stream,
                Err(match code {
                    1 => CallError::NotSent(sentence),
                    2 => CallError::Refused(sentence),
                    _ => CallError::Unknown(sentence),
                }),
            );
        }
        Kind::Cancel => {
            let served = calls.served.borrow().get(&stream).cloned();
            if let Some(served) = served {
                served.cancel();
            }
        }
        _ => return Err(End::Refuse(Refusal::Protocol("a frame of another class"))),
    }
    Ok(())
}

fn serve(conn: &Rc<Conn>, options: &Options, stream: u32, payload: Bytes) -> Result<(), End> {
    let calls = &conn.calls;
    let Some((left, _)) = payload.split_first_chunk::<PREFIX>() else {
        return Err(End::Refuse(Refusal::Protocol("a request without a deadline")));
    };
    let left = Duration::from_millis(u32::from_le_bytes(*left).into());
    let request = payload.slice(PREFIX..);
    let size = request.len();
    let mut served = calls.served.borrow_mut();
    if served.contains_key(&stream) {
        return Err(End::Refuse(Refusal::Protocol("a request under a number that is in use")));
    }
    let load = &conn.load;
    let has_room =
        load.calls.get() < options.calls_max && load.call_bytes.get() + size <= options.call_bytes;
    if !has_room {
        drop(served);
        conn.counters.update(|stats| stats.declines += 1);
        decline(conn, stream, Decline::NotLookedAt, "too many requests of yours are under way");
        return Ok(());
    }
    let entry = Rc::new(Served { size, cancelled: Cell::new(false), bell: Bell::default() });
    served.insert(stream, entry.clone());
    drop(served);
    load.calls.set(load.calls.get() + 1);
    load.call_bytes.set(load.call_bytes.get() + size);
    let deadline = conn.clock.now().after(left);
    let answer_max = 2 * options.call_bytes;
    let responder =
        Responder { conn: conn.clone(), stream, served: entry, deadline, answer_max, open: true };
    conn.handler.request(conn.peer.engine, request, responder);
    Ok(())
}

fn decline(conn: &Conn, stream: u32, code: Decline, sentence: &str) {
    let mut payload = vec![code as u8];
    payload.extend(cut(sentence).bytes());
    conn.urgent(Kind::Decline, stream, payload.into());
}

/// What answers a question of a peer. Dropped without an answer, it tells the caller that the outcome
/// is not known.
pub struct Responder {
    conn: Rc<Conn>,
    stream: u32,
    served: Rc<Served>,
    deadline: Instant,
    answer_max: usize,
    /// No outcome was sent.
    open: bool,
}

impl Responder {
    /// Returns when the caller stops waiting, by this side's clock.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns whether nobody waits for the answer: the call was dropped, its deadline passed there,
    /// or the connection is gone.
    pub fn is_cancelled(&self) -> bool {
        self.served.cancelled.get()
    }

    /// Waits until nobody waits for the answer. For one task at a time.
    pub async fn cancelled(&self) {
        poll_fn(|cx| {
            self.served.bell.listen(cx);
            if self.is_cancelled() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Answers. If the caller does not take its answers, or this one is longer than an answer can be,
    /// it is told that the outcome is not known.
    pub fn answer(mut self, answer: Bytes) {
        if !self.take() {
            return;
        }
        let len = answer.len();
        if len > Class::Rpc.payload_max() {
            decline(&self.conn, self.stream, Decline::Lost, "its answer is too long to be sent");
        } else if self.conn.out.borrow().bytes() + HEADER_LEN + len > self.answer_max {
            let why = "its answer found no room: answers before it were not taken";
            decline(&self.conn, self.stream, Decline::Lost, why);
        } else {
            self.conn.push(Kind::Answer, self.stream, SmallVec::from_iter([answer]));
        }
    }

    /// Tells the caller that it was understood and not done, and why: a sentence of 1024 bytes at most.
    pub fn refuse(mut self, sentence: &str) {
        if self.take() {
            decline(&self.conn, self.stream, Decline::Refused, sentence);
        }
    }

    /// Whether an outcome is to be sent, the one time that it may be.
    fn take(&mut self) -> bool {
        std::mem::take(&mut self.open) && !self.is_cancelled() && self.conn.is_open()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.take() {
            decline(&self.conn, self.stream, Decline::Lost, "the other engine gave no answer");
        }
        self.conn.calls.served.borrow_mut().remove(&self.stream);
        let load = &self.conn.load;
        load.calls.set(load.calls.get() - 1);
        load.call_bytes.set(load.call_bytes.get() - self.served.size);
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Responder({} of {})", self.stream, self.conn.peer.engine)
    }
}
