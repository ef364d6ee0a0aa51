//! The post office of an engine: brings packets and questions of its cores to other engines, and theirs to
//! its cores.
//!
//! A link belongs to one thread, stores are on several. So what is to be carried goes through a queue to
//! the core that has the link, which is the first: two wake-ups, and only for engines with several cores.
//! What arrives is handed to that core, which knows where shards are.
//!
//! *Rejected for now:* a link on each core. It would spare the queue, and cost connections: cores of one
//! engine times cores of the other.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use atoll_env::sync::{Either, QueueReceiver, QueueSender, oneshot, queue, select_biased};
use atoll_env::{Env, Instant};
use atoll_kv::{Asked, Carrier, Core, Lost, Program};
use atoll_link::{CallError, Class, Handler, Link, Options, Responder};
use atoll_shard::replica::EngineId;
use bytes::Bytes;

/// How long a question may take. Whoever asks gives up before.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Where an engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its directory's id.
    pub id: atoll_link::EngineId,
    /// Where it listens for other engines.
    pub address: SocketAddr,
}

/// How an engine's post is opened.
#[derive(Clone)]
pub struct PostOptions {
    /// The engine's own link.
    pub link: Options,
    /// The other engines of the database, by their numbers.
    pub engines: BTreeMap<EngineId, Place>,
}

/// What is to be carried.
enum Item {
    Packet(EngineId, Vec<u8>),
    Question(EngineId, Vec<u8>, oneshot::Sender<Result<Bytes, Lost>>),
}

/// The part of a post that cores give things to. Made before the node is opened, and used from then on.
struct Counter {
    items: QueueSender<Item>,
}

impl Carrier for Counter {
    fn send(&self, to: EngineId, packet: Vec<u8>) {
        // Without a post nothing arrives anywhere; consensus says it again.
        let _ = self.items.send(Item::Packet(to, packet));
    }

    fn ask(&self, to: EngineId, question: Vec<u8>) -> Asked {
        let (sender, receiver) = oneshot::channel();
        let item = Item::Question(to, question, sender);
        if self.items.send(item).is_err() {
            return Box::pin(std::future::ready(Err(Lost::NotSent)));
        }
        Box::pin(async move { receiver.await.unwrap_or(Err(Lost::Unknown)) })
    }
}

/// What was given to a carrier and not collected yet.
pub struct Post {
    items: QueueReceiver<Item>,
}

impl Post {
    /// Returns the carrier of a node that is to be opened, and what brings its things away once the node
    /// runs.
    pub fn new() -> (Arc<dyn Carrier>, Post) {
        let (sender, items) = queue();
        (Arc::new(Counter { items: sender }), Post { items })
    }

    /// Opens the engine's link on the calling core and carries until the core ends, also while its stores
    /// are closed: they give their leaderships away then.
    ///
    /// # Errors
    /// A sentence: the address cannot be listened at, or the options contradict each other.
    pub async fn open<P: Program>(
        mut self,
        core: &Core<P>,
        options: PostOptions,
    ) -> Result<(), String> {
        let env = core.env().clone();
        let PostOptions { link, engines } = options;
        let listen = link.listen;
        let handler = Rc::new(Inward { core: core.clone() });
        let link = Link::open(env.clone(), link, handler)
            .await
            .map_err(|e| format!("cannot listen for other engines at {listen}: {e}"))?;
        for place in engines.values() {
            link.set_peer(place.id, place.address);
        }
        let link = Rc::new(link);
        let tasks = env.tasks.clone();
        let core = core.clone();
        let carry = async move {
            let mut ended = std::pin::pin!(core.ended());
            while let Either::Right(Some(item)) =
                select_biased(ended.as_mut(), self.items.recv()).await
            {
                carry(&env, &link, &engines, item);
            }
            link.close();
        };
        tasks.spawn_local("post", Box::pin(carry));
        Ok(())
    }
}

fn carry(env: &Env, link: &Rc<Link>, engines: &BTreeMap<EngineId, Place>, item: Item) {
    match item {
        Item::Packet(to, packet) => {
            if let Some(place) = engines.get(&to) {
                // What is dropped is counted by the link, and said again by consensus.
                let _ = link.send(place.id, [Bytes::from(packet)]);
            }
        }
        Item::Question(to, question, answer) => {
            let Some(place) = engines.get(&to) else {
                let _ = answer.send(Err(Lost::NotSent));
                return;
            };
            let most = Class::Rpc.payload_max();
            if question.len() > most {
                let _ = answer.send(Err(Lost::TooLong(most)));
                return;
            }
            let deadline: Instant = env.clock.now().after(ANSWER_TIME);
            let (link, to) = (link.clone(), place.id);
            let asking = async move {
                let answered = link.call(to, Bytes::from(question), deadline).await;
                let _ = answer.send(answered.map_err(|e| match e {
                    CallError::NotSent(_) | CallError::Refused(_) => Lost::NotSent,
                    CallError::Unknown(_) => Lost::Unknown,
                }));
            };
            begin(env, asking);
        }
    }
}

/// Runs a task up to where it has to wait, the rest as a task of its own: what it does first is done in the
/// order of the calls.
fn begin(env: &Env, task: impl Future<Output = ()> + 'static) {
    let mut task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(task);
    // The deaf waker is replaced by the task's, whose first poll comes at once.
    if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        env.tasks.spawn_local("question", task);
    }
}

/// Brings what arrives to the core.
struct Inward<P: Program> {
    core: Core<P>,
}

impl<P: Program> Handler for Inward<P> {
    fn raft(&self, _: atoll_link::EngineId, message: Bytes) {
        // What does not decode was made by another version: it is as good as lost.
        let _ = self.core.arrived(&message);
    }

    fn request(&self, _: atoll_link::EngineId, request: Bytes, responder: Responder) {
        let answer = self.core.asked(&request);
        let tasks = self.core.env().tasks.clone();
        let respond = async move {
            match answer.await {
                // Nobody here has touched it.
                answer if answer.is_empty() => {
                    responder.refuse("this engine does not understand the question; upgrade it");
                }
                answer => responder.answer(Bytes::from(answer)),
            }
        };
        tasks.spawn_local("answer", Box::pin(respond));
    }

    fn stream(&self, _: atoll_link::EngineId, _: Bytes, receiver: atoll_link::Receiver) {
        // Nothing is sent in bulk yet.
        drop(receiver);
    }
}
