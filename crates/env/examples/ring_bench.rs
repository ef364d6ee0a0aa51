//! Nanoseconds per message between two cores: the ring beside what could stand in its place.
//!
//! `cargo run --release -p atoll-env --example ring_bench [MESSAGES]`; the table in docs/benchmarks.md
//! is its output. Each figure is the median of many short runs: the least of them would be a run in
//! which one side was so far ahead that the two never met.
//!
//! | what | how |
//! |---|---|
//! | single | one thread sends one by one, another receives; both are busy and never sleep |
//! | bursts | the same in bursts of 64, as a turn of a core sends them |
//! | round trip | a message there and one back, each side asleep meanwhile: mostly the kernel |
//! | one thread | bursts of 64, sent and received in turn |

use std::collections::VecDeque;
use std::hint::{black_box, spin_loop};
use std::sync::mpsc::{Receiver as StdReceiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Barrier};

use atoll_env::mesh::{Port, mesh};
use atoll_env::sync::Notify;
use atoll_env::{Clock, block_on, os};
use parking_lot::Mutex;
use rustix::thread::{CpuSet, sched_setaffinity};

type Message = [u64; 8];

const CAPACITY: usize = 256;
const BURST: u64 = 64;
const RUNS: usize = 51;

/// One of two cores that send each other messages.
trait Link: Send {
    /// Sends a burst of messages that begins with `first`, busy while there is no room.
    fn send(&mut self, first: u64, len: u64);
    /// Takes what is there and returns how many messages that were.
    fn receive(&mut self) -> u64;
    /// Sleeps until something is there, if nothing is.
    fn wait(&mut self);
}

/// A core that can do nothing here does something else before it looks again.
fn pause() {
    (0..20).for_each(|_| spin_loop());
}

fn message(n: u64) -> Message {
    [n; 8]
}

/// The ring, in the mesh that cores use.
struct Rings(Port<Message>);

impl Link for Rings {
    fn send(&mut self, first: u64, len: u64) {
        let port = &mut self.0;
        let to = 1 - port.index();
        (first..first + len).for_each(|n| port.put(to, message(n)));
        port.flush();
        while port.backlog(to) > 0 {
            pause();
            port.flush();
        }
    }

    fn receive(&mut self) -> u64 {
        let mut sum = 0;
        let drained = self.0.drain(|_, message| sum += message[7]);
        black_box(sum);
        drained as u64
    }

    fn wait(&mut self) {
        block_on(self.0.arrived());
    }
}

/// A queue under a mutex, and a flag to sleep by.
#[derive(Default)]
struct Queue {
    messages: Mutex<VecDeque<Message>>,
    arrived: Notify,
}

/// A queue for each direction.
struct Locked {
    out: Arc<Queue>,
    inbox: Arc<Queue>,
    /// Changes places with the inbox, so that the lock is held for a moment only.
    taken: VecDeque<Message>,
}

impl Link for Locked {
    fn send(&mut self, first: u64, len: u64) {
        let mut next = first;
        while next < first + len {
            let mut messages = self.out.messages.lock();
            while next < first + len && messages.len() < CAPACITY {
                messages.push_back(message(next));
                next += 1;
            }
            drop(messages);
            self.out.arrived.notify();
            if next < first + len {
                pause();
            }
        }
    }

    fn receive(&mut self) -> u64 {
        std::mem::swap(&mut *self.inbox.messages.lock(), &mut self.taken);
        let drained = self.taken.len() as u64;
        black_box(self.taken.drain(..).map(|message| message[7]).sum::<u64>());
        drained
    }

    fn wait(&mut self) {
        while self.inbox.messages.lock().is_empty() {
            block_on(self.inbox.arrived.notified());
        }
    }
}

/// The standard library's bounded channel.
struct Channel {
    out: SyncSender<Message>,
    inbox: StdReceiver<Message>,
    waited_for: Option<Message>,
}

impl Link for Channel {
    fn send(&mut self, first: u64, len: u64) {
        for n in first..first + len {
            while let Err(TrySendError::Full(_)) = self.out.try_send(message(n)) {
                pause();
            }
        }
    }

    fn receive(&mut self) -> u64 {
        let (mut sum, mut drained) = (0, 0);
        while drained < CAPACITY as u64
            && let Some(message) = self.waited_for.take().or_else(|| self.inbox.try_recv().ok())
        {
            sum += message[7];
            drained += 1;
        }
        black_box(sum);
        drained
    }

    fn wait(&mut self) {
        self.waited_for = Some(self.inbox.recv().expect("the other end lives"));
    }
}

fn rings() -> (Box<dyn Link>, Box<dyn Link>) {
    let mut ports = mesh(2, CAPACITY);
    let b = ports.pop().expect("two ports");
    (Box::new(Rings(ports.pop().expect("two ports"))), Box::new(Rings(b)))
}

fn locked() -> (Box<dyn Link>, Box<dyn Link>) {
    let (there, back) = (Arc::new(Queue::default()), Arc::new(Queue::default()));
    let end = |out: &Arc<Queue>, inbox: &Arc<Queue>| {
        Box::new(Locked { out: out.clone(), inbox: inbox.clone(), taken: VecDeque::new() })
    };
    (end(&there, &back), end(&back, &there))
}

fn channel() -> (Box<dyn Link>, Box<dyn Link>) {
    let ((out, there), (back, inbox)) = (sync_channel(CAPACITY), sync_channel(CAPACITY));
    let end = |out, inbox| Box::new(Channel { out, inbox, waited_for: None });
    (end(out, inbox), end(back, there))
}

/// Returns nanoseconds per message from one thread to another, sent in bursts of `burst`.
fn stream(
    clock: &dyn Clock,
    (mut a, mut b): (Box<dyn Link>, Box<dyn Link>),
    count: u64,
    burst: u64,
) -> f64 {
    let ready = Barrier::new(2);
    let count = count / burst * burst;
    let mut took = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            ready.wait();
            (0..count / burst).for_each(|n| a.send(n * burst, burst));
        });
        pin(0);
        ready.wait();
        let start = clock.now();
        let mut left = count;
        while left > 0 {
            match b.receive() {
                0 => pause(),
                received => left -= received,
            }
        }
        took = clock.now().since(start).as_nanos();
    });
    took as f64 / count as f64
}

/// Returns nanoseconds for a message there and one back.
fn round_trip(
    clock: &dyn Clock,
    (mut a, mut b): (Box<dyn Link>, Box<dyn Link>),
    count: u64,
) -> f64 {
    let mut took = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            for n in 0..count {
                a.send(n, 1);
                a.wait();
                a.receive();
            }
        });
        pin(0);
        let start = clock.now();
        for n in 0..count {
            b.wait();
            b.receive();
            b.send(n, 1);
        }
        took = clock.now().since(start).as_nanos();
    });
    took as f64 / count as f64
}

/// Returns nanoseconds per message sent and received by one thread.
fn one_thread(
    clock: &dyn Clock,
    (mut a, mut b): (Box<dyn Link>, Box<dyn Link>),
    count: u64,
) -> f64 {
    let start = clock.now();
    for n in 0..count / BURST {
        a.send(n * BURST, BURST);
        let mut left = BURST;
        while left > 0 {
            left -= b.receive();
        }
    }
    clock.now().since(start).as_nanos() as f64 / count as f64
}

/// Keeps the thread on one CPU: two threads on the same one would be another measurement.
fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).expect("there are two CPUs");
}

/// Returns the median of several runs.
fn median(run: impl FnMut() -> f64) -> f64 {
    let mut results: Vec<f64> = std::iter::repeat_with(run).take(RUNS).collect();
    results.sort_by(f64::total_cmp);
    results[RUNS / 2]
}

fn main() {
    let count = std::env::args().nth(1).map_or(100_000, |arg| {
        arg.parse().expect("the only argument is the number of messages per run")
    });
    let env = os::env().expect("the kernel's random generator can be read");
    let clock = &*env.clock;
    println!("| ns per message of 64 bytes | single | bursts | round trip | one thread |");
    println!("|---|---:|---:|---:|---:|");
    type Make = fn() -> (Box<dyn Link>, Box<dyn Link>);
    let links: [(&str, Make); 3] = [
        ("ring (`env::mesh`)", rings),
        ("queue under a mutex", locked),
        ("bounded channel (`std::sync::mpsc`)", channel),
    ];
    for (name, make) in links {
        println!(
            "| {name} | {:.1} | {:.1} | {:.0} | {:.1} |",
            median(|| stream(clock, make(), count, 1)),
            median(|| stream(clock, make(), count, BURST)),
            median(|| round_trip(clock, make(), count / 100)),
            median(|| one_thread(clock, make(), count)),
        );
    }
}
