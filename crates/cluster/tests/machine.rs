//! Three engines on the real machine: threads, files, sockets on loopback.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use atoll_cluster::{Place, Post, PostOptions};
use atoll_env::Env;
use atoll_keyspaces::Mute;
use atoll_kv::{ClusterOptions, Core, Node, NodeOptions};
use atoll_link::{ClusterId, Options};
use atoll_shard::replica::EngineId;
use parking_lot::Mutex;
use support::{TOTAL, audit, fill, transfer};

const ENGINES: usize = 3;

/// What the engines do, one thing after the other; each begins when all who take part are done with the last.
#[derive(Default)]
struct Script {
    step: AtomicUsize,
    done: AtomicUsize,
    wrong: Mutex<Option<String>>,
}

impl Script {
    async fn wait_for(&self, core: &Core<Mute>, step: usize) {
        while self.step.load(Ordering::SeqCst) < step {
            core.env().clock.sleep(Duration::from_millis(2)).await;
        }
    }

    /// One of `many` has done its part of a step.
    fn is_done(&self, many: usize) {
        if self.done.fetch_add(1, Ordering::SeqCst) + 1 == many {
            self.done.store(0, Ordering::SeqCst);
            self.step.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn complain(&self, what: String) {
        self.wrong.lock().get_or_insert(what);
    }
}

/// Tries until it works; half a minute at most.
async fn insist<T>(core: &Core<Mute>, step: impl AsyncFn() -> Result<T, atoll_txn::Error>) -> T {
    for _ in 0..300 {
        if let Ok(output) = step().await {
            return output;
        }
        core.env().clock.sleep(Duration::from_millis(100)).await;
    }
    step().await.expect("an engine that serves")
}

async fn do_business(core: &Core<Mute>, n: usize, script: &Script) {
    for round in 0..40 {
        let from = (round * 3 + n as u64) % support::ACCOUNTS;
        let to = (from + 1 + round % 5) % support::ACCOUNTS;
        insist(core, async || transfer(core, from, to).await).await;
        if round % 8 == 0 {
            let sum = insist(core, async || audit(core).await).await;
            if sum != TOTAL {
                script.complain(format!("engine {n} finds {sum}"));
            }
        }
    }
}

/// The life of an engine's first core.
async fn live(core: Core<Mute>, n: usize, first_life: bool, script: Arc<Script>) {
    if first_life {
        if n == 0 {
            insist(&core, async || fill(&core).await).await;
            script.is_done(1);
        }
        script.wait_for(&core, 1).await;
        do_business(&core, n, &script).await;
        script.is_done(ENGINES);
        script.wait_for(&core, 2).await;
        if n == 2 {
            return;
        }
        // The third one has gone.
        script.wait_for(&core, 3).await;
        do_business(&core, n, &script).await;
        script.is_done(2);
    } else {
        // It was away, and has everything nevertheless.
        let sum = insist(&core, async || audit(&core).await).await;
        if sum != TOTAL {
            script.complain(format!("engine {n} finds {sum} after its return"));
        }
        script.is_done(1);
    }
    script.wait_for(&core, 5).await;
}

struct Engine {
    n: usize,
    path: PathBuf,
    places: Vec<Place>,
    env: Env,
}

fn number(n: usize) -> EngineId {
    EngineId(n as u32 + 1)
}

impl Engine {
    /// Runs the engine on the calling thread's behalf until its life ends.
    fn run(&self, incarnation: u64, script: &Arc<Script>) {
        let n = self.n;
        let (carrier, post) = Post::new();
        let mut options = NodeOptions::new(self.env.clone(), &self.path);
        (options.cores, options.stores, options.shards) = (1, 1, 4);
        options.memory = 16 << 20;
        options.cluster = Some(ClusterOptions {
            engine: number(n),
            founders: (0..ENGINES).map(number).collect(),
            carrier,
        });
        let Place { id, address } = self.places[n];
        let others = (0..ENGINES).filter(|&other| other != n);
        let engines: BTreeMap<_, _> =
            others.map(|other| (number(other), self.places[other])).collect();
        let waiting = Mutex::new(Some((post, engines)));
        let script = script.clone();
        let main = move |core: Core<Mute>| -> Pin<Box<dyn Future<Output = ()>>> {
            let (post, script) = (waiting.lock().take(), script.clone());
            Box::pin(async move {
                if let Some((post, engines)) = post {
                    let link = Options::new(id, ClusterId(9), incarnation, address);
                    let options = PostOptions { link, engines };
                    post.open(&core, options).await.expect("an address of its own");
                }
                live(core, n, incarnation == 1, script).await;
            })
        };
        let run = async {
            let node = Node::start(options, |_| Mute, main).await?;
            node.wait().await
        };
        atoll_env::block_on(run).expect("an engine that runs to its end");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "there is no event loop yet, and others have to be told"
)]
fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
}

#[test]
fn three_engines_on_loopback_are_one_bank_and_one_of_them_may_go_and_come_back() {
    let env = atoll_env::os::env().expect("a machine");
    let directory = tempfile::tempdir().expect("a directory");
    let addresses: Vec<SocketAddr> = (0..ENGINES).map(|_| free_address()).collect();
    let place = |n: usize| Place { id: atoll_link::EngineId(n as u128 + 1), address: addresses[n] };
    let places: Vec<Place> = (0..ENGINES).map(place).collect();
    let script = Arc::new(Script::default());
    std::thread::scope(|scope| {
        for n in 0..ENGINES {
            let path = directory.path().join(format!("e{n}"));
            let engine = Engine { n, path, places: places.clone(), env: env.clone() };
            let script = script.clone();
            scope.spawn(move || {
                engine.run(1, &script);
                if n == 2 {
                    // Its leaderships are given away, its directory is closed.
                    script.is_done(1);
                    while script.step.load(Ordering::SeqCst) < 4 {
                        std::thread::yield_now();
                    }
                    engine.run(2, &script);
                }
            });
        }
    });
    assert_eq!(*script.wrong.lock(), None);
}
