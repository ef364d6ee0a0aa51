//! Running the server: settings, listeners, engine, core, until a signal.
//!
//! ```text
//!   settings -> data directory -> HTTP port -> Redis port -> banner -> serve
//!   SIGTERM or Ctrl-C -> requests under way -> flush -> exit 0
//! ```
//!
//! The data directory comes first, because somebody who starts a server twice meets its lock and
//! its ports at once, and it is the directory that says what went wrong. Nothing is announced that
//! does not work. This thread accepts connections and serves the HTTP pages; the cores and the
//! engine's background work are threads of their own. A second signal ends the process without the
//! flush, which loses nothing: the next start reads the log.

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::os::{Backend, DirectIo, IoOptions};
use atoll_http::Api;
use atoll_kv::NodeOptions;
use atoll_lsm::pool::Placement;
use atoll_lsm::{Durability, Stats};
use atoll_redis::{Config, Identity, Usage};
use atoll_server::{Engine, Server, ServerError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::cli::StartArgs;
use crate::config::{Direct, IoMode, Pin, Settings, processors};
use crate::failure::{Failure, Result};
use crate::log::Log;
use crate::pages::{OfServer, ServerPages};
use crate::value::Listen;

/// Descriptors for what is not a Redis connection: tables, log segments, HTTP, standard streams.
const DESCRIPTORS_RESERVED: u64 = 512;
/// Redis connections at most, where the limit of descriptors allows it.
const CLIENTS_MAX: u64 = 10_000;

/// Runs the server to its end.
pub(crate) async fn run(args: StartArgs, out: &mut dyn Write) -> Result<()> {
    let settings = Settings::resolve(args)?;
    let mut signals = Signals::listen()?;
    let local = LocalSet::new();
    local
        .run_until(async {
            let running = Running::start(&settings).await?;
            running.announce(&settings, out);
            running.serve(&mut signals).await
        })
        .await
}

/// A server that is ready.
struct Running {
    env: Env,
    engine: Engine,
    resp: Option<Server>,
    http: Option<HttpListener>,
}

impl Running {
    async fn start(settings: &Settings) -> Result<Running> {
        let env = atoll_env::os::env_with(io_options(settings)).map_err(|e| match settings.io {
            IoMode::Uring => Failure::new(format!("--io uring: {e}; leave it out to do without")),
            _ => Failure::new(format!(
                "the kernel's random generator cannot be read: {e}; try again"
            )),
        })?;
        let engine = open(&env, settings).await?;
        match listen(&engine, settings).await {
            Ok((http, resp)) => Ok(Running { env, engine, resp, http }),
            Err(failure) => {
                // What went wrong is said already; the log has everything.
                let _ = engine.stop().await;
                Err(failure)
            }
        }
    }

    /// Returns what the block caches are made of.
    fn pool(&self) -> Placement {
        let mut sum = Stats::default();
        self.engine.trees().iter().for_each(|(_, tree)| sum.add(&tree.stats()));
        sum.pool
    }

    /// Tells what runs where, and a first command to try.
    fn announce(&self, settings: &Settings, out: &mut dyn Write) {
        let Settings { data, durability, memory, .. } = settings;
        let mut banner = format!(
            "AtollDB {}\n  data   {} (durability {}, memory {memory})\n",
            env!("CARGO_PKG_VERSION"),
            data.display(),
            durability.name(),
        );
        let disk = self.env.disk.status();
        banner.push_str(&format!("  disk   {}\n", disk.backend));
        let pool = self.pool();
        banner.push_str(&format!("  pool   {}\n", pool.strategy));
        if let Some(server) = &self.resp {
            banner.push_str(&format!("  redis  {}\n", server.local_addr()));
        }
        if let Some((_, addr)) = &self.http {
            banner.push_str(&format!("  http   http://{addr}\n"));
        }
        let first = match (&self.resp, &self.http) {
            (Some(server), _) => {
                let port = server.local_addr().port();
                format!("redis-cli -p {port} set greeting hello")
            }
            (None, Some((_, addr))) => format!("curl http://{addr}/health"),
            (None, None) => String::new(),
        };
        banner.push_str(&format!("  try    {first}\n"));
        for refusal in pool.refusals() {
            eprintln!("atoll: pool: not granted, going on without: {refusal}");
        }
        // A server whose output nobody reads is still a server.
        let _ = out.write_all(banner.as_bytes()).and_then(|()| out.flush());
    }

    /// Serves until the first signal, then ends in order, or at once at a second one.
    async fn serve(self, signals: &mut Signals) -> Result<()> {
        let Running { env, engine, resp, http } = self;
        let (stop, stopped) = watch::channel(false);
        let until_stop = || {
            let mut stopped = stopped.clone();
            async move {
                // A sender that is gone is a stop too.
                let _ = stopped.wait_for(|stop| *stop).await;
            }
        };
        let pages = Rc::new(ServerPages {
            started: env.clock.now(),
            clock: env.clock.clone(),
            redis: engine.shared(),
            trees: engine.trees(),
        });
        let http = http.map(|(listener, addr)| {
            let shards = Rc::new(OfServer(engine.operator()));
            let shared = engine.shared();
            let password = Box::new(move || shared.password());
            let api = Api::new(engine.client(), shards, addr, password);
            atoll_http::serve(listener, pages, Some(api), until_stop())
        });
        let resp = resp.map(|server| server.run(until_stop()));
        let mut serving = pin!(async { tokio::join!(if_any(http), if_any(resp)) });
        // Listeners end only by a stop; should one do otherwise, the rest is orderly too.
        let ended = tokio::select! {
            _ = &mut serving => true,
            () = signals.next() => false,
        };
        let _ = stop.send(true);
        let ending = async {
            if !ended {
                serving.await;
            }
            engine.stop().await.map_err(|e| {
                Failure::new(format!(
                    "the last flush failed: {e}; nothing acknowledged is lost, the next start \
                     reads the log"
                ))
            })
        };
        tokio::select! {
            ended = ending => ended,
            () = signals.next() => Err(Failure::new(
                "ended at once by a second signal; nothing acknowledged is lost, the next start \
                 reads the log",
            )),
        }
    }
}

/// Translates the settings of the disk. What is not granted is told where errors are.
fn io_options(settings: &Settings) -> IoOptions {
    IoOptions {
        backend: match settings.io {
            IoMode::Auto => Backend::Auto,
            IoMode::Uring => Backend::Uring,
            IoMode::Threads => Backend::Threads,
        },
        direct: match settings.direct {
            Direct::Off => DirectIo::Off,
            Direct::Log => DirectIo::Log,
            Direct::All => DirectIo::All,
        },
        limit: settings.io_limit.0,
        report: Some(Arc::new(|line| eprintln!("atoll: disk: {line}"))),
    }
}

/// An HTTP port that is bound.
type HttpListener = (TcpListener, SocketAddr);

/// Binds the ports that are wanted.
async fn listen(
    engine: &Engine,
    settings: &Settings,
) -> Result<(Option<HttpListener>, Option<Server>)> {
    let http = match settings.http {
        Listen::Off => None,
        Listen::At(addr) => Some(listen_http(addr).await?),
    };
    let resp = match settings.resp {
        Listen::Off => None,
        Listen::At(addr) => {
            let server = Server::bind(engine, addr).await;
            Some(server.map_err(|e| Failure::new(format!("--resp: {e}")))?)
        }
    };
    Ok((http, resp))
}

/// Binds the HTTP port.
async fn listen_http(addr: SocketAddr) -> Result<HttpListener> {
    let bound = async {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    };
    bound
        .await
        .map_err(|source| Failure::new(format!("--http: {}", ServerError::Listen { addr, source })))
}

/// Opens the data directory and starts its cores.
async fn open(env: &Env, settings: &Settings) -> Result<Engine> {
    let mut options = NodeOptions::new(env.clone(), &settings.data);
    options.memory = usize::try_from(settings.memory.0).unwrap_or(usize::MAX);
    options.engine.durability = settings.durability;
    options.engine.listener = Some(Arc::new(Log::new(settings.log_level)));
    options.engine.pool = settings.pool;
    options.cores = settings.cores;
    options.stores = settings.stores;
    options.shards = settings.stores.max(2);
    let pinned = match settings.pin {
        Pin::Auto => processors() > settings.cores,
        Pin::On => true,
        Pin::Off => false,
    };
    // The first processor is left to the acceptor and to interrupts where there is another.
    options.pin = pinned.then(|| usize::from(processors() > settings.cores));
    let config = Config {
        requirepass: settings.requirepass.clone().unwrap_or_default().into_bytes(),
        durability: match settings.durability {
            Durability::Synced => atoll_redis::Durability::Synced,
            Durability::Interval => atoll_redis::Durability::Interval,
            Durability::Buffered => atoll_redis::Durability::Buffered,
        },
        maxclients: clients_max(),
        dir: settings.data.display().to_string(),
        ..Config::default()
    };
    let identity = Identity {
        version: env!("CARGO_PKG_VERSION"),
        process_id: std::process::id(),
        run_id: env.random.next_u64(),
        measure: Some(measure),
        allocator: crate::allocator::NAME,
    };
    let engine = Engine::start(options, config, identity).await;
    engine.map_err(|e| Failure::of_data(&settings.data, e))
}

/// Raises the limit of descriptors as far as this process may, and returns how many Redis
/// connections fit under it.
fn clients_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let room = current.unwrap_or(u64::MAX).saturating_sub(DESCRIPTORS_RESERVED);
    usize::try_from(room.clamp(64, CLIENTS_MAX)).unwrap_or(usize::MAX)
}

/// Measures this process, where the kernel has files that say so.
#[expect(clippy::disallowed_methods, reason = "what the kernel says about us is no data of ours")]
fn measure() -> Option<Usage> {
    let stat = std::fs::read("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; fields are counted from behind it.
    let behind = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let text = String::from_utf8_lossy(&stat[behind..]).into_owned();
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    // The kernel's interface counts in hundredths of a second on every platform.
    let time = |hundredths: u64| Duration::from_millis(hundredths.saturating_mul(10));
    let kilobytes = |file: &str, name: &str| {
        let text = std::fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"));
        value.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    Some(Usage {
        user: time(number(11)?),
        system: time(number(12)?),
        resident_bytes: kilobytes("/proc/self/status", "VmRSS:").saturating_mul(1 << 10),
        system_bytes: kilobytes("/proc/meminfo", "MemTotal:").saturating_mul(1 << 10),
    })
}

/// Runs what a listener does, if there is one.
async fn if_any(listener: Option<impl Future<Output = ()>>) {
    if let Some(serving) = listener {
        serving.await;
    }
}

/// The signals that end a server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over SIGTERM and SIGINT.
    fn listen() -> Result<Signals> {
        let take = |kind| {
            signal(kind).map_err(|e| {
                Failure::new(format!("signals cannot be received: {e}; raise the limit of files"))
            })
        };
        Ok(Signals {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of them.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
