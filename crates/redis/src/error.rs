//! Error replies: the texts clients and test suites match.

use std::borrow::Cow;
use std::fmt;

use crate::store::StoreError;

/// An error reply: a code, a space, a sentence. Bytes, because it may quote the client.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandError(pub(crate) Cow<'static, [u8]>);

impl CommandError {
    /// Returns the text, without the `-` and the line end around it.
    pub fn text(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The result of a command: its reply is written, or this is its reply.
pub type Outcome<T = ()> = Result<T, CommandError>;

pub(crate) const SYNTAX: CommandError = fixed("ERR syntax error");
pub(crate) const NOT_AN_INTEGER: CommandError =
    fixed("ERR value is not an integer or out of range");
/// For arguments that Redis keeps in a C `int`.
pub(crate) const NOT_AN_INT: CommandError =
    fixed("ERR value is out of range, value must between -2147483648 and 2147483647");
pub(crate) const OVERFLOW: CommandError = fixed("ERR increment or decrement would overflow");
pub(crate) const DECREMENT_OVERFLOW: CommandError = fixed("ERR decrement would overflow");
pub(crate) const TOO_LONG: CommandError =
    fixed("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
pub(crate) const NO_AUTH: CommandError = fixed("NOAUTH Authentication required.");
pub(crate) const WRONG_PASSWORD: CommandError =
    fixed("WRONGPASS invalid username-password pair or user is disabled.");
pub(crate) const DB_OUT_OF_RANGE: CommandError = fixed("ERR DB index is out of range");
pub(crate) const NO_PROTOCOL: CommandError = fixed("NOPROTO unsupported protocol version");
pub(crate) const INVALID_CURSOR: CommandError = fixed("ERR invalid cursor");
pub(crate) const UNKNOWN_KIND: CommandError = fixed(
    "ERR the key holds a type this version does not know; upgrade the server to read it, or DEL it",
);

pub(crate) const EXEC_ABORT: CommandError =
    fixed("EXECABORT Transaction discarded because of previous errors.");
pub(crate) const NO_MULTI: CommandError = fixed("ERR Command not allowed inside a transaction");
/// With `cluster-strict-slots` only.
pub(crate) const CROSS_SLOT: CommandError =
    fixed("CROSSSLOT Keys in request don't hash to the same slot");
pub(crate) const QUEUE_FULL: CommandError =
    fixed("ERR the transaction has more than 256 MiB of commands; DISCARD it and send it in parts");

/// For a command that reached the wrong executor: its class in the table is wrong.
pub(crate) const MISROUTED: CommandError =
    fixed("ERR this server sent the command to the wrong place; please report it");

/// Makes an error of a constant text.
pub(crate) const fn fixed(text: &'static str) -> CommandError {
    CommandError(Cow::Borrowed(text.as_bytes()))
}

/// Makes an error of parts that may quote the client.
pub(crate) fn quoting(parts: &[&[u8]]) -> CommandError {
    CommandError(Cow::Owned(parts.concat()))
}

pub(crate) fn wrong_arity(command: &str) -> CommandError {
    let command = command.as_bytes();
    quoting(&[b"ERR wrong number of arguments for '", command, b"' command"])
}

pub(crate) fn invalid_expire(command: &str) -> CommandError {
    quoting(&[b"ERR invalid expire time in '", command.as_bytes(), b"' command"])
}

pub(crate) fn key_too_long(len: usize) -> CommandError {
    let max = crate::layout::MAX_KEY;
    CommandError(Cow::Owned(
        format!("ERR the key is {len} bytes long; a key may have {max} at most").into_bytes(),
    ))
}

/// What a command that only read answers when the store cannot.
pub(crate) fn unreadable(error: &StoreError) -> CommandError {
    CommandError(Cow::Owned(format!("ERR cannot read: {error}").into_bytes()))
}

/// What every command of a turn that wrote, or saw what was written, answers when the commit
/// failed.
pub(crate) fn not_stored(error: &StoreError) -> CommandError {
    CommandError(Cow::Owned(format!("MISCONF the write was not stored: {error}").into_bytes()))
}
