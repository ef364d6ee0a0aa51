//! A connection: a task that moves bytes between a socket and a pipe.
//!
//! ```text
//!              incoming, at most READ_AHEAD          take
//!   socket --> [ bytes the core has not taken ] --> core
//!   socket <-- [ bytes not sent               ] <-- core
//!              outgoing                              put, after the turn's commit
//! ```
//!
//! The task reads while there is room in `incoming` and the client takes its replies; it writes
//! whatever `outgoing` has, many replies in one system call. Life of a connection:
//!
//! 1. open: bytes flow.
//! 2. ended: the client has closed its side; what it sent is executed, the replies are sent.
//! 3. closing: the core wants no more; once `outgoing` is sent the write half is closed.
//! 4. lingering: what the client still sends is read and dropped, because closing a socket with
//!    unread bytes resets the connection and can destroy the last reply on its way.
//! 5. gone: the core forgets the client.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use atoll_env::net::Stream;
use atoll_redis::ClientId;

use crate::core::Desk;

/// Bytes read ahead of the core.
const READ_AHEAD: usize = 256 << 10;
/// Bytes of unsent replies above which a client is neither read nor executed.
pub(crate) const OUTPUT_SOFT_LIMIT: usize = 1 << 20;
/// Memory of a sent output buffer that is kept.
const KEPT_OUTPUT: usize = 1 << 20;

/// What the core and a connection's task share.
#[derive(Default)]
pub(crate) struct Pipe {
    pub incoming: Vec<u8>,
    pub outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are sent.
    sent: usize,
    /// The client will send nothing more.
    pub ended: bool,
    /// The core will execute nothing more.
    pub closing: bool,
    /// The connection is dropped at once, whatever is unsent.
    pub cut: bool,
    /// Everything is sent and the write half is closed.
    pub shut: bool,
    /// The task is over.
    pub gone: bool,
    /// The client waits in the core's ready list.
    pub listed: bool,
    /// The core passed the client over because of unsent replies.
    pub passed_over: bool,
    task: Option<Waker>,
}

impl Pipe {
    /// Returns how many bytes of replies are not sent.
    pub fn unsent(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Makes the task look at the pipe again.
    pub fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve(
    id: ClientId,
    mut stream: Box<dyn Stream>,
    pipe: Rc<RefCell<Pipe>>,
    desk: Rc<Desk>,
) {
    poll_fn(|cx| {
        let mut pipe = pipe.borrow_mut();
        pipe.task = Some(cx.waker().clone());
        step(&mut pipe, &mut *stream, id, &desk, cx)
    })
    .await;
    // The socket is closed before the core hears of it, so that its count of connections is true.
    drop(stream);
    let mut pipe = pipe.borrow_mut();
    pipe.gone = true;
    desk.list(id, &mut pipe);
}

/// Moves what can be moved; ready when the connection is over.
fn step(
    pipe: &mut Pipe,
    stream: &mut dyn Stream,
    id: ClientId,
    desk: &Desk,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if pipe.cut {
        return Poll::Ready(());
    }
    while pipe.sent < pipe.outgoing.len() {
        match stream.poll_write(cx, &pipe.outgoing[pipe.sent..]) {
            Poll::Ready(Ok(written)) if written > 0 => pipe.sent += written,
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => break,
        }
    }
    if pipe.sent == pipe.outgoing.len() {
        pipe.sent = 0;
        pipe.outgoing.clear();
        if pipe.outgoing.capacity() > KEPT_OUTPUT {
            pipe.outgoing = Vec::new();
        }
        if pipe.closing {
            if !pipe.shut {
                match stream.poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => pipe.shut = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
                // A server that stops waits for this.
                desk.signal.raise();
            }
            return linger(stream, desk, cx);
        }
    }
    if pipe.passed_over && pipe.unsent() <= OUTPUT_SOFT_LIMIT {
        pipe.passed_over = false;
        desk.list(id, pipe);
    }
    let mut scratch = desk.scratch.borrow_mut();
    while !pipe.ended
        && !pipe.closing
        && pipe.incoming.len() < READ_AHEAD
        && pipe.unsent() <= OUTPUT_SOFT_LIMIT
    {
        match stream.poll_read(cx, &mut scratch) {
            Poll::Ready(Ok(0)) => pipe.ended = true,
            Poll::Ready(Ok(read)) => pipe.incoming.extend_from_slice(&scratch[..read]),
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
        desk.list(id, pipe);
    }
    Poll::Pending
}

/// Reads and drops until the client closes too; the core cuts the connection if it does not.
fn linger(stream: &mut dyn Stream, desk: &Desk, cx: &mut Context<'_>) -> Poll<()> {
    let mut scratch = desk.scratch.borrow_mut();
    loop {
        match stream.poll_read(cx, &mut scratch) {
            Poll::Ready(Ok(read)) if read > 0 => {}
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
    }
}
