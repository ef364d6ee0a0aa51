//! What the parts of one run share: the machines, the history, and what was counted.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use atoll_checkers::Recorder;
use atoll_checkers::ranges::Answers;
use atoll_env::sim::Node;
use atoll_env::sync::oneshot;
use atoll_lsm::Durability;
use atoll_server::Engine;

use super::op::{Op, Ret};
use super::ranges::{Ranged, Universe};

/// The port that the server listens on.
const PORT: u16 = 7379;

/// One run.
pub struct World {
    /// What everything follows from.
    pub seed: u64,
    /// The machine of the server.
    pub server: Node,
    /// Those of the clients.
    pub clients: Vec<Node>,
    /// Where faults come from, and where the end is judged.
    pub judge: Node,
    /// What was asked and answered.
    pub recorder: RefCell<Recorder<Op, Ret>>,
    /// What was asked by the clients of ranges, and answered.
    pub ranged: RefCell<Recorder<Ranged, Answers>>,
    /// Where they did so.
    pub universes: RefCell<BTreeSet<Universe>>,
    /// Keys that were written, to be read at the end.
    pub keys: RefCell<Keys>,
    /// Faults that happened, by class.
    pub faults: RefCell<BTreeMap<&'static str, u64>>,
    /// When which of them happened, and when the server was started.
    pub notes: RefCell<Vec<String>>,
    /// What went wrong in a way that no checker needs to look for.
    pub wrong: RefCell<Option<String>>,
    /// Clients go on.
    pub busy: Cell<bool>,
    /// Clients that have not ended.
    pub clients_left: Cell<usize>,
    /// What the server promises.
    pub durability: Durability,
    /// Whether clocks jump in this run.
    pub jumps: bool,
    /// Stops the server that runs, in order.
    pub stop: RefCell<Option<oneshot::Sender<()>>>,
    /// Times the server was started, to tell one life from the next.
    pub lives: Cell<u64>,
    /// The server listens.
    pub serves: Cell<bool>,
    /// The server that runs.
    pub engine: RefCell<Option<Rc<Engine>>>,
    /// Why the server last did not open or close.
    pub last_failure: RefCell<String>,
}

/// Keys by family.
#[derive(Debug, Default)]
pub struct Keys {
    /// Registers.
    pub registers: BTreeSet<u64>,
    /// Counters.
    pub counters: BTreeSet<u64>,
    /// Lists.
    pub lists: BTreeSet<u64>,
}

impl World {
    /// Returns where the server listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.server.ip(), PORT)
    }

    /// Returns the true time.
    pub fn nanos(&self) -> u64 {
        self.judge.env().clock.now().0
    }

    /// Counts a fault.
    pub fn fault(&self, class: &'static str) {
        *self.faults.borrow_mut().entry(class).or_default() += 1;
        self.remark(class);
    }

    /// Notes what happens, for the report of a failure.
    pub fn remark(&self, what: impl std::fmt::Display) {
        let seconds = self.nanos() as f64 / 1e9;
        self.notes.borrow_mut().push(format!("{seconds:>10.6} {what}"));
    }

    /// Notes that something is wrong; the first says why the run fails.
    pub fn complain(&self, what: String) {
        let seconds = self.nanos() as f64 / 1e9;
        self.wrong.borrow_mut().get_or_insert(format!("at {seconds:.6} s: {what}"));
    }

    /// Waits until a condition holds; false if it does not in time.
    pub async fn wait(self: &Rc<Self>, limit: Duration, holds: impl Fn(&World) -> bool) -> bool {
        let clock = self.judge.env().clock;
        let deadline = clock.now().after(limit);
        while !holds(self) {
            if clock.now() >= deadline {
                return false;
            }
            clock.sleep(Duration::from_millis(5)).await;
        }
        true
    }
}
