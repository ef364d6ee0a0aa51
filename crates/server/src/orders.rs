//! Orders: what somebody outside of the cores wants to know of the shards, or wants done to them.
//!
//! One queue to core 0, which reaches the others by its rings. Orders are rare and never in the way
//! of a command.

use std::future::Future;
use std::sync::Arc;

use atoll_env::sync::{QueueReceiver, QueueSender, oneshot, queue};
use atoll_kv::{Core, ShardReport};
use atoll_mvcc::keys::RoutingKey;
use atoll_objects::ObjectProgram;
use parking_lot::Mutex;

type ShardCore = Core<ObjectProgram>;
type Order = Box<dyn FnOnce(ShardCore) + Send>;

/// The way to core 0.
pub(crate) struct Orders {
    sender: QueueSender<Order>,
    inbox: Mutex<Option<QueueReceiver<Order>>>,
}

impl Orders {
    pub(crate) fn new() -> Orders {
        let (sender, receiver) = queue();
        Orders { sender, inbox: Mutex::new(Some(receiver)) }
    }

    /// Carries orders out until the core ends.
    pub(crate) fn serve(&self, core: &ShardCore) {
        let Some(mut inbox) = self.inbox.lock().take() else { return };
        let own = core.clone();
        let serving = async move {
            while let Some(order) = inbox.recv().await {
                order(own.clone());
            }
        };
        core.env().tasks.spawn_local("orders", Box::pin(serving));
    }

    /// Runs something on the core and returns what comes out; `None` if the core has ended.
    async fn run<T: Send + 'static, F: Future<Output = T> + 'static>(
        &self,
        work: impl FnOnce(ShardCore) -> F + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let order: Order = Box::new(move |core| {
            let tasks = core.env().tasks.clone();
            let working = work(core);
            let task = async move {
                let _ = sender.send(working.await);
            };
            tasks.spawn_local("order", Box::pin(task));
        });
        self.sender.send(order).ok()?;
        receiver.await.ok()
    }
}

/// What an operator may ask of the shards and do to them, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Operator(pub(crate) Arc<Orders>);

impl Operator {
    /// Reports all shards, by the start of their ranges.
    ///
    /// # Errors
    /// A sentence: the server stops.
    pub async fn shards(&self) -> Result<Vec<ShardReport>, String> {
        self.0.run(|core| async move { core.shards().await }).await.unwrap_or_else(ended)
    }

    /// Splits every shard at its midpoint while all of them serve. Returns how many were split, and
    /// why others were not.
    ///
    /// # Errors
    /// A sentence: the server stops.
    pub async fn reshard_double(&self) -> Result<(usize, Vec<String>), String> {
        let split = self.0.run(|core| async move { Ok(core.reshard_double().await) });
        split.await.unwrap_or_else(ended)
    }

    /// Splits the shard that has a place, there. Returns the id of the new shard.
    ///
    /// # Errors
    /// A sentence: the place divides no shard, or the server stops.
    pub async fn split_at(&self, at: RoutingKey) -> Result<u64, String> {
        let split = self.0.run(|core| async move { core.split_at(at).await.map(|id| id.0) });
        split.await.unwrap_or_else(ended)
    }
}

fn ended<T>() -> Result<T, String> {
    Err("the server stops".to_owned())
}
