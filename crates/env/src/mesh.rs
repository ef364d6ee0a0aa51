//! Messages between all cores: a ring for each ordered pair.
//!
//! ```text
//!          to   0        1        2
//!   from 0     own    ring 01  ring 02        core 0 has port 0: it sends on row 0,
//!   from 1   ring 10    own    ring 12        and receives from column 0, woken by
//!   from 2   ring 20  ring 21    own          one bell for all of them
//! ```
//!
//! [`mesh`] returns a [`Port`] for each core. Sending never waits: what does not fit its ring is kept
//! by the port in a queue of its own and goes out in order as soon as there is room. A core therefore
//! cannot stop another one by being slow, and two cores that send to each other cannot stop both of
//! them; how much a core lets pile up is the business of who gives it work ([`Port::backlog`]).
//!
//! A ring for each pair rather than one queue for each receiver: senders do not meet each other at
//! all, and a receiver serves them in turn, so that one busy sender does not drown the others.
//!
//! The same code runs between threads and on the single thread of the simulator: nothing here
//! blocks, and a task is woken as any other.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll};

use crate::ring::{Bell, Listener, Receiver, Sender, Unsent, bell, ring};

/// Returns the ports of `cores` cores, whose rings have room for `capacity` messages each, rounded up
/// to a power of two.
pub fn mesh<T: Send>(cores: usize, capacity: usize) -> Vec<Port<T>> {
    let (bells, listeners): (Vec<Bell>, Vec<Listener>) = (0..cores).map(|_| bell()).unzip();
    let mut ports: Vec<Port<T>> = bells
        .iter()
        .zip(listeners)
        .enumerate()
        .map(|(index, (bell, listener))| Port {
            index,
            outs: Vec::with_capacity(cores),
            inboxes: Vec::with_capacity(cores),
            own: VecDeque::new(),
            bell: bell.clone(),
            listener,
        })
        .collect();
    for from in 0..cores {
        for to in 0..cores {
            let (out, inbox) = if from == to {
                (None, None)
            } else {
                let (sender, receiver) = ring(capacity, bells[to].clone(), bells[from].clone());
                (Some(Out { sender, overflow: VecDeque::new() }), Some(receiver))
            };
            ports[from].outs.push(out);
            ports[to].inboxes.push(inbox);
        }
    }
    ports
}

/// One core's end of all its rings.
///
/// Its core drains it in every turn and, when there is nothing else to do, waits for
/// [`Port::arrived`].
pub struct Port<T> {
    index: usize,
    /// To each core; `None` to itself.
    outs: Vec<Option<Out<T>>>,
    /// From each core; `None` from itself.
    inboxes: Vec<Option<Receiver<T>>>,
    /// What the core sends to itself.
    own: VecDeque<T>,
    /// What wakes this core.
    bell: Bell,
    listener: Listener,
}

struct Out<T> {
    sender: Sender<T>,
    /// What did not fit. Nothing overtakes it.
    overflow: VecDeque<T>,
}

impl<T> Out<T> {
    fn put(&mut self, message: T) {
        if !self.overflow.is_empty() {
            self.overflow.push_back(message);
            return;
        }
        match self.sender.put(message) {
            Ok(()) => {}
            Err(Unsent::Full(message)) => self.overflow.push_back(message),
            Err(Unsent::Closed(message)) => drop(message),
        }
    }

    /// Sends what waits, as far as there is room.
    fn flush(&mut self) {
        while let Some(message) = self.overflow.pop_front() {
            match self.sender.put(message) {
                Ok(()) => {}
                Err(Unsent::Full(message)) => {
                    self.overflow.push_front(message);
                    break;
                }
                Err(Unsent::Closed(message)) => {
                    drop(message);
                    self.overflow.clear();
                }
            }
        }
        self.sender.flush();
    }
}

impl<T> Port<T> {
    /// Returns whose port it is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns how many cores there are.
    pub fn cores(&self) -> usize {
        self.outs.len()
    }

    /// Sends a message to a core, which may be this one. Messages to one core arrive in the order of
    /// sending. What is sent to a core whose port is gone is dropped.
    ///
    /// # Panics
    /// There is no such core.
    pub fn send(&mut self, to: usize, message: T) {
        self.put(to, message);
        if let Some(out) = &mut self.outs[to] {
            out.flush();
        }
    }

    /// Sends a message as [`Port::send`] does, but with the next [`Port::flush`], together with all
    /// others of a turn: a fraction of the price.
    ///
    /// # Panics
    /// There is no such core.
    pub fn put(&mut self, to: usize, message: T) {
        match &mut self.outs[to] {
            Some(out) => out.put(message),
            None => {
                self.own.push_back(message);
                // Another task of this core may have sent it.
                self.bell.ring();
            }
        }
    }

    /// Sends what was [`Port::put`], and what waits for room as far as there is some. To be called
    /// before the core waits for anything; [`Port::arrived`] does it by itself.
    pub fn flush(&mut self) {
        self.outs.iter_mut().flatten().for_each(Out::flush);
    }

    /// Returns how many messages to a core wait for room.
    ///
    /// # Panics
    /// There is no such core.
    pub fn backlog(&self, to: usize) -> usize {
        self.outs[to].as_ref().map_or(0, |out| out.overflow.len())
    }

    /// Hands out the messages that are there, with the core that sent them, core by core. From each
    /// of them no more than a ring holds: the rest is there for the next call. Returns how many they
    /// were.
    pub fn drain(&mut self, mut each: impl FnMut(usize, T)) -> usize {
        let mut drained = 0;
        for (from, inbox) in self.inboxes.iter_mut().enumerate() {
            drained += match inbox {
                Some(inbox) => inbox.drain(|message| each(from, message)),
                None => {
                    let own = self.own.len();
                    self.own.drain(..).for_each(|message| each(from, message));
                    own
                }
            };
        }
        drained
    }

    /// Returns whether there is a message.
    pub fn is_ready(&self) -> bool {
        !self.own.is_empty() || self.inboxes.iter().flatten().any(Receiver::is_ready)
    }

    /// Waits until there is a message. Sends what waits for room meanwhile.
    pub async fn arrived(&mut self) {
        poll_fn(|cx| self.poll_arrived(cx)).await;
    }

    /// [`Port::arrived`] for a port that several tasks of a core share: nothing is borrowed while
    /// the caller waits. Only the last waker given is woken.
    pub fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.flush();
        if self.is_ready() {
            return Poll::Ready(());
        }
        self.listener.listen(cx.waker());
        // What came, or what room was made, between the look and the listening rang for nobody.
        self.flush();
        if self.is_ready() {
            self.listener.stop();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<T> fmt::Debug for Port<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({} of {})", self.index, self.cores())
    }
}

#[cfg(all(test, not(atoll_loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use super::*;
    use crate::sim::Sim;
    use crate::sync::{Either, select_biased};
    use crate::task::{block_on, yield_now};

    fn drain(port: &mut Port<u64>) -> Vec<(usize, u64)> {
        let mut got = Vec::new();
        port.drain(|from, message| got.push((from, message)));
        got
    }

    #[test]
    fn every_core_reaches_every_core_and_itself() {
        let mut ports = mesh(3, 4);
        for (from, port) in ports.iter_mut().enumerate() {
            for to in 0..3 {
                port.send(to, (from * 10 + to) as u64);
            }
        }
        for (to, port) in ports.iter_mut().enumerate() {
            let expected: Vec<_> = (0..3).map(|from| (from, (from * 10 + to) as u64)).collect();
            assert!(port.is_ready());
            assert_eq!(drain(port), expected);
            assert!(!port.is_ready());
        }
    }

    #[test]
    fn what_does_not_fit_waits_in_order_and_never_blocks() {
        let mut ports = mesh(2, 2);
        let mut to = ports.pop().unwrap();
        let mut from = ports.pop().unwrap();
        (0..5).for_each(|n| from.send(1, n));
        assert_eq!(from.backlog(1), 3);
        assert_eq!(drain(&mut to), [(0, 0), (0, 1)]);
        // A later message does not overtake what waits.
        from.send(1, 5);
        assert_eq!(drain(&mut to), [(0, 2), (0, 3)]);
        from.flush();
        assert_eq!((drain(&mut to), from.backlog(1)), (vec![(0, 4), (0, 5)], 0));
    }

    #[test]
    fn what_was_put_goes_out_with_the_flush_and_wakes_its_receiver_once() {
        let mut ports = mesh(2, 4);
        let mut to = ports.pop().unwrap();
        let mut from = ports.pop().unwrap();
        let woken = Arc::new(AtomicUsize::new(0));
        let waker = Waker::from(Arc::new(Count(woken.clone())));
        assert!(to.poll_arrived(&mut Context::from_waker(&waker)).is_pending());
        (0..3).for_each(|n| from.put(1, n));
        assert!(!to.is_ready());
        from.flush();
        assert_eq!(woken.load(Relaxed), 1);
        assert_eq!(drain(&mut to), [(0, 0), (0, 1), (0, 2)]);
        assert!(to.poll_arrived(&mut Context::from_waker(&waker)).is_pending());
        from.flush();
        assert_eq!(woken.load(Relaxed), 1, "nothing new");
        from.put(1, 3);
        let mut own = Context::from_waker(Waker::noop());
        assert!(from.poll_arrived(&mut own).is_pending());
        assert_eq!(woken.load(Relaxed), 2, "who waits has flushed");
        from.put(1, 4);
        from.send(1, 5);
        assert_eq!(drain(&mut to), [(0, 3), (0, 4), (0, 5)]);
    }

    struct Count(Arc<AtomicUsize>);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_core_that_waits_sends_what_waits_for_room() {
        let mut ports = mesh(2, 1);
        let mut slow = ports.pop().unwrap();
        let mut busy = ports.pop().unwrap();
        (0..4).for_each(|n| busy.send(1, n));
        let mut got = Vec::new();
        // The busy core has nothing else to do: it sleeps, and is woken for each bit of room.
        let both = select_biased(busy.arrived(), async {
            while got.len() < 4 {
                slow.arrived().await;
                got.extend(drain(&mut slow));
                yield_now().await;
            }
        });
        assert_eq!(block_on(both), Either::Right(()));
        assert_eq!(got, [(0, 0), (0, 1), (0, 2), (0, 3)]);
    }

    #[test]
    fn messages_to_a_core_that_is_gone_are_dropped() {
        let mut ports = mesh(2, 1);
        drop(ports.pop());
        let mut alone = ports.pop().unwrap();
        (0..3).for_each(|n| alone.send(1, n));
        assert_eq!(alone.backlog(1), 0);
    }

    #[test]
    fn a_backlog_for_a_core_that_goes_is_dropped_with_it() {
        let mut ports = mesh(2, 1);
        let gone = ports.pop().unwrap();
        let mut alone = ports.pop().unwrap();
        (0..3).for_each(|n| alone.send(1, n));
        assert_eq!(alone.backlog(1), 2);
        drop(gone);
        alone.flush();
        assert_eq!(alone.backlog(1), 0);
    }

    /// Each core passes what it gets on to the next one, until it has gone round often enough.
    async fn pass_on(mut port: Port<u64>) -> u64 {
        let (next, mut passed) = ((port.index() + 1) % port.cores(), 0);
        loop {
            port.arrived().await;
            let mut got = Vec::new();
            port.drain(|_, left| got.push(left));
            for left in got {
                passed += 1;
                if left > 0 {
                    port.send(next, left - 1);
                }
                // The last round tells everybody to end.
                if left < port.cores() as u64 {
                    return passed;
                }
            }
        }
    }

    #[test]
    fn a_message_goes_round_between_threads() {
        let mut ports = mesh(3, 1);
        ports[2].send(0, 2_999);
        std::thread::scope(|scope| {
            let cores: Vec<_> =
                ports.into_iter().map(|port| scope.spawn(|| block_on(pass_on(port)))).collect();
            let passed: Vec<u64> = cores.into_iter().map(|core| core.join().unwrap()).collect();
            assert_eq!(passed, [1_000; 3]);
        });
    }

    #[test]
    fn a_message_goes_round_in_the_simulator() {
        let hash = |seed| {
            let sim = Sim::new(seed);
            let node = sim.node("a");
            let env = node.env();
            let passed = sim.block_on(&node, async {
                let mut ports = mesh(3, 1);
                let (done, mut results) = crate::sync::queue();
                ports[2].send(0, 299);
                for port in ports {
                    let done = done.clone();
                    env.tasks.spawn_local(
                        "core",
                        Box::pin(async move { _ = done.send(pass_on(port).await) }),
                    );
                }
                env.clock.sleep(Duration::from_secs(1)).await;
                std::iter::from_fn(|| results.try_recv()).collect::<Vec<_>>()
            });
            assert_eq!(passed.done(), [100; 3]);
            sim.trace_hash()
        };
        assert_eq!(hash(1), hash(1));
    }
}
