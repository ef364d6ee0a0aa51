//! A program of three commands, and clients of it.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod wires;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sync::oneshot;
use atoll_kv::{Core, Failure, Node, NodeOptions, Program};
use atoll_lsm::{Durability, Result};
use atoll_mvcc::Value;
use atoll_mvcc::keys::{Placement, RoutingKey, SLOTTED, place_of};
use atoll_shard::eval::{Eval, Interrupt, Sight};
use atoll_shard::leader::Base;
use parking_lot::Mutex;

#[derive(Clone, Debug)]
pub enum Call {
    Get(Vec<u8>),
    Set(Vec<u8>, u64),
    Add(Vec<u8>, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Number(u64),
    Nothing,
    Done,
    Failed(Failure),
}

/// Numbers by key.
#[derive(Default)]
pub struct Toy {
    /// The test is over.
    pub stop: Arc<Mutex<bool>>,
}

pub fn key(name: &str) -> Vec<u8> {
    Placement::Slots.key(SLOTTED + 16, name.as_bytes())
}

pub fn stored(n: u64) -> Vec<u8> {
    Value { deadline_ms: None, payload: &n.to_le_bytes() }.encode()
}

pub fn number(bytes: Option<Vec<u8>>) -> u64 {
    bytes.map_or(0, |bytes| parse(&bytes))
}

fn parse(bytes: &[u8]) -> u64 {
    let payload = Value::decode(bytes).expect("what the test stored").payload;
    u64::from_le_bytes(payload.try_into().expect("a number"))
}

impl Program for Toy {
    type Call = Call;
    type Reply = Reply;

    fn place<'c>(&self, call: &'c Call) -> RoutingKey<&'c [u8]> {
        let (Call::Get(key) | Call::Set(key, _) | Call::Add(key, _)) = call;
        place_of(key).expect("keys of the test have a slot")
    }

    fn sight(&self, call: &Call) -> Sight {
        if matches!(call, Call::Get(_)) { Sight::Applied } else { Sight::Edge }
    }

    fn durability(&self, _: &Call) -> Durability {
        Durability::Synced
    }

    fn run<B: Base>(
        &self,
        call: &Call,
        eval: &mut Eval<'_, B>,
    ) -> std::result::Result<Reply, Interrupt> {
        Ok(match call {
            Call::Get(key) => match eval.get(key)? {
                Some(bytes) => Reply::Number(parse(&bytes)),
                None => Reply::Nothing,
            },
            Call::Set(key, n) => {
                eval.put(key, Some(Rc::from(stored(*n))));
                Reply::Done
            }
            Call::Add(key, n) => {
                let sum = eval.get(key)?.map_or(0, |bytes| parse(&bytes)) + n;
                eval.put(key, Some(Rc::from(stored(sum))));
                Reply::Number(sum)
            }
        })
    }

    fn encode_call(&self, call: &Call, out: &mut Vec<u8>) {
        let (kind, key, n) = match call {
            Call::Get(key) => (0, key, 0),
            Call::Set(key, n) => (1, key, *n),
            Call::Add(key, n) => (2, key, *n),
        };
        out.push(kind);
        out.extend_from_slice(&n.to_le_bytes());
        out.extend_from_slice(key);
    }

    fn decode_call(&self, bytes: &[u8]) -> std::result::Result<Call, String> {
        let (kind, rest) = bytes.split_first().ok_or("no bytes")?;
        let (n, key) = rest.split_first_chunk().ok_or("too few bytes")?;
        let (n, key) = (u64::from_le_bytes(*n), key.to_vec());
        match kind {
            0 => Ok(Call::Get(key)),
            1 => Ok(Call::Set(key, n)),
            2 => Ok(Call::Add(key, n)),
            _ => Err(format!("a call of kind {kind}")),
        }
    }

    fn encode_reply(&self, reply: &Reply, out: &mut Vec<u8>) {
        let (kind, n) = match reply {
            Reply::Number(n) => (0, *n),
            Reply::Nothing => (1, 0),
            Reply::Done => (2, 0),
            Reply::Failed(Failure::Unknown) => (3, 0),
            Reply::Failed(_) => (4, 0),
        };
        out.push(kind);
        out.extend_from_slice(&n.to_le_bytes());
    }

    fn decode_reply(&self, bytes: &[u8]) -> std::result::Result<Reply, String> {
        let (kind, rest) = bytes.split_first().ok_or("no bytes")?;
        let n = u64::from_le_bytes(rest.try_into().map_err(|_| "not a number")?);
        Ok(match kind {
            0 => Reply::Number(n),
            1 => Reply::Nothing,
            2 => Reply::Done,
            3 => Reply::Failed(Failure::Unknown),
            _ => Reply::Failed(Failure::Unavailable("so said another engine".to_owned())),
        })
    }

    fn failed(&self, _: &Call, failure: &Failure) -> Reply {
        Reply::Failed(failure.clone())
    }
}

pub fn options(env: Env, cores: usize, shards: u16) -> NodeOptions {
    let mut options = NodeOptions::new(env, "/data/db");
    options.cores = cores;
    options.stores = cores as u16;
    options.shards = shards;
    options.memory = cores * (4 << 20);
    options.engine.memtable_size = 64 << 10;
    options.engine.log_segment_size = 64 << 10;
    options.engine.manifest_size = 0;
    options
}

/// Opens a node, runs `script` on every core, and closes the node.
pub async fn open<F>(
    options: NodeOptions,
    script: impl Fn(Core<Toy>) -> F + Send + Sync + 'static,
) -> Result<()>
where
    F: Future<Output = ()> + 'static,
{
    let stop: Arc<Mutex<bool>> = Arc::default();
    let program = move |_| Toy { stop: stop.clone() };
    let node = Node::start(options, program, move |core| Box::pin(script(core))).await?;
    node.wait().await
}

/// The same on the real machine, from a thread that has no runtime.
pub fn run_node<F>(options: NodeOptions, script: impl Fn(Core<Toy>) -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + 'static,
{
    atoll_env::block_on(open(options, script)).expect("a node that runs to its end");
}

/// What a core does that only serves others.
pub async fn until_stopped(core: &Core<Toy>) {
    while !*core.program().stop.lock() {
        core.env().clock.sleep(Duration::from_millis(1)).await;
    }
}

pub fn stop_all(core: &Core<Toy>) {
    *core.program().stop.lock() = true;
}

pub fn spawn(core: &Core<Toy>, task: impl Future<Output = ()> + 'static) -> oneshot::Receiver<()> {
    let (done, receiver) = oneshot::channel();
    core.env().tasks.spawn_local(
        "test",
        Box::pin(async move {
            task.await;
            let _ = done.send(());
        }),
    );
    receiver
}

/// A client that sends one command after the other.
pub struct Client {
    core: Core<Toy>,
    lane: u64,
    token: u64,
}

thread_local! {
    /// Replies that belong to another client of the core.
    static KEPT: std::cell::RefCell<Vec<(u64, u64, Reply)>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Client {
    pub fn new(core: &Core<Toy>, lane: u64) -> Client {
        Client { core: core.clone(), lane, token: lane << 32 }
    }

    pub async fn call(&mut self, call: Call) -> Reply {
        self.token += 1;
        self.core.refresh();
        if let Some(reply) = self.core.call(call, self.lane, self.token) {
            return reply;
        }
        self.core.flush();
        loop {
            let found = KEPT.with_borrow_mut(|kept| {
                self.core.take_replies(kept);
                let at = kept.iter().position(|(_, token, _)| *token == self.token)?;
                Some(kept.swap_remove(at).2)
            });
            if let Some(reply) = found {
                return reply;
            }
            self.core.env().clock.sleep(Duration::from_micros(50)).await;
        }
    }

    pub async fn get(&mut self, name: &str) -> Option<u64> {
        match self.call(Call::Get(key(name))).await {
            Reply::Number(n) => Some(n),
            Reply::Nothing => None,
            other => panic!("get {name}: {other:?}"),
        }
    }
}
