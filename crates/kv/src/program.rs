//! What runs at a shard: the layer above gives its commands a meaning here, so that a command
//! travels to its shard's core as data and is evaluated there in one step.

use std::time::Duration;

use atoll_lsm::Durability;
use atoll_mvcc::keys::{Range, RoutingKey};
use atoll_shard::eval::{Eval, Interrupt, Sight};
use atoll_shard::leader::Base;

/// Why a command got no answer of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may have taken effect or not: the shard was lost before its log said so.
    Unknown,
    /// It took no effect; a sentence that says why.
    Unavailable(String),
    /// It took no effect and never will: it writes more than fits into memory. A sentence with the
    /// limit.
    TooLarge(String),
}

/// A command that still lies where it came in: it is tried there, and copied only if it has to wait.
pub trait Ask<P: Program> {
    /// Returns its place, see [`Program::place`].
    fn place(&self) -> RoutingKey<&[u8]>;

    /// Returns whether it may write.
    fn sight(&self) -> Sight;

    /// Returns what its acknowledgement has to survive.
    fn durability(&self) -> Durability;

    /// Evaluates the command and keeps the reply; it may be called again.
    ///
    /// # Errors
    /// It was interrupted: what `eval` said, passed on.
    fn run<B: Base>(&mut self, program: &P, eval: &mut Eval<'_, B>) -> Result<(), Interrupt>;

    /// Takes the reply of the last run.
    fn reply(&mut self) -> P::Reply;

    /// Copies the command.
    fn call(&mut self) -> P::Call;
}

/// What came of a command that was tried where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried<R> {
    /// The command has its reply.
    Answered,
    /// This is its reply.
    Reply(R),
    /// It was copied; its reply comes later.
    Waits,
}

/// The meaning of commands of one shard.
pub trait Program: 'static {
    /// A command, with everything that it needs.
    type Call: Send + 'static;
    /// What its client is told.
    type Reply: Send + 'static;

    /// Returns a place of the command: all its keys are on the shard that has it, or the command
    /// would not be evaluated in one step.
    fn place<'c>(&self, call: &'c Self::Call) -> RoutingKey<&'c [u8]>;

    /// Returns whether all keys of the command lie in `range`, which has its place. They did when it was
    /// routed; it may have met a split on its way.
    fn fits(&self, call: &Self::Call, range: &Range) -> bool {
        let _ = (call, range);
        true
    }

    /// Returns whether the command may write.
    fn sight(&self, call: &Self::Call) -> Sight;

    /// Returns what its acknowledgement has to survive.
    fn durability(&self, call: &Self::Call) -> Durability;

    /// Evaluates the command; it may be called again for the same command.
    ///
    /// # Errors
    /// It was interrupted: what `eval` said, passed on.
    fn run<B: Base>(
        &self,
        call: &Self::Call,
        eval: &mut Eval<'_, B>,
    ) -> Result<Self::Reply, Interrupt>;

    /// Hears that a key is removed because its deadline has come, and may write what goes with that.
    fn reaped<B: Base>(&self, key: &[u8], value: &[u8], eval: &mut Eval<'_, B>) {
        let _ = (key, value, eval);
    }

    /// Appends a command as bytes, for the engine that leads its shard.
    fn encode_call(&self, call: &Self::Call, out: &mut Vec<u8>);

    /// Reads a command of another engine.
    ///
    /// # Errors
    /// A sentence: this engine cannot evaluate it.
    fn decode_call(&self, bytes: &[u8]) -> Result<Self::Call, String>;

    /// Appends a reply as bytes.
    fn encode_reply(&self, reply: &Self::Reply, out: &mut Vec<u8>);

    /// Reads a reply of another engine.
    ///
    /// # Errors
    /// A sentence: it does not decode.
    fn decode_reply(&self, bytes: &[u8]) -> Result<Self::Reply, String>;

    /// Returns the reply to a command that got no answer.
    fn failed(&self, call: &Self::Call, failure: &Failure) -> Self::Reply;

    /// The entries of a turn of one of the core's stores are applied, and as durable as was asked for,
    /// `took` after the turn began. For statistics.
    fn turn_logged(&self, took: Duration) {
        let _ = took;
    }

    /// A turn was not logged: there is no room on the disk, or the store has stopped. For statistics.
    fn turn_failed(&self) {}
}
