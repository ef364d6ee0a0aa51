//! The simulated half: one thread, virtual time, and a seed that names one execution.
//!
//! ```
//! use atoll_env::sim::{Outcome, Sim};
//! use std::time::Duration;
//!
//! let sim = Sim::new(42);
//! let node = sim.node("a");
//! let env = node.env();
//! let outcome = sim.block_on(&node, async {
//!     env.clock.sleep(Duration::from_secs(3600)).await; // takes no real time
//!     env.clock.now().0
//! });
//! assert!(matches!(outcome, Outcome::Done(now) if now >= 3_600_000_000_000));
//! ```
//!
//! A simulation has *nodes*: each with its own disk, clock, random stream and network address, and
//! all their tasks on one thread (`executor.rs`). A node may crash, by [`Node::crash`] or at a
//! chosen disk operation ([`SimDisk::crash_at`]): its tasks are dropped, its disk keeps what a power
//! cut leaves, and what was taken from [`Node::env`] before is dead. After [`Node::restart`] a new
//! environment sees the surviving files.
//!
//! Environments are `Send + Sync`, as the traits ask, but belong on the thread of their simulation.

mod clock;
mod disk;
mod executor;
mod faults;
mod medium;
mod net;
#[cfg(test)]
mod net_tests;
mod node_disk;
mod pages;
#[cfg(test)]
mod tests;
mod trace;
mod tree;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::Env;
use crate::time::Instant;

pub use clock::WALL_START;
pub use disk::{DiskSnapshot, Mutation, SimDisk};
pub use executor::Deadlock;
pub use faults::{
    CrashMode, CrashPoint, CrashTiming, DiskFaults, DiskOptions, Fault, FaultKind, OpKind,
};
pub use net::NetOptions;

use executor::{Futures, Handle, NodeId, NodeState, Shared};

/// A simulation: nodes, virtual time and one seed.
pub struct Sim {
    futures: Futures,
    shared: Arc<Shared>,
}

/// How a simulated run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// The future completed.
    Done(T),
    /// Its node crashed before.
    Crashed,
}

impl<T> Outcome<T> {
    /// Returns the output.
    ///
    /// # Panics
    /// The node crashed.
    pub fn done(self) -> T {
        match self {
            Outcome::Done(output) => output,
            Outcome::Crashed => panic!("the node crashed before the future completed"),
        }
    }

    /// Returns the output, `None` after a crash.
    pub fn ok(self) -> Option<T> {
        match self {
            Outcome::Done(output) => Some(output),
            Outcome::Crashed => None,
        }
    }
}

impl Sim {
    /// Returns the simulation of a seed, without nodes.
    pub fn new(seed: u64) -> Sim {
        let shared = Shared::new(seed);
        Sim { futures: Futures::new(shared.clone()), shared }
    }

    /// Returns the seed.
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// Adds a node.
    pub fn node(&self, name: &str) -> Node {
        let mut state = self.shared.state.lock();
        let mut prng = state.prng.fork(name);
        let disk = Arc::new(SimDisk::new(prng.fork("disk")));
        let id = state.nodes.len();
        state.nodes.push(NodeState {
            name: name.into(),
            epoch: 0,
            up: true,
            paused_until: Instant::default(),
            wall_offset_ms: 0,
            prng,
            disk: disk.clone(),
        });
        Node { shared: self.shared.clone(), id, name: name.into(), disk }
    }

    /// Runs `future` on a node, and everything else meanwhile, until it is done or the node
    /// crashes. Tasks that are not done then go on with the next run.
    ///
    /// # Panics
    /// Nothing can happen any more while the future waits ([`Sim::try_block_on`] returns that), the
    /// node is down, or a task panicked.
    pub fn block_on<F: Future>(&self, node: &Node, future: F) -> Outcome<F::Output> {
        match self.try_block_on(node, future) {
            Ok(outcome) => outcome,
            Err(deadlock) => panic!("seed {}: {deadlock}", self.seed()),
        }
    }

    /// Runs as [`Sim::block_on`] does.
    ///
    /// # Errors
    /// Nothing can happen any more while the future waits.
    pub fn try_block_on<F: Future>(
        &self,
        node: &Node,
        future: F,
    ) -> Result<Outcome<F::Output>, Deadlock> {
        assert!(Arc::ptr_eq(&self.shared, &node.shared), "the node is of another simulation");
        Ok(self.futures.run(node.id, future)?.map_or(Outcome::Crashed, Outcome::Done))
    }

    /// Lets virtual time pass, and everything that happens in it.
    pub fn advance(&self, duration: Duration) {
        self.futures.run_until(self.now().after(duration));
    }

    /// Returns the virtual time.
    pub fn now(&self) -> Instant {
        self.shared.now()
    }

    /// Changes how the network behaves from now on.
    pub fn set_net_options(&self, options: NetOptions) {
        self.shared.wires.lock().options = options;
    }

    /// Cuts the link between two nodes: their streams stall, connecting times out.
    pub fn cut_link(&self, a: &Node, b: &Node) {
        self.shared.wires.lock().cut(a.id, b.id);
    }

    /// Heals a link that was cut: what was sent meanwhile arrives.
    pub fn heal_link(&self, a: &Node, b: &Node) {
        net::Wires::heal(&self.shared, a.id, b.id);
    }

    /// Resets the streams that are open between two nodes.
    pub fn reset_links(&self, a: &Node, b: &Node) {
        net::Wires::reset_between(&self.shared, a.id, b.id);
    }

    /// Returns the hash of everything that has happened: equal for equal runs only.
    pub fn trace_hash(&self) -> u64 {
        self.shared.state.lock().trace.hash()
    }

    /// Returns how much has happened: polls, disk operations, deliveries, crashes.
    pub fn events(&self) -> u64 {
        self.shared.state.lock().trace.events()
    }

    /// Keeps a line of text per event from now on.
    pub fn keep_trace_lines(&self) {
        self.shared.state.lock().trace.keep_lines();
    }

    /// Takes the lines kept since the last call.
    pub fn take_trace_lines(&self) -> Vec<String> {
        self.shared.state.lock().trace.take_lines()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulation failed: seed {}, at {} ns", self.seed(), self.now().0);
        }
    }
}

/// A machine of the simulation. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
    id: NodeId,
    name: Arc<str>,
    disk: Arc<SimDisk>,
}

impl Node {
    /// Returns the node's environment, which is good until the node crashes.
    ///
    /// # Panics
    /// The node is down.
    pub fn env(&self) -> Env {
        let epoch = {
            let state = self.shared.state.lock();
            let node = &state.nodes[self.id];
            assert!(node.up, "node {} is down: call Node::restart first", self.name);
            node.epoch
        };
        let handle = Handle { shared: self.shared.clone(), node: self.id, epoch };
        Env {
            clock: Arc::new(handle.clone()),
            random: Arc::new(handle.clone()),
            disk: Arc::new(node_disk::NodeDisk::new(handle.clone(), self.disk.clone())),
            network: Arc::new(net::SimNetwork::new(handle.clone())),
            tasks: Arc::new(handle),
        }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the network address.
    pub fn ip(&self) -> IpAddr {
        net::ip(self.id)
    }

    /// Returns the disk, for counting, faults and tampering.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Cuts the power; the disk's options say what is left of unsynced things. Nothing happens if
    /// the node is down.
    pub fn crash(&self) {
        self.shared.crash(self.id, None);
    }

    /// Cuts the power, with a say in what is left.
    pub fn crash_with(&self, mode: CrashMode) {
        self.shared.crash(self.id, Some(mode));
    }

    /// Powers the node up after a crash. Nothing happens if it is up.
    pub fn restart(&self) {
        self.shared.state.lock().nodes[self.id].up = true;
    }

    /// Stops the node for a while, as a frozen virtual machine or a machine that swaps: none of its
    /// tasks runs. Its disk and the network go on, its clock too. A crash ends the pause.
    pub fn pause(&self, duration: Duration) {
        self.shared.pause(self.id, duration);
    }

    /// Returns whether the node is up.
    pub fn is_up(&self) -> bool {
        self.shared.state.lock().nodes[self.id].up
    }

    /// Sets how far the node's wall clock is from true time.
    pub fn set_wall_offset_ms(&self, offset: i64) {
        self.shared.state.lock().nodes[self.id].wall_offset_ms = offset;
    }
}
