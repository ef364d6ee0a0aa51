//! The clients: each asks in bursts over one connection, and records what it is told.
//!
//! A connection that is lost leaves what it had asked with an unknown outcome; the client goes on
//! over a new one under a new name, as the history demands ([`atoll_checkers::history`]). Keys are
//! given up after a few seconds: a search for an order costs more the more unknown outcomes a key
//! has.

use std::rc::Rc;
use std::time::Duration;

use atoll_checkers::history::{CallId, Process};
use atoll_checkers::linear::{CounterOp, RegisterOp, RegisterRet};
use atoll_checkers::list_append::{Micro, Txn};
use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_resp::Value;

use super::client::Connection;
use super::op::{ACCOUNTS, End, Op, Ret};
use super::world::World;

/// Longest pause between two bursts, in milliseconds.
const PAUSE_MAX_MS: u64 = 600;
/// Operations of a burst at most.
const BURST_MAX: u64 = 12;
/// Registers and counters in use at a time.
const HOT: u64 = 3;
/// Seconds after which other keys are used.
const KEY_LIFE_S: u64 = 3;
/// Counted keys of each client.
const COUNTED: u64 = 12;

/// What a client is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Registers and counters.
    Keys,
    /// Lists.
    Lists,
    /// The bank.
    Bank,
    /// Counted keys.
    Counting,
    /// Keys with deadlines.
    Fleeting,
}

/// The families, by the number of the client.
pub const FAMILIES: [Family; 8] = [
    Family::Keys,
    Family::Lists,
    Family::Keys,
    Family::Bank,
    Family::Counting,
    Family::Lists,
    Family::Counting,
    Family::Fleeting,
];

/// One client.
pub struct Client {
    world: Rc<World>,
    env: Env,
    prng: Prng,
    family: Family,
    number: u64,
    /// Makes values unique.
    next: u64,
    /// Fleeting keys that may be there.
    fleeting: Vec<u64>,
}

impl Client {
    /// Makes the client of a number.
    pub fn new(world: Rc<World>, number: usize, prng: Prng) -> Client {
        let env = world.clients[number].env();
        let family = FAMILIES[number % FAMILIES.len()];
        let number = number as u64;
        Client { world, env, prng, family, number, next: 0, fleeting: Vec::new() }
    }

    /// Asks until the run is over.
    pub async fn run(mut self) {
        while self.world.busy.get() {
            let address = self.world.address();
            if let Some(mut connection) = Connection::open(&self.env, address).await
                && self.greet(&mut connection).await.is_some()
            {
                let process = self.world.recorder.borrow_mut().process();
                if let Err(what) = self.converse(&mut connection, process).await {
                    self.world.complain(what);
                }
            }
            self.sleep(50).await;
        }
        self.world.clients_left.set(self.world.clients_left.get() - 1);
    }

    async fn sleep(&mut self, up_to_ms: u64) {
        let ms = 1 + self.prng.below(up_to_ms);
        self.env.clock.sleep(Duration::from_millis(ms)).await;
    }

    /// Does what every connection begins with.
    async fn greet(&mut self, connection: &mut Connection) -> Option<()> {
        if self.number.is_multiple_of(2) {
            connection.ask(&["HELLO", "3"]).await.ok()??;
        }
        if self.family == Family::Counting {
            let answer = connection.ask(&["SELECT", "1"]).await.ok()??;
            matches!(answer, Value::Simple(_)).then_some(())?;
        }
        Some(())
    }

    /// Uses a connection until it is lost or the run is over.
    async fn converse(
        &mut self,
        connection: &mut Connection,
        mut process: Process,
    ) -> Result<(), String> {
        while self.world.busy.get() {
            let pause = PAUSE_MAX_MS;
            self.sleep(pause).await;
            if self.family == Family::Keys && self.prng.chance(0.1) {
                if !self.compare_and_set(connection, process).await? {
                    return Ok(());
                }
                process = self.world.recorder.borrow_mut().process();
                continue;
            }
            let len = 1 + if self.prng.chance(0.5) { self.prng.below(BURST_MAX) } else { 0 };
            let ops: Vec<Op> = (0..len).map(|_| self.draw()).collect();
            match self.burst(connection, process, ops).await? {
                Burst::Lost => return Ok(()),
                Burst::Known => {}
                Burst::Unknown => process = self.world.recorder.borrow_mut().process(),
            }
        }
        Ok(())
    }

    /// Asks for several operations at once and records their ends.
    async fn burst(
        &mut self,
        connection: &mut Connection,
        process: Process,
        ops: Vec<Op>,
    ) -> Result<Burst, String> {
        let mut bytes = Vec::new();
        let mut asked: Vec<(CallId, usize)> = Vec::with_capacity(ops.len());
        for op in &ops {
            let replies = op.encode(&mut bytes);
            let nanos = self.world.nanos();
            let call = self.world.recorder.borrow_mut().invoke(process, nanos, op.clone());
            asked.push((call, replies));
        }
        let mut burst = if connection.send(&bytes).await { Burst::Known } else { Burst::Lost };
        for ((call, count), op) in asked.into_iter().zip(ops) {
            let mut replies = Vec::with_capacity(count);
            while burst != Burst::Lost && replies.len() < count {
                match connection.receive().await? {
                    // A message that nobody asked for answers nothing.
                    Some(Value::Push(_)) => {}
                    Some(reply) => replies.push(reply),
                    None => burst = Burst::Lost,
                }
            }
            let end = if burst == Burst::Lost { End::Unknown } else { op.decode(&replies)? };
            if end == End::Unknown && burst == Burst::Known {
                burst = Burst::Unknown;
            }
            self.record(call, &op, end);
        }
        Ok(burst)
    }

    fn record(&mut self, call: CallId, op: &Op, end: End) {
        let nanos = self.world.nanos();
        let mut recorder = self.world.recorder.borrow_mut();
        let may_have_happened = end != End::Refused;
        match end {
            End::Ok(ret) => recorder.ok(call, nanos, ret),
            End::Refused => recorder.fail(call, nanos),
            End::Unknown => recorder.info(call, nanos),
        }
        if may_have_happened && let Op::SetFleeting(key, _) = op {
            // From now on it may vanish, at a moment that nobody is told.
            let nobody = recorder.process();
            let vanish = recorder.invoke(nobody, nanos, Op::Vanish(*key));
            recorder.info(vanish, nanos);
            self.fleeting.push(*key);
        }
    }

    /// Replaces a register's value if nobody else does meanwhile. Returns whether the connection is
    /// still good.
    async fn compare_and_set(
        &mut self,
        connection: &mut Connection,
        process: Process,
    ) -> Result<bool, String> {
        let key = self.hot_key();
        self.world.keys.borrow_mut().registers.insert(key);
        let Some(watched) = connection.ask(&["WATCH", &format!("r:{key}")]).await? else {
            return Ok(false);
        };
        if !matches!(watched, Value::Simple(_)) {
            return Ok(true);
        }
        let read = Op::Register(key, RegisterOp::Get);
        let call =
            self.world.recorder.borrow_mut().invoke(process, self.world.nanos(), read.clone());
        let mut bytes = Vec::new();
        read.encode(&mut bytes);
        let reply = if connection.send(&bytes).await { connection.receive().await? } else { None };
        let Some(reply) = reply else {
            self.record(call, &read, End::Unknown);
            return Ok(false);
        };
        let end = read.decode(std::slice::from_ref(&reply))?;
        self.record(call, &read, end.clone());
        let End::Ok(Ret::Register(RegisterRet::Value(expected))) = end else {
            return Ok(connection.ask(&["UNWATCH"]).await?.is_some());
        };
        if self.prng.chance(0.5) {
            self.sleep(20).await;
        }
        let new = self.unique();
        let op = Op::Register(key, RegisterOp::CompareAndSet { expected, new });
        let burst = self.burst(connection, process, vec![op]).await?;
        Ok(burst != Burst::Lost)
    }

    /// Returns a value that nobody else writes.
    fn unique(&mut self) -> i64 {
        self.next += 1;
        (self.next * 100 + self.number) as i64
    }

    fn hot_key(&mut self) -> u64 {
        let age = self.world.nanos() / 1_000_000_000 / KEY_LIFE_S;
        age * HOT + self.prng.below(HOT)
    }

    fn draw(&mut self) -> Op {
        match self.family {
            Family::Keys => self.draw_of_keys(),
            Family::Lists => self.draw_of_lists(),
            Family::Bank => self.draw_of_bank(),
            Family::Counting => self.draw_of_counting(),
            Family::Fleeting => self.draw_of_fleeting(),
        }
    }

    fn draw_of_keys(&mut self) -> Op {
        let key = self.hot_key();
        let value = self.unique();
        let kind = self.prng.below(20);
        let mut keys = self.world.keys.borrow_mut();
        if kind < 6 {
            keys.counters.insert(key);
            let by = 1 + (self.next % 3) as i64;
            let op = if kind < 2 { CounterOp::Get } else { CounterOp::Add(by) };
            return Op::Counter(key, op);
        }
        keys.registers.insert(key);
        match kind {
            6..=10 => Op::Register(key, RegisterOp::Get),
            11..=13 => Op::Register(key, RegisterOp::Set(value)),
            14 => Op::Register(key, RegisterOp::Delete),
            15 => Op::Register(key, RegisterOp::GetSet(value)),
            16 => Op::Register(key, RegisterOp::SetIfAbsent(value)),
            kind => {
                let first = key - key % HOT;
                let other = first + (key + 1) % HOT;
                keys.registers.insert(other);
                if kind < 19 {
                    Op::SetMany(vec![(key, value), (other, value)])
                } else {
                    Op::GetMany(vec![key, other])
                }
            }
        }
    }

    fn draw_of_lists(&mut self) -> Op {
        let len = 1 + self.prng.below(4);
        let mut micros = Vec::new();
        for _ in 0..len {
            let key = self.hot_key();
            self.world.keys.borrow_mut().lists.insert(key);
            micros.push(if self.prng.chance(0.5) {
                Micro::Read { key }
            } else {
                Micro::Append { key, value: self.unique() as u64 }
            });
        }
        Op::Lists(Txn(micros))
    }

    fn draw_of_bank(&mut self) -> Op {
        if self.prng.chance(0.4) {
            return Op::Balances;
        }
        let from = self.prng.below(ACCOUNTS);
        let to = (from + 1 + self.prng.below(ACCOUNTS - 1)) % ACCOUNTS;
        Op::Transfer { from, to, amount: 1 + self.prng.below(9) as i64 }
    }

    fn draw_of_counting(&mut self) -> Op {
        let key = self.number * COUNTED + self.prng.below(COUNTED);
        match self.prng.below(40) {
            0 => Op::Clear,
            1..=10 => Op::Count,
            11..=18 => Op::Remove(key),
            19..=24 => {
                let first = self.number * COUNTED;
                let other = first + (key - first + 1) % COUNTED;
                Op::PutMany(vec![key, other])
            }
            _ => Op::Put(key),
        }
    }

    fn draw_of_fleeting(&mut self) -> Op {
        if self.prng.chance(0.3) || self.fleeting.is_empty() {
            let key = self.unique() as u64;
            return Op::SetFleeting(key, 1 + self.prng.below(4_000));
        }
        let recent = self.fleeting.len().min(8);
        let at = self.fleeting.len() - 1 - self.prng.index(recent);
        Op::GetFleeting(self.fleeting[at])
    }
}

/// How a burst ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Burst {
    /// Every end is known.
    Known,
    /// An outcome is unknown; the connection is good.
    Unknown,
    /// The connection is lost.
    Lost,
}
