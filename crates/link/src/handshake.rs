//! The handshake: who is there, whether both may talk, and the proof of it. Pure: bytes in, bytes out.
//!
//! ```text
//!   dialler                                  acceptor
//!      | hello (versions, cluster, engine, nonce, ...) -->
//!                                   <-- hello           nothing is said before a hello was read
//!      | proof (HMAC under the cluster key) -->
//!                                           admit?      the owner decides, and who is connected
//!                                   <-- proof
//!    admit?
//!      | verdict: yes -->
//!                                           done
//! ```
//!
//! Either side may send a *verdict* with a refusal instead of its next message; then both know why. An
//! acceptor that changes its mind after its proof closes by a frame, since the dialler may be done.
//!
//! # What a proof proves
//! HMAC-SHA256 under the cluster key, over the role of whoever proves and over both hellos, byte by
//! byte. A hello has 32 random bytes, so no proof of another handshake fits (replay). The role is
//! in it, so no proof comes back to the one who made it (reflection). Both hellos are in it, so
//! neither can be changed on the way: not the versions either, to make both speak an old one.
//!
//! It does not prove that the frames that follow come from the same machine: somebody who can change
//! what is on the wire can let the handshake pass and go on in its place. Nor does it prove which engine
//! of those that have the key it is. Both is what TLS is for, with a certificate for each engine (see
//! [`policy`](crate::policy)). The key keeps out whoever only can connect.
//!
//! # Invariants
//! - What a peer says of itself is told to nobody, and changes nothing, before its proof was verified.
//! - A handshake holds at most [`MESSAGE_MAX`] bytes of a peer at a time.
//! - Proofs are compared in constant time.
//!
//! The format is described in docs/formats/link.md.

use std::fmt;
use std::ops::RangeInclusive;

use atoll_encoding::checksum::{self, Place};
use atoll_encoding::{Malformed, Reader};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::frame::{Encoder, Kind, Lane, SENTENCE_MAX, close_payload};
use crate::id::{Class, ClusterId, EngineId, Role};
use crate::refusal::{Code, Refusal, cut, readable};

/// What every message of a handshake begins with.
pub const MAGIC: [u8; 8] = *b"AtollLnk";
/// Magic, kind, length, checksum.
const HEADER_LEN: usize = 8 + 1 + 2 + 4;
/// The longest body.
const BODY_MAX: usize = 1 + SENTENCE_MAX;
/// The longest message, in bytes.
pub const MESSAGE_MAX: usize = HEADER_LEN + BODY_MAX;
const HAS_KEY: u8 = 1;

/// The secret that the engines of a cluster share.
#[derive(Clone)]
pub struct ClusterKey(Vec<u8>);

impl ClusterKey {
    /// The fewest bytes that are a key.
    pub const LEN_MIN: usize = 16;

    /// Makes a key of the content of its file.
    ///
    /// # Errors
    /// It is shorter than [`ClusterKey::LEN_MIN`]; the sentence says what to do.
    pub fn new(bytes: &[u8]) -> Result<ClusterKey, String> {
        if bytes.len() < ClusterKey::LEN_MIN {
            return Err(format!(
                "a cluster key has at least {} bytes and this one has {}: write 32 random bytes \
                into the file of --cluster-key",
                ClusterKey::LEN_MIN,
                bytes.len()
            ));
        }
        Ok(ClusterKey(bytes.to_vec()))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)") // a secret is not for logs
    }
}

/// Returns 32 bytes that nobody can predict who does not have the key, and that do not repeat.
///
/// `drawn` comes from the environment, whose generator is good for seeds and not for secrets: 32 of
/// its bytes would be its whole state. So they are not shown, but what the key makes of them.
pub fn nonce(key: Option<&ClusterKey>, engine: EngineId, drawn: [u64; 4]) -> [u8; 32] {
    let mut mac = mac(key);
    mac.update(b"atoll link nonce");
    mac.update(&engine.0.to_be_bytes());
    drawn.iter().for_each(|word| mac.update(&word.to_le_bytes()));
    mac.finalize().into_bytes().into()
}

fn mac(key: Option<&ClusterKey>) -> Hmac<Sha256> {
    // Without a key the proof still shows that both saw the same hellos.
    let key = key.map_or(&[][..], |key| &key.0);
    <Hmac<Sha256> as KeyInit>::new_from_slice(key)
        .expect("invariant: HMAC takes keys of any length")
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The versions of the protocol that it speaks.
    pub versions: RangeInclusive<u16>,
    /// Its cluster, [`ClusterId::NONE`] if it belongs to none yet.
    pub cluster: ClusterId,
    /// Its id.
    pub engine: EngineId,
    /// How often its data directory was opened: it grows with every start.
    pub incarnation: u64,
    /// Drawn at random when the process began to listen: tells two processes apart that started
    /// from copies of one directory, and so have id and incarnation in common.
    pub boot: u64,
    /// What the connection is for.
    pub class: Class,
    /// Whether it has a cluster key.
    pub has_key: bool,
    /// Random, of this handshake only.
    pub nonce: [u8; 32],
}

impl Hello {
    /// Appends the body of the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.versions.start().to_le_bytes());
        out.extend(self.versions.end().to_le_bytes());
        out.extend(self.cluster.0.to_be_bytes());
        out.extend(self.engine.0.to_be_bytes());
        out.extend(self.incarnation.to_le_bytes());
        out.extend(self.boot.to_le_bytes());
        out.push(self.class as u8);
        out.push(u8::from(self.has_key) * HAS_KEY);
        out.extend(self.nonce);
    }

    /// Decodes the body of the message. What follows is of later versions, and is not looked at: it
    /// is allowed only from an engine that speaks versions which are not known here.
    pub fn decode(body: &[u8], known: u16) -> Result<Hello, Malformed> {
        let mut reader = Reader::new(body);
        let min = u16::from_le_bytes(reader.array("the lowest version")?);
        let max = u16::from_le_bytes(reader.array("the highest version")?);
        if min == 0 || min > max {
            return Err(Malformed { offset: 0, expected: "a range of versions" });
        }
        let cluster = ClusterId(u128::from_be_bytes(reader.array("a cluster id")?));
        let engine = EngineId(u128::from_be_bytes(reader.array("an engine id")?));
        let incarnation = reader.u64("an incarnation")?;
        let boot = reader.u64("the number of a process")?;
        let class = Class::from_byte(reader.u8("a class")?);
        let class = class.ok_or(reader.malformed("a known class"))?;
        let flags = reader.u8("flags")?;
        let nonce = reader.array("a nonce")?;
        if max <= known {
            reader.finish("the end of the hello")?;
            if flags & !HAS_KEY != 0 {
                return Err(reader.malformed("known flags"));
            }
        }
        let has_key = flags & HAS_KEY != 0;
        Ok(Hello { versions: min..=max, cluster, engine, incarnation, boot, class, has_key, nonce })
    }
}

/// The kinds of messages. The numbers are on the wire: do not change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum MessageKind {
    Hello = 1,
    Proof = 2,
    Verdict = 3,
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    checksum::seeded(Place { file: 0, salt: 0, offset: 0 }, &[header, body])
}

fn put(out: &mut Vec<u8>, kind: MessageKind, body: &[u8]) {
    let start = out.len();
    out.extend(MAGIC);
    out.push(kind as u8);
    out.extend((body.len() as u16).to_le_bytes());
    let sum = checksum(&out[start..], body);
    out.extend(sum.to_le_bytes());
    out.extend(body);
}

/// Appends messages whose bodies are pieces of `bytes`: each begins with a byte for its kind and one for
/// its length.
#[cfg(feature = "fuzzing")]
pub(crate) fn put_all(out: &mut Vec<u8>, mut bytes: &[u8]) {
    while let Some((&[kind, len], rest)) = bytes.split_first_chunk() {
        let (body, rest) = rest.split_at(rest.len().min(len.into()));
        let kind =
            [MessageKind::Hello, MessageKind::Proof, MessageKind::Verdict][usize::from(kind) % 3];
        put(out, kind, body);
        bytes = rest;
    }
}

/// Takes a message off the front of `inbox`; `None` if it is not whole.
fn take(inbox: &mut Vec<u8>) -> Result<Option<(MessageKind, Vec<u8>)>, Refusal> {
    let beginning = inbox.len().min(MAGIC.len());
    if inbox[..beginning] != MAGIC[..beginning] {
        return Err(Refusal::NotAnEngine { looks_like: looks_like(inbox) });
    }
    if inbox.len() < HEADER_LEN {
        return Ok(None);
    }
    let kind = match inbox[8] {
        1 => MessageKind::Hello,
        2 => MessageKind::Proof,
        3 => MessageKind::Verdict,
        _ => return Err(Refusal::Damaged { expected: "a known message" }),
    };
    let len = usize::from(u16::from_le_bytes([inbox[9], inbox[10]]));
    if len > BODY_MAX {
        return Err(Refusal::Damaged { expected: "a length that is allowed" });
    }
    let end = HEADER_LEN + len;
    if inbox.len() < end {
        return Ok(None);
    }
    let sum = u32::from_le_bytes([inbox[11], inbox[12], inbox[13], inbox[14]]);
    if sum != checksum(&inbox[..11], &inbox[HEADER_LEN..end]) {
        return Err(Refusal::Damaged { expected: "a checksum that verifies" });
    }
    let body = inbox[HEADER_LEN..end].to_vec();
    inbox.drain(..end);
    Ok(Some((kind, body)))
}

/// Guesses what somebody is by what he says first.
fn looks_like(bytes: &[u8]) -> &'static str {
    const METHODS: [&[u8]; 8] =
        [b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"PRI ", b"CONN"];
    if METHODS.iter().any(|method| bytes.starts_with(method)) {
        return "an HTTP client";
    }
    if bytes.starts_with(b"HTTP/") {
        return "an HTTP server";
    }
    match bytes {
        [0x16, 3, ..] => "a TLS client, where this side speaks plain text",
        [0x15, 3, ..] => "a TLS server, where this side speaks plain text",
        [b'*', ..] => "a Redis client",
        [b'-' | b'+', ..] => "a Redis server",
        _ => "something else",
    }
}

/// Who is at the other end, proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// What it said of itself.
    pub hello: Hello,
    /// The version of the protocol that both speak now.
    pub version: u16,
    /// A number that both know and that no other connection has: part of the frames' checksums.
    pub salt: u64,
}

/// What a handshake came to by the bytes it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It waits for more bytes.
    More,
    /// The other side has proved who it is: call [`Handshake::admit`] or [`Handshake::refuse`].
    Admit(Proven),
    /// Both sides agreed; bytes that are left belong to frames ([`Handshake::into_rest`]).
    Done(Proven),
    /// This side refuses; what was appended to the output has to be sent before closing.
    Refuse(Refusal),
    /// The other side refuses.
    Refused(Code, String),
}

#[derive(Debug)]
enum State {
    /// For the other side's hello.
    Hello,
    /// For its proof.
    Proof(Proven),
    /// For this side's owner.
    Owner(Proven),
    /// For the dialler's verdict.
    Verdict(Proven),
    Ended,
}

/// One side of a handshake.
#[derive(Debug)]
pub struct Handshake {
    role: Role,
    ours: Hello,
    key: Option<ClusterKey>,
    /// Whom the dialler expects, if it knows.
    expected: Option<EngineId>,
    state: State,
    inbox: Vec<u8>,
    /// The bodies of both hellos, the dialler's first.
    hellos: [Vec<u8>; 2],
}

impl Handshake {
    /// Begins as the side that made the connection; appends what is to be sent.
    pub fn dial(
        ours: Hello,
        key: Option<ClusterKey>,
        expected: Option<EngineId>,
        out: &mut Vec<u8>,
    ) -> Handshake {
        let mut handshake = Handshake::new(Role::Dialler, ours, key, expected);
        put(out, MessageKind::Hello, &handshake.hellos[0]);
        handshake.state = State::Hello;
        handshake
    }

    /// Begins as the side that listens. Its class is taken from the dialler's hello.
    pub fn accept(ours: Hello, key: Option<ClusterKey>) -> Handshake {
        Handshake::new(Role::Acceptor, ours, key, None)
    }

    fn new(
        role: Role,
        ours: Hello,
        key: Option<ClusterKey>,
        expected: Option<EngineId>,
    ) -> Handshake {
        let mut handshake = Handshake {
            role,
            ours: Hello { has_key: key.is_some(), ..ours },
            key,
            expected,
            state: State::Hello,
            inbox: Vec::new(),
            hellos: [Vec::new(), Vec::new()],
        };
        handshake.write_hello();
        handshake
    }

    fn write_hello(&mut self) {
        let body = &mut self.hellos[self.role as usize];
        body.clear();
        self.ours.encode(body);
    }

    /// Takes bytes of the other side and appends the answers to `out`. At most [`MESSAGE_MAX`] bytes
    /// should come at once; more are held, and nothing else bounds them.
    pub fn receive(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Step {
        self.inbox.extend_from_slice(bytes);
        loop {
            if matches!(self.state, State::Owner(_) | State::Ended) {
                return Step::More;
            }
            match take(&mut self.inbox) {
                Ok(None) => return Step::More,
                Ok(Some((kind, body))) => match self.message(kind, &body, out) {
                    Ok(Step::More) => {}
                    Ok(step) => return step,
                    Err(refusal) => return self.refuse(refusal, out),
                },
                Err(refusal) => return self.refuse(refusal, out),
            }
        }
    }

    fn message(
        &mut self,
        kind: MessageKind,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Step, Refusal> {
        if kind == MessageKind::Verdict {
            let (&code, sentence) =
                body.split_first().ok_or(Refusal::Damaged { expected: "a verdict" })?;
            if code != 0 {
                self.state = State::Ended;
                return Ok(Step::Refused(Code::from_byte(code), readable(sentence)));
            }
        }
        match (std::mem::replace(&mut self.state, State::Ended), kind) {
            (State::Hello, MessageKind::Hello) => {
                let theirs = Hello::decode(body, *self.ours.versions.end());
                let theirs = theirs.map_err(|bad| Refusal::Damaged { expected: bad.expected })?;
                if self.role == Role::Acceptor {
                    self.ours.class = theirs.class;
                    self.write_hello();
                }
                self.hellos[self.role.other() as usize] = body.to_vec();
                let version = self.check(&theirs)?;
                match self.role {
                    Role::Acceptor => put(out, MessageKind::Hello, &self.hellos[1]),
                    Role::Dialler => put(out, MessageKind::Proof, &self.proof(Role::Dialler)),
                }
                self.state = State::Proof(Proven { hello: theirs, version, salt: self.salt() });
                Ok(Step::More)
            }
            (State::Proof(proven), MessageKind::Proof) => {
                let mac = self.transcript(self.role.other());
                mac.verify_slice(body).map_err(|_| Refusal::WrongKey)?;
                self.state = State::Owner(proven.clone());
                Ok(Step::Admit(proven))
            }
            (State::Verdict(proven), MessageKind::Verdict) => Ok(Step::Done(proven)),
            _ => Err(Refusal::Protocol("a message of the handshake out of its order")),
        }
    }

    /// Decides by the other side's hello alone whether the handshake goes on; returns the version.
    fn check(&self, theirs: &Hello) -> Result<u16, Refusal> {
        let ours = &self.ours;
        let version = *ours.versions.end().min(theirs.versions.end());
        if version < *ours.versions.start().max(theirs.versions.start()) {
            let (ours, theirs) = (ours.versions.clone(), theirs.versions.clone());
            return Err(Refusal::Version { ours, theirs });
        }
        match (ours.has_key, theirs.has_key) {
            (true, false) => return Err(Refusal::NoKeyThere),
            (false, true) => return Err(Refusal::NoKeyHere),
            _ => {}
        }
        let none = |cluster| cluster == ClusterId::NONE;
        if ours.cluster != theirs.cluster && !none(ours.cluster) && !none(theirs.cluster) {
            let (ours, theirs) = (ours.cluster, theirs.cluster);
            return Err(Refusal::ForeignCluster { ours, theirs });
        }
        if ours.engine == theirs.engine {
            return Err(match ours.boot == theirs.boot {
                true => Refusal::Myself,
                false => Refusal::SameEngine(ours.engine),
            });
        }
        if let Some(expected) = self.expected.filter(|expected| *expected != theirs.engine) {
            return Err(Refusal::OtherEngine { expected, found: theirs.engine });
        }
        if ours.class != theirs.class {
            return Err(Refusal::Protocol("an answer for another class"));
        }
        Ok(version)
    }

    /// Goes on after [`Step::Admit`]: this side wants the connection.
    pub fn admit(&mut self, out: &mut Vec<u8>) -> Step {
        let State::Owner(proven) = std::mem::replace(&mut self.state, State::Ended) else {
            return self.refuse(Refusal::Protocol("an admission out of its order"), out);
        };
        match self.role {
            Role::Acceptor => {
                put(out, MessageKind::Proof, &self.proof(Role::Acceptor));
                self.state = State::Verdict(proven);
                // The verdict may have come already, from a dialler that did not wait.
                self.receive(&[], out)
            }
            Role::Dialler => {
                put(out, MessageKind::Verdict, &[0]);
                Step::Done(proven)
            }
        }
    }

    /// Ends the handshake: this side does not want the connection. Appends what tells the other side.
    pub fn refuse(&mut self, refusal: Refusal, out: &mut Vec<u8>) -> Step {
        let sentence = || cut(&refusal.theirs());
        match (&refusal, std::mem::replace(&mut self.state, State::Ended)) {
            // The dialler may be done by the proof that it has from us: what follows is a frame for it.
            (_, State::Verdict(proven)) => {
                let Proven { hello, version, salt } = proven;
                let sender = Role::Acceptor;
                let lane = Lane { class: hello.class, version, salt, sender };
                let payload = close_payload(refusal.code(), &sentence());
                Encoder::new(lane).frame(out, Kind::Close, 0, &[payload]);
            }
            // Who does not speak the protocol gets a line that any client shows, and no more.
            (Refusal::NotAnEngine { .. }, _) if self.role == Role::Acceptor => {
                out.extend(format!("AtollDB: {}\r\n", refusal.theirs()).bytes());
            }
            (Refusal::NotAnEngine { .. }, _) => {} // it began with something that is not for us
            _ => {
                let body = close_payload(refusal.code(), &sentence());
                put(out, MessageKind::Verdict, &body);
            }
        }
        Step::Refuse(refusal)
    }

    /// Returns the bytes that came after the handshake: the first frames.
    pub fn into_rest(self) -> Vec<u8> {
        self.inbox
    }

    /// Returns who the other side says it is, proved or not. For logs.
    pub fn claimed(&self) -> Option<EngineId> {
        let theirs = &self.hellos[self.role.other() as usize];
        Hello::decode(theirs, 0).ok().map(|hello| hello.engine)
    }

    fn transcript(&self, prover: Role) -> Hmac<Sha256> {
        let mut mac = mac(self.key.as_ref());
        mac.update(b"atoll link proof");
        mac.update(&[prover as u8]);
        for hello in &self.hellos {
            // With its length, so that no byte can move from one to the other.
            mac.update(&(hello.len() as u32).to_le_bytes());
            mac.update(hello);
        }
        mac
    }

    fn proof(&self, prover: Role) -> [u8; 32] {
        self.transcript(prover).finalize().into_bytes().into()
    }

    /// A number of this connection that both sides can compute. No secret: it keeps frames apart.
    fn salt(&self) -> u64 {
        let mut hash = Sha256::new();
        self.hellos.iter().for_each(|hello| hash.update(hello));
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash.finalize());
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
