//! Envelopes: messages of replicas on their way between two engines.
//!
//! ```text
//!   packet     version u8, then envelopes up to the end
//!   envelope   shard varint | sent varint | keep varint | message: len varint, ...
//! ```
//!
//! What the replicas of a turn have to say to one engine goes in one packet, whatever the shards: with
//! many of them heartbeats are most of it, a few bytes each. *Sent* is the lease's ([`crate::lease`]): with
//! a leader's message the moment it was sent, with an answer the newest that the follower has had of its
//! leader, else 0. *Keep* is with a leader's message the first index that some replica may still ask for:
//! nobody lets go of the log from there on.
//!
//! The page is docs/formats/consensus.md.

use atoll_encoding::{Malformed, Reader, varint};
use bytes::Bytes;

use crate::consensus::Message;
use crate::descriptor::ShardId;

const VERSION: u8 = 1;

/// A message and what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Whose it is.
    pub shard: ShardId,
    /// For the leader's lease.
    pub sent: u64,
    /// The first index that is still needed by somebody, with a leader's message; else 0.
    pub keep: u64,
    /// What one replica says to another.
    pub message: Message,
}

/// Collects the envelopes for one engine.
#[derive(Debug, Default)]
pub struct Packet {
    bytes: Vec<u8>,
    message: Vec<u8>,
}

impl Packet {
    /// Adds an envelope.
    pub fn push(&mut self, envelope: &Envelope) {
        if self.bytes.is_empty() {
            self.bytes.push(VERSION);
        }
        varint::put(&mut self.bytes, envelope.shard.0);
        varint::put(&mut self.bytes, envelope.sent);
        varint::put(&mut self.bytes, envelope.keep);
        self.message.clear();
        envelope.message.encode(&mut self.message);
        varint::put_bytes(&mut self.bytes, &self.message);
    }

    /// Returns how many bytes it has.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes the bytes; the packet is empty afterwards.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Takes a packet apart. Payloads of entries point into `bytes` and keep it alive.
///
/// # Errors
/// The bytes are no packet of a known form. What stands before that is lost with it: messages may be.
pub fn open(bytes: &Bytes) -> Result<Vec<Envelope>, Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u8("the version of a packet")? != VERSION {
        return Err(Malformed { offset: 0, expected: "version 1 of a packet" });
    }
    let mut envelopes = Vec::new();
    while reader.offset() < bytes.len() {
        let shard = ShardId(reader.varint("a shard")?);
        let sent = reader.varint("a sending time")?;
        let keep = reader.varint("an index")?;
        let len = reader.bytes("a message")?.len();
        let end = reader.offset();
        let message = Message::decode(&bytes.slice(end - len..end))
            .map_err(|malformed| Malformed { offset: end - len + malformed.offset, ..malformed })?;
        envelopes.push(Envelope { shard, sent, keep, message });
    }
    Ok(envelopes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::{Config, Consensus, Members, ShardConsensus, Stored};

    /// What a candidate of three says, and what one of them answers.
    fn messages() -> Vec<Message> {
        let restore = |replica| {
            let config = Config { settle_ticks: 0, ..Config::new(5, replica) };
            let members = Members::of_voters([1, 2, 3]);
            Consensus::restore(config, Stored::new_group(members)).unwrap()
        };
        let (mut one, mut two) = (restore(1), restore(2));
        one.campaign();
        let asked = one.ready().unwrap().messages;
        let to_two = asked.iter().find(|m| m.to() == 2).unwrap().clone();
        two.step(to_two).unwrap();
        let mut all = asked;
        while let Some(effects) = two.ready() {
            two.persisted(effects.number);
            all.extend(effects.messages);
        }
        assert!(all.len() > 2, "there is an answer: {all:?}");
        all
    }

    fn packet() -> (Vec<Envelope>, Bytes) {
        let mut packet = Packet::default();
        let envelopes: Vec<Envelope> = messages()
            .into_iter()
            .enumerate()
            .map(|(n, message)| Envelope {
                shard: ShardId(5),
                sent: 1000 * n as u64,
                keep: n as u64,
                message,
            })
            .collect();
        envelopes.iter().for_each(|envelope| packet.push(envelope));
        assert!(!packet.is_empty() && packet.len() > envelopes.len());
        let bytes = packet.take();
        assert!(packet.is_empty());
        (envelopes, bytes.into())
    }

    #[test]
    fn what_goes_into_a_packet_comes_out_of_it() {
        let (envelopes, bytes) = packet();
        assert_eq!(open(&bytes), Ok(envelopes));
    }

    #[test]
    fn a_packet_that_was_cut_within_an_envelope_is_refused_with_the_place() {
        let (envelopes, bytes) = packet();
        let mut whole = 0;
        for len in 0..bytes.len() {
            match open(&bytes.slice(..len)) {
                Ok(some) => {
                    assert_eq!(some, envelopes[..some.len()]);
                    whole += 1;
                }
                Err(malformed) => assert!(malformed.offset <= len, "{malformed:?} in {len}"),
            }
        }
        assert_eq!(whole, envelopes.len(), "one cut before each envelope");
    }
}
