//! Clients inside of the process: transactions that scan ranges of keyspaces by name while others
//! insert into them.
//!
//! RESP knows no ranges, so these use the Rust interface, by which phantoms would show: a scan sees
//! that rows are *not* there. Each transaction is on one small universe of keys of one keyspace, an
//! ordered one or a hashed one; after a few seconds the next universe is taken, and every universe
//! is judged on its own ([`atoll_checkers::ranges`]).

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use atoll_checkers::ranges::{Answer, Answers, Step, Txn};
use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sync::timeout;
use atoll_keyspaces::{Client, Error, Expiry, Isolation, KeyRange, Keyspace, Kind, Options};

use super::world::World;

/// Clients of this kind.
pub const CLIENTS: usize = 3;
/// Keys of a universe.
const KEYS: u64 = 8;
/// Seconds after which another universe is used.
const UNIVERSE_LIFE_S: u64 = 3;
/// Longest pause between two transactions, in milliseconds.
const PAUSE_MAX_MS: u64 = 150;
/// Longest wait for a step.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which keys a transaction is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Universe {
    hashed: bool,
    number: u64,
}

/// A transaction on a universe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranged {
    /// Which.
    pub universe: Universe,
    /// What is done there.
    pub txn: Txn,
}

impl fmt::Display for Ranged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.universe.hashed { "hashed" } else { "ordered" };
        write!(f, "{kind} {}: {}", self.universe.number, self.txn)
    }
}

/// How a transaction ended.
enum End {
    Ok(Answers),
    Failed,
    Unknown,
}

impl Universe {
    fn key(self, key: u64) -> Vec<u8> {
        format!("{:08}/{key}", self.number).into_bytes()
    }

    async fn keyspace(self, client: &Client) -> Result<Keyspace, Error> {
        let (name, kind) = match self.hashed {
            true => ("sim/hashed", Kind::hashed(4).expect("a power of two")),
            false => ("sim/ordered", Kind::Ordered),
        };
        match client.find_keyspace(name).await? {
            Some(keyspace) => Ok(keyspace),
            None => {
                let options = Options { kind, ttl: None };
                Ok(client.create_keyspace(name, options).await?.0)
            }
        }
    }
}

/// Runs transactions until the run is over.
pub async fn run(world: Rc<World>, env: Env, number: usize, mut prng: Prng) {
    let mut next = 0u64;
    while world.busy.get() {
        let pause = 1 + prng.below(PAUSE_MAX_MS);
        env.clock.sleep(Duration::from_millis(pause)).await;
        let Some(client) = world.engine.borrow().as_ref().map(|engine| engine.client()) else {
            continue;
        };
        let universe = Universe {
            hashed: prng.chance(0.5),
            number: world.nanos() / 1_000_000_000 / UNIVERSE_LIFE_S,
        };
        world.universes.borrow_mut().insert(universe);
        let steps = (0..1 + prng.below(3)).map(|_| {
            let key = prng.below(KEYS);
            next += 1;
            match prng.below(10) {
                0..=3 => {
                    Step::Scan { from: key, to: key + 1 + prng.below(KEYS - key), limit: None }
                }
                4 => Step::Get(key),
                5..=6 => Step::Delete(key),
                _ => Step::Put(key, next * 10 + number as u64),
            }
        });
        let ranged = Ranged { universe, txn: Txn(steps.collect()) };
        let reverse = prng.chance(0.3);
        attempt(&world, &env, &client, ranged, reverse).await;
    }
    world.clients_left.set(world.clients_left.get() - 1);
}

/// Records one transaction.
async fn attempt(world: &World, env: &Env, client: &Client, ranged: Ranged, reverse: bool) {
    let call = {
        let mut recorder = world.ranged.borrow_mut();
        let process = recorder.process();
        recorder.invoke(process, world.nanos(), ranged.clone())
    };
    let working = carry_out(client, &ranged, reverse);
    let end = timeout(&*env.clock, PATIENCE, working).await.unwrap_or(End::Unknown);
    let mut recorder = world.ranged.borrow_mut();
    match end {
        End::Ok(answers) => recorder.ok(call, world.nanos(), answers),
        End::Failed => recorder.fail(call, world.nanos()),
        End::Unknown => recorder.info(call, world.nanos()),
    }
}

async fn carry_out(client: &Client, ranged: &Ranged, reverse: bool) -> End {
    let universe = ranged.universe;
    let Ok(keyspace) = universe.keyspace(client).await else { return End::Failed };
    let mut session = client.begin(Isolation::Serializable);
    let mut answers = Vec::new();
    for step in &ranged.txn.0 {
        let done = match step {
            Step::Get(key) => {
                let found = session.get(&keyspace, &universe.key(*key)).await;
                found.map(|found| {
                    answers.push(Answer::Value(found.map(|found| parse(&found.value))));
                })
            }
            Step::Scan { from, to, .. } => {
                let range = KeyRange::between(universe.key(*from)..universe.key(*to));
                let rows = session.scan(&keyspace, range, reverse, usize::MAX).await;
                rows.map(|rows| {
                    let parsed =
                        rows.rows.iter().map(|row| (parse(&row.key[9..]), parse(&row.value)));
                    let mut parsed: Vec<_> = parsed.collect();
                    if reverse {
                        parsed.reverse();
                    }
                    answers.push(Answer::Rows(parsed));
                })
            }
            Step::Put(key, value) => {
                let value = value.to_string();
                let key = universe.key(*key);
                session.put(&keyspace, &key, value.as_bytes(), Expiry::Never).await
            }
            Step::Delete(key) => session.delete(&keyspace, &universe.key(*key)).await,
        };
        if done.is_err() {
            return End::Failed;
        }
    }
    match session.commit().await {
        Ok(_) => End::Ok(Answers(answers)),
        Err(Error::Unknown(_)) => End::Unknown,
        Err(_) => End::Failed,
    }
}

/// Reads a number that the harness wrote. What is none is told as one that nobody wrote.
fn parse(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

/// Reads every universe once more, when all is quiet.
///
/// # Errors
/// One cannot be read.
pub async fn read_everything(world: &World, env: &Env) -> Result<(), String> {
    let client = world.engine.borrow().as_ref().map(|engine| engine.client());
    let client = client.ok_or("the server is gone at the end")?;
    let universes: BTreeSet<Universe> = world.universes.borrow().clone();
    for universe in universes {
        let txn = Txn(vec![Step::Scan { from: 0, to: KEYS, limit: None }]);
        attempt(world, env, &client, Ranged { universe, txn }, false).await;
    }
    Ok(())
}
