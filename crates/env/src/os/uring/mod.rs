//! Transfers by io_uring.
//!
//! ```text
//!   tasks of a core --start--> queues by class --+   once a turn        +--> epoll of the core
//!                                                v                      |
//!                             driver: submit all with one call --> ring +
//!                                     take completions, wake tasks <----+
//! ```
//!
//! A core has one ring, which only its thread touches. A task that starts a transfer puts it into the
//! queue of its class and wakes the *driver*, a task of the core as well: it runs when the tasks that
//! were ready before it have run, so what a turn gathered is handed over by one system call, and an idle
//! core submits the first transfer at once. The ring's descriptor is registered with the core's
//! reactor, which wakes the driver when completions are there.
//!
//! A thread that may block has, if it is asked to use one at all, a small ring of its own, on which it
//! waits for the one transfer it wants.
//!
//! Urgent classes are handed over first. Background classes may hold a quarter of the slots, so that a
//! compaction never fills the ring before a log write.
//!
//! Rejected: one ring for all threads, which needs a lock around submission; a kernel thread that polls
//! for submissions (SQPOLL), which takes a processor that this database would rather have.

mod kernel;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use tokio::io::unix::AsyncFd;

use crate::buf::IoBuf;
use crate::disk::IoClass;
use crate::os::io::{DirectIo, Io};
use crate::os::transfer::Transfer;
use crate::os::uring::kernel::Kernel;
use crate::sync::oneshot;

/// Transfers of a core that the kernel has at once. More wait in the queues.
const SLOTS: u32 = 128;
/// Of these, for background work.
const BACKGROUND_SLOTS: usize = 32;
/// Slots of a ring on which a thread waits.
const SLOTS_BLOCKING: u32 = 2;

/// The end on which a task waits.
pub(super) type Receiver = oneshot::Receiver<io::Result<IoBuf>>;

thread_local! {
    /// The ring of the core that runs on this thread.
    static OF_CORE: RefCell<Option<Rc<RefCell<Ring>>>> = const { RefCell::new(None) };
    /// The ring on which this thread waits.
    static OF_THREAD: RefCell<Option<Kernel<()>>> = const { RefCell::new(None) };
}

/// Finds out whether rings can be had.
///
/// # Errors
/// They cannot: the kernel has none, or a filter or a setting forbids them.
pub(super) fn probe() -> io::Result<()> {
    Kernel::<()>::open(SLOTS_BLOCKING).map(drop).map_err(explain)
}

/// Says what the usual errors of `io_uring_setup` mean.
fn explain(error: io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "forbidden by seccomp, as in many containers, or by sysctl kernel.io_uring_disabled"
        }
        io::ErrorKind::OutOfMemory => "RLIMIT_MEMLOCK is too low for it",
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOSYS.raw_os_error()) => {
            "the kernel has no io_uring, or a sandbox hides it"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{hint} ({error})"))
}

/// A transfer that waits for its turn.
struct Queued {
    transfer: Transfer,
    tell: oneshot::Sender<io::Result<IoBuf>>,
}

/// Whom to tell about a transfer in the kernel.
struct Tell {
    sender: oneshot::Sender<io::Result<IoBuf>>,
    background: bool,
}

/// The ring of a core.
struct Ring {
    kernel: Kernel<Tell>,
    queues: [VecDeque<Queued>; IoClass::ALL.len()],
    background: usize,
    driver: Option<Waker>,
    /// The kernel refused to go on: transfers go to threads.
    broken: bool,
    io: Arc<Io>,
}

impl Ring {
    /// Moves what the slots bear from the queues to the ring, urgent classes first.
    fn stage(&mut self) {
        for class in IoClass::ALL {
            let background = class.is_background();
            while !(background && self.background >= BACKGROUND_SLOTS) {
                let Some(Queued { transfer, tell }) = self.queues[class as usize].pop_front()
                else {
                    break;
                };
                let told = Tell { sender: tell, background };
                if let Err((transfer, told)) = self.kernel.push(transfer, told) {
                    let back = Queued { transfer, tell: told.sender };
                    self.queues[class as usize].push_front(back);
                    return;
                }
                self.background += usize::from(background);
            }
        }
    }

    /// Hands over what is queued and takes what is done; returns whether there was any.
    fn turn(&mut self) -> bool {
        self.stage();
        match self.kernel.submit(0) {
            Ok(called) => {
                _ = self.io.counts.ring_submissions.fetch_add(u64::from(called), Ordering::Relaxed)
            }
            Err(error) => {
                self.broken = true;
                // Whoever waits is told by the end of his channel.
                self.kernel.abandon();
                self.queues = Default::default();
                self.io.degrade("io_uring, from now on", &error.to_string());
            }
        }
        let background = &mut self.background;
        let mut told = Vec::new();
        let count = self.kernel.reap(|tell, result| {
            *background -= usize::from(tell.background);
            told.push((tell.sender, result));
        });
        for (sender, result) in told {
            // Whoever wanted it may have lost interest.
            _ = sender.send(result);
        }
        count > 0
    }
}

/// A core's hold of its ring; the ring is closed when it goes, after what it works on is done.
pub(super) struct OfCore(());

impl Drop for OfCore {
    fn drop(&mut self) {
        let ring = OF_CORE.with_borrow_mut(Option::take);
        drop(ring);
    }
}

/// Gives the core that runs on this thread a ring. Returns what drives it, to be run beside the
/// core's tasks.
///
/// # Errors
/// There is none to be had.
pub(super) fn attach(io: &Arc<Io>) -> io::Result<(OfCore, impl Future<Output = ()> + use<>)> {
    let mut kernel = Kernel::open(SLOTS).map_err(explain)?;
    if io.options.direct == DirectIo::All
        && let Err(error) = kernel.register_bounces()
    {
        io.degrade("registered buffers", &explain(error).to_string());
    }
    let fd = kernel.register()?;
    let ring = Ring {
        kernel,
        queues: Default::default(),
        background: 0,
        driver: None,
        broken: false,
        io: io.clone(),
    };
    io.counts.rings.fetch_add(1, Ordering::Relaxed);
    let ring = Rc::new(RefCell::new(ring));
    OF_CORE.set(Some(ring.clone()));
    Ok((OfCore(()), drive(fd, Rc::downgrade(&ring))))
}

/// The driver of a core's ring.
async fn drive(fd: AsyncFd<OwnedFd>, ring: Weak<RefCell<Ring>>) {
    poll_fn(|cx| {
        let Some(ring) = ring.upgrade() else { return Poll::Ready(()) };
        loop {
            let mut it = ring.borrow_mut();
            if !it.driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                it.driver = Some(cx.waker().clone());
            }
            if it.turn() {
                continue;
            }
            if it.kernel.is_staged() {
                // The kernel is short of something: others go on meanwhile.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match fd.poll_read_ready(cx) {
                Poll::Ready(Ok(mut ready)) => ready.clear_ready(),
                // The reactor is going, and with it the core.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// Starts a transfer on the ring of the core that runs on this thread, or gives it back if there is
/// none.
pub(super) fn start(class: IoClass, transfer: Transfer) -> Result<Receiver, Transfer> {
    OF_CORE.with_borrow(|ring| {
        let Some(ring) = ring else { return Err(transfer) };
        let mut ring = ring.borrow_mut();
        if ring.broken {
            return Err(transfer);
        }
        let (tell, receiver) = oneshot::channel();
        ring.queues[class as usize].push_back(Queued { transfer, tell });
        if let Some(driver) = &ring.driver {
            driver.wake_by_ref();
        }
        Ok(receiver)
    })
}

/// Returns whether a core with a ring runs on this thread.
pub(super) fn is_core() -> bool {
    OF_CORE.with_borrow(Option::is_some)
}

/// Carries a transfer out on this thread's own ring and waits for it.
pub(super) fn run(io: &Io, transfer: Transfer) -> io::Result<IoBuf> {
    OF_THREAD.with_borrow_mut(|slot| {
        let kernel = match slot {
            Some(kernel) => kernel,
            None => match Kernel::open(SLOTS_BLOCKING) {
                Ok(kernel) => {
                    io.counts.rings.fetch_add(1, Ordering::Relaxed);
                    slot.insert(kernel)
                }
                Err(error) => {
                    io.degrade("a thread's io_uring", &explain(error).to_string());
                    return transfer.run();
                }
            },
        };
        if let Err((transfer, ())) = kernel.push(transfer, ()) {
            return transfer.run();
        }
        let mut result = None;
        while result.is_none() {
            io.counts.ring_submissions.fetch_add(1, Ordering::Relaxed);
            // A failure leaves the transfer where it is: nobody knows what became of it.
            kernel.submit(1)?;
            kernel.reap(|(), done| result = Some(done));
        }
        result.unwrap_or_else(|| Err(io::Error::other("the transfer was lost")))
    })
}
