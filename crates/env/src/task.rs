//! Tasks: background work, core-local work, and running a future on the calling thread.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

/// A boxed future for a background task.
pub type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;
/// A boxed future for a task that stays on its core.
pub type LocalBoxFuture = Pin<Box<dyn Future<Output = ()> + 'static>>;

/// Makes the task of a core, on the core: what the task consists of need not be `Send`.
pub type CoreMain = Box<dyn FnOnce() -> LocalBoxFuture + Send>;

/// A way to start tasks.
pub trait Tasks: Send + Sync {
    /// Starts background work (flush, compaction, group commit). The real half gives it a thread
    /// of a cached pool and runs it under [`block_on`]; the simulator schedules it by the seed.
    fn spawn(&self, name: &'static str, task: BoxFuture);
    /// Starts a task on the calling core: a connection, a core's loop. Panics outside one.
    fn spawn_local(&self, name: &'static str, task: LocalBoxFuture);
    /// Starts a core: a thread with an event loop of its own, which runs what `make` returns and the
    /// local tasks that this starts, and ends with it. `pin` names the CPU on which it stays. In the
    /// simulator a core is a task like others; it must be started from inside of a run.
    ///
    /// # Errors
    /// The thread or its event loop cannot be started, or there is no such CPU. Nothing runs then.
    fn spawn_core(
        &self,
        index: usize,
        name: &'static str,
        pin: Option<usize>,
        make: CoreMain,
    ) -> io::Result<()>;
}

thread_local! {
    static BLOCKING: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether the calling thread runs inside [`block_on`] and may therefore block in the
/// kernel.
pub fn may_block() -> bool {
    BLOCKING.with(Cell::get)
}

/// Lets the thread block for as long as it lives.
struct Blocking {
    before: bool,
}

impl Blocking {
    fn begin() -> Blocking {
        Blocking { before: BLOCKING.with(|b| b.replace(true)) }
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        BLOCKING.with(|b| b.set(self.before));
    }
}

/// Runs `future` as part of the calling task, but lets it block in the kernel while it is polled:
/// disk operations of the real half complete inline, as under [`block_on`], while everything else
/// is waited for as a task waits.
///
/// For an event loop whose next step is worth less than a change of threads: a write that goes to
/// the page cache and no further. Never for a sync.
pub async fn inline<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        let _blocking = Blocking::begin();
        future.as_mut().poll(cx)
    })
    .await
}

/// Runs `future` to its end on the calling thread. Disk operations of the real half complete
/// inline, by blocking calls.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
        fn wake_by_ref(self: &Arc<Self>) {
            self.0.unpark();
        }
    }
    let _blocking = Blocking::begin();
    let mut future = pin!(future);
    // Most calls complete at their first poll: memory was hit. The waker is made only for the rest.
    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return output;
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        // Polled again at once with the real waker: the first poll registered a deaf one.
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

/// Gives other tasks a turn once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}
