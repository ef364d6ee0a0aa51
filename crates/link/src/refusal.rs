//! Why two engines do not talk: a sentence for each side, which says what to do next.
//!
//! Whoever notices has more to say than it should tell: its own sentence goes to its log, the other
//! one over the wire, with a code by which the program of the other side can act.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use crate::frame::{BadFrame, SENTENCE_MAX};
use crate::id::{ClusterId, EngineId};

/// What kind of refusal it is, for a program. The numbers are on the wire: do not change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Code {
    /// The other end is no AtollDB engine, or its bytes are damaged.
    NotAnEngine = 1,
    /// No protocol version that both know.
    Version = 2,
    /// The cluster keys differ.
    WrongKey = 3,
    /// One side has a cluster key, the other has none.
    KeyOnOneSide = 4,
    /// The engines belong to different clusters.
    ForeignCluster = 5,
    /// Both sides have the same engine id.
    SameEngine = 6,
    /// A running engine has this identity and incarnation already: a copied data directory.
    Copied = 7,
    /// A newer incarnation of the engine is connected: this one is of the past and has to stop.
    Replaced = 8,
    /// The pair has a connection of this class that stays instead. Not a fault.
    Redundant = 9,
    /// The owner of the other side does not want this engine.
    Unwelcome = 10,
    /// At this address is another engine than the one that was expected.
    OtherEngine = 11,
    /// Too many connections or engines.
    Busy = 12,
    /// The other side was silent for too long.
    Silent = 13,
    /// The other side broke the protocol.
    Protocol = 14,
    /// The other side stops, or forgot this engine.
    Leaving = 15,
    /// TLS failed, or the certificate is another engine's.
    Certificate = 16,
    /// Something that this version does not know.
    Unknown = 255,
}

impl Code {
    const ALL: [Code; 16] = [
        Code::NotAnEngine,
        Code::Version,
        Code::WrongKey,
        Code::KeyOnOneSide,
        Code::ForeignCluster,
        Code::SameEngine,
        Code::Copied,
        Code::Replaced,
        Code::Redundant,
        Code::Unwelcome,
        Code::OtherEngine,
        Code::Busy,
        Code::Silent,
        Code::Protocol,
        Code::Leaving,
        Code::Certificate,
    ];

    /// Returns the code of a number on the wire; later versions may have others.
    pub fn from_byte(byte: u8) -> Code {
        Code::ALL.into_iter().find(|code| *code as u8 == byte).unwrap_or(Code::Unknown)
    }
}

/// Why this side refuses the other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The first bytes are those of something else.
    NotAnEngine {
        /// What it may be.
        looks_like: &'static str,
    },
    /// The bytes of a handshake do not verify or make no sense.
    Damaged {
        /// What was expected.
        expected: &'static str,
    },
    /// No protocol version that both know.
    Version {
        /// What we know.
        ours: RangeInclusive<u16>,
        /// What the other side knows.
        theirs: RangeInclusive<u16>,
    },
    /// The other side's proof is not made with our cluster key over what we have seen.
    WrongKey,
    /// We have a cluster key, the other side has none.
    NoKeyThere,
    /// The other side has a cluster key, we have none.
    NoKeyHere,
    /// The other side belongs to another cluster.
    ForeignCluster {
        /// Our cluster.
        ours: ClusterId,
        /// The other one.
        theirs: ClusterId,
    },
    /// The other side is this very engine: it dialled itself.
    Myself,
    /// Another process has our engine id.
    SameEngine(EngineId),
    /// A connected engine has the identity and incarnation of the one that comes.
    Copied {
        /// The engine.
        engine: EngineId,
        /// Where the one that is connected is.
        connected: SocketAddr,
    },
    /// A newer incarnation of the engine is connected or comes.
    Replaced {
        /// The engine.
        engine: EngineId,
        /// The incarnation that is refused.
        old: u64,
        /// The one that stays.
        new: u64,
    },
    /// Another connection of this pair and class stays.
    Redundant,
    /// The owner does not want it; his sentence.
    Unwelcome(String),
    /// Another engine answers at an address.
    OtherEngine {
        /// Who was expected.
        expected: EngineId,
        /// Who answers.
        found: EngineId,
    },
    /// The acceptor answered for another class than it was asked for, or anything else out of order.
    Protocol(&'static str),
    /// Bytes that are no frame.
    BadFrame(BadFrame),
    /// Too many connections or engines.
    Busy(&'static str),
    /// TLS failed before anybody could say who he is.
    Encryption(String),
    /// The certificate does not fit what the other side says of itself.
    Certificate(String),
    /// The handshake did not end in time.
    Silent,
    /// This engine stops.
    Leaving,
}

impl Refusal {
    /// Returns what the other side's program is told.
    pub fn code(&self) -> Code {
        match self {
            Refusal::NotAnEngine { .. } | Refusal::Damaged { .. } => Code::NotAnEngine,
            Refusal::Version { .. } => Code::Version,
            Refusal::WrongKey => Code::WrongKey,
            Refusal::NoKeyThere | Refusal::NoKeyHere => Code::KeyOnOneSide,
            Refusal::ForeignCluster { .. } => Code::ForeignCluster,
            Refusal::Myself | Refusal::SameEngine(_) => Code::SameEngine,
            Refusal::Copied { .. } => Code::Copied,
            Refusal::Replaced { .. } => Code::Replaced,
            Refusal::Redundant => Code::Redundant,
            Refusal::Unwelcome(_) => Code::Unwelcome,
            Refusal::OtherEngine { .. } => Code::OtherEngine,
            Refusal::Protocol(_) | Refusal::BadFrame(_) => Code::Protocol,
            Refusal::Busy(_) => Code::Busy,
            Refusal::Encryption(_) | Refusal::Certificate(_) => Code::Certificate,
            Refusal::Silent => Code::Silent,
            Refusal::Leaving => Code::Leaving,
        }
    }

    /// Returns the sentence for whoever is refused. It tells nothing that the refused side could not
    /// know already, since that side may be anybody.
    pub fn theirs(&self) -> String {
        match self {
            Refusal::NotAnEngine { .. } => "this is AtollDB's port for its own engines: clients \
                use the ports of --listen and --http"
                .to_owned(),
            Refusal::Damaged { expected } => format!(
                "your handshake is damaged ({expected} was expected): look for a proxy or a faulty \
                network between the engines"
            ),
            Refusal::Version { ours, theirs } => no_common_version(theirs, ours),
            Refusal::WrongKey => "your cluster key is not the one of this engine: start with the \
                same --cluster-key FILE as the other engines"
                .to_owned(),
            Refusal::NoKeyThere => "this engine has a cluster key and you have none: start with \
                the --cluster-key FILE of the other engines"
                .to_owned(),
            Refusal::NoKeyHere => "you have a cluster key and this engine has none: start it with \
                the same --cluster-key FILE"
                .to_owned(),
            Refusal::ForeignCluster { ours, theirs } => format!(
                "you belong to cluster {theirs} and this engine to cluster {ours}: correct the \
                address, or start with an empty data directory to join"
            ),
            Refusal::Myself => {
                "you dialled yourself: take your own address out of your peers".to_owned()
            }
            Refusal::SameEngine(engine) => format!(
                "this engine has your id, {engine}: one of the two data directories is a copy; \
                stop the copy, and let it join with an empty data directory"
            ),
            Refusal::Copied { engine, connected } => format!(
                "engine {engine} is connected from {connected} in the incarnation that you have: \
                your data directory is a copy, or the other one is; stop the copy, and let it join \
                with an empty data directory"
            ),
            Refusal::Replaced { engine, old, new } => format!(
                "incarnation {new} of engine {engine} is connected and replaces you, incarnation \
                {old}: stop this process"
            ),
            Refusal::Redundant => "the pair has another connection of this kind that stays; \
                nothing is to be done"
                .to_owned(),
            Refusal::Unwelcome(why) => cut(why),
            Refusal::OtherEngine { expected, found } => format!(
                "engine {expected} was expected at your address, and you are {found}: correct the \
                address of one of them"
            ),
            Refusal::Protocol(what) => format!("you broke the protocol of engines ({what})"),
            Refusal::BadFrame(bad) => {
                format!("of what you sent, {bad}: look for a faulty network between the engines")
            }
            Refusal::Busy(what) => format!("this engine has too many {what}: try again later"),
            Refusal::Encryption(why) => format!("TLS failed ({why}): {CERTIFICATES}"),
            Refusal::Certificate(why) => {
                format!("your certificate does not fit ({why}): {CERTIFICATES}")
            }
            Refusal::Silent => {
                "your handshake took too long: look at the load of your machine and \
                at the network"
                    .to_owned()
            }
            Refusal::Leaving => "this engine stops".to_owned(),
        }
    }

    /// Returns the sentence for this side's log; `them` is the other side's address.
    pub fn ours(&self, them: SocketAddr) -> String {
        match self {
            Refusal::NotAnEngine { looks_like } => format!(
                "{them} is not an AtollDB engine but looks like {looks_like}: correct its address, \
                or keep it off this port"
            ),
            Refusal::Damaged { expected } => format!(
                "the handshake of {them} is damaged ({expected} was expected): look for a proxy or \
                a faulty network between the engines"
            ),
            Refusal::Version { ours, theirs } => {
                format!("the engine at {them}: {}", no_common_version(ours, theirs))
            }
            Refusal::WrongKey => format!(
                "the engine at {them} does not have this cluster's key: start it with the same \
                --cluster-key FILE, or keep it off this port"
            ),
            Refusal::NoKeyThere => format!(
                "the engine at {them} has no cluster key and this one has: start it with the same \
                --cluster-key FILE"
            ),
            Refusal::NoKeyHere => format!(
                "the engine at {them} has a cluster key and this one has none: start this one with \
                the same --cluster-key FILE"
            ),
            Refusal::ForeignCluster { ours, theirs } => format!(
                "the engine at {them} belongs to cluster {theirs} and this one to cluster {ours}: \
                correct the address"
            ),
            Refusal::Myself => {
                format!("{them} is this engine itself: take the address out of its peers")
            }
            Refusal::SameEngine(engine) => format!(
                "the engine at {them} has this engine's id, {engine}: one of the two data \
                directories is a copy; stop the copy, and let it join with an empty data directory"
            ),
            Refusal::Copied { engine, connected } => format!(
                "{them} says that it is engine {engine}, which is connected from {connected} in the \
                same incarnation: one of the two data directories is a copy; stop the copy, and let \
                it join with an empty data directory"
            ),
            Refusal::Replaced { engine, old, new } => format!(
                "the process at {them} is incarnation {old} of engine {engine} and was replaced by \
                incarnation {new}: stop it if it still runs"
            ),
            Refusal::Redundant => {
                format!("{them} has another connection of this kind that stays")
            }
            Refusal::Unwelcome(why) => format!("the engine at {them} is not welcome: {why}"),
            Refusal::OtherEngine { expected, found } => format!(
                "engine {expected} was expected at {them}, and {found} answers: correct the address \
                of one of them"
            ),
            Refusal::Protocol(what) => {
                format!("the engine at {them} broke the protocol of engines ({what})")
            }
            Refusal::BadFrame(bad) => {
                format!("of what {them} sent, {bad}: look for a faulty network between the engines")
            }
            Refusal::Busy(what) => {
                format!("{them} was turned away: this engine has too many {what}")
            }
            Refusal::Encryption(why) => format!("TLS with {them} failed ({why}): {CERTIFICATES}"),
            Refusal::Certificate(why) => format!(
                "the certificate of the engine at {them} does not fit ({why}): {CERTIFICATES}"
            ),
            Refusal::Silent => format!(
                "the handshake with {them} took too long: look at the load of that machine and at \
                the network"
            ),
            Refusal::Leaving => "this engine stops".to_owned(),
        }
    }
}

/// What to do about certificates.
const CERTIFICATES: &str =
    "give every engine a certificate of its own, of one authority, by atoll cert";

/// The sentence about versions, for the side that knows `here`.
fn no_common_version(here: &RangeInclusive<u16>, there: &RangeInclusive<u16>) -> String {
    let spoken = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (min, max) if min == max => format!("version {min}"),
        (min, max) => format!("versions {min} to {max}"),
    };
    let older = if here.end() < there.start() { "this" } else { "that" };
    format!(
        "a version that cannot talk to this one: it speaks {} of the protocol between engines, this \
        one {}; upgrade {older} engine",
        spoken(there),
        spoken(here)
    )
}

/// Shortens a sentence to what may be sent.
pub(crate) fn cut(sentence: &str) -> String {
    let mut end = sentence.len().min(SENTENCE_MAX);
    while !sentence.is_char_boundary(end) {
        end -= 1;
    }
    sentence[..end].to_owned()
}

/// Makes a sentence of bytes from a peer fit for a log: short, of one line, without control
/// characters that would move a terminal's cursor.
pub(crate) fn readable(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(SENTENCE_MAX)];
    let printable = |c: char| if c.is_control() { '?' } else { c };
    String::from_utf8_lossy(bytes).chars().map(printable).collect()
}

/// A connection that did not come about, or ended for good, told to the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The other end.
    pub address: SocketAddr,
    /// Who it is, as far as it said so. Proved only for some codes; a hint for a log.
    pub engine: Option<EngineId>,
    /// What kind of refusal, to act on.
    pub code: Code,
    /// The other side refused us; else we refused it.
    pub by_peer: bool,
    /// What happened and what to do next.
    pub sentence: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by_peer {
            true => write!(f, "{} refuses this engine: {}", self.address, self.sentence),
            false => f.write_str(&self.sentence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_by_its_number_and_others_are_unknown() {
        for code in Code::ALL {
            assert_eq!(Code::from_byte(code as u8), code);
        }
        assert_eq!((Code::from_byte(0), Code::from_byte(77)), (Code::Unknown, Code::Unknown));
    }

    #[test]
    fn the_older_side_is_told_to_upgrade_whichever_notices() {
        let refusal = Refusal::Version { ours: 1..=2, theirs: 5..=5 };
        assert_eq!(
            refusal.theirs(),
            "a version that cannot talk to this one: it speaks versions 1 to 2 of the protocol \
            between engines, this one version 5; upgrade that engine"
        );
        assert_eq!(
            refusal.ours("10.0.0.1:7".parse().unwrap()),
            "the engine at 10.0.0.1:7: a version that cannot talk to this one: it speaks version 5 \
            of the protocol between engines, this one versions 1 to 2; upgrade this engine"
        );
    }

    #[test]
    fn a_sentence_from_a_peer_cannot_move_a_cursor_and_is_cut_between_characters() {
        assert_eq!(readable(b"\x1b[2Jgone\r\n\xff"), "?[2Jgone??\u{fffd}");
        let long = "ä".repeat(SENTENCE_MAX);
        assert_eq!(cut(&long).len(), SENTENCE_MAX);
        assert_eq!(cut(&format!("x{long}")).len(), SENTENCE_MAX - 1);
    }
}
