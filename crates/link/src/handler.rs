//! What the owner of a link does with what arrives.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::bulk::Receiver;
use crate::id::{Class, ClusterId, EngineId};
use crate::refusal::Refused;
use crate::rpc::Responder;

/// An engine at the other end of a connection, as it has proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub engine: EngineId,
    /// Its cluster; [`ClusterId::NONE`] if it wants to join one.
    pub cluster: ClusterId,
    /// How often its directory was opened.
    pub incarnation: u64,
    /// Its end of the connection: where it was dialled, or where it came from.
    pub address: SocketAddr,
    /// The version of the protocol that both speak.
    pub version: u16,
}

/// The owner of a link. Its methods are called on the link's thread by the link's tasks, never
/// inside of a call of [`Link`](crate::Link); they may call the link. While one runs nothing else is
/// read on this link: long work belongs into a task of the owner.
///
/// What it is handed over, the owner bounds: the link has no queue of what arrived on `raft`, at most
/// [`calls_max`](crate::Options::calls_max) responders and
/// [`streams_max`](crate::Options::streams_max) receivers for each peer.
pub trait Handler {
    /// A message of consensus. In the order in which its sender sent them, with gaps.
    fn raft(&self, from: EngineId, message: Bytes);

    /// A question. Dropping the responder tells the other side that the outcome is not known.
    fn request(&self, from: EngineId, request: Bytes, responder: Responder);

    /// A bulk stream that a peer opened. Dropping the receiver stops it.
    fn stream(&self, from: EngineId, header: Bytes, receiver: Receiver);

    /// Decides whether an engine that has proved the cluster key may connect. By default those of our
    /// cluster may, and those that belong to none may not.
    ///
    /// # Errors
    /// The sentence says to the other side why not, and what to do.
    fn welcome(&self, peer: &Peer) -> Result<(), String> {
        match peer.cluster {
            ClusterId::NONE => Err("this engine lets nobody join: ask one that does".to_owned()),
            _ => Ok(()),
        }
    }

    /// A connection of a class came about.
    fn up(&self, peer: &Peer, class: Class) {
        let _ = (peer, class);
    }

    /// A connection of a class ended; it may come about again by itself. Told once for each
    /// [`Handler::up`], before the next one for this peer and class.
    fn down(&self, engine: EngineId, class: Class, why: &str) {
        let _ = (engine, class, why);
    }

    /// This side refused somebody, or was refused. To be logged; with
    /// [`Code::Replaced`](crate::Code::Replaced) by the peer this process is of the past and should
    /// stop, with [`Code::Copied`](crate::Code::Copied) an operator has to act. Told at every try, and
    /// anybody who can connect can make it happen: a log wants a limit.
    fn refused(&self, refused: &Refused) {
        let _ = refused;
    }

    /// An engine could not be connected to; it is tried again. Told at every try, for each class.
    fn unreachable(&self, engine: EngineId, address: SocketAddr, why: &str) {
        let _ = (engine, address, why);
    }
}
