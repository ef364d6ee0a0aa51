//! Merge operators: writes that say what to do with a value instead of what it is.
//!
//! A write that depends on what is there (count, append, take the larger) costs a read before it
//! and a lock around both. A *merge* writes only its *operand*; an operator that the keyspace names
//! puts operands and value together when somebody reads the key, and for good when a compaction
//! comes by:
//!
//! ```text
//!   user key   seqno  kind                        a read at 100:
//!   a          92     Merge   +1                  full_merge(existing 7, [+2, +1]) = 10
//!   a          81     Merge   +2                  a read at 85:
//!   a          40     Value   7    <- the base    full_merge(existing 7, [+2]) = 9
//! ```
//!
//! # The base
//! What a run of operands is folded onto is the next older record of the key that is none: a value,
//! or nothing, said by a tombstone, by a range tombstone, by an expired value or by the bottom of the
//! tree. A read always goes down to it ([`gather`]). A compaction folds the operands of one stripe
//! (`compaction/fold.rs`): onto their base if it has it, and otherwise neighbours into one operand
//! ([`MergeOperator::partial_merge`]).
//!
//! # Deadlines
//! An operand lives as long as a value written in its place would: what is read at a time is merged
//! from what is alive then, base and operands each for itself. In a keyspace with a time to live a
//! counter so counts a sliding window, and a list has what was appended lately. It follows that only
//! what dies together may be folded: base and operands of one deadline. Deadlines that come from the
//! keyspace are rounded up to a 64th of its time to live, so that a key has not more than 65 of them.
//! The deadline of a merged value is that of the last of its parts to die; none if one lives for ever.
//!
//! This way the answer depends on the records and the time of the read alone. The rejected way, a
//! merged value that keeps the deadline of its base, makes it depend on compaction too: once an
//! expired base is dropped, nobody knows which operands had been written on top of it.
//!
//! # Value files
//! An operand always stands in its table: it is short, and folding needs its bytes. Its base may stand
//! in a value file; it is read when somebody reads the key, and by a compaction that can fold something
//! onto it. What is folded is a value like any other and goes into a value file if it is long, so
//! the bytes of the old base are garbage from then on.
//!
//! # When an operator does not answer
//! It may be missing (the database was opened without it), refuse ([`Refusal`]), panic, or make more
//! than a value may have. The read gets an error that names keyspace and operator, a compaction
//! keeps the records as they are and goes on, and what was written stays: once the operator answers,
//! so does the key.

pub(crate) mod gather;
mod operators;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub use self::operators::{Add, Append, Max};

use crate::batch::CHUNKED_ABOVE;
use crate::error::{Error, Result};
use crate::key::{SeqNo, Trailer};
use crate::keyspace::About;
use crate::options::VALUE_LEN_MAX;
use crate::read::Record;
use crate::slice::Slice;

/// Longest operand, in bytes.
pub const OPERAND_LEN_MAX: usize = CHUNKED_ABOVE;
/// Names with it in front are those of the ready-made operators.
const RESERVED: &str = "atoll.";
/// Longest name of an operator, in bytes.
const NAME_LEN_MAX: usize = 255;
/// Into so many parts a time to live is cut for the deadlines of operands.
const WINDOW_PARTS: u64 = 64;

/// Why an operator does not answer.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// Puts values and operands of a keyspace together.
///
/// # Contract
/// The answers depend on the arguments alone, for ever: the name stands in the keyspace's record,
/// and another meaning needs another name. They do not depend on how a run of operands is cut:
///
/// ```text
///   full(full(v, [a]), [b])  ==  full(v, [a, b])  ==  full(v, [partial(a, b)])
/// ```
///
/// An operator is called by readers and by background work, from several threads at once. What it
/// refuses, or panics at, is an error of the read and stays as it is in a compaction.
pub trait MergeOperator: Send + Sync + 'static {
    /// The name that keyspaces know it by, of 1 to 255 bytes. Those that begin with `atoll.` are
    /// taken.
    fn name(&self) -> &str;

    /// Returns the value that `operands`, oldest first, make of `existing`; `None` if the key has no
    /// value now, or is to have none.
    fn full_merge(
        &self,
        key: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, Refusal>;

    /// Returns the operand that does what `left` and, after it, `right` do; `None` if there is none.
    /// The default never has one: operands then wait for their base.
    fn partial_merge(&self, _key: &[u8], _left: &[u8], _right: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// Refuses an operand before it is written: afterwards every read of the key would fail.
    fn check(&self, _operand: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Refuses names that an operator of the user cannot have.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_LEN_MAX || name.starts_with(RESERVED) {
        return Err(Error::InvalidInput(format!(
            "'{}' is no name for a merge operator: it needs 1 to {NAME_LEN_MAX} bytes that do not \
             begin with '{RESERVED}'",
            name.escape_default()
        )));
    }
    Ok(())
}

/// Returns the operator of that name: a ready-made one, or one of `registered`.
pub(crate) fn find(
    registered: &[Arc<dyn MergeOperator>],
    name: &str,
) -> Option<Arc<dyn MergeOperator>> {
    match name.strip_prefix(RESERVED) {
        Some(rest) => operators::ready_made(rest),
        None => registered.iter().find(|operator| operator.name() == name).cloned(),
    }
}

/// Returns the deadline of an operand that is written at `now` into a keyspace whose values live for
/// `ttl`, both in milliseconds.
pub(crate) fn window_deadline(now: u64, ttl: u64) -> u64 {
    let part = (ttl / WINDOW_PARTS).max(1);
    let exact = now.saturating_add(ttl).max(1);
    exact.checked_next_multiple_of(part).unwrap_or(exact)
}

/// A stored operand.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub(crate) seqno: SeqNo,
    /// When it dies; 0 for never.
    pub(crate) deadline: u64,
    pub(crate) bytes: Slice,
}

impl Operand {
    /// Takes a record of kind `Merge` apart. Whoever wrote or verified it knows that it has a
    /// deadline in front.
    pub(crate) fn decode(trailer: Trailer, value: Slice) -> Operand {
        let deadline = value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Operand { seqno: trailer.seqno(), deadline, bytes: value.after(8) }
    }

    /// Returns the bytes of its record.
    pub(crate) fn encode(&self) -> Slice {
        Slice::from([&self.deadline.to_le_bytes()[..], &self.bytes].concat())
    }

    pub(crate) fn is_alive(&self, now: u64) -> bool {
        self.deadline == 0 || self.deadline > now
    }
}

/// The operator of a keyspace at work on a key: its panics caught, its answers measured.
pub(crate) struct Merger<'a> {
    about: &'a About,
    operator: &'a dyn MergeOperator,
    key: &'a [u8],
}

impl<'a> Merger<'a> {
    /// Returns the operator of a keyspace, or says that it is missing.
    pub(crate) fn of(about: &'a About, user_key: &'a [u8]) -> Result<Merger<'a>> {
        let key = user_key.get(4..).unwrap_or_default();
        match &about.operator {
            Some(operator) => Ok(Merger { about, operator: operator.as_ref(), key }),
            None => Err(missing(about)),
        }
    }

    /// Merges operands, oldest first, into a value.
    pub(crate) fn full(
        &self,
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Option<Vec<u8>>> {
        let merge = || self.operator.full_merge(self.key, existing, operands);
        let merged = caught(merge).and_then(|merged| merged.map_err(|e| e.to_string()));
        let value = merged.map_err(|why| self.failed(&why))?;
        if let Some(len) = value.as_ref().map(Vec::len).filter(|len| *len > VALUE_LEN_MAX) {
            return Err(self.failed(&format!(
                "the merged value has {len} bytes, and the limit is {VALUE_LEN_MAX}"
            )));
        }
        Ok(value)
    }

    /// Merges two neighbours into one operand, if that is possible and the result is one.
    pub(crate) fn partial(&self, left: &[u8], right: &[u8]) -> Result<Option<Vec<u8>>> {
        let merge = || self.operator.partial_merge(self.key, left, right);
        let merged = caught(merge).map_err(|why| self.failed(&why))?;
        Ok(merged.filter(|operand| operand.len() <= OPERAND_LEN_MAX))
    }

    fn failed(&self, why: &str) -> Error {
        Error::InvalidInput(format!(
            "the merge operator '{}' of keyspace '{}' does not answer for key \"{}\": {why}. What was \
             merged is kept: mend the operator, or insert or remove the key",
            self.operator.name(),
            self.about.name,
            self.key.escape_ascii()
        ))
    }
}

/// Merges what is alive at `now` of `operands`, oldest first, onto `base`, which is alive.
pub(crate) fn merged(
    about: &About,
    user_key: &[u8],
    base: Option<Record>,
    operands: &[Operand],
    now: u64,
) -> Result<Option<Record>> {
    let alive: Vec<&Operand> = operands.iter().filter(|operand| operand.is_alive(now)).collect();
    if alive.is_empty() {
        return Ok(base);
    }
    let deadlines = alive.iter().map(|operand| Some(operand.deadline).filter(|d| *d != 0));
    let deadline = last_to_die(deadlines.chain(base.as_ref().map(|base| base.deadline)));
    let operands: Vec<&[u8]> = alive.iter().map(|operand| &operand.bytes[..]).collect();
    let existing = base.as_ref().map(|base| &base.value[..]);
    let value = Merger::of(about, user_key)?.full(existing, &operands)?;
    Ok(value.map(|value| Record { value: Slice::from(value), deadline }))
}

/// Returns the latest deadline, or `None` if one of them is none.
fn last_to_die(deadlines: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    deadlines.reduce(|a, b| Some(a?.max(b?))).flatten()
}

/// The answer where an operator is needed that nobody registered.
pub(crate) fn missing(about: &About) -> Error {
    let name = about.options.merge_operator.as_deref();
    Error::InvalidInput(match name {
        Some(name) => format!(
            "keyspace '{}' merges by the operator '{name}', which this program did not register: \
             open the database with it (Builder::merge_operator). What was merged is kept",
            about.name
        ),
        None => format!(
            "keyspace '{}' has no merge operator: name one in KeyspaceOptions when it is created",
            about.name
        ),
    })
}

/// Refuses operands that are too long or that the keyspace's operator refuses, and keyspaces that have
/// none. An operator that is missing refuses nothing: it is needed for reading.
pub(crate) fn check_operand(about: &About, operand: &[u8]) -> Result<()> {
    check_len(operand)?;
    let Some(name) = &about.options.merge_operator else { return Err(missing(about)) };
    let Some(operator) = &about.operator else { return Ok(()) };
    let checked = caught(|| operator.check(operand));
    checked.and_then(|checked| checked.map_err(|e| e.to_string())).map_err(|why| {
        Error::InvalidInput(format!(
            "the merge operator '{name}' of keyspace '{}' refuses the operand: {why}",
            about.name
        ))
    })
}

/// Refuses operands that are too long.
pub(crate) fn check_len(operand: &[u8]) -> Result<()> {
    if operand.len() <= OPERAND_LEN_MAX {
        return Ok(());
    }
    Err(Error::InvalidInput(format!(
        "a merge operand of {} bytes is too long: the limit is {OPERAND_LEN_MAX}, merge it in parts",
        operand.len()
    )))
}

/// Calls code of the user's; a panic becomes its message.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("it panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_of_a_window_are_few_and_never_early() {
        let ttl = 6_400;
        let mut deadlines: Vec<u64> =
            (0..ttl).map(|now| window_deadline(1_000_000 + now, ttl)).collect();
        for (now, deadline) in deadlines.iter().enumerate() {
            let exact = 1_000_000 + now as u64 + ttl;
            assert!((exact..exact + ttl / WINDOW_PARTS).contains(deadline));
        }
        deadlines.dedup();
        assert!(deadlines.len() <= 65, "{}", deadlines.len());
        assert_eq!(window_deadline(5, 3), 8, "short times are exact");
        assert_eq!(window_deadline(u64::MAX - 1, 1000), u64::MAX);
    }

    #[test]
    fn names_of_ready_made_operators_are_taken() {
        for name in ["", "atoll.add", "atoll.mine", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("mine").unwrap();
        assert!(find(&[], "atoll.add").is_some() && find(&[], "atoll.other").is_none());
        assert!(find(&[], "mine").is_none());
    }
}
