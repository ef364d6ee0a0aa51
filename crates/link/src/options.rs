//! Who this engine is, and the limits within which it talks.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::net::Stream;

use crate::handshake::{ClusterKey, Hello};
use crate::id::{Class, ClusterId, EngineId, Role};

/// The versions of the protocol that this code speaks.
pub const VERSIONS: RangeInclusive<u16> = 1..=1;

/// Turns the stream of a connection into the one to talk on, before its first byte: the place where
/// TLS comes in. The role says which side of a TLS handshake it is.
pub type Wrap = Rc<dyn Fn(Box<dyn Stream>, Role) -> Wrapped>;

/// Decides whether what an engine says of itself fits what its stream knows of it.
pub type Check = Box<dyn Fn(&Hello) -> Result<(), String>>;

/// What a [`Wrap`] makes of a stream.
pub struct Wrapped {
    /// The stream to talk on. An error of kind `InvalidData` is one of the wrapping itself, and is
    /// told to the owner.
    pub stream: Box<dyn Stream>,
    /// Asked once the other side has proved the cluster key; its sentence goes to both sides.
    pub check: Option<Check>,
}

/// Who an engine is, where it listens, and its limits. Everything but the identity has a default.
///
/// The limits are for each peer. With the defaults one that does its worst, and knows the cluster key,
/// makes this side hold some 130 MiB: half of it answers and chunks, 16 MiB each of requests in either
/// direction, a message of 8 MiB waiting and a frame of 8 MiB half read. Other peers do not notice.
#[derive(Clone)]
pub struct Options {
    /// The engine's id.
    pub engine: EngineId,
    /// Its cluster; [`ClusterId::NONE`] if it is to join one.
    pub cluster: ClusterId,
    /// How often its directory was opened. Has to grow with every start, and be durable before the
    /// link opens: by this peers tell a restart from a copy.
    pub incarnation: u64,
    /// Where it listens for others; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The cluster's secret. Whether an address may do without: [`policy`](crate::policy).
    pub key: Option<ClusterKey>,
    /// TLS, if there is any.
    pub wrap: Option<Wrap>,
    /// The versions of the protocol that it speaks.
    pub versions: RangeInclusive<u16>,
    /// How long connecting may take. 2 s.
    pub connect_timeout: Duration,
    /// How long a handshake may take. 5 s.
    pub handshake_timeout: Duration,
    /// The wait before the first try to connect again; doubled by each that fails. 50 ms.
    pub backoff_min: Duration,
    /// The longest wait between tries. 2 s.
    pub backoff_max: Duration,
    /// How long a connection of each class may be silent, or not take what is sent, before it is
    /// closed: raft 2 s, rpc 5 s, bulk 10 s. After a quarter of it without a word the other side is
    /// asked whether it is there.
    pub silence: [Duration; 3],
    /// Bytes of messages that wait for each peer, raft. 8 MiB: a message of the longest length fits
    /// whenever nothing else waits.
    pub raft_queue_bytes: usize,
    /// Calls of each peer that are under way, in either direction. 256, and 4096 at most.
    pub calls_max: usize,
    /// Bytes of requests that are under way for each peer, in either direction, and of answers that
    /// wait to be sent or to be taken. 16 MiB each.
    pub call_bytes: usize,
    /// Bulk streams of each peer, in either direction. 16.
    pub streams_max: usize,
    /// Bytes that the sender of a bulk stream may be ahead of its reader. 1 MiB.
    pub window: usize,
    /// Connections that have not proved who they are; of one address a quarter of them. 64.
    pub handshakes_max: usize,
    /// Engines that may be connected at once. 256.
    pub peers_max: usize,
}

impl Options {
    /// Returns the defaults for an engine.
    pub fn new(
        engine: EngineId,
        cluster: ClusterId,
        incarnation: u64,
        listen: SocketAddr,
    ) -> Options {
        Options {
            engine,
            cluster,
            incarnation,
            listen,
            key: None,
            wrap: None,
            versions: VERSIONS,
            connect_timeout: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            silence: [2, 5, 10].map(Duration::from_secs),
            raft_queue_bytes: Class::Raft.payload_max() + 64,
            calls_max: 256,
            call_bytes: 16 << 20,
            streams_max: 16,
            window: 1 << 20,
            handshakes_max: 64,
            peers_max: 256,
        }
    }

    /// Checks what a later failure would not explain.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.engine.0 == 0 {
            return Err("an engine's id cannot be 0: draw a UUID for its directory".to_owned());
        }
        let longest = Class::Bulk.payload_max() + crate::bulk::CHUNK_COST;
        if self.window < longest || u32::try_from(self.window).is_err() {
            return Err(format!(
                "the window of a bulk stream is {} bytes and has to be {longest} at least, so that \
                every chunk fits, and below 4 GiB",
                self.window
            ));
        }
        if self.calls_max > crate::outbox::URGENT_MAX / 2 {
            return Err(format!("{} calls at once are too many: 4096 at most", self.calls_max));
        }
        if self.silence.iter().any(|silence| *silence < Duration::from_millis(8)) {
            return Err("a connection cannot be closed after less than 8 ms of silence".to_owned());
        }
        Ok(())
    }
}
