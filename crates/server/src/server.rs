//! Starting and stopping.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::net::Listener;
use atoll_env::sync::{Either, select_biased};
use atoll_env::{Env, task};
use atoll_redis::{Config, Executor, Identity, Stats, Store};

use crate::core::{Core, Desk};
use crate::signal::Signal;

/// Pause after a failed accept (no file descriptors left), so that it does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How often times are enforced.
const TICK: Duration = Duration::from_secs(1);
/// Time that a stop gives clients to take their last replies.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);
/// Time that a stop gives clients to close their side once the last reply is sent: enough for it
/// to arrive. Pools keep idle connections open for ever, so it is not the time above.
const STOP_LINGER: Duration = Duration::from_millis(500);

/// Why a server could not start.
#[derive(Debug)]
pub enum ServerError {
    /// The address could not be listened on.
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServerError::Listen { addr, source } = self;
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "{addr} is in use by another process; stop it or choose another address")
            }
            io::ErrorKind::PermissionDenied => {
                write!(f, "{addr} is not ours to listen on; choose a port of 1024 or above")
            }
            io::ErrorKind::AddrNotAvailable => {
                write!(f, "{addr} is no address of this machine; choose one that is")
            }
            _ => write!(f, "cannot listen on {addr}: {source}; choose another address"),
        }
    }
}

impl std::error::Error for ServerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let ServerError::Listen { source, .. } = self;
        Some(source)
    }
}

/// A server that listens and does not serve yet.
///
/// Life: [`Server::bind`], then [`Server::run`] to the end. Both on the core's thread, inside what
/// [`atoll_env::Tasks::spawn_local`] needs.
pub struct Server<S: Store> {
    env: Env,
    listener: Box<dyn Listener>,
    executor: Executor<S>,
}

impl<S: Store + 'static> Server<S> {
    /// Listens on `addr`. The configuration's `bind` and `port` become what was bound.
    ///
    /// # Errors
    /// The address is in use, or not ours.
    pub async fn bind(
        env: Env,
        addr: SocketAddr,
        store: S,
        mut config: Config,
        identity: Identity,
    ) -> Result<Server<S>, ServerError> {
        let listener = env.network.listen(addr).await;
        let listener = listener.map_err(|source| ServerError::Listen { addr, source })?;
        config.bind = listener.local_addr().ip().to_string();
        config.port = listener.local_addr().port();
        let executor = Executor::new(store, env.clock.clone(), config, identity);
        Ok(Server { env, listener, executor })
    }

    /// Returns the address that clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Returns the counters, to be read from anywhere while the server runs.
    pub fn stats(&self) -> Arc<Stats> {
        self.executor.stats().clone()
    }

    /// Serves until `stop` completes. Then no connection is accepted, requests that have arrived
    /// are executed and committed, their replies sent, and the connections closed.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Server { env, listener, executor } = self;
        let local = listener.local_addr();
        let desk = Rc::new(Desk::new());
        let stopping = Rc::new(Signal::default());
        let accepting = accept(env.clone(), listener, desk.clone(), stopping.clone());
        env.tasks.spawn_local("accept", Box::pin(accepting));
        let ticking = tick(env.clone(), Rc::downgrade(&desk));
        env.tasks.spawn_local("tick", Box::pin(ticking));

        let mut core = Core::new(env.clone(), desk.clone(), executor, local);
        let mut stop = pin!(stop);
        loop {
            if core.work().await {
                // Connection tasks send replies and read requests before the next turn. A stop
                // is looked for here too: a server that never rests must still end.
                let rest = task::yield_now();
                if let Either::Left(()) = select_biased(stop.as_mut(), rest).await {
                    break;
                }
            } else {
                let wait = desk.signal.raised();
                if let Either::Left(()) = select_biased(stop.as_mut(), wait).await {
                    break;
                }
            }
        }

        stopping.raise();
        let deadline = env.clock.now().after(STOP_TIME_MAX);
        while core.work().await && env.clock.now() < deadline {
            task::yield_now().await;
        }
        core.close_all();
        while !core.is_told() && env.clock.now() < deadline {
            // The tick raises the signal too, so the deadline is seen.
            desk.signal.raised().await;
            core.work().await;
        }
        let mut linger = pin!(env.clock.sleep(STOP_LINGER));
        while !core.is_empty() {
            let wait = desk.signal.raised();
            if let Either::Left(()) = select_biased(linger.as_mut(), wait).await {
                break;
            }
            core.work().await;
        }
    }
}

/// Hands new connections to the core.
async fn accept(env: Env, mut listener: Box<dyn Listener>, desk: Rc<Desk>, stopping: Rc<Signal>) {
    loop {
        match select_biased(stopping.raised(), listener.accept()).await {
            Either::Left(()) => return,
            Either::Right(Ok(arrival)) => {
                desk.arrivals.borrow_mut().push(arrival);
                desk.signal.raise();
            }
            Either::Right(Err(_)) => env.clock.sleep(ACCEPT_RETRY).await,
        }
    }
}

/// Tells the core each second that a second has passed, for as long as there is a core.
async fn tick(env: Env, desk: std::rc::Weak<Desk>) {
    loop {
        env.clock.sleep(TICK).await;
        let Some(desk) = desk.upgrade() else { return };
        desk.tick.set(true);
        desk.signal.raise();
    }
}
